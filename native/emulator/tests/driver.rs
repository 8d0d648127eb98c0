//! The driver's functions, called as a program calls them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::ffi::{CStr, CString, c_char, c_uint, c_void};
use std::process::Command;
use std::ptr;
use std::thread;

use cudarc::driver::sys::{
    CUevent, CUfunction, CUgraph, CUgraphExec, CUlaunchAttribute, CUlaunchAttributeID,
    CUlaunchAttributeValue, CUlaunchConfig, CUmodule, CUstream,
};
use nitrox_emulator::driver::*;

/// `add(y, x, n)`: y[i] += x[i], with a thread for each i; `wait(word)`: until the word is not 0;
/// `store(p, v)`: one word.
const KERNELS: &str = "
.version 8.0
.target sm_90a
.address_size 64

.visible .entry add(.param .u64 y, .param .u64 x, .param .u32 n)
{
    .reg .pred %p<2>;
    .reg .b32 %r<8>;
    .reg .b64 %rd<8>;
    ld.param.u64 %rd1, [y];
    ld.param.u64 %rd2, [x];
    ld.param.u32 %r1, [n];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p1, %r5, %r1;
    @%p1 bra $L__BB0_2;
    cvta.to.global.u64 %rd3, %rd1;
    cvta.to.global.u64 %rd4, %rd2;
    mul.wide.u32 %rd5, %r5, 4;
    add.s64 %rd6, %rd3, %rd5;
    add.s64 %rd7, %rd4, %rd5;
    ld.global.u32 %r6, [%rd6];
    ld.global.u32 %r7, [%rd7];
    add.s32 %r6, %r6, %r7;
    st.global.u32 [%rd6], %r6;
$L__BB0_2:
    ret;
}

.visible .entry wait(.param .u64 word)
{
    .reg .pred %p<2>;
    .reg .b32 %r<2>;
    .reg .b64 %rd<2>;
    ld.param.u64 %rd1, [word];
$L__BB1_1:
    ld.volatile.global.u32 %r1, [%rd1];
    setp.eq.s32 %p1, %r1, 0;
    @%p1 bra $L__BB1_1;
    ret;
}

.visible .entry store(.param .u64 p, .param .u32 v)
{
    .reg .b32 %r<2>;
    .reg .b64 %rd<2>;
    ld.param.u64 %rd1, [p];
    ld.param.u32 %r1, [v];
    st.global.u32 [%rd1], %r1;
    ret;
}
";

/// `soon(y, x)`: y = x + 1, where x is read before the kernels ahead have ended; `late`: after.
fn dependent(name: &str, wait_first: bool) -> String {
    let (before, after) =
        if wait_first { ("griddepcontrol.wait;", "") } else { ("", "griddepcontrol.wait;") };
    format!(
        ".visible .entry {name}(.param .u64 y, .param .u64 x)
        {{
            .reg .b32 %r<2>;
            .reg .b64 %rd<3>;
            ld.param.u64 %rd1, [y];
            ld.param.u64 %rd2, [x];
            {before}
            ld.global.u32 %r1, [%rd2];
            {after}
            add.s32 %r1, %r1, 1;
            st.global.u32 [%rd1], %r1;
            ret;
        }}
        "
    )
}

const INVALID_VALUE: c_uint = 1;
const INVALID_CONTEXT: c_uint = 201;
const INVALID_HANDLE: c_uint = 400;
const ILLEGAL_STATE: c_uint = 401;
const NOT_READY: c_uint = 600;
const ILLEGAL_ADDRESS: c_uint = 700;
const COOPERATIVE_LAUNCH_TOO_LARGE: c_uint = 720;
const CAPTURE_UNSUPPORTED: c_uint = 900;
const CAPTURE_INVALIDATED: c_uint = 901;
const CAPTURED_EVENT: c_uint = 907;
const INVALID_CLUSTER_SIZE: c_uint = 912;

/// The driver's calls, which the tests give what their manual asks for.
macro_rules! cu {
    ($call:expr) => {
        // SAFETY: each pointer is of a place that lives for the call; each handle is the driver's.
        unsafe { $call }
    };
}
macro_rules! ok {
    ($call:expr) => {
        assert_eq!(cu!($call), 0, "{}", stringify!($call))
    };
}

/// Makes the device current on this thread.
fn open() {
    let mut context = ptr::null_mut();
    ok!(cuInit(0));
    ok!(cuDevicePrimaryCtxRetain(&mut context, 0));
    ok!(cuCtxSetCurrent(context));
}

fn stream() -> CUstream {
    let mut stream = ptr::null_mut();
    ok!(cuStreamCreate(&mut stream, 1));
    stream
}

fn event() -> CUevent {
    let mut event = ptr::null_mut();
    ok!(cuEventCreate(&mut event, 2));
    event
}

fn alloc(bytes: usize) -> u64 {
    let mut address = 0;
    ok!(cuMemAlloc_v2(&mut address, bytes));
    address
}

fn pinned(words: usize) -> *mut u32 {
    let mut address = ptr::null_mut();
    ok!(cuMemHostAlloc(&mut address, words * 4, 3));
    // SAFETY: so many words were just allocated.
    unsafe { address.write_bytes(0, words * 4) };
    address.cast()
}

fn load(text: &str, module: &mut CUmodule) -> c_uint {
    let text = CString::new(text).unwrap();
    cu!(cuModuleLoadData(module, text.as_ptr().cast()))
}

fn function(name: &CStr) -> CUfunction {
    let (mut module, mut function) = (ptr::null_mut(), ptr::null_mut());
    let text = format!("{KERNELS}{}{}", dependent("soon", false), dependent("late", true));
    assert_eq!(load(&text, &mut module), 0, "{}", explain(218));
    ok!(cuModuleGetFunction(&mut function, module, name.as_ptr()));
    function
}

fn explain(code: c_uint) -> String {
    let mut text: *const c_char = ptr::null();
    ok!(cuGetErrorString(code, &mut text));
    // SAFETY: a constant of the driver's.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

fn config(blocks: u32, threads: u32, stream: CUstream) -> CUlaunchConfig {
    CUlaunchConfig {
        gridDimX: blocks,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: 0,
        hStream: stream,
        attrs: ptr::null_mut(),
        numAttrs: 0,
    }
}

fn launch(config: &CUlaunchConfig, function: CUfunction, params: &mut [*mut c_void]) -> c_uint {
    cu!(cuLaunchKernelEx(config, function, params.as_mut_ptr(), ptr::null_mut()))
}

/// Launches `add` over `n` words.
fn add(stream: CUstream, function: CUfunction, y: u64, x: u64, n: u32) -> c_uint {
    let (mut y, mut x, mut n) = (y, x, n);
    let mut params = [(&raw mut y).cast(), (&raw mut x).cast(), (&raw mut n).cast()];
    launch(&config(n.div_ceil(64), 64, stream), function, &mut params)
}

fn write(stream: CUstream, to: u64, words: &[u32]) {
    ok!(cuMemcpyHtoDAsync_v2(to, words.as_ptr().cast(), words.len() * 4, stream));
}
fn read(stream: CUstream, from: u64, words: usize) -> Vec<u32> {
    let mut into = vec![0; words];
    ok!(cuMemcpyDtoHAsync_v2(into.as_mut_ptr().cast(), from, words * 4, stream));
    into
}

#[test]
fn without_a_context_nothing_goes() {
    ok!(cuInit(0));
    let mut address = 0;
    assert_eq!(cu!(cuMemAlloc_v2(&mut address, 1)), INVALID_CONTEXT);
    assert_eq!(cu!(cuDeviceGet(&mut 0, 99)), 101);
    open();
    let mut current = ptr::null_mut();
    ok!(cuCtxGetCurrent(&mut current));
    assert!(!current.is_null());
    // Another thread has none of its own yet.
    let other = thread::spawn(|| {
        let mut current = ptr::null_mut();
        ok!(cuCtxGetCurrent(&mut current));
        current.is_null()
    });
    assert!(other.join().unwrap());
}

#[test]
fn memory_is_counted_and_known() {
    open();
    let (mut free, mut total) = (0, 0);
    ok!(cuMemGetInfo_v2(&mut free, &mut total));
    assert!(free > 0 && free <= total);
    let mut address = 0;
    assert_eq!(cu!(cuMemAlloc_v2(&mut address, total + 1)), 2);
    assert_eq!(cu!(cuMemAlloc_v2(&mut address, 0)), INVALID_VALUE);

    let block = alloc(1000);
    assert_eq!(block % 512, 0);
    let (mut start, mut bytes) = (0_u64, 0_usize);
    ok!(cuPointerGetAttribute((&raw mut start).cast(), 11, block + 999));
    ok!(cuPointerGetAttribute((&raw mut bytes).cast(), 12, block + 999));
    assert_eq!((start, bytes), (block, 1000));
    let outside = cu!(cuPointerGetAttribute((&raw mut start).cast(), 11, block + 1000));
    assert_eq!(outside, INVALID_VALUE);
    ok!(cuMemFree_v2(block));
    assert_eq!(cu!(cuMemFree_v2(block)), INVALID_VALUE);

    let host = pinned(4);
    let mut device = 0;
    ok!(cuMemHostGetDevicePointer_v2(&mut device, host.cast(), 0));
    assert_eq!(cu!(cuMemFree_v2(device)), INVALID_VALUE);
    ok!(cuMemFreeHost(host.cast()));
}

#[test]
fn copies_stay_inside_and_in_order() {
    open();
    let stream = stream();
    let (a, b) = (alloc(4096), alloc(4096));
    let words: Vec<u32> = (0..1024).collect();
    write(stream, a, &words);
    ok!(cuMemcpyDtoDAsync_v2(b, a, 4096, stream));
    ok!(cuMemsetD8Async(a, 7, 4096, stream));
    assert_eq!(read(stream, b, 1024), words);
    assert_eq!(read(stream, a, 1024), [0x0707_0707; 1024]);
    // Memory that nobody wrote to holds no zeros that one could count on.
    assert_ne!(read(stream, alloc(64), 16), [0; 16]);

    assert_eq!(cu!(cuMemcpyDtoDAsync_v2(b + 4, a, 4096, stream)), INVALID_VALUE);
    assert_eq!(cu!(cuMemsetD8Async(a - 1, 0, 1, stream)), INVALID_VALUE);
    ok!(cuStreamSynchronize(stream));
    ok!(cuStreamDestroy_v2(stream));
    assert_eq!(cu!(cuStreamSynchronize(stream)), INVALID_HANDLE);
}

#[test]
fn modules_are_for_this_card() {
    open();
    let mut module = ptr::null_mut();
    let other = KERNELS.replace("sm_90a", "sm_120a");
    assert_eq!(load(&other, &mut module), 209);
    assert_eq!(load("no PTX", &mut module), 200);
    assert_eq!(load(&KERNELS.replace("mad.lo.s32", "mad.no.s32"), &mut module), 218);
    assert_eq!(load(KERNELS, &mut module), 0);
    let mut function = ptr::null_mut();
    let found = cu!(cuModuleGetFunction(&mut function, module, c"missing".as_ptr()));
    assert_eq!(found, 500);
    ok!(cuModuleUnload(module));
    assert_eq!(cu!(cuModuleUnload(module)), INVALID_HANDLE);
}

#[test]
fn a_kernel_runs() {
    open();
    let (stream, f) = (stream(), function(c"add"));
    let (x, y) = (alloc(4000), alloc(4000));
    let words: Vec<u32> = (0..1000).collect();
    write(stream, x, &words);
    write(stream, y, &words);
    assert_eq!(add(stream, f, y, x, 1000), 0);
    assert_eq!(add(stream, f, y, x, 999), 0);
    let expected: Vec<u32> = (0..1000).map(|i| if i < 999 { 3 * i } else { 2 * i }).collect();
    assert_eq!(read(stream, y, 1000), expected);
}

#[test]
fn launches_that_the_driver_refuses() {
    open();
    let (stream, f) = (stream(), function(c"wait"));
    let mut word = pinned(1);
    // SAFETY: mapped just now.
    unsafe { word.write(1) };
    let mut params = [(&raw mut word).cast()];
    let mut go = |config: CUlaunchConfig| launch(&config, f, &mut params);
    let good = || config(1, 32, stream);
    assert_eq!(go(good()), 0);
    assert_eq!(go(config(0, 32, stream)), INVALID_VALUE);
    assert_eq!(go(config(1, 1025, stream)), INVALID_VALUE);
    assert_eq!(go(CUlaunchConfig { gridDimY: 65_536, ..good() }), INVALID_VALUE);
    // More shared memory than 48 KB has to be asked for, and there is only so much.
    let large = CUlaunchConfig { sharedMemBytes: 100 << 10, ..good() };
    assert_eq!(go(large), INVALID_VALUE);
    assert_eq!(cu!(cuFuncSetAttribute(f, 8, (227 << 10) + 1)), INVALID_VALUE);
    ok!(cuFuncSetAttribute(f, 8, 227 << 10));
    assert_eq!(go(large), 0);
    let mut blocks = 0;
    ok!(cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, f, 32, 100 << 10));
    assert_eq!(blocks, 2);

    let with = |config: CUlaunchConfig, id, value: [u32; 3], go: &mut dyn FnMut(_) -> c_uint| {
        let mut attribute =
            CUlaunchAttribute { id, pad: [0; 4], value: CUlaunchAttributeValue { pad: [0; 64] } };
        // SAFETY: three words of a value of 64 bytes.
        unsafe { (&raw mut attribute.value).cast::<[u32; 3]>().write(value) };
        go(CUlaunchConfig { attrs: &mut attribute, numAttrs: 1, ..config })
    };
    let cooperative = CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE;
    let mut sms = 0;
    ok!(cuDeviceGetAttribute(&mut sms, 16, 0));
    let all = config(2 * sms as u32, 32, stream);
    let all = CUlaunchConfig { sharedMemBytes: 100 << 10, ..all };
    assert_eq!(with(all, cooperative, [1, 0, 0], &mut go), 0);
    let more = CUlaunchConfig { gridDimX: all.gridDimX + 1, ..all };
    assert_eq!(with(more, cooperative, [1, 0, 0], &mut go), COOPERATIVE_LAUNCH_TOO_LARGE);

    let cluster = CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    assert_eq!(with(config(16, 32, stream), cluster, [8, 1, 1], &mut go), 0);
    let part = with(config(15, 32, stream), cluster, [8, 1, 1], &mut go);
    assert_eq!(part, INVALID_CLUSTER_SIZE);
    let wide =
        |go: &mut dyn FnMut(_) -> c_uint| with(config(16, 32, stream), cluster, [16, 1, 1], go);
    assert_eq!(wide(&mut go), INVALID_CLUSTER_SIZE);
    ok!(cuFuncSetAttribute(f, 14, 1));
    assert_eq!(wide(&mut go), 0);
    ok!(cuStreamSynchronize(stream));
}

#[test]
fn streams_are_apart_and_events_order_them() {
    open();
    let (first, second, event, f) = (stream(), stream(), event(), function(c"wait"));
    ok!(cuEventQuery(event));
    let (mut word, block) = (pinned(1), alloc(4));
    let mut params = [(&raw mut word).cast()];
    write(second, block, &[1]);
    ok!(cuStreamSynchronize(second));
    assert_eq!(launch(&config(1, 1, first), f, &mut params), 0);
    ok!(cuMemsetD8Async(block, 2, 4, first));
    ok!(cuEventRecord(event, first));
    // The kernel waits for the host, and keeps nobody but its own stream and those who wait for it.
    assert_eq!(read(second, block, 1), [1]);
    assert_eq!(cu!(cuStreamQuery(first)), NOT_READY);
    assert_eq!(cu!(cuEventQuery(event)), NOT_READY);
    ok!(cuStreamWaitEvent(second, event, 0));
    // SAFETY: mapped, and one word is written whole.
    unsafe { word.write_volatile(1) };
    assert_eq!(read(second, block, 1), [0x0202_0202]);
    ok!(cuEventSynchronize(event));
    ok!(cuEventQuery(event));
    ok!(cuStreamSynchronize(first));
    ok!(cuStreamQuery(first));
}

fn kinds(graph: CUgraph) -> Vec<c_uint> {
    let mut count = 0;
    ok!(cuGraphGetNodes(graph, ptr::null_mut(), &mut count));
    let mut nodes = vec![ptr::null_mut(); count];
    ok!(cuGraphGetNodes(graph, nodes.as_mut_ptr(), &mut count));
    let kind = |&node: &_| {
        let mut kind = 99;
        ok!(cuGraphNodeGetType(node, &mut kind));
        kind
    };
    nodes.iter().map(kind).collect()
}

#[test]
fn a_capture_runs_when_it_is_launched() {
    open();
    let (stream, side, f) = (stream(), stream(), function(c"add"));
    let (forked, joined) = (event(), event());
    let (host, x, y) = (pinned(64), alloc(256), alloc(256));
    let (mut graph, mut exec): (CUgraph, CUgraphExec) = (ptr::null_mut(), ptr::null_mut());
    write(stream, y, &[0; 64]);
    ok!(cuStreamSynchronize(stream));

    ok!(cuStreamBeginCapture_v2(stream, 1));
    assert_eq!(cu!(cuStreamBeginCapture_v2(stream, 1)), ILLEGAL_STATE);
    ok!(cuMemcpyHtoDAsync_v2(x, host.cast(), 256, stream));
    ok!(cuEventRecord(forked, stream));
    ok!(cuStreamWaitEvent(side, forked, 0));
    ok!(cuMemsetD8Async(y, 0, 128, side));
    ok!(cuEventRecord(joined, side));
    ok!(cuStreamWaitEvent(stream, joined, 0));
    assert_eq!(add(stream, f, y, x, 64), 0);
    ok!(cuStreamEndCapture(stream, &mut graph));
    assert_eq!(kinds(graph), [1, 2, 0]);
    ok!(cuGraphInstantiateWithFlags(&mut exec, graph, 0));
    ok!(cuGraphDestroy(graph));
    ok!(cuGraphUpload(exec, stream));
    assert_eq!(read(stream, y, 64), [0; 64]);

    for round in 1..=3 {
        // SAFETY: mapped, and the device is done with it.
        unsafe { (0..64).for_each(|i| host.add(i).write(i as u32 + round)) };
        ok!(cuGraphLaunch(exec, stream));
        ok!(cuStreamSynchronize(stream));
    }
    // Half of y was set to 0 each time, the other half is the sum.
    let sum = |i: u32| if i < 32 { i + 3 } else { 3 * i + 6 };
    assert_eq!(read(stream, y, 64), (0..64).map(sum).collect::<Vec<_>>());
    ok!(cuGraphExecDestroy(exec));
    assert_eq!(cu!(cuGraphLaunch(exec, stream)), INVALID_HANDLE);
}

#[test]
fn what_a_capture_does_not_survive() {
    open();
    let (first, second, event, block) = (stream(), stream(), event(), alloc(4));
    let lost = |breaks: &dyn Fn() -> c_uint, code: c_uint, end: c_uint| {
        let mut graph = ptr::null_mut();
        ok!(cuStreamBeginCapture_v2(first, 1));
        ok!(cuMemsetD8Async(block, 0, 4, first));
        assert_eq!(breaks(), code);
        assert_eq!(cu!(cuStreamEndCapture(first, &mut graph)), end);
        assert_eq!(graph.is_null(), end != 0);
        // The stream is as it was.
        ok!(cuMemsetD8Async(block, 0, 4, first));
        ok!(cuStreamSynchronize(first));
    };
    let mut address = 0;
    let at = &raw mut address;
    lost(&|| cu!(cuStreamSynchronize(first)), CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED);
    lost(&|| cu!(cuMemAlloc_v2(at, 1)), CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED);
    lost(&|| cu!(cuStreamSynchronize(second)), CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED);
    // A copy of memory that is not page-locked cannot be done again later.
    let word = 1_u32;
    let copy = || cu!(cuMemcpyHtoDAsync_v2(block, (&raw const word).cast(), 4, first));
    lost(&copy, CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED);
    let captured = || {
        ok!(cuEventRecord(event, first));
        cu!(cuEventSynchronize(event))
    };
    lost(&captured, CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED);
    ok!(cuEventRecord(event, second));
    let foreign = || cu!(cuStreamWaitEvent(first, event, 0));
    lost(&foreign, 905, CAPTURE_INVALIDATED);
    let forks = || {
        ok!(cuEventRecord(event, first));
        ok!(cuStreamWaitEvent(second, event, 0));
        cu!(cuMemsetD8Async(block, 1, 4, second))
    };
    lost(&forks, 0, 904);

    // Not lost: what another thread does, or this one where it says that it knows.
    let elsewhere = || {
        let (second, event) = (second as usize, event as usize);
        thread::spawn(move || {
            open();
            let (second, event) = (second as CUstream, event as CUevent);
            ok!(cuMemFree_v2(alloc(1)));
            ok!(cuStreamSynchronize(second));
            assert_eq!(cu!(cuEventQuery(event)), CAPTURED_EVENT);
        })
        .join()
        .unwrap();
        0
    };
    // The event was last recorded in a capture that is over.
    lost(&elsewhere, 0, 0);
    let relaxed = || {
        let mut mode = 2;
        ok!(cuThreadExchangeStreamCaptureMode(&mut mode));
        ok!(cuMemFree_v2(alloc(1)));
        cu!(cuThreadExchangeStreamCaptureMode(&mut mode))
    };
    lost(&relaxed, 0, 0);
    let ended_elsewhere = || {
        let first = first as usize;
        let end = move || {
            open();
            let mut graph = ptr::null_mut();
            cu!(cuStreamEndCapture(first as CUstream, &mut graph))
        };
        thread::spawn(end).join().unwrap()
    };
    lost(&ended_elsewhere, 908, 0);
}

/// Captures `x = value; y = x + 1`, the second to begin early, and gives y.
fn chain(name: &CStr, value: u32) -> Result<u32, c_uint> {
    let (stream, store, dependent) = (stream(), function(c"store"), function(name));
    let (mut x, mut y, mut value) = (alloc(4), alloc(4), value);
    let (mut graph, mut exec): (CUgraph, CUgraphExec) = (ptr::null_mut(), ptr::null_mut());
    write(stream, x, &[7]);
    ok!(cuStreamBeginCapture_v2(stream, 1));
    let mut params = [(&raw mut x).cast(), (&raw mut value).cast()];
    assert_eq!(launch(&config(1, 1, stream), store, &mut params), 0);
    let mut early = CUlaunchAttribute {
        id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value: CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
    };
    let config = CUlaunchConfig { attrs: &mut early, numAttrs: 1, ..config(1, 1, stream) };
    let mut params = [(&raw mut y).cast(), (&raw mut x).cast()];
    assert_eq!(launch(&config, dependent, &mut params), 0);
    ok!(cuStreamEndCapture(stream, &mut graph));
    ok!(cuGraphInstantiateWithFlags(&mut exec, graph, 0));
    ok!(cuGraphLaunch(exec, stream));
    match cu!(cuStreamSynchronize(stream)) {
        0 => Ok(read(stream, y, 1)[0]),
        code => Err(code),
    }
}

#[test]
fn a_kernel_that_begins_early_waits_before_it_reads() {
    open();
    assert_eq!(chain(c"late", 41), Ok(42));
    let err = alone("too_soon");
    assert!(err.contains("emulator: soon: what it reads"), "{err}");
}

#[test]
#[ignore = "loses the process's context; a_kernel_that_begins_early… runs it"]
fn too_soon() {
    open();
    // What is there already is as good.
    assert_eq!(chain(c"soon", 7), Ok(8));
    assert_eq!(chain(c"soon", 41), Err(719));
}

/// Runs a test in a process of its own, since there is no way back; gives what it wrote.
fn alone(test: &str) -> String {
    let mut child = Command::new(std::env::current_exe().unwrap());
    let arguments = ["--exact", test, "--ignored", "--nocapture", "--test-threads=1"];
    let output = child.args(arguments).output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}\n{err}", output.status);
    err
}

#[test]
fn a_fault_loses_the_context() {
    let err = alone("lost");
    assert_eq!(err.matches("emulator: ").count(), 1, "{err}");
}

#[test]
#[ignore = "loses the process's context; a_fault_loses_the_context runs it"]
fn lost() {
    open();
    let (stream, other, event, f) = (stream(), stream(), event(), function(c"store"));
    let block = alloc(4);
    let store = |at: u64| {
        let (mut at, mut value) = (at, 9_u32);
        let mut params = [(&raw mut at).cast(), (&raw mut value).cast()];
        launch(&config(1, 1, stream), f, &mut params)
    };
    assert_eq!(store(block), 0);
    assert_eq!(read(stream, block, 1), [9]);
    ok!(cuEventRecord(event, stream));
    // Just behind the block.
    assert_eq!(store(block + 4), 0);
    assert_eq!(cu!(cuStreamSynchronize(stream)), ILLEGAL_ADDRESS);
    assert!(explain(ILLEGAL_ADDRESS).contains("store"), "{}", explain(ILLEGAL_ADDRESS));
    let (mut address, mut handle) = (0, ptr::null_mut());
    let codes = [
        store(block),
        cu!(cuMemAlloc_v2(&mut address, 1)),
        cu!(cuStreamCreate(&mut handle, 1)),
        cu!(cuStreamSynchronize(other)),
        cu!(cuEventQuery(event)),
        cu!(cuEventSynchronize(event)),
        cu!(cuMemFree_v2(block)),
    ];
    assert_eq!(codes, [ILLEGAL_ADDRESS; 7]);
}
