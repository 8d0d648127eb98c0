//! Keeping a GPU and its driver awake between the frames of a real-time agent.
//!
//! After 16 ms of sleep the code and tables of the driver have left the caches, and the bus and the
//! GPU have gone to rest: a launch of five kernels that takes 11 µs back to back takes 36. A thread
//! that launches next to nothing every half millisecond brings that to 26 (`benches/launch.rs`,
//! H200), for about 2 % of a core and the GPU's idle clocks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Cuda;
use super::graph::Graph;
use super::runner::Signal;
use super::stream::Stream;
use crate::error::{Error, Result};
use crate::pool::lock;

const PERIOD: Duration = Duration::from_micros(500);
/// When the GPU is busy with real work it is awake anyway.
const PATIENCE: Duration = Duration::from_micros(50);

/// The thread, while there is one. Dropping it tells the thread to end and does not wait.
#[derive(Debug)]
pub(super) struct Awake {
    stop: Arc<AtomicBool>,
    _thread: JoinHandle<()>,
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A graph of one small kernel.
struct Nudge {
    stream: Stream,
    signal: Signal,
    graph: Graph,
}

impl Nudge {
    fn new(cuda: &Arc<Cuda>) -> Result<Self> {
        let (stream, signal) = (cuda.stream()?, Signal::new(cuda)?);
        // The signal's words were written on the main stream.
        cuda.main().synchronize()?;
        let graph = cuda.capture(&stream, |cx| signal.capture(cx))?;
        Ok(Nudge { stream, signal, graph })
    }

    fn give(&mut self) -> Result<()> {
        // SAFETY: what was captured lives in `signal`.
        unsafe { self.graph.launch(&self.stream) }?;
        self.signal.launched();
        let began = Instant::now();
        while !self.signal.is_seen() && began.elapsed() < PATIENCE {
            std::hint::spin_loop();
        }
        Ok(())
    }
}

impl Cuda {
    /// Starts or ends the thread that keeps the GPU awake. While it runs the device stays open; it
    /// ends by itself where the device is poisoned.
    pub fn keep_awake(self: &Arc<Self>, on: bool) -> Result<()> {
        let mut awake = lock(&self.awake);
        if !on {
            *awake = None;
        } else if awake.is_none() {
            let mut nudge = Nudge::new(self)?;
            let stop = Arc::new(AtomicBool::new(false));
            let told = Arc::clone(&stop);
            let thread = std::thread::Builder::new()
                .name("nitrox-awake".into())
                .spawn(move || {
                    while !told.load(Ordering::Relaxed) && nudge.give().is_ok() {
                        std::thread::sleep(PERIOD);
                    }
                })
                .map_err(|e| Error::Internal(format!("no thread to keep the GPU awake: {e}")))?;
            *awake = Some(Awake { stop, _thread: thread });
        }
        Ok(())
    }
}
