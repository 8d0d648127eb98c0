//! cuBLASLt, NVIDIA's matrix products: found and opened at run time, by a loader of our own, and
//! used where it is there. Descriptions and algorithms are made once for each shape, so that a
//! launch only launches, and can be captured.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use cudarc::cublaslt::sys::{
    cublasComputeType_t as Compute, cublasLtEpilogue_t as Epilogue,
    cublasLtMatmulAlgo_t as Algorithm, cublasLtMatmulDescAttributes_t as DescAttribute,
    cublasLtMatmulPreferenceAttributes_t as Preference,
    cublasLtMatrixLayoutAttribute_t as LayoutAttribute, cublasLtReductionScheme_t as Reduction,
    cudaDataType_t as DataType,
};
use cudarc::driver::sys::CUstream;
use libloading::Library;
use once_cell::sync::OnceCell;

use super::driver::Driver;
use super::library::OfDevice;
use super::modules::Relaxed;
use super::search::{self, Place};
use crate::error::{Error, Result};
use crate::pool::lock;
use crate::spec::DType;

type Handle = *mut c_void;
type Desc = *mut c_void;
type Layout = *mut c_void;
type Choice = *mut c_void;
type Set = unsafe extern "C" fn(*mut c_void, c_int, *const c_void, usize) -> c_int;
pub(super) type Destroy = unsafe extern "C" fn(*mut c_void) -> c_int;

/// The most scratch that a product may ask for: parts of sums that are taken apart, and added up
/// in a fixed order.
const WORKSPACE: u64 = 32 << 20;
/// Shapes that are remembered.
const REMEMBERED: usize = 4096;
/// The longest axis, and the most products in a batch.
const LONGEST: usize = i32::MAX as usize;
const MOST: usize = 65_535;

/// As in the library's header; the room of the heuristic's other answers is not ours to read.
#[repr(C)]
#[derive(Clone, Copy)]
struct Found {
    algorithm: Algorithm,
    workspace: usize,
    state: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

struct Api {
    create: unsafe extern "C" fn(*mut Handle) -> c_int,
    matmul: unsafe extern "C" fn(
        Handle,
        Desc,
        *const c_void,
        *const c_void,
        Layout,
        *const c_void,
        Layout,
        *const c_void,
        *const c_void,
        Layout,
        *mut c_void,
        Layout,
        *const Algorithm,
        *mut c_void,
        usize,
        CUstream,
    ) -> c_int,
    heuristic: unsafe extern "C" fn(
        Handle,
        Desc,
        Layout,
        Layout,
        Layout,
        Layout,
        Choice,
        c_int,
        *mut Found,
        *mut c_int,
    ) -> c_int,
    desc_create: unsafe extern "C" fn(*mut Desc, c_int, c_int) -> c_int,
    desc_set: Set,
    desc_destroy: Destroy,
    layout_create: unsafe extern "C" fn(*mut Layout, c_int, u64, u64, i64) -> c_int,
    layout_set: Set,
    layout_destroy: Destroy,
    choice_create: unsafe extern "C" fn(*mut Choice) -> c_int,
    choice_set: Set,
    choice_destroy: Destroy,
    status: unsafe extern "C" fn(c_int) -> *const c_char,
    at: String,
    version: usize,
}

impl Api {
    fn open(place: &Place) -> Result<Self, String> {
        // SAFETY: opening cuBLASLt runs its initialisers and nothing else.
        let library =
            unsafe { Library::new(place.as_os_str()) }.map_err(|e| search::why(place, &e))?;
        // Kept open also where it will not do: it does not expect to be unloaded.
        let library: &'static Library = Box::leak(Box::new(library));
        macro_rules! symbol {
            ($name:literal) => {
                // SAFETY: of the type that the header gives it, enums being integers in C.
                *unsafe { library.get($name.as_bytes()) }.map_err(|_| concat!("no ", $name))?
            };
        }
        let version: unsafe extern "C" fn() -> usize = symbol!("cublasLtGetVersion");
        Ok(Api {
            create: symbol!("cublasLtCreate"),
            matmul: symbol!("cublasLtMatmul"),
            heuristic: symbol!("cublasLtMatmulAlgoGetHeuristic"),
            desc_create: symbol!("cublasLtMatmulDescCreate"),
            desc_set: symbol!("cublasLtMatmulDescSetAttribute"),
            desc_destroy: symbol!("cublasLtMatmulDescDestroy"),
            layout_create: symbol!("cublasLtMatrixLayoutCreate"),
            layout_set: symbol!("cublasLtMatrixLayoutSetAttribute"),
            layout_destroy: symbol!("cublasLtMatrixLayoutDestroy"),
            choice_create: symbol!("cublasLtMatmulPreferenceCreate"),
            choice_set: symbol!("cublasLtMatmulPreferenceSetAttribute"),
            choice_destroy: symbol!("cublasLtMatmulPreferenceDestroy"),
            status: symbol!("cublasLtGetStatusName"),
            at: place.to_string(),
            // SAFETY: takes nothing and gives a number.
            version: unsafe { version() },
        })
    }

    fn check(&self, what: &str, status: c_int) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: gives a constant string, for an unknown status too.
        let name = unsafe { (self.status)(status) };
        if name.is_null() {
            return Err(format!("{what}: status {status}"));
        }
        // SAFETY: not null, and ended by a zero.
        Err(format!("{what}: {}", unsafe { CStr::from_ptr(name) }.to_string_lossy()))
    }
}

/// A device's cuBLASLt, opened when it is first asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Blas(OfDevice<Device>);

struct Device {
    driver: Arc<Driver>,
    opened: OnceCell<Result<Opened, String>>,
    plans: RwLock<HashMap<Matmul, Result<Arc<Plan>, String>>>,
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

impl Blas {
    pub(super) fn new(driver: &Arc<Driver>) -> Self {
        let (opened, plans) = Default::default();
        Blas(OfDevice::new(Device { driver: Arc::clone(driver), opened, plans }))
    }

    /// The product as the library would do it, or why it does not.
    pub(super) fn plan(&self, matmul: &Matmul) -> Result<Arc<Plan>, String> {
        let device = self.0.as_ref().ok_or("no cuBLASLt")?;
        {
            let plans = device.plans.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(plan) = plans.get(matmul) {
                return plan.clone();
            }
        }
        let plan = device.opened().and_then(|opened| {
            let _context = device.driver.enter().map_err(|e| e.to_string())?;
            Plan::new(opened, matmul).map(Arc::new)
        });
        let mut plans = device.plans.write().unwrap_or_else(PoisonError::into_inner);
        if plans.len() >= REMEMBERED {
            plans.clear();
        }
        // Another thread may have been first; all then share one.
        plans.entry(*matmul).or_insert(plan).clone()
    }

    /// Whether a launch of it would have nothing to open, choose or load.
    pub(super) fn is_warm(&self, matmul: &Matmul) -> bool {
        let Some(device) = self.0.as_ref() else { return true };
        let plans = device.plans.read().unwrap_or_else(PoisonError::into_inner);
        match plans.get(matmul) {
            Some(Ok(plan)) => plan.warm.load(Ordering::Relaxed),
            Some(Err(_)) => true,
            None => false,
        }
    }

    /// Queues a product.
    ///
    /// # Safety
    /// The addresses are live device memory of the shapes of the plan's [`Matmul`] until the work
    /// is done, `y` overlaps no other but `addend`, and `workspace` has [`Plan::workspace`] bytes.
    pub(super) unsafe fn launch(&self, stream: CUstream, plan: &Plan, at: Addresses) -> Result<()> {
        const CALL: &str = "cublasLtMatmul";
        let Some(Ok(opened)) = self.0.as_ref().and_then(|device| device.opened.get()) else {
            return Err(Error::Internal("a plan of cuBLASLt's without cuBLASLt".into()));
        };
        let Some(device) = self.0.as_ref() else { return Ok(()) };
        device.driver.enter()?;
        // Its kernels are loaded at their first launch, also in the middle of a capture.
        let _relaxed = match plan.warm.load(Ordering::Relaxed) {
            true => None,
            false => Some(Relaxed::enter(&device.driver)?),
        };
        let (ones, one) = (1.0f64, 1.0f32);
        let (zeros, zero) = (0.0f64, 0.0f32);
        let (alpha, none): (*const c_void, *const c_void) = match plan.double {
            true => ((&raw const ones).cast(), (&raw const zeros).cast()),
            false => ((&raw const one).cast(), (&raw const zero).cast()),
        };
        let (beta, addend) = if plan.addend { (alpha, at.addend) } else { (none, at.y) };
        let pointer = |addr: u64| addr as *mut c_void;
        let handle = lock(&opened.handle);
        // The descriptions are shared, and the bias is a part of one: under the handle's lock.
        if plan.bias {
            let set = opened.api.desc_set;
            let which = DescAttribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER as c_int;
            // SAFETY: the description is alive, and a pointer is what the attribute is.
            let status =
                unsafe { set(plan.desc.0, which, (&raw const at.bias).cast(), size_of::<u64>()) };
            opened
                .api
                .check("the bias", status)
                .map_err(|message| Error::Driver { call: CALL, message })?;
        }
        // The library is of columns where we are of rows: yᵀ = bᵀ · aᵀ.
        // SAFETY: the caller's promise; alpha and beta are read before the call returns.
        let status = unsafe {
            (opened.api.matmul)(
                *handle,
                plan.desc.0,
                alpha,
                pointer(at.b),
                plan.b.0,
                pointer(at.a),
                plan.a.0,
                beta,
                pointer(addend),
                plan.y.0,
                pointer(at.y),
                plan.y.0,
                &plan.algorithm,
                pointer(at.workspace),
                plan.workspace,
                stream,
            )
        };
        opened
            .api
            .check("status", status)
            .map_err(|message| Error::Driver { call: CALL, message })?;
        plan.warm.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// Where cuBLASLt is looked for, and what came of it. It opens what it meets.
pub(super) fn survey() -> search::Survey {
    let version = |api: Api| (api.version as u32 / 10_000, api.version as u32 / 100 % 100);
    search::CUBLASLT.survey(|place| Api::open(place).map(version))
}

impl Device {
    fn opened(&self) -> Result<&Opened, String> {
        let open = || {
            let _context = self.driver.enter().map_err(|e| e.to_string())?;
            search::CUBLASLT.first("cuBLASLt", |place| {
                let api = Api::open(place)?;
                let mut handle = ptr::null_mut();
                // SAFETY: the device's context is current, and `handle` is ours to write.
                let status = unsafe { (api.create)(&mut handle) };
                api.check("cublasLtCreate", status)?;
                Ok(Opened { api, handle: Mutex::new(handle) })
            })
        };
        self.opened.get_or_init(open).as_ref().map_err(String::clone)
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

/// y {rows, columns} ← a {rows, inner} · b {inner, columns}, plus a bias {columns} and an addend of
/// y's shape where there are such; for each of a batch. y is dense, row after row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Matmul {
    pub batch: usize,
    pub rows: usize,
    pub inner: usize,
    pub columns: usize,
    pub a: Side,
    pub b: Side,
    /// Elements from one result of the batch to the next.
    pub y_batch: usize,
    pub dtype: DType,
    /// That of y; the bias and the addend are of the same.
    pub out: DType,
    pub bias: bool,
    pub addend: bool,
    /// Bytes that all addresses are multiples of, at most 256.
    pub alignment: u32,
}

/// How an operand lies, in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Side {
    /// Column after column, and not row after row.
    pub flipped: bool,
    /// From one row to the next, or from one column to the next.
    pub pitch: usize,
    pub batch: usize,
}

/// Where a product's operands lie; 0 where there is none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addresses {
    pub a: u64,
    pub b: u64,
    pub bias: u64,
    pub addend: u64,
    pub y: u64,
    pub workspace: u64,
}

/// A product with all that a launch needs.
pub(super) struct Plan {
    desc: Owned,
    a: Owned,
    b: Owned,
    y: Owned,
    algorithm: Algorithm,
    pub workspace: usize,
    double: bool,
    bias: bool,
    addend: bool,
    /// Whether it was launched before.
    warm: AtomicBool,
}

// SAFETY: descriptions are memory of the host. They are written while they are made, and the bias
// of one under the handle's lock.
unsafe impl Send for Plan {}
// SAFETY: as above.
unsafe impl Sync for Plan {}

/// A description, freed with its owner; that calls no driver.
pub(super) struct Owned(pub *mut c_void, pub Destroy);

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: made once, freed once.
        unsafe { (self.1)(self.0) };
    }
}

impl Plan {
    fn new(opened: &Opened, p: &Matmul) -> Result<Self, String> {
        let axes = [p.rows, p.inner, p.columns, p.a.pitch, p.b.pitch];
        if axes.iter().any(|&n| n == 0 || n > LONGEST) || p.batch == 0 || p.batch > MOST {
            return Err(format!("axes are 1 to {LONGEST} long, batches of at most {MOST}"));
        }
        let api = &opened.api;
        let double = p.dtype == DType::F64;
        // Never TF32, nor products put together from smaller ones.
        let (compute, scale) = match double {
            true => (Compute::CUBLAS_COMPUTE_64F, DataType::CUDA_R_64F),
            false => (Compute::CUBLAS_COMPUTE_32F, DataType::CUDA_R_32F),
        };
        let make = |what: &str, destroy, create: &dyn Fn(*mut *mut c_void) -> c_int| {
            let mut raw = ptr::null_mut();
            api.check(what, create(&mut raw)).map(|()| Owned(raw, destroy))
        };
        fn set<V>(api: &Api, set: Set, to: &Owned, which: c_int, value: V) -> Result<(), String> {
            // SAFETY: the description is alive; `value` is of the attribute's type and read at once.
            let status = unsafe { set(to.0, which, (&raw const value).cast(), size_of::<V>()) };
            api.check("an attribute", status)
        }
        let desc = make("a description", api.desc_destroy, &|raw| {
            // SAFETY: `raw` is ours to write.
            unsafe { (api.desc_create)(raw, compute as c_int, scale as c_int) }
        })?;
        // As the library sees it, our rows are columns, and b comes first.
        let transpose = [
            (DescAttribute::CUBLASLT_MATMUL_DESC_TRANSA, p.b.flipped),
            (DescAttribute::CUBLASLT_MATMUL_DESC_TRANSB, p.a.flipped),
        ];
        for (which, flipped) in transpose {
            set(api, api.desc_set, &desc, which as c_int, c_int::from(flipped))?;
        }
        if p.bias {
            let which = DescAttribute::CUBLASLT_MATMUL_DESC_EPILOGUE as c_int;
            set(api, api.desc_set, &desc, which, Epilogue::CUBLASLT_EPILOGUE_BIAS as u32)?;
        }
        let layout = |dtype: DType, [columns, rows]: [usize; 2], pitch: usize, batch: usize| {
            let dtype = data_type(dtype).ok_or("a type that it does not multiply")?;
            let layout = make("a layout", api.layout_destroy, &|raw| {
                // SAFETY: `raw` is ours to write.
                unsafe {
                    (api.layout_create)(
                        raw,
                        dtype as c_int,
                        columns as u64,
                        rows as u64,
                        pitch as i64,
                    )
                }
            })?;
            let count = LayoutAttribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT as c_int;
            let stride = LayoutAttribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET as c_int;
            set(api, api.layout_set, &layout, count, p.batch as i32)?;
            set(api, api.layout_set, &layout, stride, batch as i64)?;
            Ok::<_, String>(layout)
        };
        let across = |side: &Side, [rows, columns]: [usize; 2]| {
            let shape = if side.flipped { [rows, columns] } else { [columns, rows] };
            layout(p.dtype, shape, side.pitch, side.batch)
        };
        let a = across(&p.a, [p.rows, p.inner])?;
        let b = across(&p.b, [p.inner, p.columns])?;
        let y = layout(p.out, [p.columns, p.rows], p.columns, p.y_batch)?;

        let choice = make("a preference", api.choice_destroy, &|raw| {
            // SAFETY: `raw` is ours to write.
            unsafe { (api.choice_create)(raw) }
        })?;
        let most = Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES as c_int;
        set(api, api.choice_set, &choice, most, WORKSPACE)?;
        // Sums that are taken apart are put together by a kernel that reads all the parts, in f32
        // and in their order: the same bits each time.
        let which = Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK as c_int;
        let scheme = Reduction::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        set(api, api.choice_set, &choice, which, scheme)?;
        for which in [
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            set(api, api.choice_set, &choice, which as c_int, p.alignment)?;
        }
        let mut found = Found {
            algorithm: Algorithm { data: [0; 8] },
            workspace: 0,
            state: 0,
            waves: 0.0,
            reserved: [0; 4],
        };
        let mut count = 0;
        let handle = lock(&opened.handle);
        // SAFETY: all are alive, and there is room for the one answer that is asked for.
        let status = unsafe {
            (api.heuristic)(
                *handle, desc.0, b.0, a.0, y.0, y.0, choice.0, 1, &mut found, &mut count,
            )
        };
        api.check("it has no algorithm", status)?;
        if count < 1 {
            return Err("it has no algorithm".into());
        }
        api.check("its algorithm", found.state)?;
        Ok(Plan {
            desc,
            a,
            b,
            y,
            algorithm: found.algorithm,
            workspace: found.workspace,
            double,
            bias: p.bias,
            addend: p.addend,
            warm: AtomicBool::new(false),
        })
    }
}

fn data_type(dtype: DType) -> Option<DataType> {
    Some(match dtype {
        DType::F16 => DataType::CUDA_R_16F,
        DType::BF16 => DataType::CUDA_R_16BF,
        DType::F32 => DataType::CUDA_R_32F,
        DType::F64 => DataType::CUDA_R_64F,
        _ => return None,
    })
}
