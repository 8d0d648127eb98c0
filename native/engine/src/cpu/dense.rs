//! `dense`: a product, then bias, activation and residual in one pass over the result.

use super::gemm::{Product, product};
use super::math::activate;
use super::numeric::{BLOCK, Network, Scratch, narrow, widen, with_network};
use super::simd::{Isa, dispatch};
use super::threads;
use crate::call::Call;
use crate::error::Result;
use crate::op::{Activation, Dense};
use crate::spec::Spec;

/// Rows of a 16-bit product that are in f32 at a time.
const ROWS: usize = 256;

pub(super) fn shape(x: &Spec, w: &Spec) -> Product {
    Product { rows: x.rows(), inner: x.last(), columns: w.last() }
}

/// The part of the product that is done at a time, and its widened x, its y and its panel.
fn plan<T: Network>(p: Product) -> (Product, [usize; 3]) {
    if size_of::<T>() == 4 {
        return (p, [0; 3]);
    }
    let part = Product { rows: p.rows.min(ROWS), ..p };
    let floats = |n: usize| part.rows.saturating_mul(n);
    (part, [floats(p.inner), floats(p.columns), part.scratch::<T>()])
}

pub(super) fn workspace(x: &Spec, w: &Spec) -> Result<usize> {
    with_network!(x.dtype, T => {
        let (_, pieces) = plan::<T>(shape(x, w));
        Ok(pieces.into_iter().map(Scratch::bytes).fold(0, usize::saturating_add))
    })
}

/// # Safety
/// As for [`crate::Device::execute`].
pub(super) unsafe fn execute(call: &Call, attrs: &Dense) -> Result<()> {
    let (Some(x), Some(w)) = (call.input(0), call.input(1)) else { return Ok(()) };
    let p = shape(x.spec, w.spec);
    with_network!(x.spec.dtype, T => {
        // SAFETY: the caller's promise; `infer` has checked types and shapes.
        let (x, w, out, bias, residual) = unsafe {
            (
                x.slice::<T>(),
                w.slice::<T>(),
                call.outputs[0].slice_mut::<T>(),
                call.input(2).map(|v| v.slice::<T>()),
                call.input(3).map(|v| v.slice::<T>()),
            )
        };
        let epilogue = Epilogue { bias, residual, activation: attrs.activation };
        let (part, [x_floats, y_floats, panel]) = plan::<T>(p);
        // SAFETY: `workspace` asked for these pieces.
        let mut scratch = unsafe { Scratch::new(call.workspace) };
        let wide = scratch.take(x_floats);
        let sums = scratch.take(y_floats);
        let panel = scratch.take(panel);
        for first in (0..p.rows).step_by(part.rows.max(1)) {
            let rows = part.rows.min(p.rows - first);
            let x = &x[first * p.inner..][..rows * p.inner];
            let x = match T::as_f32(x) {
                Some(x) => x,
                None => {
                    widen(x, &mut wide[..x.len()]);
                    &wide[..x.len()]
                }
            };
            let out = &mut out[first * p.columns..][..rows * p.columns];
            let part = Product { rows, ..p };
            if let Some(y) = T::as_f32_mut(out) {
                product(part, x, w, y, panel);
                epilogue.apply(first, y, p.columns);
            } else {
                let y = &mut sums[..out.len()];
                product(part, x, w, y, panel);
                epilogue.apply(first, y, p.columns);
                narrow(y, out);
            }
        }
        Ok(())
    })
}

struct Epilogue<'a, T> {
    bias: Option<&'a [T]>,
    residual: Option<&'a [T]>,
    activation: Activation,
}

impl<T: Network> Epilogue<'_, T> {
    fn apply(&self, first: usize, y: &mut [f32], columns: usize) {
        if self.bias.is_none() && self.residual.is_none() && self.activation == Activation::None {
            return;
        }
        let ns = y.len() as f64 * 0.5;
        threads::over_rows(y, columns, ns, |row, y| {
            for (i, y) in y.chunks_exact_mut(columns).enumerate() {
                dispatch!(I => self.row::<I>((first + row + i) * columns, y));
            }
        });
    }

    #[inline(always)]
    fn row<I: Isa>(&self, start: usize, y: &mut [f32]) {
        let mut buffer = [0.0; BLOCK];
        for (i, y) in y.chunks_mut(BLOCK).enumerate() {
            let at = i * BLOCK;
            if let Some(bias) = self.bias {
                add(y, T::widened::<I>(&bias[at..at + y.len()], &mut buffer));
            }
            activate::<I>(self.activation, y);
            if let Some(residual) = self.residual {
                add(y, T::widened::<I>(&residual[start + at..][..y.len()], &mut buffer));
            }
        }
    }
}

#[inline(always)]
fn add(y: &mut [f32], x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += x;
    }
}
