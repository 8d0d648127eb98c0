//! Where a frame's time goes on CUDA: the launch, the GPU, and the wait, each way there is.
//!
//! A frame is a graph of some small kernels in a row. It is timed back to back, and at 60 Hz with
//! the thread asleep in between (as a game's is), with the thread spinning in between (the CPU
//! stays warm, the GPU does not), and with a second thread that gives the GPU something to do
//! every half millisecond (the GPU stays warm). What `guides/architecture.md` says about launches
//! was measured with this.
//!
//! `cargo bench --bench launch -- [frames]` prints a JSON line a case.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::undocumented_unsafe_blocks
)]

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nitrox_engine::cuda::{Args, Cuda, Event, Graph, Grid, Module, Pinned, Stream};

const KERNELS: &str = r#"
extern "C" __global__ void work(float* x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] = x[i] * 0.5f + 1.0f;
}
extern "C" __global__ void flag(volatile unsigned* host, unsigned* count) {
    *host = ++*count;
}
"#;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Wait {
    Event,
    Stream,
    /// A word of host memory that the last kernel writes.
    Flag,
    /// The driver's own blocking wait.
    Synchronize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Copies {
    /// A copy node from pinned memory in front and one to it behind.
    Nodes,
    None,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Pace {
    BackToBack,
    Sleep,
    Spin,
    WarmGpu,
}

struct Frame {
    stream: Stream,
    done: Event,
    host: Pinned,
    graph: Graph,
    sent: u32,
}

fn frame(cuda: &Cuda, kernels: usize, copies: Copies, wait: Wait) -> Frame {
    let module = Module::with_text("bench/launch.cu", KERNELS);
    let n = 4096;
    let block = Box::leak(Box::new(cuda.pool().allocate(n * 4 + 256).unwrap()));
    let (x, count) = (block.addr(), block.addr() + n as u64 * 4);
    let host = cuda.pinned(n * 4).unwrap();
    let stream = cuda.stream().unwrap();
    let cx = cuda.context(&stream);
    unsafe { cx.memset_zero(x, n * 4 + 256) }.unwrap();
    let (work, flag) =
        (cx.function(&module, "work").unwrap(), cx.function(&module, "flag").unwrap());
    stream.synchronize().unwrap();
    let graph = cuda
        .capture(&stream, |cx| unsafe {
            if copies == Copies::Nodes {
                cx.upload(x, host.host(), 1152)?;
            }
            for _ in 0..kernels {
                let mut args = Args::new();
                args.ptr(x).i32(n as i32);
                cx.launch(&work, Grid::new(n / 128, 128)?, &mut args)?;
            }
            if copies == Copies::Nodes {
                cx.download(host.host().wrapping_add(4096), x, 256)?;
            }
            if wait == Wait::Flag {
                let mut args = Args::new();
                args.ptr(host.device()).ptr(count);
                cx.launch(&flag, Grid::new(1, 1)?, &mut args)?;
            }
            Ok(())
        })
        .unwrap();
    let done = cuda.event().unwrap();
    Frame { stream, done, host, graph, sent: 0 }
}

/// Microseconds until the launch returned, and until the end was seen.
fn run(frame: &mut Frame, wait: Wait) -> (f64, f64) {
    let began = Instant::now();
    unsafe { frame.graph.launch(&frame.stream) }.unwrap();
    frame.sent += 1;
    if wait == Wait::Event {
        frame.done.record(&frame.stream).unwrap();
    }
    let launched = began.elapsed();
    match wait {
        Wait::Event => while !frame.done.query().unwrap() {},
        Wait::Stream => while !frame.stream.query().unwrap() {},
        Wait::Synchronize => frame.stream.synchronize().unwrap(),
        Wait::Flag => {
            let word = unsafe { AtomicU32::from_ptr(frame.host.host().cast()) };
            while word.load(Ordering::Acquire) != frame.sent {
                std::hint::spin_loop();
            }
        }
    }
    (launched.as_secs_f64() * 1e6, began.elapsed().as_secs_f64() * 1e6)
}

fn paced(frame: &mut Frame, wait: Wait, pace: Pace, frames: usize) -> (Vec<f64>, Vec<f64>) {
    let period = Duration::from_nanos(16_666_667);
    let mut next = Instant::now();
    (0..frames)
        .map(|_| {
            next += period;
            match pace {
                Pace::BackToBack => {}
                Pace::Spin => while Instant::now() < next {},
                _ => std::thread::sleep(next.saturating_duration_since(Instant::now())),
            }
            run(frame, wait)
        })
        .unzip()
}

fn main() {
    let frames = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(150);
    let cuda = Cuda::open(0, None).unwrap();
    let stop = AtomicBool::new(false);
    for (kernels, copies, wait) in [
        (1, Copies::None, Wait::Event),
        (3, Copies::Nodes, Wait::Event),
        (3, Copies::None, Wait::Event),
        (5, Copies::Nodes, Wait::Event),
        (5, Copies::None, Wait::Event),
        (5, Copies::None, Wait::Stream),
        (5, Copies::None, Wait::Synchronize),
        (4, Copies::None, Wait::Flag),
    ] {
        let mut frame = frame(&cuda, kernels, copies, wait);
        for _ in 0..200 {
            run(&mut frame, wait);
        }
        for pace in [Pace::BackToBack, Pace::Sleep, Pace::Spin, Pace::WarmGpu] {
            let count = if pace == Pace::BackToBack { 2000 } else { frames };
            stop.store(pace != Pace::WarmGpu, Ordering::Relaxed);
            let (mut launch, mut total) = std::thread::scope(|scope| {
                if pace == Pace::WarmGpu {
                    scope.spawn(|| {
                        let mut busy = self::frame(&cuda, 1, Copies::None, Wait::Event);
                        while !stop.load(Ordering::Relaxed) {
                            run(&mut busy, Wait::Event);
                            std::thread::sleep(Duration::from_micros(500));
                        }
                    });
                }
                let times = paced(&mut frame, wait, pace, count);
                stop.store(true, Ordering::Relaxed);
                times
            });
            launch.sort_by(f64::total_cmp);
            total.sort_by(f64::total_cmp);
            let at = |t: &[f64], q: f64| t[((t.len() - 1) as f64 * q).round() as usize];
            println!(
                "{{\"case\": \"launch/{kernels} kernels\", \"copies\": \"{copies:?}\", \
                 \"wait\": \"{wait:?}\", \"pace\": \"{pace:?}\", \"frames\": {count}, \
                 \"launch_p50\": {:.1}, \"p50\": {:.1}, \"p99\": {:.1}}}",
                at(&launch, 0.5),
                at(&total, 0.5),
                at(&total, 0.99)
            );
        }
    }
}
