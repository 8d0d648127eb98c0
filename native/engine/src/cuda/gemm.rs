//! Products of matrices that lie as they may, in batches: by cuBLASLt where it is there and takes
//! them, and else by a tiled kernel of our own for any type and any strides.

use std::sync::Arc;

use super::blas::{Addresses, Matmul, Plan as Library, Side};
use super::launch::{Args, Context, Grid};
use super::modules::Module;
use super::props::Props;
use crate::error::{Error, Result};
use crate::infer::product::Operand;
use crate::spec::DType;

const TILED: &str = "dot/tiled.cu";
const TILE: usize = 64;

/// y {rows, columns} ← a {rows, inner} · b {inner, columns} for each of a batch; y is dense row
/// after row, a and b lie by strides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gemm {
    pub batch: usize,
    pub rows: usize,
    pub inner: usize,
    pub columns: usize,
    pub a: Strides,
    pub b: Strides,
    /// Elements from one result of the batch to the next.
    pub y_batch: usize,
    pub dtype: DType,
    /// Bytes that the operands' addresses are multiples of, at most 256.
    pub alignment: u32,
}

/// Elements from one to the next: in the batch, along the rows of a or the columns of b, and along
/// what is summed.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Strides {
    pub batch: i64,
    pub free: i64,
    pub inner: i64,
}

impl Strides {
    pub(super) fn of(operand: &Operand) -> Self {
        let Operand { batch, free, inner, .. } = *operand;
        Strides { batch: batch as i64, free: free as i64, inner: inner as i64 }
    }

    /// As the library wants it, where it is dense one way or the other. `free` and `inner` are the
    /// lengths; the stride of a length of 1 says nothing.
    fn side(&self, free: usize, inner: usize, inner_is_dense_unflipped: bool) -> Option<Side> {
        let batch = usize::try_from(self.batch).ok()?;
        let (along, pitch) = if self.inner == 1 || inner == 1 {
            (true, if free == 1 { inner as i64 } else { self.free })
        } else if self.free == 1 || free == 1 {
            (false, if inner == 1 { free as i64 } else { self.inner })
        } else {
            return None;
        };
        let pitch = usize::try_from(pitch).ok()?;
        let least = if along { inner } else { free };
        (pitch >= least).then_some(Side {
            flipped: along != inner_is_dense_unflipped,
            pitch,
            batch,
        })
    }
}

/// Who does it.
pub(super) enum Route {
    Library(Arc<Library>),
    /// Our own kernel, and why.
    Tiled(String),
}

impl Gemm {
    fn matmul(&self) -> Option<Matmul> {
        Some(Matmul {
            batch: self.batch,
            rows: self.rows,
            inner: self.inner,
            columns: self.columns,
            a: self.a.side(self.rows, self.inner, true)?,
            b: self.b.side(self.columns, self.inner, false)?,
            y_batch: self.y_batch,
            dtype: self.dtype,
            out: self.dtype,
            bias: false,
            addend: false,
            alignment: self.alignment,
        })
    }

    pub(super) fn route(&self, props: &Props) -> Route {
        if !self.dtype.is_float() {
            return Route::Tiled("integers".into());
        }
        let Some(matmul) = self.matmul() else {
            return Route::Tiled("no axis of an operand is dense".into());
        };
        match props.blas.plan(&matmul) {
            Ok(plan) => Route::Library(plan),
            Err(why) => Route::Tiled(why),
        }
    }

    /// Whether a launch has nothing of the library's to open or load.
    pub(super) fn is_warm(&self, props: &Props) -> bool {
        match self.matmul() {
            Some(matmul) if self.dtype.is_float() => props.blas.is_warm(&matmul),
            _ => true,
        }
    }

    /// The variant, and why.
    pub(super) fn explain(&self, props: &Props) -> (&'static str, String) {
        let Gemm { batch, rows, inner, columns, .. } = *self;
        let what = format!("{batch} product(s) of {rows} x {inner} by {inner} x {columns}");
        match self.route(props) {
            Route::Library(_) => ("cublaslt", format!("{what} by cuBLASLt")),
            Route::Tiled(why) => ("tiled_any", format!("{what} by our own tiles: {why}")),
        }
    }

    pub(super) fn modules(&self, props: &Props) -> Vec<Module> {
        match self.route(props) {
            Route::Library(_) => Vec::new(),
            Route::Tiled(_) => vec![Module::of(TILED, self.dtype)],
        }
    }

    pub(super) fn workspace(&self, props: &Props) -> usize {
        match self.route(props) {
            Route::Library(plan) => plan.workspace,
            Route::Tiled(_) => 0,
        }
    }

    /// # Safety
    /// The addresses are live device memory of these shapes, y overlaps neither of the others, and
    /// the workspace is as large as [`Gemm::workspace`] said.
    pub(super) unsafe fn launch(
        &self,
        cx: &Context,
        [a, b, y]: [u64; 3],
        workspace: u64,
    ) -> Result<()> {
        match self.route(cx.props()) {
            Route::Library(plan) => {
                let at = Addresses { a, b, bias: 0, addend: 0, y, workspace };
                // SAFETY: the caller's promise.
                unsafe { cx.props().blas.launch(cx.stream().raw(), &plan, at) }
            }
            Route::Tiled(_) => {
                let (down, across) = (self.rows.div_ceil(TILE), self.columns.div_ceil(TILE));
                let (Ok(down_u32), Ok(across_u32)) = (u32::try_from(down), u32::try_from(across))
                else {
                    return Err(Error::unsupported("dot", "an axis is too long"));
                };
                let blocks = down.saturating_mul(across).saturating_mul(self.batch);
                if blocks > i32::MAX as usize {
                    let message = format!("{blocks} tiles of {TILE} x {TILE} are too many");
                    return Err(Error::unsupported("dot", message));
                }
                let function = cx.function(&Module::of(TILED, self.dtype), "tiled")?;
                let mut args = Args::new();
                args.ptr(a).ptr(b).ptr(y).value(self.a).value(self.b).i64(self.y_batch as i64);
                args.i64(self.rows as i64).i64(self.columns as i64).i64(self.inner as i64);
                args.u32(down_u32).u32(across_u32);
                // SAFETY: these are the entry's parameters, and the caller vouches for the
                // addresses.
                unsafe { cx.launch(&function, Grid::new(blocks, 256)?, &mut args) }
            }
        }
    }
}

pub(super) fn all_modules() -> Vec<Module> {
    DType::ALL.map(|dtype| Module::of(TILED, dtype)).to_vec()
}
