//! cuBLAS's solver of triangular systems: found and opened at run time as [`super::blas`] is, and used
//! where it is there for a single large triangle, which a block of ours is long on its way down.

use std::collections::HashSet;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use cudarc::driver::sys::CUstream;
use libloading::Library;
use once_cell::sync::OnceCell;

use super::driver::Driver;
use super::library::OfDevice;
use super::modules::Relaxed;
use super::search::{self, Place};
use crate::error::{Error, Result};
use crate::infer::solve::Systems;
use crate::op::TriangularSolve;
use crate::pool::lock;
use crate::spec::DType;

type Handle = *mut c_void;
type Solver<F> = unsafe extern "C" fn(
    Handle,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    *const F,
    *const F,
    c_int,
    *mut F,
    c_int,
) -> c_int;

/// Scratch that it is given: what it takes itself on a Hopper where it is given none.
pub(super) const WORKSPACE: usize = 32 << 20;
/// Rows from which it was measured to be the quicker (`bench/results/h200.md`).
const LARGE: usize = 256;
/// Systems that are remembered as solved before.
const REMEMBERED: usize = 4096;

/// Of the library's header.
mod constant {
    use std::ffi::c_int;

    pub const SUCCESS: c_int = 0;
    pub const LEFT: c_int = 0;
    pub const RIGHT: c_int = 1;
    pub const LOWER: c_int = 0;
    pub const UPPER: c_int = 1;
    pub const AS_IT_IS: c_int = 0;
    pub const TRANSPOSED: c_int = 1;
    pub const NON_UNIT: c_int = 0;
    pub const MAJOR_VERSION: c_int = 0;
    pub const MINOR_VERSION: c_int = 1;
}

struct Api {
    create: unsafe extern "C" fn(*mut Handle) -> c_int,
    set_stream: unsafe extern "C" fn(Handle, CUstream) -> c_int,
    set_workspace: unsafe extern "C" fn(Handle, *mut c_void, usize) -> c_int,
    single: Solver<f32>,
    double: Solver<f64>,
    status: unsafe extern "C" fn(c_int) -> *const c_char,
    at: String,
    version: (u32, u32),
}

impl Api {
    fn open(place: &Place) -> Result<Self, String> {
        // SAFETY: opening cuBLAS runs its initialisers and nothing else.
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
        let property: unsafe extern "C" fn(c_int, *mut c_int) -> c_int =
            symbol!("cublasGetProperty");
        let number = |which| {
            let mut value = 0;
            // SAFETY: `value` is ours to write; it is left where the call fails.
            unsafe { property(which, &mut value) };
            value.max(0) as u32
        };
        Ok(Api {
            create: symbol!("cublasCreate_v2"),
            set_stream: symbol!("cublasSetStream_v2"),
            set_workspace: symbol!("cublasSetWorkspace_v2"),
            single: symbol!("cublasStrsm_v2"),
            double: symbol!("cublasDtrsm_v2"),
            status: symbol!("cublasGetStatusName"),
            at: place.to_string(),
            version: (number(constant::MAJOR_VERSION), number(constant::MINOR_VERSION)),
        })
    }

    fn check(&self, what: &str, status: c_int) -> Result<(), String> {
        if status == constant::SUCCESS {
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

/// A device's cuBLAS, opened when it is first asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trsm(OfDevice<Device>);

struct Device {
    driver: Arc<Driver>,
    opened: OnceCell<Result<Opened, String>>,
    /// Those whose kernels are loaded.
    warm: RwLock<HashSet<Solve>>,
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

impl Trsm {
    pub(super) fn new(driver: &Arc<Driver>) -> Self {
        let (opened, warm) = Default::default();
        Trsm(OfDevice::new(Device { driver: Arc::clone(driver), opened, warm }))
    }

    /// Whether the library is there, or why not.
    pub(super) fn find(&self) -> Result<(), String> {
        self.0.as_ref().ok_or("no cuBLAS")?.opened().map(|_| ())
    }

    /// Whether a launch of it would have nothing to open or load; none where it is not the library's.
    pub(super) fn is_warm(&self, solve: &Solve) -> Option<bool> {
        let device = self.0.as_ref()?;
        match device.opened.get() {
            Some(Ok(_)) => Some(device.is_warm(solve)),
            Some(Err(_)) => None,
            None => Some(false),
        }
    }

    /// Queues the solution of `a` for the right sides at `x`, in their place.
    ///
    /// # Safety
    /// The addresses are live device memory of the shapes of `solve` until the work is done, apart
    /// from each other, and `workspace` has [`WORKSPACE`] bytes.
    pub(super) unsafe fn launch(
        &self,
        stream: CUstream,
        solve: &Solve,
        [a, x, workspace]: [u64; 3],
    ) -> Result<()> {
        let Some(device) = self.0.as_ref() else {
            return Err(Error::Internal("a solve of cuBLAS's without cuBLAS".into()));
        };
        let failed = |message| Error::Driver { call: "cublasTrsm", message };
        let Opened { api, handle } = device.opened().map_err(failed)?;
        device.driver.enter()?;
        let warm = device.is_warm(solve);
        // Its kernels are loaded at their first launch, also in the middle of a capture.
        let _relaxed = if warm { None } else { Some(Relaxed::enter(&device.driver)?) };
        let handle = lock(handle);
        // SAFETY: the stream is alive, and the handle is this thread's for now.
        let status = unsafe { (api.set_stream)(*handle, stream) };
        api.check("cublasSetStream", status).map_err(failed)?;
        // After the stream, which puts the handle's own in its place.
        // SAFETY: the caller's promise.
        let status = unsafe { (api.set_workspace)(*handle, workspace as *mut c_void, WORKSPACE) };
        api.check("cublasSetWorkspace", status).map_err(failed)?;
        // SAFETY: the caller's promise.
        let status = unsafe {
            match solve.double {
                true => solve.call(api.double, *handle, &1.0, a, x),
                false => solve.call(api.single, *handle, &1.0, a, x),
            }
        };
        api.check("status", status).map_err(failed)?;
        if !warm {
            device.remember(solve);
        }
        Ok(())
    }
}

/// Where cuBLAS is looked for, and what came of it. It opens what it meets.
pub(super) fn survey() -> search::Survey {
    search::CUBLAS.survey(|place| Api::open(place).map(|api| api.version))
}

impl Device {
    fn opened(&self) -> Result<&Opened, String> {
        let open = || {
            let _context = self.driver.enter().map_err(|e| e.to_string())?;
            search::CUBLAS.first("cuBLAS", |place| {
                let api = Api::open(place)?;
                let mut handle = ptr::null_mut();
                // SAFETY: the device's context is current, and `handle` is ours to write.
                let status = unsafe { (api.create)(&mut handle) };
                api.check("cublasCreate", status)?;
                Ok(Opened { api, handle: Mutex::new(handle) })
            })
        };
        self.opened.get_or_init(open).as_ref().map_err(String::clone)
    }

    fn is_warm(&self, solve: &Solve) -> bool {
        self.warm.read().unwrap_or_else(PoisonError::into_inner).contains(solve)
    }

    fn remember(&self, solve: &Solve) {
        let mut warm = self.warm.write().unwrap_or_else(PoisonError::into_inner);
        if warm.len() >= REMEMBERED {
            warm.clear();
        }
        warm.insert(*solve);
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.opened.get() {
            Some(Ok(opened)) => write!(f, "{:?} at {}", opened.api.version, opened.api.at),
            Some(Err(why)) => f.write_str(why),
            None => f.write_str("not asked for yet"),
        }
    }
}

/// A system as the library takes it, to which a matrix lies column after column: our own matrices are
/// transposed to it, lower ones upper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Solve {
    double: bool,
    left: bool,
    lower: bool,
    transposed: bool,
    size: c_int,
    /// Of the right sides.
    rows: c_int,
    columns: c_int,
}

impl Solve {
    /// None where it is not for the library: it has neither 16-bit types nor several triangles, and
    /// small ones are quicker without it.
    pub(super) fn of(attrs: &TriangularSolve, systems: &Systems, dtype: DType) -> Option<Self> {
        let Systems { batch, size, columns, .. } = *systems;
        if !matches!(dtype, DType::F32 | DType::F64) || batch != 1 || size < LARGE || columns == 0 {
            return None;
        }
        let [long, wide] = [size, columns].map(|n| c_int::try_from(n).ok());
        let (long, wide) = (long?, wide?);
        // A single right side lies the same either way, and stands on the right of its triangle.
        let (left, transposed) = match (columns, attrs.left_side) {
            (1, left_side) => (true, attrs.transpose != left_side),
            (_, true) => (false, attrs.transpose),
            (_, false) => (true, attrs.transpose),
        };
        let (rows, columns) = if left { (long, wide) } else { (wide, long) };
        let double = dtype == DType::F64;
        Some(Solve { double, left, lower: !attrs.lower, transposed, size: long, rows, columns })
    }

    /// # Safety
    /// As for [`Trsm::launch`]; `solver` is of the type of the elements, and the handle's.
    unsafe fn call<F>(&self, solver: Solver<F>, handle: Handle, one: &F, a: u64, x: u64) -> c_int {
        // SAFETY: the caller's promise; `one` is read before the call returns.
        unsafe {
            solver(
                handle,
                if self.left { constant::LEFT } else { constant::RIGHT },
                if self.lower { constant::LOWER } else { constant::UPPER },
                if self.transposed { constant::TRANSPOSED } else { constant::AS_IT_IS },
                constant::NON_UNIT,
                self.rows,
                self.columns,
                one,
                a as *const F,
                self.size,
                x as *mut F,
                self.rows,
            )
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::spec::Spec;

    const N: usize = 256;

    fn of(dtype: DType, attrs: TriangularSolve, a: &[usize], b: &[usize]) -> Option<Solve> {
        let [a, b] = [a, b].map(|shape| Spec::new(dtype, shape).ok());
        Solve::of(&attrs, &Systems::of(&attrs, &a?, &b?), dtype)
    }

    /// x of `x · op(a) = b` or `op(a) · x = b` by the library's rules, on matrices column after column.
    fn solved(solve: &Solve, a: &[f64], b: &[f64]) -> Vec<f64> {
        let (n, rows) = (solve.size as usize, solve.rows as usize);
        // Element (i, k) of op(a).
        let at = |i: usize, k: usize| {
            let (i, k) = if solve.transposed { (k, i) } else { (i, k) };
            let read = i == k || (k < i) == solve.lower;
            if read { a[i + k * n] } else { 0.0 }
        };
        let mut x = b.to_vec();
        let sides = x.len() / n;
        for side in 0..sides {
            let place = |i: usize| if solve.left { i + side * rows } else { side + i * rows };
            // On the right it is the transpose that stands on the left.
            let of = |i: usize, k: usize| if solve.left { at(i, k) } else { at(k, i) };
            let down = (solve.lower != solve.transposed) == solve.left;
            for step in 0..n {
                let i = if down { step } else { n - 1 - step };
                let done = if down { 0..i } else { i + 1..n };
                let sum: f64 = done.map(|k| of(i, k) * x[place(k)]).sum();
                x[place(i)] = (x[place(i)] - sum) / of(i, i);
            }
        }
        x
    }

    /// In all forms the library is asked for what solves the system.
    #[test]
    fn all_forms() {
        let number = |at: usize| ((at * 37 % 101) as f64 - 50.0) / 50.0;
        for bits in 0..8 {
            let attrs = TriangularSolve {
                lower: bits & 1 == 0,
                left_side: bits & 2 == 0,
                transpose: bits & 4 != 0,
            };
            let a: Vec<_> = (0..N * N)
                .map(|at| {
                    let (i, k) = (at / N, at % N);
                    match i == k {
                        true => 2.0,
                        false if (k < i) == attrs.lower => number(at) / N as f64,
                        false => f64::NAN,
                    }
                })
                .collect();
            // op(a), row after row.
            let op = |i: usize, k: usize| {
                let (i, k) = if attrs.transpose { (k, i) } else { (i, k) };
                if i == k || (k < i) == attrs.lower { a[i * N + k] } else { 0.0 }
            };
            for columns in [1, 3] {
                let shape: &[usize] = match (columns, attrs.left_side) {
                    (1, _) => &[N],
                    (_, true) => &[N, 3],
                    (_, false) => &[3, N],
                };
                let solve = of(DType::F64, attrs, &[N, N], shape).unwrap();
                let b: Vec<_> = (0..N * columns).map(|at| number(at + 5)).collect();
                let x = solved(&solve, &a, &b);
                for side in 0..columns {
                    let place = |i: usize| match (columns, attrs.left_side) {
                        (1, _) => i,
                        (_, true) => i * 3 + side,
                        (_, false) => side * N + i,
                    };
                    for i in 0..N {
                        let of = |k: usize| if attrs.left_side { op(i, k) } else { op(k, i) };
                        let sum: f64 = (0..N).map(|k| of(k) * x[place(k)]).sum();
                        let off = (sum - b[place(i)]).abs();
                        assert!(off < 1e-9, "{attrs:?}, {columns}: {off} at {i}");
                    }
                }
            }
        }
    }

    #[test]
    fn one_large_triangle_of_a_type_that_it_has() {
        let attrs = TriangularSolve { lower: true, left_side: true, transpose: false };
        let is = |dtype, a: &[usize], b: &[usize]| of(dtype, attrs, a, b).is_some();
        assert!(is(DType::F32, &[N, N], &[N]) && is(DType::F64, &[1, N, N], &[1, N, 7]));
        assert!(!is(DType::F16, &[N, N], &[N]) && !is(DType::F32, &[2, N, N], &[2, N]));
        assert!(!is(DType::F32, &[N - 1, N - 1], &[N - 1]) && !is(DType::F32, &[N, N], &[N, 0]));
    }
}
