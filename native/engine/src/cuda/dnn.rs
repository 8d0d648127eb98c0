//! cuDNN, NVIDIA's convolutions: found and opened at run time as [`super::blas`] is, and used where it
//! is there. Descriptions and algorithms are made once for each shape, so that a launch only launches,
//! and can be captured.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread;

use cudarc::driver::sys::CUstream;
use libloading::Library;
use once_cell::sync::OnceCell;

use super::blas::Owned;
use super::correlation::{AXES, Convolution};
use super::driver::Driver;
use super::library::OfDevice;
use super::modules::Relaxed;
use super::search::{self, Place};
use crate::error::{Error, Result};
use crate::pool::lock;
use crate::spec::DType;

type Handle = *mut c_void;
type Desc = *mut c_void;
type Create = unsafe extern "C" fn(*mut Desc) -> c_int;
type Destroy = unsafe extern "C" fn(Desc) -> c_int;

/// The major version whose functions these are.
const MAJOR: usize = 9;
/// Parts of it, which it opens itself at their first need; where one is missing, some versions end
/// the process.
const PARTS: [&str; 6] = [
    "libcudnn_graph.so.9",
    "libcudnn_ops.so.9",
    "libcudnn_cnn.so.9",
    "libcudnn_heuristic.so.9",
    "libcudnn_engines_precompiled.so.9",
    "libcudnn_engines_runtime_compiled.so.9",
];
/// The most scratch that a convolution may ask for.
const WORKSPACE: usize = 256 << 20;
/// Shapes that are remembered.
const REMEMBERED: usize = 4096;
/// Answers that are asked for: more than there are algorithms and ways to multiply.
const ANSWERS: usize = 16;

/// Of the library's header.
mod constant {
    use std::ffi::c_int;

    pub const FLOAT: c_int = 0;
    pub const DOUBLE: c_int = 1;
    pub const HALF: c_int = 2;
    pub const BFLOAT16: c_int = 9;
    pub const NCHW: c_int = 0;
    pub const CROSS_CORRELATION: c_int = 1;
    pub const DEFAULT_MATH: c_int = 0;
    pub const TENSOR_OP_MATH: c_int = 1;
    pub const FMA_MATH: c_int = 3;
    pub const DETERMINISTIC: c_int = 1;
    pub const SUCCESS: c_int = 0;
}

/// Algorithms that sum up the products themselves. Those by Fourier's or Winograd's transforms carry
/// a NaN or an infinity to outputs that do not see it, overflow earlier in f16, and are less exact.
const ALGORITHMS: [&str; 4] = ["implicit_gemm", "implicit_precomp_gemm", "gemm", "direct"];

/// As in the library's header.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Found {
    algorithm: c_int,
    status: c_int,
    milliseconds: f32,
    workspace: usize,
    determinism: c_int,
    math: c_int,
    reserved: [c_int; 3],
}

struct Api {
    create: unsafe extern "C" fn(*mut Handle) -> c_int,
    set_stream: unsafe extern "C" fn(Handle, CUstream) -> c_int,
    tensor_create: Create,
    tensor_set: unsafe extern "C" fn(Desc, c_int, c_int, *const c_int, *const c_int) -> c_int,
    tensor_destroy: Destroy,
    kernel_create: Create,
    kernel_set: unsafe extern "C" fn(Desc, c_int, c_int, c_int, *const c_int) -> c_int,
    kernel_destroy: Destroy,
    conv_create: Create,
    conv_set: unsafe extern "C" fn(
        Desc,
        c_int,
        *const c_int,
        *const c_int,
        *const c_int,
        c_int,
        c_int,
    ) -> c_int,
    conv_groups: unsafe extern "C" fn(Desc, c_int) -> c_int,
    conv_math: unsafe extern "C" fn(Desc, c_int) -> c_int,
    conv_destroy: Destroy,
    algorithms: unsafe extern "C" fn(
        Handle,
        Desc,
        Desc,
        Desc,
        Desc,
        c_int,
        *mut c_int,
        *mut Found,
    ) -> c_int,
    workspace: unsafe extern "C" fn(Handle, Desc, Desc, Desc, Desc, c_int, *mut usize) -> c_int,
    forward: unsafe extern "C" fn(
        Handle,
        *const c_void,
        Desc,
        *const c_void,
        Desc,
        *const c_void,
        Desc,
        c_int,
        *mut c_void,
        usize,
        *const c_void,
        Desc,
        *mut c_void,
    ) -> c_int,
    status: unsafe extern "C" fn(c_int) -> *const c_char,
    last: unsafe extern "C" fn(*mut c_char, usize),
    at: String,
    version: usize,
}

/// Opens a library that is never closed: none of these expects to be.
fn open(place: &Place) -> Result<&'static Library, String> {
    // SAFETY: opening a part of cuDNN runs its initialisers and nothing else.
    let library = unsafe { Library::new(place.as_os_str()) }.map_err(|e| search::why(place, &e))?;
    Ok(Box::leak(Box::new(library)))
}

impl Api {
    fn open(place: &Place) -> Result<Self, String> {
        let library = open(place)?;
        macro_rules! symbol {
            ($name:literal) => {
                // SAFETY: of the type that the header gives it, enums being integers in C.
                *unsafe { library.get($name.as_bytes()) }.map_err(|_| concat!("no ", $name))?
            };
        }
        let version: unsafe extern "C" fn() -> usize = symbol!("cudnnGetVersion");
        // SAFETY: takes nothing and gives a number.
        let version = unsafe { version() };
        if version / 10_000 != MAJOR {
            return Err(format!("its version is {version}, and {MAJOR} is needed"));
        }
        for part in PARTS {
            open(&place.beside(part)).map_err(|why| format!("its {part}: {why}"))?;
        }
        Ok(Api {
            create: symbol!("cudnnCreate"),
            set_stream: symbol!("cudnnSetStream"),
            tensor_create: symbol!("cudnnCreateTensorDescriptor"),
            tensor_set: symbol!("cudnnSetTensorNdDescriptor"),
            tensor_destroy: symbol!("cudnnDestroyTensorDescriptor"),
            kernel_create: symbol!("cudnnCreateFilterDescriptor"),
            kernel_set: symbol!("cudnnSetFilterNdDescriptor"),
            kernel_destroy: symbol!("cudnnDestroyFilterDescriptor"),
            conv_create: symbol!("cudnnCreateConvolutionDescriptor"),
            conv_set: symbol!("cudnnSetConvolutionNdDescriptor"),
            conv_groups: symbol!("cudnnSetConvolutionGroupCount"),
            conv_math: symbol!("cudnnSetConvolutionMathType"),
            conv_destroy: symbol!("cudnnDestroyConvolutionDescriptor"),
            algorithms: symbol!("cudnnGetConvolutionForwardAlgorithm_v7"),
            workspace: symbol!("cudnnGetConvolutionForwardWorkspaceSize"),
            forward: symbol!("cudnnConvolutionForward"),
            status: symbol!("cudnnGetErrorString"),
            last: symbol!("cudnnGetLastErrorString"),
            at: place.to_string(),
            version,
        })
    }

    fn check(&self, what: &str, status: c_int) -> Result<(), String> {
        if status == constant::SUCCESS {
            return Ok(());
        }
        // SAFETY: gives a constant string, for an unknown status too.
        let name = unsafe { (self.status)(status) };
        let name = match name.is_null() {
            true => format!("status {status}"),
            // SAFETY: not null, and ended by a zero.
            false => unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned(),
        };
        let mut text = [0 as c_char; 512];
        // SAFETY: it writes at most so many bytes, and the last one stays zero.
        unsafe { (self.last)(text.as_mut_ptr(), text.len() - 1) };
        // SAFETY: the last byte is zero.
        let text = unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy();
        match text.trim() {
            "" => Err(format!("{what}: {name}")),
            text => Err(format!("{what}: {name} ({text})")),
        }
    }

    fn make(&self, create: Create, destroy: Destroy) -> Result<Owned, String> {
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is ours to write.
        self.check("a description", unsafe { create(&mut raw) })?;
        Ok(Owned(raw, destroy))
    }
}

/// A device's cuDNN, opened when it is first asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dnn(OfDevice<Device>);

struct Device {
    driver: Arc<Driver>,
    opened: OnceCell<Result<Opened, String>>,
    plans: RwLock<HashMap<Convolution, Result<Arc<Plan>, String>>>,
}

/// The library and a handle of it, which one thread uses at a time. It is never given back: it
/// lives as long as the device, which is as long as the process.
struct Opened {
    api: Api,
    handle: Mutex<Handle>,
}

// SAFETY: a handle may be used from any thread, by one at a time.
unsafe impl Send for Opened {}
// SAFETY: as above; the rest is a table of functions.
unsafe impl Sync for Opened {}

impl Dnn {
    pub(super) fn new(driver: &Arc<Driver>) -> Self {
        let (opened, plans) = Default::default();
        Dnn(OfDevice::new(Device { driver: Arc::clone(driver), opened, plans }))
    }

    /// The convolution as the library would do it, or why it does not.
    pub(super) fn plan(&self, convolution: &Convolution) -> Result<Arc<Plan>, String> {
        let device = self.0.as_ref().ok_or("no cuDNN")?;
        if let Some(plan) = self.known(convolution) {
            return plan;
        }
        let plan = device.opened().and_then(|opened| {
            with_room(&device.driver, || Plan::new(opened, convolution).map(Arc::new))
        });
        let mut plans = device.plans.write().unwrap_or_else(PoisonError::into_inner);
        if plans.len() >= REMEMBERED {
            plans.clear();
        }
        // Another thread may have been first; all then share one.
        plans.entry(*convolution).or_insert(plan).clone()
    }

    fn known(&self, convolution: &Convolution) -> Option<Result<Arc<Plan>, String>> {
        let plans = self.0.as_ref()?.plans.read().unwrap_or_else(PoisonError::into_inner);
        plans.get(convolution).cloned()
    }

    /// Whether a launch of it would have nothing to open, choose or load; none where it is not the
    /// library's.
    pub(super) fn is_warm(&self, convolution: &Convolution) -> Option<bool> {
        self.0.as_ref()?;
        match self.known(convolution) {
            Some(Ok(plan)) => Some(plan.warm.load(Ordering::Relaxed)),
            Some(Err(_)) => None,
            None => Some(false),
        }
    }

    /// Queues a convolution.
    ///
    /// # Safety
    /// The addresses are live device memory of the shapes of the plan's [`Convolution`] until the
    /// work is done, `y` overlaps no other, and `workspace` has [`Plan::workspace`] bytes.
    pub(super) unsafe fn launch(&self, stream: CUstream, plan: &Plan, at: Addresses) -> Result<()> {
        let Some(device) = self.0.as_ref() else {
            return Err(Error::Internal("a plan of cuDNN's without cuDNN".into()));
        };
        let failed = |message| Error::Driver { call: "cudnnConvolutionForward", message };
        let opened = device.opened().map_err(failed)?;
        if plan.warm.load(Ordering::Relaxed) {
            device.driver.enter()?;
            // SAFETY: the caller's promise.
            return unsafe { opened.forward(plan, stream as usize, at) }.map_err(failed);
        }
        // Its kernels are loaded at their first launch, also in the middle of a capture.
        let stream = stream as usize;
        // SAFETY: the caller's promise; the thread ends before this returns.
        with_room(&device.driver, || unsafe { opened.forward(plan, stream, at) })
            .map_err(failed)?;
        plan.warm.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// Does what is a shape's first on a thread with a large stack and the device's context: choosing an
/// algorithm and loading its kernels is a deep search, at times by way of the compiler, and a scheduler
/// thread of the VM has 320 KB.
fn with_room<R: Send>(
    driver: &Driver,
    work: impl FnOnce() -> Result<R, String> + Send,
) -> Result<R, String> {
    const STACK: usize = 16 << 20;
    let work = || {
        driver.enter().map_err(|e| e.to_string())?;
        let _relaxed = Relaxed::enter(driver).map_err(|e| e.to_string())?;
        work()
    };
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("nitrox-cudnn".into()).stack_size(STACK);
        let thread = builder.spawn_scoped(scope, work).map_err(|e| e.to_string())?;
        thread.join().unwrap_or_else(|_| Err("the thread panicked".into()))
    })
}

/// Where cuDNN is looked for, and what came of it. It opens what it meets.
pub(super) fn survey() -> search::Survey {
    let version = |api: Api| (api.version as u32 / 10_000, api.version as u32 / 100 % 100);
    search::CUDNN.survey(|place| Api::open(place).map(version))
}

impl Device {
    fn opened(&self) -> Result<&Opened, String> {
        let open =
            || search::CUDNN.first("cuDNN", |place| with_room(&self.driver, || Opened::new(place)));
        self.opened.get_or_init(open).as_ref().map_err(String::clone)
    }
}

impl Opened {
    fn new(place: &Place) -> Result<Self, String> {
        let api = Api::open(place)?;
        let mut handle = ptr::null_mut();
        // SAFETY: the device's context is current, and `handle` is ours to write.
        let status = unsafe { (api.create)(&mut handle) };
        api.check("cudnnCreate", status)?;
        Ok(Opened { api, handle: Mutex::new(handle) })
    }

    /// # Safety
    /// As for [`Dnn::launch`]; `stream` is one of the device's.
    unsafe fn forward(&self, plan: &Plan, stream: usize, at: Addresses) -> Result<(), String> {
        let (ones, one) = (1.0f64, 1.0f32);
        let (zeros, zero) = (0.0f64, 0.0f32);
        let (alpha, beta): (*const c_void, *const c_void) = match plan.double {
            true => ((&raw const ones).cast(), (&raw const zeros).cast()),
            false => ((&raw const one).cast(), (&raw const zero).cast()),
        };
        let pointer = |addr: u64| addr as *mut c_void;
        let handle = lock(&self.handle);
        // SAFETY: the stream is alive, and the handle is this thread's for now.
        let status = unsafe { (self.api.set_stream)(*handle, stream as CUstream) };
        self.api.check("cudnnSetStream", status)?;
        // SAFETY: the caller's promise; alpha and beta are read before the call returns.
        let status = unsafe {
            (self.api.forward)(
                *handle,
                alpha,
                plan.input.0,
                pointer(at.x),
                plan.kernel.0,
                pointer(at.kernel),
                plan.conv.0,
                plan.algorithm,
                pointer(at.workspace),
                plan.workspace,
                beta,
                plan.output.0,
                pointer(at.y),
            )
        };
        self.api.check("status", status)
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.opened.get() {
            Some(Ok(opened)) => write!(f, "{} at {}", opened.api.version, opened.api.at),
            Some(Err(why)) => f.write_str(why),
            None => f.write_str("not asked for yet"),
        }
    }
}

/// Where the operands of a convolution lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addresses {
    pub x: u64,
    pub kernel: u64,
    pub y: u64,
    pub workspace: u64,
}

/// A convolution with all that a launch needs.
pub(super) struct Plan {
    input: Owned,
    kernel: Owned,
    output: Owned,
    conv: Owned,
    algorithm: c_int,
    pub workspace: usize,
    double: bool,
    /// Whether it was launched before.
    warm: AtomicBool,
}

// SAFETY: descriptions are memory of the host, written while they are made and only read after.
unsafe impl Send for Plan {}
// SAFETY: as above.
unsafe impl Sync for Plan {}

impl Plan {
    fn new(opened: &Opened, c: &Convolution) -> Result<Self, String> {
        let api = &opened.api;
        let dtype = data_type(c.dtype).ok_or("a type that it does not convolve")?;
        let (rank, spatial) = (c.rank as c_int, c.rank as c_int - 2);
        let tensor = |shape: &[c_int; AXES]| {
            let desc = api.make(api.tensor_create, api.tensor_destroy)?;
            let strides = dense(shape, c.rank);
            // SAFETY: the description is alive, and `rank` numbers are read of both.
            let status =
                unsafe { (api.tensor_set)(desc.0, dtype, rank, shape.as_ptr(), strides.as_ptr()) };
            api.check("a tensor", status).map(|()| desc)
        };
        let (input, output) = (tensor(&c.input)?, tensor(&c.output)?);
        let kernel = api.make(api.kernel_create, api.kernel_destroy)?;
        // SAFETY: the description is alive, and `rank` numbers are read.
        let status =
            unsafe { (api.kernel_set)(kernel.0, dtype, constant::NCHW, rank, c.kernel.as_ptr()) };
        api.check("a kernel", status)?;
        let conv = api.make(api.conv_create, api.conv_destroy)?;
        let double = c.dtype == DType::F64;
        let compute = if double { constant::DOUBLE } else { constant::FLOAT };
        let (padding, strides, dilation) =
            (c.padding.as_ptr(), c.strides.as_ptr(), c.dilation.as_ptr());
        // SAFETY: the description is alive, and `spatial` numbers are read of each.
        let status = unsafe {
            let mode = constant::CROSS_CORRELATION;
            (api.conv_set)(conv.0, spatial, padding, strides, dilation, mode, compute)
        };
        api.check("a convolution", status)?;
        // SAFETY: the description is alive.
        api.check("groups", unsafe { (api.conv_groups)(conv.0, c.groups) })?;
        // SAFETY: as above.
        let multiply_by = |math| api.check("math", unsafe { (api.conv_math)(conv.0, math) });
        multiply_by(first_math(c.dtype))?;

        let mut found = [Found::default(); ANSWERS];
        let mut count = 0;
        let handle = lock(&opened.handle);
        // SAFETY: all are alive, and there is room for the answers that are asked for.
        let status = unsafe {
            (api.algorithms)(
                *handle,
                input.0,
                kernel.0,
                conv.0,
                output.0,
                ANSWERS as c_int,
                &mut count,
                found.as_mut_ptr(),
            )
        };
        api.check("it has no algorithm", status)?;
        let mut why = "it has none that sums up the products in a fixed order".to_owned();
        for found in found.iter().take(usize::try_from(count).unwrap_or(0)) {
            let Some(math) = found.math(c.dtype) else { continue };
            multiply_by(math)?;
            let mut workspace = 0;
            // SAFETY: all are alive, and `workspace` is ours to write.
            let status = unsafe {
                (api.workspace)(
                    *handle,
                    input.0,
                    kernel.0,
                    conv.0,
                    output.0,
                    found.algorithm,
                    &mut workspace,
                )
            };
            match api.check("its workspace", status) {
                Ok(()) if workspace <= WORKSPACE => {
                    let (algorithm, warm) = (found.algorithm, AtomicBool::new(false));
                    return Ok(Plan {
                        input,
                        kernel,
                        output,
                        conv,
                        algorithm,
                        workspace,
                        double,
                        warm,
                    });
                }
                Ok(()) => why = format!("it asks for {workspace} bytes of scratch"),
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    /// The name of its algorithm.
    pub(super) fn algorithm(&self) -> &'static str {
        usize::try_from(self.algorithm).ok().and_then(|i| ALGORITHMS.get(i)).unwrap_or(&"unknown")
    }
}

impl Found {
    /// How it has to multiply, where it will do.
    fn math(&self, dtype: DType) -> Option<c_int> {
        let known = usize::try_from(self.algorithm).is_ok_and(|i| i < ALGORITHMS.len());
        let fixed = self.determinism == constant::DETERMINISTIC;
        if self.status != constant::SUCCESS || !known || !fixed || self.workspace > WORKSPACE {
            return None;
        }
        match (dtype, self.math) {
            // What is default may be TF32.
            (DType::F32, constant::DEFAULT_MATH | constant::FMA_MATH) => Some(constant::FMA_MATH),
            (DType::F32, _) => None,
            (_, constant::DEFAULT_MATH | constant::TENSOR_OP_MATH | constant::FMA_MATH) => {
                Some(self.math)
            }
            _ => None,
        }
    }
}

/// What the algorithms are asked for with.
fn first_math(dtype: DType) -> c_int {
    match dtype {
        DType::F16 | DType::BF16 => constant::TENSOR_OP_MATH,
        DType::F32 => constant::FMA_MATH,
        _ => constant::DEFAULT_MATH,
    }
}

/// The strides of a dense tensor.
fn dense(shape: &[c_int; AXES], rank: usize) -> [c_int; AXES] {
    let mut strides = [0; AXES];
    let mut stride: c_int = 1;
    for axis in (0..rank).rev() {
        strides[axis] = stride;
        stride = stride.saturating_mul(shape[axis]);
    }
    strides
}

fn data_type(dtype: DType) -> Option<c_int> {
    Some(match dtype {
        DType::F16 => constant::HALF,
        DType::BF16 => constant::BFLOAT16,
        DType::F32 => constant::FLOAT,
        DType::F64 => constant::DOUBLE,
        _ => return None,
    })
}
