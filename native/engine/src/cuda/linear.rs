//! Products with what follows them, `dense` and its kin: by cuBLASLt where that was measured to be
//! the faster, and else by the kernels of [`super::dense`].

use std::sync::Arc;

use super::blas::{Addresses, Matmul, Plan as Library, Side};
use super::dense::{self, Epilogue, Operands, Product};
use super::few;
use super::launch::{Args, Context, Grid};
use super::modules::Module;
use super::props::Props;
use crate::error::Result;
use crate::op::Activation;
use crate::pool::{ALIGNMENT, round_up};
use crate::spec::DType;

const AFTER: &str = "dense/after.cu";
/// Rows up to which w is read once, by a kernel of ours.
const FEW: usize = 8;
/// What is summed up to which a launch of ours that does all is quicker than the library and a
/// second one that finishes: 6.0 against 8.2 µs at 4096 x 64 x 64 with GELU in bf16 on an H200, and
/// even at 1024 x 256 x 256 (`benches/products.rs`). Without a second launch the library never lost.
const SHALLOW: usize = 128;

/// A product, and what follows it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Linear {
    pub product: Product,
    pub bias: bool,
    pub residual: bool,
    pub activation: Activation,
}

/// Who does it.
enum Way {
    /// And where the library was asked, why it is not the library.
    Ours(Option<String>),
    /// The library, and whether a kernel of ours follows it.
    Library(Arc<Library>, bool),
}

impl Linear {
    /// What the library would be asked for. It adds a bias, and a residual where no activation comes
    /// before it.
    fn matmul(&self) -> Matmul {
        let p = &self.product;
        let out = if p.to_f32 { DType::F32 } else { p.dtype };
        Matmul {
            batch: 1,
            rows: p.rows,
            inner: p.inner,
            columns: p.columns,
            a: Side { flipped: false, pitch: p.inner, batch: 0 },
            b: Side { flipped: false, pitch: p.columns, batch: 0 },
            y_batch: 0,
            dtype: p.dtype,
            out,
            bias: self.bias && !p.gated,
            addend: self.residual && self.activation == Activation::None && !p.gated,
            alignment: ALIGNMENT as u32,
        }
    }

    /// Whether the library leaves something to a kernel of ours.
    fn leaves(&self, matmul: &Matmul) -> bool {
        self.activation != Activation::None
            || self.bias != matmul.bias
            || self.residual != matmul.addend
            || self.product.gated
    }

    /// Whether a bias is brought to the type of the result first: the library wants it so, and to add it
    /// afterwards would read and write all of the result.
    fn widens(&self, matmul: &Matmul) -> bool {
        matmul.bias && matmul.out != matmul.dtype
    }

    fn candidate(&self, props: &Props) -> bool {
        let (p, matmul) = (&self.product, self.matmul());
        let least = if self.leaves(&matmul) || self.widens(&matmul) { SHALLOW } else { 0 };
        let ours = p.rows <= FEW || p.norm || few::choose(props, p).is_some();
        !ours && p.inner > least && p.columns > 0
    }

    fn way(&self, props: &Props) -> Way {
        if !self.candidate(props) {
            return Way::Ours(None);
        }
        let matmul = self.matmul();
        match props.blas.plan(&matmul) {
            Ok(plan) => Way::Library(plan, self.leaves(&matmul)),
            Err(why) => Way::Ours(Some(why)),
        }
    }

    /// Whether a launch has nothing of the library's to open or load.
    pub(super) fn is_warm(&self, props: &Props) -> bool {
        !self.candidate(props) || props.blas.is_warm(&self.matmul())
    }

    /// The variant, why, and the launches.
    pub(super) fn explain(&self, props: &Props) -> Result<(&'static str, String, usize)> {
        let p = &self.product;
        match self.way(props) {
            Way::Ours(instead) => {
                let (variant, mut why) = dense::explain_product(props, p)?;
                if let Some(instead) = instead {
                    why.push_str(&format!("; {instead}"));
                }
                Ok((variant, why, usize::from(p.rows > 0 && p.columns > 0)))
            }
            Way::Library(_, after) => {
                let mut why =
                    format!("{} x {} by {} x {}, by cuBLASLt", p.rows, p.inner, p.inner, p.columns);
                let products = if p.gated { 2 } else { 1 };
                if p.gated {
                    why.push_str(", twice");
                }
                let widens = self.widens(&self.matmul());
                if after {
                    why.push_str(", and a launch for what follows");
                }
                if widens {
                    why.push_str(", after one that widens the bias");
                }
                Ok(("cublaslt", why, products + usize::from(after) + usize::from(widens)))
            }
        }
    }

    pub(super) fn modules(&self, props: &Props) -> Result<Vec<Module>> {
        Ok(match self.way(props) {
            Way::Ours(_) => vec![dense::product_module(props, &self.product)?],
            Way::Library(_, after) if after || self.widens(&self.matmul()) => {
                vec![Module::of(AFTER, self.product.dtype)]
            }
            Way::Library(..) => Vec::new(),
        })
    }

    /// Bytes of x · up, where that is a product of its own, or of a bias that is widened.
    fn beside(&self) -> usize {
        let Product { rows, columns, dtype, gated, .. } = self.product;
        let bytes = match self.widens(&self.matmul()) {
            true => columns.saturating_mul(4),
            false if gated => rows.saturating_mul(columns).saturating_mul(dtype.size()),
            false => 0,
        };
        round_up(bytes, ALIGNMENT).unwrap_or(usize::MAX)
    }

    pub(super) fn workspace(&self, props: &Props) -> usize {
        match self.way(props) {
            Way::Ours(_) => 0,
            Way::Library(plan, _) => self.beside().saturating_add(plan.workspace),
        }
    }

    /// # Safety
    /// As for [`dense::launch_product`], and `workspace` is as large as [`Linear::workspace`] said.
    pub(super) unsafe fn launch(&self, cx: &Context, at: Operands, workspace: u64) -> Result<()> {
        let Product { rows, columns, dtype, to_f32, gated, .. } = self.product;
        let (plan, after) = match self.way(cx.props()) {
            // SAFETY: the caller's promise.
            Way::Ours(_) => unsafe {
                return dense::launch_product(cx, &self.product, self.activation, at);
            },
            Way::Library(plan, after) => (plan, after),
        };
        let (blas, stream) = (&cx.props().blas, cx.stream().raw());
        let matmul = self.matmul();
        let Operands { x, w, bias, residual, y, .. } = at;
        let scratch = workspace + self.beside() as u64;
        let widens = self.widens(&matmul);
        let added = if widens { workspace } else { bias };
        let product =
            |w, y| Addresses { a: x, b: w, bias: added, addend: residual, y, workspace: scratch };
        // SAFETY: the caller's promise; what lies beside is at the start of the workspace.
        unsafe {
            if widens {
                let mut args = Args::new();
                args.ptr(bias).ptr(workspace).u64(columns as u64);
                let function = cx.function(&Module::of(AFTER, dtype), "widen")?;
                cx.launch(&function, Grid::new(columns.div_ceil(256), 256)?, &mut args)?;
            }
            blas.launch(stream, &plan, product(w, y))?;
            if gated {
                blas.launch(stream, &plan, product(at.up, workspace))?;
            }
        }
        if !after {
            return Ok(());
        }
        let pack = if to_f32 { 4 } else { 16 / dtype.size() };
        let whole = columns.is_multiple_of(pack);
        let entry = match (to_f32, whole) {
            (false, true) => "after_packs",
            (false, false) => "after_odd",
            (true, true) => "after_f32_packs",
            (true, false) => "after_f32_odd",
        };
        let across = columns.div_ceil(if whole { pack } else { 1 }).div_ceil(32);
        let down = rows.div_ceil(8).min(65_535);
        let grid = Grid { threads: [32, 8, 1], ..Grid::new_3d([across, down, 1], 256)? };
        let mut args = Args::new();
        args.ptr(if gated { workspace } else { 0 }).value(Epilogue {
            bias: if matmul.bias { 0 } else { bias },
            residual: if matmul.addend { 0 } else { residual },
            y,
            columns: columns as i32,
            activation: self.activation as i32,
            y_f32: i32::from(to_f32),
            padding: 0,
        });
        args.i64(rows as i64);
        let function = cx.function(&Module::of(AFTER, dtype), entry)?;
        // SAFETY: these are the entry's parameters, and the caller vouches for the addresses.
        unsafe { cx.launch(&function, grid, &mut args) }
    }
}

pub(super) fn all_modules() -> Vec<Module> {
    [DType::F32, DType::BF16, DType::F16].map(|dtype| Module::of(AFTER, dtype)).to_vec()
}
