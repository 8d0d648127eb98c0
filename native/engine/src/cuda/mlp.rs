//! `gated_mlp`: both products of x and the gating in one launch, the product with `down` and the
//! residual in another. What lies between them is stored in x's type.

use super::dense::{self, Operands, Product};
use super::launch::Context;
use super::modules::Module;
use super::norm::Prologue;
use super::props::Props;
use super::walk::stray;
use crate::call::Call;
use crate::device::Explanation;
use crate::error::Result;
use crate::op::{Activation, GatedMlp};
use crate::spec::Spec;

/// The gated product, and the one with `down`.
fn products(inputs: &[Option<&Spec>]) -> Result<[Product; 2]> {
    let [Some(x), Some(gate), ..] = inputs else { return stray("gated_mlp") };
    let (rows, inner, columns) = (x.rows(), x.last(), gate.last());
    let wide =
        Product { rows, inner, columns, dtype: x.dtype, to_f32: false, gated: true, norm: false };
    Ok([wide, Product { inner: columns, columns: inner, gated: false, ..wide }])
}

pub fn explain(props: &Props, _: &GatedMlp, inputs: &[Option<&Spec>]) -> Result<Explanation> {
    let products = products(inputs)?;
    let [(variant, wide), (_, down)] = [
        dense::explain_product(props, &products[0])?,
        dense::explain_product(props, &products[1])?,
    ];
    let why = format!("gate and up side by side: {wide}; then down: {down}");
    let launches = products.iter().filter(|p| p.rows > 0 && p.columns > 0).count();
    Ok(Explanation { variant, why, launches })
}

pub fn modules(props: &Props, _: &GatedMlp, inputs: &[Option<&Spec>]) -> Result<Vec<Module>> {
    products(inputs)?.iter().map(|p| dense::product_module(props, p)).collect()
}

/// What lies between the products.
pub fn workspace(_: &Props, _: &GatedMlp, inputs: &[Option<&Spec>]) -> Result<usize> {
    let [wide, _] = products(inputs)?;
    Ok(wide.rows.saturating_mul(wide.columns).saturating_mul(wide.dtype.size()))
}

/// # Safety
/// As for [`crate::Device::execute`].
pub unsafe fn launch(cx: &Context, op: &GatedMlp, call: &Call) -> Result<()> {
    let specs = [call.input(0).map(|v| v.spec), call.input(1).map(|v| v.spec)];
    let [wide, down] = products(&specs)?;
    let addr = |i: usize| call.input(i).map_or(0, |v| v.addr);
    let between = call.workspace;
    let y = call.outputs.first().map_or(0, |v| v.addr);
    let norm = Prologue::default();
    let first =
        Operands { x: addr(0), w: addr(1), up: addr(2), bias: 0, residual: 0, y: between, norm };
    let last = Operands { x: between, w: addr(3), up: 0, bias: 0, residual: addr(4), y, norm };
    // SAFETY: the caller vouches for the call's views, which `infer` has passed, and for the
    // workspace.
    unsafe {
        dense::launch_product(cx, &wide, op.activation, first)?;
        dense::launch_product(cx, &down, Activation::None, last)
    }
}

/// The sources are those of `dense`, compiled for two products.
pub fn all_modules() -> Vec<Module> {
    dense::plain_modules().into_iter().map(|m| m.define("GATED", 1)).collect()
}
