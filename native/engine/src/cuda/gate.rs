//! A run queued before its inputs are known: its graph waits on the device behind a kernel that
//! reads a word of the host's memory, so that a frame that is due calls no driver.
//!
//! The wait ends by itself after [`LIMIT`], because what waits in a stream holds up whoever waits
//! for the whole device. The run then goes on with the inputs of the run before, and its results
//! are thrown away; `Plan::repeatable` says where that does no harm.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::time::{Duration, Instant};

use super::Cuda;
use super::launch::{Args, Context, Grid};
use super::memory::Pinned;
use super::modules::Module;
use crate::device::Device;
use crate::error::Result;
use crate::spec::{DType, Spec};
use crate::tensor::Tensor;

/// How long a frame is waited for.
const LIMIT: Duration = Duration::from_millis(5);

/// How long a gate that closed while the host said go takes to tell what it saw: some trips over
/// the bus.
const VERDICT: Duration = Duration::from_millis(1);

/// Words of the host's memory, a cache line each.
const LINE: usize = 64;

#[derive(Debug)]
pub(super) struct Gate {
    words: Pinned,
    /// The count on the device.
    passes: Tensor,
    /// Of the latest gate; the words of others are not for it.
    ticket: u32,
}

pub(super) fn module() -> Module {
    Module::new("graph/gate.cu")
}

impl Gate {
    pub fn new(cuda: &Arc<Cuda>) -> Result<Self> {
        // Compiled and loaded before a frame.
        cuda.context(cuda.main()).function(&module(), "gate")?;
        let device = Device::Cuda(Arc::clone(cuda));
        let passes = Tensor::from_bytes(&device, Spec::scalar(DType::U32), &0u32.to_ne_bytes())?;
        Ok(Gate { words: cuda.pinned(3 * LINE)?, passes, ticket: 0 })
    }

    /// Queues the first kernel of a graph.
    pub fn capture(&self, cx: &Context) -> Result<()> {
        let gate = cx.function(&module(), "gate")?;
        let mut args = Args::new();
        args.ptr(self.words.device()).ptr(self.passes.addr()).u64(LIMIT.as_nanos() as u64);
        // SAFETY: the kernel's parameters; both live as long as the runner.
        unsafe { cx.launch(&gate, Grid::new(1, 1)?, &mut args) }
    }

    /// Counts a launch. Twice the ticket and one more are what the host says.
    pub fn launched(&mut self) {
        self.ticket = (self.ticket + 1) & (u32::MAX >> 2);
    }

    /// Lets pass what waits. False where the gate had closed before: what was behind it ran, or
    /// runs, on its own.
    pub fn open(&self) -> bool {
        let go = self.ticket * 2 + 1;
        self.word(0).store(go, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.word(1).load(Ordering::Acquire) != self.ticket {
            return true;
        }
        let began = Instant::now();
        loop {
            let verdict = self.word(2).load(Ordering::Acquire);
            if verdict / 2 == self.ticket || began.elapsed() > VERDICT {
                return verdict == go;
            }
            std::hint::spin_loop();
        }
    }

    /// Has what waits run now, for nobody.
    pub fn close(&self) {
        self.word(0).store(self.ticket * 2, Ordering::Release);
    }

    fn word(&self, i: usize) -> &AtomicU32 {
        // SAFETY: one of the three aligned words; both sides access them as wholes.
        unsafe { AtomicU32::from_ptr(self.words.host().wrapping_add(i * LINE).cast()) }
    }
}
