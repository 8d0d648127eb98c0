//! `gated_mlp`: three products, some rows at a time, what lies between them in f32.

use super::gemm::{Product, product};
use super::math::activate;
use super::numeric::{BLOCK, Network, Scratch, narrow, widen, with_network};
use super::simd::{Isa, dispatch};
use super::threads;
use crate::call::Call;
use crate::error::{Error, Result};
use crate::op::{Activation, GatedMlp};
use crate::spec::Spec;

/// Rows that are worked on at a time.
const ROWS: usize = 256;

/// The products of a part of the rows, and the floats of each piece of workspace.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    rows: usize,
    /// x · gate, and x · up.
    pub(super) wide: Product,
    down: Product,
    weight_bytes: usize,
    panel: usize,
}

impl Plan {
    pub(super) fn new(inputs: &[Option<&Spec>]) -> Result<Plan> {
        let [Some(x), Some(gate), ..] = inputs else {
            return Err(Error::argument("gated_mlp", "x and gate are missing"));
        };
        let rows = x.rows();
        let wide = Product { rows: rows.min(ROWS), inner: x.last(), columns: gate.last() };
        let down = Product { rows: wide.rows, inner: wide.columns, columns: wide.inner };
        let panel = with_network!(x.dtype, T => wide.scratch::<T>().max(down.scratch::<T>()));
        Ok(Plan { rows, wide, down, weight_bytes: x.dtype.size(), panel })
    }

    /// x and y where they are not f32, the two halves, panel.
    fn pieces(&self) -> [usize; 5] {
        let floats = |n: usize| self.wide.rows.saturating_mul(n);
        let outer = if self.weight_bytes == 4 { 0 } else { floats(self.wide.inner) };
        [outer, outer, floats(self.wide.columns), floats(self.wide.columns), self.panel]
    }

    pub(super) fn bytes(&self) -> usize {
        self.pieces().into_iter().map(Scratch::bytes).fold(0, usize::saturating_add)
    }

    /// The longer of the products, in nanoseconds on one thread.
    pub(super) fn longest(&self) -> f64 {
        self.wide.ns(self.weight_bytes).max(self.down.ns(self.weight_bytes))
    }

    /// Nanoseconds on one thread, roughly.
    pub(super) fn ns(&self) -> f64 {
        let parts = self.rows as f64 / self.wide.rows.max(1) as f64;
        let once = 2.0 * self.wide.ns(self.weight_bytes) + self.down.ns(self.weight_bytes);
        parts * once + self.rows as f64 * self.wide.columns as f64 * 1.5
    }
}

/// # Safety
/// As for [`crate::Device::execute`].
pub(super) unsafe fn execute(call: &Call, attrs: &GatedMlp) -> Result<()> {
    let specs: Vec<_> = call.inputs.iter().map(|v| v.map(|v| v.spec)).collect();
    let plan = Plan::new(&specs)?;
    let (Some(x), Some(gate), Some(up), Some(down)) =
        (call.input(0), call.input(1), call.input(2), call.input(3))
    else {
        return Err(Error::Internal("gated_mlp without its inputs".into()));
    };
    with_network!(x.spec.dtype, T => {
        // SAFETY: the caller's promise; `infer` has checked types and shapes.
        let (x, gate, up, down, residual, out) = unsafe {
            (
                x.slice::<T>(),
                gate.slice::<T>(),
                up.slice::<T>(),
                down.slice::<T>(),
                call.input(4).map(|v| v.slice::<T>()),
                call.outputs[0].slice_mut::<T>(),
            )
        };
        // SAFETY: `workspace` asked for these pieces.
        let mut scratch = unsafe { Scratch::new(call.workspace) };
        let [wide_x, wide_y, gated, upper, panel] = plan.pieces().map(|n| scratch.take(n));
        let width = plan.wide.inner;
        for first in (0..plan.rows).step_by(ROWS) {
            let rows = ROWS.min(plan.rows - first);
            let place = first * width..(first + rows) * width;
            let x = match T::as_f32(&x[place.clone()]) {
                Some(x) => x,
                None => {
                    let wide = &mut wide_x[..rows * width];
                    widen(&x[place.clone()], wide);
                    wide
                }
            };
            let wide = Product { rows, ..plan.wide };
            let gated = &mut gated[..rows * wide.columns];
            let upper = &mut upper[..rows * wide.columns];
            product(wide, x, gate, gated, panel);
            product(wide, x, up, upper, panel);
            let ns = gated.len() as f64 * 1.5;
            threads::over_row_pairs(gated, upper, wide.columns.max(1), ns, |_, gated, upper| {
                dispatch!(I => gate_by::<I>(attrs.activation, gated, upper));
            });
            let last = Product { rows, ..plan.down };
            let out = &mut out[place.clone()];
            let residual = residual.map(|r| &r[place.clone()]);
            if let Some(y) = T::as_f32_mut(out) {
                product(last, gated, down, y, panel);
                add(residual, y);
            } else {
                let y = &mut wide_y[..rows * width];
                product(last, gated, down, y, panel);
                add(residual, y);
                narrow(y, out);
            }
        }
        Ok(())
    })
}

#[inline(always)]
fn gate_by<I: Isa>(activation: Activation, gated: &mut [f32], upper: &[f32]) {
    activate::<I>(activation, gated);
    for (gated, upper) in gated.iter_mut().zip(upper) {
        *gated *= upper;
    }
}

fn add<T: Network>(residual: Option<&[T]>, y: &mut [f32]) {
    let Some(residual) = residual else { return };
    dispatch!(I => {
        let mut buffer = [0.0; BLOCK];
        for (y, r) in y.chunks_mut(BLOCK).zip(residual.chunks(BLOCK)) {
            for (y, r) in y.iter_mut().zip(T::widened::<I>(r, &mut buffer)) {
                *y += r;
            }
        }
    });
}
