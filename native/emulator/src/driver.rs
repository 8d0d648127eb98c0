//! The driver's functions that the engine calls, each as NVIDIA's header and manual have it.

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::slice;
use std::sync::Arc;

use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdevice_attribute as Attribute, CUdeviceptr, CUevent, CUfunction,
    CUgraph, CUgraphExec, CUgraphNode, CUlaunchConfig, CUmodule, CUpointer_attribute as About,
    CUstream,
};

use crate::card::{DEFAULT_SHARED, MOST_THREADS, RESERVED_SHARED, WARP};
use crate::code::{Code, Result};
use crate::device::{self, Device, Kind, current};
use crate::graph::{self, Exec, Graph, Mode, NODES};
use crate::handle::Handles;
use crate::launch::{Asked, Function};
use crate::ptx;
use crate::stream::{Event, Side, Stream, Work};

/// The CUDA version that the driver is for.
const VERSION: c_int = 13_000;

static STREAMS: Handles<Stream> = Handles::new();
static EVENTS: Handles<Owned<Event>> = Handles::new();
static MODULES: Handles<Owned<ptx::Module>> = Handles::new();
static FUNCTIONS: Handles<Function> = Handles::new();
static GRAPHS: Handles<Graph> = Handles::new();
static EXECS: Handles<Exec> = Handles::new();

/// Something of a device's.
#[derive(Debug)]
struct Owned<T> {
    device: &'static Device,
    thing: Arc<T>,
}

/// Functions with the driver's calling convention: each gives its code, and lets no panic through.
macro_rules! driver {
    ($(
        $(#[$doc:meta])*
        fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block
    )*) => {
        $(
            $(#[$doc])*
            /// # Safety
            /// As the driver's manual has it: what is pointed to is there, and as large as is said.
            #[allow(unused_unsafe)]
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($arg: $type),*) -> c_uint {
                // SAFETY: the caller's promise. Each body begins with the checks that the driver
                // makes, of null pointers, handles and addresses.
                answer(|| -> Result<()> { unsafe { $body } })
            }
        )*
    };
}

fn answer(call: impl FnOnce() -> Result<()>) -> c_uint {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(())) => 0,
        Ok(Err(code)) => code.0,
        Err(_) => Code::UNKNOWN.0,
    }
}

/// Writes a result where the caller wants it.
///
/// # Safety
/// `at` is null or to be written to.
unsafe fn put<T>(at: *mut T, value: T) -> Result<()> {
    if at.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: the caller's promise, and not null.
    unsafe { at.write(value) };
    Ok(())
}

/// Writes a text, cut off where it is too long, and its ending zero.
///
/// # Safety
/// `at` is null or so many bytes to be written to.
unsafe fn put_text(at: *mut c_char, bytes: c_int, text: &str) -> Result<()> {
    let bytes = usize::try_from(bytes).ok().filter(|&n| n > 0).ok_or(Code::INVALID_VALUE)?;
    if at.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    let text = &text.as_bytes()[..text.len().min(bytes - 1)];
    // SAFETY: the caller's promise; the text and its zero fit.
    unsafe {
        ptr::copy_nonoverlapping(text.as_ptr().cast(), at, text.len());
        at.add(text.len()).write(0);
    }
    Ok(())
}

/// A stream of the current device's. The null stream is not emulated.
fn stream(handle: CUstream) -> Result<Arc<Stream>> {
    let device = current()?;
    if handle.addr() <= 2 {
        return Err(Code::NOT_SUPPORTED.because("the emulator has no null stream"));
    }
    STREAMS.get(handle).and_then(|s| of(device, s.device).map(|()| s))
}

fn of(device: &Device, owner: &Device) -> Result<()> {
    if ptr::eq(device, owner) { Ok(()) } else { Err(Code::INVALID_HANDLE) }
}

fn event(handle: CUevent) -> Result<Arc<Event>> {
    let (device, event) = (current()?, EVENTS.get(handle)?);
    of(device, event.device)?;
    Ok(Arc::clone(&event.thing))
}

fn function(handle: CUfunction) -> Result<Arc<Function>> {
    let (device, function) = (current()?, FUNCTIONS.get(handle)?);
    of(device, function.device)?;
    Ok(function)
}

/// Device memory at the end of a copy.
fn known(device: &Device, address: u64, bytes: usize) -> Result<Side> {
    if device.holds(address, bytes) {
        return Ok(Side::Device(address));
    }
    Err(Code::INVALID_VALUE.because(format!("{bytes} bytes at {address:#x} are not allocated")))
}

// The library and its devices.
driver! {
    fn cuInit(flags: c_uint) {
        if flags != 0 {
            return Err(Code::INVALID_VALUE);
        }
        if device::devices()?.is_empty() { Err(Code::NO_DEVICE) } else { Ok(()) }
    }

    fn cuDriverGetVersion(version: *mut c_int) { put(version, VERSION) }

    fn cuGetErrorName(code: c_uint, text: *mut *const c_char) {
        put(text, ptr::null())?;
        put(text, Code(code).name().ok_or(Code::INVALID_VALUE)?.as_ptr())
    }

    fn cuGetErrorString(code: c_uint, text: *mut *const c_char) {
        put(text, ptr::null())?;
        put(text, Code(code).description().ok_or(Code::INVALID_VALUE)?.as_ptr())
    }

    fn cuDeviceGetCount(count: *mut c_int) { put(count, device::devices()?.len() as c_int) }

    fn cuDeviceGet(into: *mut CUdevice, ordinal: c_int) {
        device::device(ordinal)?;
        put(into, ordinal)
    }

    fn cuDeviceGetName(name: *mut c_char, bytes: c_int, device: CUdevice) {
        put_text(name, bytes, &device::device(device)?.card.name())
    }

    fn cuDeviceGetPCIBusId(id: *mut c_char, bytes: c_int, device: CUdevice) {
        put_text(id, bytes, &format!("0000:{:02X}:00.0", device::device(device)?.ordinal + 1))
    }

    fn cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice) {
        put(bytes, device::device(device)?.card.memory)
    }

    fn cuDeviceGetAttribute(value: *mut c_int, which: c_uint, device: CUdevice) {
        put(value, attribute(device::device(device)?, which)? as c_int)
    }

    fn cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice) {
        put(context, device::device(device)?.context())
    }

    fn cuDevicePrimaryCtxRelease_v2(device: CUdevice) { device::device(device).map(|_| ()) }

    fn cuCtxGetCurrent(context: *mut CUcontext) {
        put(context, device::current_or_none().map_or(ptr::null_mut(), Device::context))
    }

    fn cuCtxSetCurrent(context: CUcontext) {
        let device = (!context.is_null()).then(|| Device::of_context(context)).transpose()?;
        device::set_current(device);
        Ok(())
    }
}

fn attribute(device: &Device, which: c_uint) -> Result<u32> {
    use Attribute::*;
    let card = &device.card;
    let hopper = u32::from(card.major >= 9);
    let table = [
        (CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, MOST_THREADS),
        (CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X, MOST_THREADS),
        (CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y, MOST_THREADS),
        (CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z, 64),
        (CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X, i32::MAX as u32),
        (CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y, 65_535),
        (CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z, 65_535),
        (CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, DEFAULT_SHARED),
        (CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, card.shared_optin),
        (CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, card.shared_per_sm),
        (CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK, RESERVED_SHARED),
        (CU_DEVICE_ATTRIBUTE_WARP_SIZE, WARP),
        (CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK, card.registers_per_sm),
        (CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR, card.registers_per_sm),
        (CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, card.sms),
        (CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, card.threads_per_sm),
        (CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR, card.blocks_per_sm),
        (CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, card.l2),
        (CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, card.major),
        (CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, card.minor),
        (CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH, 1),
        (CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH, hopper),
        (CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY, 1),
        (CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, 1),
        (CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM, 1),
        (CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS, 1),
        (CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT, 1),
        (CU_DEVICE_ATTRIBUTE_INTEGRATED, 0),
        (CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY, 0),
    ];
    let found = table.iter().find(|(attribute, _)| *attribute as c_uint == which);
    let unknown = || Code::INVALID_VALUE.because(format!("device attribute {which}"));
    found.map(|&(_, value)| value).ok_or_else(unknown)
}

// Memory.
driver! {
    fn cuMemAlloc_v2(address: *mut CUdeviceptr, bytes: usize) {
        let device = current()?;
        graph::unsafe_call()?;
        put(address, device.allocate(bytes, Kind::Device)?)
    }

    fn cuMemFree_v2(address: CUdeviceptr) {
        let device = current()?;
        graph::unsafe_call()?;
        if address == 0 { Ok(()) } else { device.free(address, Kind::Device) }
    }

    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        let device = current()?;
        put(free, device.free_bytes())?;
        put(total, device.card.memory)
    }

    fn cuPointerGetAttribute(value: *mut c_void, which: c_uint, address: CUdeviceptr) {
        const HOST: u32 = 1;
        const DEVICE: u32 = 2;
        let asked = |about: About| about as c_uint == which;
        let device = current()?;
        let (owner, found) = [device].into_iter().chain(device::devices()?)
            .find_map(|d| d.allocation(address).map(|found| (d, found)))
            .ok_or(Code::INVALID_VALUE)?;
        let on_host = found.kind == Kind::Host;
        if asked(About::CU_POINTER_ATTRIBUTE_CONTEXT) {
            put(value.cast::<CUcontext>(), owner.context())
        } else if asked(About::CU_POINTER_ATTRIBUTE_MEMORY_TYPE) {
            put(value.cast(), if on_host { HOST } else { DEVICE })
        } else if asked(About::CU_POINTER_ATTRIBUTE_DEVICE_POINTER)
            || asked(About::CU_POINTER_ATTRIBUTE_HOST_POINTER) && on_host
        {
            // One address for both.
            put(value.cast(), address)
        } else if asked(About::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL) {
            put(value.cast(), owner.ordinal as c_int)
        } else if asked(About::CU_POINTER_ATTRIBUTE_RANGE_START_ADDR) {
            put(value.cast(), found.start)
        } else if asked(About::CU_POINTER_ATTRIBUTE_RANGE_SIZE) {
            put(value.cast(), found.bytes)
        } else {
            Err(Code::INVALID_VALUE)
        }
    }

    fn cuMemHostAlloc(address: *mut *mut c_void, bytes: usize, flags: c_uint) {
        const PORTABLE_MAPPED_COMBINED: c_uint = 7;
        let device = current()?;
        graph::unsafe_call()?;
        if flags & !PORTABLE_MAPPED_COMBINED != 0 {
            return Err(Code::INVALID_VALUE);
        }
        let start = device.allocate(bytes, Kind::Host)?;
        put(address, ptr::with_exposed_provenance_mut(start as usize))
    }

    fn cuMemHostGetDevicePointer_v2(into: *mut CUdeviceptr, host: *mut c_void, flags: c_uint) {
        let found = current()?.allocation(host.addr() as u64);
        if flags != 0 || found.is_none_or(|a| a.kind != Kind::Host) {
            return Err(Code::INVALID_VALUE);
        }
        put(into, host.addr() as u64)
    }

    fn cuMemFreeHost(host: *mut c_void) {
        let device = current()?;
        graph::unsafe_call()?;
        device.free(host.addr() as u64, Kind::Host)
    }

    fn cuMemcpyHtoDAsync_v2(
        to: CUdeviceptr, from: *const c_void, bytes: usize, at: CUstream,
    ) {
        let stream = stream(at)?;
        if bytes == 0 {
            return Ok(());
        }
        let to_side = known(stream.device, to, bytes)?;
        let from_side = host(stream.device, from.addr(), bytes)?;
        if let Side::Host(_) = from_side {
            // Read before the call returns, as the driver does with memory that may move.
            stream.not_captured()?;
            let bytes = slice::from_raw_parts(from.cast::<u8>(), bytes).into();
            return stream.submit(Work::Upload { to, bytes });
        }
        stream.submit(Work::Copy { to: to_side, from: from_side, bytes })
    }

    fn cuMemcpyDtoHAsync_v2(
        to: *mut c_void, from: CUdeviceptr, bytes: usize, at: CUstream,
    ) {
        let stream = stream(at)?;
        if bytes == 0 {
            return Ok(());
        }
        let from = known(stream.device, from, bytes)?;
        to.expose_provenance();
        let to = host(stream.device, to.addr(), bytes)?;
        let copy = Work::Copy { to, from, bytes };
        if let Side::Host(_) = to {
            // Written before the call returns.
            stream.not_captured()?;
            stream.drain_to(stream.push(copy));
            return stream.device.check();
        }
        stream.submit(copy)
    }

    fn cuMemcpyDtoDAsync_v2(
        to: CUdeviceptr, from: CUdeviceptr, bytes: usize, at: CUstream,
    ) {
        let stream = stream(at)?;
        if bytes == 0 {
            return Ok(());
        }
        let (to, from) =
            (known(stream.device, to, bytes)?, known(stream.device, from, bytes)?);
        stream.submit(Work::Copy { to, from, bytes })
    }

    fn cuMemsetD8Async(at: CUdeviceptr, value: u8, bytes: usize, queue: CUstream) {
        let stream = stream(queue)?;
        if bytes == 0 {
            return Ok(());
        }
        known(stream.device, at, bytes)?;
        stream.submit(Work::Set { at, value, bytes })
    }
}

/// Memory of the host: page-locked, or any other.
fn host(device: &Device, address: usize, bytes: usize) -> Result<Side> {
    let address = address as u64;
    if address == 0 {
        return Err(Code::INVALID_VALUE);
    }
    match device.allocation(address) {
        Some(_) => known(device, address, bytes),
        None => Ok(Side::Host(address)),
    }
}

// Streams and events.
driver! {
    fn cuStreamCreate(into: *mut CUstream, flags: c_uint) {
        const NON_BLOCKING: c_uint = 1;
        let device = current()?;
        if flags != NON_BLOCKING {
            let why = "the emulator has streams that do not wait for the null stream alone";
            return Err(Code::NOT_SUPPORTED.because(why));
        }
        put(into, STREAMS.insert(Stream::new(device)?))
    }

    fn cuStreamDestroy_v2(handle: CUstream) {
        let stream = stream(handle)?;
        // Work that was queued is still done; a capture is lost.
        let _ = stream.not_captured();
        stream.close();
        STREAMS.remove(handle).map(|_| ())
    }

    fn cuStreamQuery(handle: CUstream) {
        let stream = stream(handle)?;
        stream.not_captured()?;
        graph::unsafe_call()?;
        let idle = stream.is_idle();
        stream.device.check()?;
        if idle { Ok(()) } else { Err(Code::NOT_READY) }
    }

    fn cuStreamSynchronize(handle: CUstream) {
        let stream = stream(handle)?;
        stream.not_captured()?;
        graph::unsafe_call()?;
        stream.drain();
        stream.device.check()
    }

    fn cuStreamWaitEvent(handle: CUstream, after: CUevent, flags: c_uint) {
        if flags != 0 {
            return Err(Code::INVALID_VALUE);
        }
        event(after)?.hold(&*stream(handle)?)
    }

    fn cuStreamBeginCapture_v2(handle: CUstream, mode: c_uint) {
        graph::begin(&*stream(handle)?, Mode::new(mode)?)
    }

    fn cuStreamEndCapture(handle: CUstream, into: *mut CUgraph) {
        put(into, ptr::null_mut())?;
        put(into, GRAPHS.insert(Arc::new(graph::end(&*stream(handle)?)?)))
    }

    fn cuThreadExchangeStreamCaptureMode(mode: *mut c_uint) {
        if mode.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        put(mode, graph::exchange_mode(Mode::new(mode.read())?) as c_uint)
    }

    fn cuEventCreate(into: *mut CUevent, _flags: c_uint) {
        let device = current()?;
        put(into, EVENTS.insert(Arc::new(Owned { device, thing: Arc::default() })))
    }

    fn cuEventDestroy_v2(handle: CUevent) {
        event(handle)?;
        EVENTS.remove(handle).map(|_| ())
    }

    fn cuEventRecord(handle: CUevent, after: CUstream) {
        event(handle)?.record(&*stream(after)?)
    }

    fn cuEventQuery(handle: CUevent) {
        let (device, event) = (current()?, event(handle)?);
        graph::unsafe_call()?;
        let reached = event.is_reached()?;
        device.check()?;
        if reached { Ok(()) } else { Err(Code::NOT_READY) }
    }

    fn cuEventSynchronize(handle: CUevent) {
        let (device, event) = (current()?, event(handle)?);
        graph::unsafe_call()?;
        event.synchronize(device)?;
        device.check()
    }
}

// Modules and kernels.
driver! {
    fn cuModuleLoadData(into: *mut CUmodule, image: *const c_void) {
        let device = current()?;
        graph::unsafe_call()?;
        if image.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let text = CStr::from_ptr(image.cast()).to_str().map_err(|_| Code::INVALID_IMAGE)?;
        let target = target(text).ok_or(Code::INVALID_IMAGE)?;
        if !device.card.loads(target) {
            return Err(Code::NO_BINARY_FOR_GPU.because(format!("this is for {target}")));
        }
        let module = ptx::parse(text).map_err(|why| Code::INVALID_PTX.because(why))?;
        put(into, MODULES.insert(Arc::new(Owned { device, thing: Arc::new(module) })))
    }

    fn cuModuleUnload(handle: CUmodule) {
        current()?;
        graph::unsafe_call()?;
        MODULES.remove(handle).map(|_| ())
    }

    fn cuModuleGetFunction(into: *mut CUfunction, module: CUmodule, name: *const c_char) {
        let (device, module) = (current()?, MODULES.get(module)?);
        of(device, module.device)?;
        if name.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let name = CStr::from_ptr(name).to_str().map_err(|_| Code::NOT_FOUND)?;
        let kernel = module.thing.kernels.get(name).ok_or(Code::NOT_FOUND)?;
        put(into, FUNCTIONS.insert(Arc::new(Function::new(device, Arc::clone(kernel)))))
    }

    fn cuFuncGetAttribute(value: *mut c_int, which: c_uint, handle: CUfunction) {
        put(value, function(handle)?.attribute(which)?)
    }

    fn cuFuncSetAttribute(handle: CUfunction, which: c_uint, value: c_int) {
        function(handle)?.set_attribute(which, value)
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: *mut c_int, handle: CUfunction, threads: c_int, shared: usize,
    ) {
        let threads = u32::try_from(threads).map_err(|_| Code::INVALID_VALUE)?;
        put(blocks, function(handle)?.blocks_per_sm(threads, shared) as c_int)
    }

    fn cuOccupancyMaxActiveClusters(
        clusters: *mut c_int, handle: CUfunction, config: *const CUlaunchConfig,
    ) {
        let function = function(handle)?;
        let asked = Asked::new(config.as_ref().ok_or(Code::INVALID_VALUE)?, function.device)?;
        put(clusters, function.clusters(&asked)? as c_int)
    }

    fn cuLaunchKernelEx(
        config: *const CUlaunchConfig, handle: CUfunction, params: *mut *mut c_void,
        extra: *mut *mut c_void,
    ) {
        let function = function(handle)?;
        let config = config.as_ref().ok_or(Code::INVALID_VALUE)?;
        let stream = stream(config.hStream)?;
        if !extra.is_null() {
            return Err(Code::NOT_SUPPORTED);
        }
        let asked = Asked::new(config, function.device)?;
        let launch = Arc::new(function.launch(&asked, function.params(params)?)?);
        let kernel = Arc::clone(&function.kernel);
        stream.submit(Work::Kernel { kernel, launch, early: asked.early })
    }
}

/// What `.target` names.
fn target(text: &str) -> Option<&str> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix(".target"))?;
    line.split(',').next().map(str::trim).filter(|t| t.starts_with("sm_"))
}

// Graphs.
driver! {
    fn cuGraphInstantiateWithFlags(into: *mut CUgraphExec, graph: CUgraph, _flags: c_ulonglong) {
        let (device, graph) = (current()?, GRAPHS.get(graph)?);
        of(device, graph.device)?;
        put(into, EXECS.insert(Arc::new(graph.instantiate())))
    }

    fn cuGraphUpload(handle: CUgraphExec, at: CUstream) {
        of(stream(at)?.device, EXECS.get(handle)?.device)
    }

    fn cuGraphLaunch(handle: CUgraphExec, at: CUstream) {
        let (stream, exec) = (stream(at)?, EXECS.get(handle)?);
        of(stream.device, exec.device)?;
        exec.launch(&stream)
    }

    fn cuGraphExecDestroy(handle: CUgraphExec) {
        current()?;
        EXECS.remove(handle).map(|_| ())
    }

    fn cuGraphDestroy(handle: CUgraph) {
        current()?;
        GRAPHS.remove(handle).map(|_| ())
    }

    fn cuGraphGetNodes(handle: CUgraph, nodes: *mut CUgraphNode, count: *mut usize) {
        let graph = GRAPHS.get(handle)?;
        let all = &graph.handles;
        if nodes.is_null() {
            return put(count, all.len());
        }
        let room = count.as_ref().copied().ok_or(Code::INVALID_VALUE)?;
        for (i, &handle) in all.iter().take(room).enumerate() {
            nodes.add(i).write(handle as CUgraphNode);
        }
        // Those that are not there are null.
        for i in all.len()..room {
            nodes.add(i).write(ptr::null_mut());
        }
        put(count, all.len().min(room))
    }

    fn cuGraphNodeGetType(node: CUgraphNode, kind: *mut c_uint) {
        put(kind, *NODES.get(node)? as c_uint)
    }
}
