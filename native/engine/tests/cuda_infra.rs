//! The CUDA device's infrastructure on a GPU: `NITROX_TEST_CUDA=1` runs these, elsewhere they are
//! left out and say so.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::{Arc, Barrier, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use nitrox_engine::cuda::cache::{Cache, Origin};
use nitrox_engine::cuda::{Args, Cuda, Function, Grid, Module, Nodes, Nvrtc, all_modules};
use nitrox_engine::op::{Unary, UnaryKind};
use nitrox_engine::pool::Block;
use nitrox_engine::{DType, Device, Error, Op, Spec, Weight};

const KERNELS: &str = r#"
#include "common/types.cuh"

struct Shape { u8 tag; s64 length; s32 axes[3]; };

extern "C" __global__ void fill(u32 *y, Shape s, f32 a, f64 b, u32 c) {
    s64 i = (s64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < s.length) y[i] = (u32)i * s.axes[2] + s.tag + (u32)a + (u32)b + c;
}

extern "C" __global__ void add(u32 *y, const u32 *x, s64 n) {
    for (s64 i = (s64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (s64)gridDim.x * blockDim.x)
        y[i] += x[i];
}

// Reverses 1,024 words a block by way of as much shared memory as it is given.
extern "C" __global__ void reverse(u32 *y, u32 words) {
    extern __shared__ u32 stage[];
    u32 last = words - 1;
    for (u32 i = threadIdx.x; i < words; i += blockDim.x) stage[last - i] = i;
    __syncthreads();
    for (u32 i = threadIdx.x; i < words; i += blockDim.x) y[i] = stage[i];
}

// Every block adds one and waits until all did.
extern "C" __global__ void meet(u32 *count, u32 *seen) {
    if (threadIdx.x == 0) {
        __threadfence();
        atomicAdd(count, 1);
        while (*(volatile u32 *)count < gridDim.x) {}
        seen[blockIdx.x] = *(volatile u32 *)count;
    }
}

extern "C" __global__ void spin(u64 nanoseconds, u32 *y, u32 value) {
    u64 start, now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
    do asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    while (now - start < nanoseconds);
    *y = value;
}
"#;

fn asked(test: &str) -> bool {
    let asked = std::env::var("NITROX_TEST_CUDA").as_deref() == Ok("1");
    if !asked {
        println!("left out: {test}: NITROX_TEST_CUDA is not 1");
    }
    asked
}

/// The device, one for all tests.
fn cuda(test: &str) -> Option<&'static Arc<Cuda>> {
    static CUDA: OnceLock<Arc<Cuda>> = OnceLock::new();
    asked(test).then(|| CUDA.get_or_init(|| Cuda::open(0, None).unwrap()))
}

fn module() -> Module {
    Module::with_text("test/infra.cu", KERNELS)
}

fn function(cuda: &Cuda, name: &'static str) -> Function {
    cuda.context(cuda.main()).function(&module(), name).unwrap()
}

fn words(cuda: &Cuda, block: &Block, n: usize) -> Vec<u32> {
    let mut bytes = vec![0; n * 4];
    cuda.read(block.addr(), &mut bytes).unwrap();
    bytes.chunks(4).map(|c| u32::from_ne_bytes(c.try_into().unwrap())).collect()
}

fn bytes(n: usize, seed: usize) -> Vec<u8> {
    (0..n).map(|i| ((i * 31 + seed * 17) >> 3) as u8).collect()
}

#[test]
fn a_missing_gpu_is_an_error_that_says_what_was_looked_for() {
    // On a machine without a driver, and on one with fewer GPUs than this.
    match Cuda::open(999, None) {
        Err(Error::Unavailable { device, message }) => {
            assert_eq!(device, "{:cuda, 999}");
            let known = ["libcuda", "shows", "cuInit"].iter().any(|k| message.contains(k));
            assert!(known, "{message}");
            println!("{message}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_device_tells_its_properties() {
    let Some(cuda) = cuda("the_device_tells_its_properties") else { return };
    let props = cuda.props();
    println!("{props:?}, {}, driver for {:?}", props.arch(), cuda.driver_version());
    println!("{:?}", cuda.nvrtc().unwrap());
    assert!(props.major >= 8 && props.sms > 0 && props.shared_optin >= 99 << 10);
    assert!(props.l2 > 0 && props.memory > 0 && !props.name.is_empty());
    let (free, total) = cuda.memory_info().unwrap();
    assert!(free > 0 && free <= total && total <= props.memory);
    assert_eq!(Cuda::count().ok().map(|n| n > 0), Some(true));
}

#[test]
fn bytes_go_there_and_back_in_order() {
    let Some(cuda) = cuda("bytes_go_there_and_back_in_order") else { return };
    for n in [0, 1, 3, 255, 4096, 256 << 10, (256 << 10) + 1, 5_000_001] {
        let (a, b) = (cuda.pool().allocate(n).unwrap(), cuda.pool().allocate(n).unwrap());
        for seed in 0..20 {
            // More writes than there are staging buffers; each host buffer is gone at once.
            cuda.write(a.addr(), &bytes(n, seed)).unwrap();
        }
        cuda.copy(b.addr(), a.addr(), n).unwrap();
        cuda.write(a.addr(), &bytes(n, 99)).unwrap();
        let mut back = vec![0; n];
        cuda.read(b.addr(), &mut back).unwrap();
        assert!(back == bytes(n, 19), "{n} bytes");
        cuda.read(a.addr(), &mut back).unwrap();
        assert!(back == bytes(n, 99), "{n} bytes");
    }
}

#[test]
fn any_thread_may_call() {
    let Some(cuda) = cuda("any_thread_may_call") else { return };
    thread::scope(|scope| {
        for t in 0..16 {
            scope.spawn(move || {
                for i in 0..50 {
                    let n = 1 + (t * 7919 + i * 104_729) % 600_000;
                    let block = cuda.pool().allocate(n).unwrap();
                    cuda.write(block.addr(), &bytes(n, t)).unwrap();
                    let mut back = vec![0; n];
                    cuda.read(block.addr(), &mut back).unwrap();
                    assert!(back == bytes(n, t));
                }
            });
        }
    });
}

#[test]
fn out_of_memory_is_an_error_and_no_loss() {
    let Some(cuda) = cuda("out_of_memory_is_an_error_and_no_loss") else { return };
    let held = cuda.pool().allocate(1000).unwrap();
    cuda.write(held.addr(), &bytes(1000, 5)).unwrap();
    match cuda.pool().allocate(1 << 50) {
        Err(Error::OutOfMemory { requested, .. }) => assert_eq!(requested, 1 << 50),
        other => panic!("{other:?}"),
    }
    let mut back = vec![0; 1000];
    cuda.read(held.addr(), &mut back).unwrap();
    assert!(back == bytes(1000, 5) && !cuda.is_poisoned());
    cuda.pool().trim();
    assert!(cuda.pool().allocate(100 << 20).is_ok());
}

#[test]
fn kernels_get_their_parameters() {
    let Some(cuda) = cuda("kernels_get_their_parameters") else { return };
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Shape {
        tag: u8,
        length: i64,
        axes: [i32; 3],
    }
    let n = 1001;
    let block = cuda.pool().allocate(n * 4).unwrap();
    let (cx, f) = (cuda.context(cuda.main()), function(cuda, "fill"));
    assert!(f.registers() > 0);
    let shape = Shape { tag: 200, length: n as i64, axes: [0, 0, 3] };
    let mut args = Args::new();
    args.ptr(block.addr()).value(shape).f32(10.0).f64(20.0).u32(5);
    let grid = Grid::new(n.div_ceil(128), 128).unwrap();
    // SAFETY: these are the kernel's parameters, and the block holds `n` words.
    unsafe { cx.launch(&f, grid, &mut args) }.unwrap();
    let expected: Vec<u32> = (0..n as u32).map(|i| i * 3 + 200 + 10 + 20 + 5).collect();
    assert_eq!(words(cuda, &block, n), expected);
    // SAFETY: no block runs.
    unsafe { cx.launch(&f, Grid::new(0, 128).unwrap(), &mut Args::new()) }.unwrap();
    // SAFETY: the block holds `n` words.
    unsafe { cx.memset_zero(block.addr() + 4, (n - 1) * 4) }.unwrap();
    assert_eq!(words(cuda, &block, n)[..3], [235, 0, 0]);

    match cx.function(&module(), "missing") {
        Err(Error::Internal(what)) => assert!(what.contains("missing"), "{what}"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(cx.function(&Module::new("no/such.cu"), "f"), Err(Error::Internal(_))));
}

#[test]
fn large_shared_memory_is_opted_in() {
    let Some(cuda) = cuda("large_shared_memory_is_opted_in") else { return };
    let (cx, f) = (cuda.context(cuda.main()), function(cuda, "reverse"));
    let optin = cuda.props().shared_optin;
    for bytes in [1 << 10, 48 << 10, (48 << 10) + 4, 99 << 10, optin] {
        let n = bytes as usize / 4;
        let block = cuda.pool().allocate(n * 4).unwrap();
        let mut args = Args::new();
        args.ptr(block.addr()).u32(n as u32);
        let grid = Grid::new(1, 256).unwrap().shared(bytes);
        // SAFETY: these are the kernel's parameters, and the block holds `n` words.
        unsafe { cx.launch(&f, grid, &mut args) }.unwrap();
        assert!(words(cuda, &block, n).iter().rev().enumerate().all(|(i, &w)| w == i as u32));
        assert!(cx.blocks_per_sm(&f, 256, bytes).unwrap() >= 1);
    }
    let grid = Grid::new(1, 256).unwrap().shared(optin + 1);
    // SAFETY: refused before it runs.
    let result = unsafe { cx.launch(&f, grid, Args::new().ptr(0).u32(0)) };
    assert!(matches!(result, Err(Error::Internal(_))), "{result:?}");
}

#[test]
fn the_blocks_of_a_cooperative_grid_meet() {
    let Some(cuda) = cuda("the_blocks_of_a_cooperative_grid_meet") else { return };
    assert!(cuda.props().cooperative);
    let (cx, f) = (cuda.context(cuda.main()), function(cuda, "meet"));
    let blocks = (cx.blocks_per_sm(&f, 64, 0).unwrap() * cuda.props().sms) as usize;
    let block = cuda.pool().allocate((blocks + 1) * 4).unwrap();
    // SAFETY: the block is that large, and these are the kernel's parameters.
    unsafe {
        cx.memset_zero(block.addr(), (blocks + 1) * 4).unwrap();
        let mut args = Args::new();
        args.ptr(block.addr()).ptr(block.addr() + 4);
        cx.launch(&f, Grid::new(blocks, 64).unwrap().cooperative(), &mut args).unwrap();
    }
    assert!(words(cuda, &block, blocks + 1).iter().all(|&w| w == blocks as u32));
    // SAFETY: refused before it runs.
    let result = unsafe {
        let mut args = Args::new();
        args.ptr(block.addr()).ptr(block.addr() + 4);
        cx.launch(&f, Grid::new(blocks + 1, 64).unwrap().cooperative(), &mut args)
    };
    assert!(matches!(result, Err(Error::Driver { .. })), "{result:?}");
    assert!(!cuda.is_poisoned());
}

#[test]
fn a_module_is_compiled_once_however_many_ask() {
    let Some(cuda) = cuda("a_module_is_compiled_once_however_many_ask") else { return };
    let module = module().define("ONCE", std::process::id());
    let entry = || {
        let nvrtc = Nvrtc::find(None, &cuda.props().arch()).unwrap();
        Cache::from_env().cubin(&nvrtc, &module, &cuda.props().arch()).unwrap()
    };
    let barrier = Barrier::new(12);
    let start = Instant::now();
    let functions: Vec<Function> = thread::scope(|scope| {
        let ask = || {
            barrier.wait();
            cuda.context(cuda.main()).function(&module, "add").unwrap()
        };
        let threads: Vec<_> = (0..12).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    println!("12 threads had their function after {:?}", start.elapsed());
    assert!(functions.iter().all(|f| f.same(&functions[0])));
    assert_eq!(entry().1, Origin::Disk);
}

#[test]
fn an_entry_that_the_driver_refuses_is_rebuilt() {
    let Some(cuda) = cuda("an_entry_that_the_driver_refuses_is_rebuilt") else { return };
    let module = module().define("REFUSED", std::process::id());
    let (cache, arch) = (Cache::from_env(), cuda.props().arch());
    let nvrtc = Nvrtc::find(None, &arch).unwrap();
    let foreign = if arch == "sm_120a" { "sm_90a" } else { "sm_120a" };
    let (foreign_cubin, _) = cache.cubin(&nvrtc, &module, foreign).unwrap();
    let of = |arch| cache.entry(&nvrtc, &module, arch).unwrap().unwrap();
    fs::create_dir_all(of(&arch).parent().unwrap()).unwrap();
    fs::copy(of(foreign), of(&arch)).unwrap();
    assert_eq!(cache.cubin(&nvrtc, &module, &arch).unwrap(), (foreign_cubin.clone(), Origin::Disk));
    cuda.context(cuda.main()).function(&module, "add").unwrap();
    let (cubin, origin) = cache.cubin(&nvrtc, &module, &arch).unwrap();
    assert!(origin == Origin::Disk && cubin != foreign_cubin);
}

#[test]
fn warm_up_loads_every_module() {
    let Some(cuda) = cuda("warm_up_loads_every_module") else { return };
    let op = Op::Unary(Unary { kind: UnaryKind::Exp });
    let spec = Spec::new(DType::F32, [8]).unwrap();
    let weight = || cuda.weight(&op, &[Some(&spec)]).unwrap();
    assert_eq!(weight(), Weight::Heavy);
    for round in ["first", "second"] {
        let (start, mut done, mut failed) = (Instant::now(), 0, Vec::new());
        let result = cuda.warmup(|p| {
            done += 1;
            assert_eq!(p.done, done);
            failed.extend(p.result.as_ref().err().map(Error::to_string));
        });
        assert!(result.is_ok() && failed.is_empty(), "{}", failed.join("\n"));
        println!("{round} warm-up: {done} modules in {:?}", start.elapsed());
        assert_eq!(done, all_modules().len());
    }
    assert_eq!(weight(), Weight::Light);
}

#[test]
fn events_order_streams() {
    let Some(cuda) = cuda("events_order_streams") else { return };
    let (first, second, event) =
        (cuda.stream().unwrap(), cuda.stream().unwrap(), cuda.event().unwrap());
    assert!(event.query().unwrap(), "never recorded");
    let block = cuda.pool().allocate(8).unwrap();
    let (spin, add) = (function(cuda, "spin"), function(cuda, "add"));
    let (x, y) = (block.addr(), block.addr() + 4);
    cuda.write(block.addr(), &[0; 8]).unwrap();
    cuda.synchronize().unwrap();
    let one = Grid::new(1, 1).unwrap();
    // SAFETY: the block is that large, and these are the kernels' parameters.
    unsafe {
        let mut args = Args::new();
        cuda.context(&first).launch(&spin, one, args.u64(200_000_000).ptr(x).u32(41)).unwrap();
        event.record(&first).unwrap();
        second.wait(&event).unwrap();
        cuda.context(&second).launch(&add, one, Args::new().ptr(y).ptr(x).i64(1)).unwrap();
    }
    assert!(!event.query().unwrap() && !first.query().unwrap());
    event.synchronize().unwrap();
    assert!(event.query().unwrap() && first.query().unwrap());
    second.synchronize().unwrap();
    assert_eq!(words(cuda, &block, 2), [41, 41]);
}

#[test]
fn pinned_memory_is_seen_by_both() {
    let Some(cuda) = cuda("pinned_memory_is_seen_by_both") else { return };
    let pinned = cuda.pinned(64).unwrap();
    assert_eq!(pinned.bytes(), 64);
    let spin = function(cuda, "spin");
    let mut args = Args::new();
    args.u64(0).ptr(pinned.device() + 4).u32(7);
    // SAFETY: these are the kernel's parameters, and the buffer is mapped.
    unsafe { cuda.context(cuda.main()).launch(&spin, Grid::new(1, 1).unwrap(), &mut args) }
        .unwrap();
    cuda.synchronize().unwrap();
    // SAFETY: the device is done with it.
    let seen = unsafe { pinned.host().cast::<[u32; 3]>().read() };
    assert_eq!(seen, [0, 7, 0]);
}

#[test]
fn a_capture_is_launched_as_one() {
    let Some(cuda) = cuda("a_capture_is_launched_as_one") else { return };
    let stream = cuda.stream().unwrap();
    let n = 1000usize;
    let block = cuda.pool().allocate(n * 4).unwrap();
    let out = cuda.pool().allocate(n * 4).unwrap();
    let (input, output) = (cuda.pinned(n * 4).unwrap(), cuda.pinned(n * 4).unwrap());
    // Not loaded yet: a capture may be the first to ask.
    let module = module().define("CAPTURED", 1);
    let mut graph = cuda
        .capture(&stream, |cx| {
            let add = cx.function(&module, "add")?;
            let mut args = Args::new();
            args.ptr(out.addr()).ptr(block.addr()).i64(n as i64);
            // SAFETY: all the buffers hold `n` words and outlive the graph.
            unsafe {
                cx.upload(block.addr(), input.host(), n * 4)?;
                cx.memset_zero(out.addr(), n * 4)?;
                cx.launch(&add, Grid::new(4, 128)?, &mut args)?;
                cx.launch(&add, Grid::new(4, 128)?, &mut args)?;
                cx.download(output.host(), out.addr(), n * 4)
            }
        })
        .unwrap();
    assert_eq!(graph.nodes(), Nodes { kernels: 2, copies: 2, memsets: 1, other: 0 });
    for round in 0..200u32 {
        let numbers: Vec<u32> = (0..n as u32).map(|i| i * 7 + round).collect();
        // SAFETY: the buffers hold `n` words, and the device is done with them each round.
        unsafe {
            input.host().cast::<u32>().copy_from_nonoverlapping(numbers.as_ptr(), n);
            graph.launch(&stream).unwrap();
            stream.synchronize().unwrap();
            let got = std::slice::from_raw_parts(output.host().cast::<u32>(), n);
            assert!(got.iter().zip(&numbers).all(|(g, x)| *g == 2 * x));
        }
    }
}

#[test]
fn a_capture_that_fails_leaves_the_stream_usable() {
    let Some(cuda) = cuda("a_capture_that_fails_leaves_the_stream_usable") else { return };
    let (stream, block) = (cuda.stream().unwrap(), cuda.pool().allocate(4).unwrap());
    let spin = function(cuda, "spin");
    let launch = |cx: &nitrox_engine::cuda::Context, value| {
        let mut args = Args::new();
        args.u64(0).ptr(block.addr()).u32(value);
        // SAFETY: these are the kernel's parameters.
        unsafe { cx.launch(&spin, Grid::new(1, 1)?, &mut args) }
    };
    let failed = cuda.capture(&stream, |cx| {
        launch(cx, 1)?;
        Err(Error::Internal("on purpose".into()))
    });
    assert!(matches!(failed, Err(Error::Internal(what)) if what == "on purpose"));
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        cuda.capture(&stream, |cx| {
            launch(cx, 2)?;
            panic!("on purpose")
        })
    }));
    assert!(panicked.is_err());
    // Waiting breaks a capture.
    let waited = cuda.capture(&stream, |cx| {
        launch(cx, 3)?;
        cx.stream().synchronize()
    });
    assert!(matches!(waited, Err(Error::Driver { .. })), "{waited:?}");
    assert!(!cuda.is_poisoned());
    let mut graph = cuda.capture(&stream, |cx| launch(cx, 4)).unwrap();
    // SAFETY: the block is alive until after the wait.
    unsafe { graph.launch(&stream) }.unwrap();
    stream.synchronize().unwrap();
    assert_eq!(words(cuda, &block, 1), [4]);
}

#[test]
fn other_threads_work_on_during_a_capture() {
    let Some(cuda) = cuda("other_threads_work_on_during_a_capture") else { return };
    let stream = cuda.stream().unwrap();
    let block = cuda.pool().allocate(4).unwrap();
    let spin = function(cuda, "spin");
    let module = module().define("MEANWHILE", 1);
    let graph = cuda.capture(&stream, |cx| {
        thread::scope(|scope| {
            scope.spawn(|| {
                // New segments, copies both ways, waits, a module to load, things to destroy.
                let large = cuda.pool().allocate(200 << 20).unwrap();
                cuda.write(large.addr(), &bytes(1000, 1)).unwrap();
                cuda.write(large.addr(), &bytes(1 << 20, 1)).unwrap();
                let mut back = vec![0; 1 << 20];
                cuda.read(large.addr(), &mut back).unwrap();
                assert!(back == bytes(1 << 20, 1));
                cuda.context(cuda.main()).function(&module, "add").unwrap();
                drop((cuda.stream().unwrap(), cuda.event().unwrap(), cuda.pinned(100).unwrap()));
                drop(large);
                cuda.pool().trim();
                cuda.synchronize().unwrap();
            });
        });
        let mut args = Args::new();
        args.u64(0).ptr(block.addr()).u32(9);
        // SAFETY: these are the kernel's parameters.
        unsafe { cx.launch(&spin, Grid::new(1, 1)?, &mut args) }
    });
    let mut graph = graph.unwrap();
    assert_eq!(graph.nodes().kernels, 1);
    // SAFETY: the block is alive until after the wait.
    unsafe { graph.launch(&stream) }.unwrap();
    stream.synchronize().unwrap();
    assert_eq!(words(cuda, &block, 1), [9]);
}

#[test]
fn an_illegal_address_poisons_the_device_and_nothing_else() {
    if !asked("an_illegal_address_poisons_the_device_and_nothing_else") {
        return;
    }
    // In a process of its own, since there is no way back.
    let mut child = Command::new(std::env::current_exe().unwrap());
    let arguments = ["--exact", "poisoned", "--ignored", "--nocapture", "--test-threads=1"];
    let output = child.args(arguments).output().unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
    assert!(out.contains("poisoned and alive"), "{out}\n{err}");
    print!("{out}");
}

#[test]
#[ignore = "loses the process's context; an_illegal_address_poisons… runs it"]
fn poisoned() {
    let cuda = Cuda::open(0, None).unwrap();
    let stream = cuda.stream().unwrap();
    let event = cuda.event().unwrap();
    let pinned = cuda.pinned(4).unwrap();
    let block = cuda.pool().allocate(1000).unwrap();
    let spin = function(&cuda, "spin");
    let one = Grid::new(1, 1).unwrap();
    let record = |cx: &nitrox_engine::cuda::Context| {
        let mut args = Args::new();
        args.u64(0).ptr(block.addr()).u32(9);
        // SAFETY: these are the kernel's parameters.
        unsafe { cx.launch(&spin, one, &mut args) }
    };
    let mut graph = cuda.capture(&stream, record).unwrap();
    let mut args = Args::new();
    args.u64(0).ptr(0xdead_0000_0000).u32(1);
    // SAFETY: none. This is the point.
    unsafe { cuda.context(cuda.main()).launch(&spin, one, &mut args) }.unwrap();
    let first = cuda.synchronize().unwrap_err().to_string();
    println!("{first}");
    assert!(first.contains("CUDA_ERROR_ILLEGAL_ADDRESS (700)"), "{first}");
    assert!(cuda.is_poisoned());

    let start = Instant::now();
    let mut back = [0; 4];
    let device = Device::Cuda(Arc::clone(&cuda));
    let results = [
        cuda.write(block.addr(), &[1; 4]),
        cuda.read(block.addr(), &mut back),
        cuda.copy(block.addr(), block.addr() + 256, 4),
        cuda.synchronize(),
        cuda.stream().map(drop),
        cuda.event().map(drop),
        cuda.pinned(1).map(drop),
        cuda.memory_info().map(drop),
        cuda.capture(&stream, record).map(drop),
        event.record(&stream),
        event.query().map(drop),
        event.synchronize(),
        stream.wait(&event),
        stream.query().map(drop),
        // SAFETY: nothing is launched.
        unsafe { graph.launch(&stream) },
        cuda.context(&stream).function(&module().define("NEW", 1), "spin").map(drop),
        cuda.context(&stream).blocks_per_sm(&spin, 32, 0).map(drop),
        // SAFETY: nothing is launched.
        unsafe { cuda.context(&stream).launch(&spin, one, &mut args) },
        // Larger than what is free, so that a segment is asked for.
        cuda.pool().allocate(1 << 30).map(drop),
        device.synchronize(),
    ];
    for (i, result) in results.into_iter().enumerate() {
        match result {
            Err(error @ Error::Poisoned { .. }) => assert_eq!(error.to_string(), first, "call {i}"),
            other => panic!("call {i}: {other:?}"),
        }
    }
    drop((graph, event, stream, pinned, spin, block, device));
    // The last handle: releases nothing, panics at nothing.
    drop(cuda);
    assert!(start.elapsed() < Duration::from_secs(5));
    println!("poisoned and alive");
}
