//! `gated_mlp`: both products of x and the gating, then the product with `down` and the residual;
//! each in one launch where our own kernels do it. What lies between them is stored in x's type.

use super::dense::{self, Operands, Product};
use super::launch::Context;
use super::linear::Linear;
use super::modules::Module;
use super::norm::Prologue;
use super::props::Props;
use super::walk::stray;
use crate::call::Call;
use crate::device::Explanation;
use crate::error::Result;
use crate::op::{Activation, GatedMlp};
use crate::pool::{ALIGNMENT, round_up};
use crate::spec::Spec;

/// The gated product, and the one with `down`.
fn products(op: &GatedMlp, inputs: &[Option<&Spec>]) -> Result<[Linear; 2]> {
    let [Some(x), Some(gate), ..] = inputs else { return stray("gated_mlp") };
    let (rows, inner, columns) = (x.rows(), x.last(), gate.last());
    let wide =
        Product { rows, inner, columns, dtype: x.dtype, to_f32: false, gated: true, norm: false };
    let down = Product { inner: columns, columns: inner, gated: false, ..wide };
    let residual = inputs.get(4).is_some_and(Option::is_some);
    let activation = Activation::None;
    Ok([
        Linear { product: wide, bias: false, residual: false, activation: op.activation },
        Linear { product: down, bias: false, residual, activation },
    ])
}

/// Bytes of what lies between the products.
fn between(wide: &Linear) -> usize {
    let Product { rows, columns, dtype, .. } = wide.product;
    let bytes = rows.saturating_mul(columns).saturating_mul(dtype.size());
    round_up(bytes, ALIGNMENT).unwrap_or(usize::MAX)
}

pub fn explain(props: &Props, op: &GatedMlp, inputs: &[Option<&Spec>]) -> Result<Explanation> {
    let [wide, down] = products(op, inputs)?;
    let (variant, wide, first) = wide.explain(props)?;
    let (_, down, second) = down.explain(props)?;
    let why = format!("gate and up side by side: {wide}; then down: {down}");
    Ok(Explanation { variant, why, launches: first + second })
}

pub fn modules(props: &Props, op: &GatedMlp, inputs: &[Option<&Spec>]) -> Result<Vec<Module>> {
    let [wide, down] = products(op, inputs)?;
    Ok([wide.modules(props)?, down.modules(props)?].concat())
}

pub fn is_warm(props: &Props, op: &GatedMlp, inputs: &[Option<&Spec>]) -> Result<bool> {
    Ok(products(op, inputs)?.iter().all(|linear| linear.is_warm(props)))
}

/// What lies between the products, then what each of them needs.
pub fn workspace(props: &Props, op: &GatedMlp, inputs: &[Option<&Spec>]) -> Result<usize> {
    let [wide, down] = products(op, inputs)?;
    Ok(between(&wide).saturating_add(wide.workspace(props).max(down.workspace(props))))
}

/// # Safety
/// As for [`crate::Device::execute`].
pub unsafe fn launch(cx: &Context, op: &GatedMlp, call: &Call) -> Result<()> {
    let specs: Vec<_> = call.inputs.iter().map(|v| v.as_ref().map(|v| v.spec)).collect();
    let [wide, down] = products(op, &specs)?;
    let addr = |i: usize| call.input(i).map_or(0, |v| v.addr);
    let middle = call.workspace;
    let scratch = middle + between(&wide) as u64;
    let y = call.outputs.first().map_or(0, |v| v.addr);
    let norm = Prologue::default();
    let constant = call.constant([1, 2, 3]);
    let none = Operands { x: 0, w: 0, up: 0, bias: 0, residual: 0, y: 0, norm, constant };
    let first = Operands { x: addr(0), w: addr(1), up: addr(2), y: middle, ..none };
    let last = Operands { x: middle, w: addr(3), residual: addr(4), y, ..none };
    // SAFETY: the caller vouches for the call's views, which `infer` has passed, and for the
    // workspace.
    unsafe {
        wide.launch(cx, first, scratch)?;
        down.launch(cx, last, scratch)
    }
}

/// The sources are those of `dense`, compiled for two products.
pub fn all_modules() -> Vec<Module> {
    dense::plain_modules().into_iter().map(|m| m.define("GATED", 1)).collect()
}
