//! The driver's functions, and the driver as one device sees it.
//!
//! cudarc opens the library and gives the types. The functions are looked up here, once and all
//! together, for two reasons: a missing symbol is then an error and no panic, and a result is an
//! integer, where cudarc's is an enum that a newer driver's code would not fit into.

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::fmt;
use std::ptr;
use std::sync::{Mutex, OnceLock};

use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdeviceptr, CUevent, CUfunction, CUgraph, CUgraphExec, CUgraphNode,
    CUlaunchConfig, CUmodule, CUstream,
};

use crate::device::Id;
use crate::error::{Error, Result};
use crate::pool::lock;

macro_rules! api {
    ($($name:ident = $symbol:literal ($($arg:ty),*);)*) => {
        /// The functions of the driver that we call, all found.
        #[allow(non_snake_case)]
        pub(crate) struct Api { $(pub $name: unsafe extern "C" fn($($arg),*) -> c_uint,)* }

        impl Api {
            /// The symbols that `library` lacks, where it lacks any.
            pub fn load(library: &'static libloading::Library) -> Result<Self, Vec<&'static str>> {
                let missing: Vec<_> = [$($symbol),*]
                    .into_iter()
                    // SAFETY: the address is only compared, never called.
                    .filter(|s| unsafe { library.get::<*const ()>(s.as_bytes()) }.is_err())
                    .collect();
                if !missing.is_empty() {
                    return Err(missing);
                }
                Ok(Api {
                    $(
                        // SAFETY: the types are those of the driver's header, with the result
                        // and its enums as the integers that they are in C.
                        $name: *unsafe { library.get($symbol.as_bytes()) }
                            .map_err(|_| vec![$symbol])?,
                    )*
                })
            }
        }
    };
}

// Nothing newer than CUDA 12.0, so that any driver for a CUDA 12 or 13 has them all.
api! {
    cuInit = "cuInit"(c_uint);
    cuDriverGetVersion = "cuDriverGetVersion"(*mut c_int);
    cuGetErrorName = "cuGetErrorName"(c_uint, *mut *const c_char);
    cuGetErrorString = "cuGetErrorString"(c_uint, *mut *const c_char);
    cuDeviceGetCount = "cuDeviceGetCount"(*mut c_int);
    cuDeviceGet = "cuDeviceGet"(*mut CUdevice, c_int);
    cuDeviceGetName = "cuDeviceGetName"(*mut c_char, c_int, CUdevice);
    cuDeviceGetAttribute = "cuDeviceGetAttribute"(*mut c_int, c_uint, CUdevice);
    cuDeviceGetPCIBusId = "cuDeviceGetPCIBusId"(*mut c_char, c_int, CUdevice);
    cuDeviceTotalMem = "cuDeviceTotalMem_v2"(*mut usize, CUdevice);
    cuDevicePrimaryCtxRetain = "cuDevicePrimaryCtxRetain"(*mut CUcontext, CUdevice);
    cuDevicePrimaryCtxRelease = "cuDevicePrimaryCtxRelease_v2"(CUdevice);
    cuCtxGetCurrent = "cuCtxGetCurrent"(*mut CUcontext);
    cuCtxSetCurrent = "cuCtxSetCurrent"(CUcontext);
    cuMemAlloc = "cuMemAlloc_v2"(*mut CUdeviceptr, usize);
    cuMemFree = "cuMemFree_v2"(CUdeviceptr);
    cuMemGetInfo = "cuMemGetInfo_v2"(*mut usize, *mut usize);
    cuPointerGetAttribute = "cuPointerGetAttribute"(*mut c_void, c_uint, CUdeviceptr);
    cuMemHostAlloc = "cuMemHostAlloc"(*mut *mut c_void, usize, c_uint);
    cuMemHostGetDevicePointer =
        "cuMemHostGetDevicePointer_v2"(*mut CUdeviceptr, *mut c_void, c_uint);
    cuMemFreeHost = "cuMemFreeHost"(*mut c_void);
    cuMemcpyHtoDAsync = "cuMemcpyHtoDAsync_v2"(CUdeviceptr, *const c_void, usize, CUstream);
    cuMemcpyDtoHAsync = "cuMemcpyDtoHAsync_v2"(*mut c_void, CUdeviceptr, usize, CUstream);
    cuMemcpyDtoDAsync = "cuMemcpyDtoDAsync_v2"(CUdeviceptr, CUdeviceptr, usize, CUstream);
    cuMemsetD8Async = "cuMemsetD8Async"(CUdeviceptr, u8, usize, CUstream);
    cuStreamCreate = "cuStreamCreate"(*mut CUstream, c_uint);
    cuStreamDestroy = "cuStreamDestroy_v2"(CUstream);
    cuStreamQuery = "cuStreamQuery"(CUstream);
    cuStreamSynchronize = "cuStreamSynchronize"(CUstream);
    cuStreamWaitEvent = "cuStreamWaitEvent"(CUstream, CUevent, c_uint);
    cuStreamBeginCapture = "cuStreamBeginCapture_v2"(CUstream, c_uint);
    cuStreamEndCapture = "cuStreamEndCapture"(CUstream, *mut CUgraph);
    cuThreadExchangeStreamCaptureMode = "cuThreadExchangeStreamCaptureMode"(*mut c_uint);
    cuEventCreate = "cuEventCreate"(*mut CUevent, c_uint);
    cuEventDestroy = "cuEventDestroy_v2"(CUevent);
    cuEventRecord = "cuEventRecord"(CUevent, CUstream);
    cuEventQuery = "cuEventQuery"(CUevent);
    cuEventSynchronize = "cuEventSynchronize"(CUevent);
    cuModuleLoadData = "cuModuleLoadData"(*mut CUmodule, *const c_void);
    cuModuleUnload = "cuModuleUnload"(CUmodule);
    cuModuleGetFunction = "cuModuleGetFunction"(*mut CUfunction, CUmodule, *const c_char);
    cuFuncGetAttribute = "cuFuncGetAttribute"(*mut c_int, c_uint, CUfunction);
    cuFuncSetAttribute = "cuFuncSetAttribute"(CUfunction, c_uint, c_int);
    cuOccupancyMaxActiveBlocksPerMultiprocessor =
        "cuOccupancyMaxActiveBlocksPerMultiprocessor"(*mut c_int, CUfunction, c_int, usize);
    cuOccupancyMaxActiveClusters = "cuOccupancyMaxActiveClusters"(
        *mut c_int, CUfunction, *const CUlaunchConfig);
    cuLaunchKernelEx = "cuLaunchKernelEx"(
        *const CUlaunchConfig, CUfunction, *mut *mut c_void, *mut *mut c_void);
    cuGraphInstantiate = "cuGraphInstantiateWithFlags"(*mut CUgraphExec, CUgraph, c_ulonglong);
    cuGraphUpload = "cuGraphUpload"(CUgraphExec, CUstream);
    cuGraphLaunch = "cuGraphLaunch"(CUgraphExec, CUstream);
    cuGraphExecDestroy = "cuGraphExecDestroy"(CUgraphExec);
    cuGraphDestroy = "cuGraphDestroy"(CUgraph);
    cuGraphGetNodes = "cuGraphGetNodes"(CUgraph, *mut CUgraphNode, *mut usize);
    cuGraphNodeGetType = "cuGraphNodeGetType"(CUgraphNode, *mut c_uint);
}

impl Api {
    /// `CUDA_ERROR_ILLEGAL_ADDRESS (700): an illegal memory access was encountered`
    pub fn explain(&self, code: c_uint) -> String {
        let text = |find: unsafe extern "C" fn(c_uint, *mut *const c_char) -> c_uint| {
            let mut text = ptr::null();
            // SAFETY: `text` is ours to write; an unknown code leaves it null.
            if unsafe { find(code, &mut text) } != 0 || text.is_null() {
                return None;
            }
            // SAFETY: a constant of the driver's, ended by a zero.
            Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
        };
        let name = text(self.cuGetErrorName).unwrap_or_else(|| "unknown code".into());
        match text(self.cuGetErrorString) {
            Some(what) => format!("{name} ({code}): {what}"),
            None => format!("{name} ({code})"),
        }
    }
}

/// Result codes that mean something to us.
pub(crate) mod code {
    pub const SUCCESS: u32 = 0;
    pub const OUT_OF_MEMORY: u32 = 2;
    pub const NO_DEVICE: u32 = 100;
    pub const INVALID_IMAGE: u32 = 200;
    pub const NO_BINARY_FOR_GPU: u32 = 209;
    pub const NOT_FOUND: u32 = 500;
    pub const NOT_READY: u32 = 600;

    /// Whether the context is lost: every later call in this process would give the same.
    ///
    /// By the driver's manual these leave "the process in an inconsistent state"; 999, an unknown
    /// internal error, says nothing of the state, and so we trust it no more than those.
    pub fn is_sticky(code: u32) -> bool {
        const DEINITIALIZED: u32 = 4;
        const ECC_UNCORRECTABLE: u32 = 214;
        const NVLINK_UNCORRECTABLE: u32 = 220;
        const CONTAINED: u32 = 226;
        const ILLEGAL_ADDRESS: u32 = 700;
        const LAUNCH_TIMEOUT: u32 = 702;
        const CONTEXT_IS_DESTROYED: u32 = 709;
        const ASSERT: u32 = 710;
        const HARDWARE_STACK_ERROR: u32 = 714;
        const LAUNCH_FAILED: u32 = 719;
        const TENSOR_MEMORY_LEAK: u32 = 721;
        const MPS_CLIENT_TERMINATED: u32 = 810;
        const UNKNOWN: u32 = 999;
        matches!(
            code,
            DEINITIALIZED
                | ECC_UNCORRECTABLE
                | NVLINK_UNCORRECTABLE
                | CONTAINED
                | ILLEGAL_ADDRESS
                | LAUNCH_TIMEOUT
                | CONTEXT_IS_DESTROYED
                | ASSERT
                // The stack, illegal instruction, misaligned address, address space, program
                // counter and unspecified launch failure.
                | HARDWARE_STACK_ERROR
                ..=LAUNCH_FAILED | TENSOR_MEMORY_LEAK | MPS_CLIENT_TERMINATED | UNKNOWN
        )
    }
}

/// What a destructor leaves behind. It may run on a scheduler thread of the VM, in the middle of a
/// collection, and so it only enqueues; the driver call comes with the next one of its kind.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Dead {
    Stream(CUstream),
    Event(CUevent),
    Graph(CUgraphExec),
    Module(CUmodule),
    Host(*mut c_void),
}

/// One device's primary context.
///
/// Its methods may be called on any thread. Each makes the context current, and after an error
/// that lost the context makes no driver call but says what that error was.
pub(crate) struct Driver {
    api: &'static Api,
    device: CUdevice,
    context: CUcontext,
    ordinal: u32,
    poison: OnceLock<String>,
    dead: Mutex<Vec<Dead>>,
}

// SAFETY: the driver's contexts, and all the handles that a method of ours takes, may be used from
// any thread; `api` is a table of functions, and the rest is synchronised.
unsafe impl Send for Driver {}
// SAFETY: as above.
unsafe impl Sync for Driver {}

/// Calls a function of the driver by name, with the context current: `Err` where the device is
/// poisoned or the call fails. Unsafe, as the call is.
macro_rules! cu {
    ($driver:expr, $function:ident($($arg:expr),* $(,)?)) => {
        match $driver.enter() {
            Ok(api) => $driver.check(stringify!($function), (api.$function)($($arg),*)),
            Err(error) => Err(error),
        }
    };
}
pub(crate) use cu;

impl Driver {
    /// Retains the primary context of `device`, which other libraries in the process share.
    pub fn retain(api: &'static Api, device: CUdevice, ordinal: u32) -> Result<Self> {
        let mut context = ptr::null_mut();
        // SAFETY: `device` came from the driver and `context` is ours to write.
        let result = unsafe { (api.cuDevicePrimaryCtxRetain)(&mut context, device) };
        if result != code::SUCCESS {
            return Err(Error::Unavailable {
                device: Id::Cuda(ordinal).to_string(),
                message: format!("cuDevicePrimaryCtxRetain: {}", api.explain(result)),
            });
        }
        let (poison, dead) = Default::default();
        Ok(Driver { api, device, context, ordinal, poison, dead })
    }

    pub fn ordinal(&self) -> u32 {
        self.ordinal
    }

    pub fn device(&self) -> CUdevice {
        self.device
    }

    /// The functions, with this device's context current on the calling thread.
    pub fn enter(&self) -> Result<&'static Api> {
        if let Some(message) = self.poison.get() {
            return Err(self.poisoned(message));
        }
        // The driver's own thread-local is asked, and no copy of ours: another library on this
        // thread may have changed it.
        let mut current = ptr::null_mut();
        // SAFETY: `current` is ours to write; it is null where there is no context.
        let mut result = unsafe { (self.api.cuCtxGetCurrent)(&mut current) };
        if result == code::SUCCESS && current != self.context {
            // SAFETY: the context is retained for as long as `self` lives.
            result = unsafe { (self.api.cuCtxSetCurrent)(self.context) };
        }
        self.check("cuCtxSetCurrent", result)?;
        Ok(self.api)
    }

    /// A result of the driver's as ours; a sticky one poisons the device.
    pub fn check(&self, call: &'static str, result: c_uint) -> Result<()> {
        if result == code::SUCCESS {
            return Ok(());
        }
        let message = self.api.explain(result);
        if code::is_sticky(result) {
            return Err(self.poisoned(self.poison.get_or_init(|| format!("{call}: {message}"))));
        }
        Err(Error::Driver { call, message })
    }

    fn poisoned(&self, message: &str) -> Error {
        Error::Poisoned { device: Id::Cuda(self.ordinal).to_string(), message: message.to_owned() }
    }

    pub fn is_poisoned(&self) -> bool {
        self.poison.get().is_some()
    }

    /// For destructors: destroys `thing` later.
    pub fn bury(&self, thing: Dead) {
        lock(&self.dead).push(thing);
    }

    /// Destroys what destructors left. Not to be called during a capture of this thread's.
    pub fn reap(&self) {
        let dead = std::mem::take(&mut *lock(&self.dead));
        if dead.is_empty() {
            return;
        }
        // A lost context has nothing left to destroy.
        let Ok(api) = self.enter() else { return };
        for thing in dead {
            // SAFETY: each was created in this context, and its one owner has let go of it.
            let result = unsafe {
                match thing {
                    Dead::Stream(stream) => (api.cuStreamDestroy)(stream),
                    Dead::Event(event) => (api.cuEventDestroy)(event),
                    Dead::Graph(graph) => (api.cuGraphExecDestroy)(graph),
                    Dead::Module(module) => (api.cuModuleUnload)(module),
                    Dead::Host(at) => (api.cuMemFreeHost)(at),
                }
            };
            // May be the late news of a failed kernel; there is nobody to tell, so the next
            // call will.
            let _ = self.check("destroy", result);
            if self.is_poisoned() {
                return;
            }
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.reap();
        if !self.is_poisoned() {
            // SAFETY: retained once, in `retain`; all that lived in the context holds `self`.
            unsafe { (self.api.cuDevicePrimaryCtxRelease)(self.device) };
        }
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("ordinal", &self.ordinal)
            .field("poison", &self.poison.get())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::code::is_sticky;

    #[test]
    fn errors_that_lose_the_context_are_sticky() {
        for code in [4, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 999] {
            assert!(is_sticky(code), "{code}");
        }
        for code in [0, 1, 2, 100, 200, 209, 500, 600, 701, 720, 900, 901, 906, 12345] {
            assert!(!is_sticky(code), "{code}");
        }
    }
}
