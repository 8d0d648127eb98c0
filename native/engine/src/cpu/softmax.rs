//! `softmax` along any axis: the largest, the sum, and then the result, each a pass over the row.

use super::math::exp;
use super::numeric::{BLOCK, Network, with_network};
use super::reduce::{COLUMNS, Split, sum_f64};
use super::simd::{Isa, dispatch};
use super::threads;
use crate::call::Call;
use crate::error::{Error, Result};
use crate::infer::normalize_axis;
use crate::op::Softmax;

/// # Safety
/// As for [`crate::Device::execute`].
pub(super) unsafe fn execute(call: &Call, attrs: &Softmax) -> Result<()> {
    let Some(x) = call.input(0) else {
        return Err(Error::Internal("softmax without its input".into()));
    };
    let axis = normalize_axis("softmax", attrs.axis, x.spec.rank())?;
    let split = Split::at(x.spec, axis);
    let ns = cost(x.spec.len());
    with_network!(x.spec.dtype, T => {
        // SAFETY: the caller's promise; `infer` has checked types and shapes.
        let (x, y) = unsafe { (x.slice::<T>(), call.outputs[0].slice_mut::<T>()) };
        threads::over_rows(y, split.slab(), ns, |first, y| {
            let slabs = y.chunks_exact_mut(split.slab());
            for (y, x) in slabs.zip(x[first * split.slab()..].chunks_exact(split.slab())) {
                if split.inner == 1 {
                    dispatch!(I => row::<I, T>(x, y, attrs.log));
                } else {
                    dispatch!(I => slab::<I, T>(x, y, split, attrs.log));
                }
            }
        });
    });
    Ok(())
}

/// Nanoseconds on one thread, roughly.
pub(super) fn cost(elements: usize) -> f64 {
    elements as f64 * 1.0
}

#[inline(always)]
fn max_of(x: &[f32]) -> f32 {
    // A NaN is passed over here; it is found again in the sum.
    let mut lanes = [f32::NEG_INFINITY; 32];
    let mut chunks = x.chunks_exact(32);
    for chunk in &mut chunks {
        for (m, &x) in lanes.iter_mut().zip(chunk) {
            *m = if x > *m { x } else { *m };
        }
    }
    for (m, &x) in lanes.iter_mut().zip(chunks.remainder()) {
        *m = if x > *m { x } else { *m };
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, |m, x| if x > m { x } else { m })
}

/// What one element becomes: exp(x − max) / sum, or x − max − ln sum.
#[inline(always)]
fn finish<I: Isa>(x: f32, max: f32, by: f32, log: bool) -> f32 {
    if log { (x - max) - by } else { exp::<I>(x - max) * by }
}

#[inline(always)]
fn by(sum: f64, log: bool) -> f32 {
    if log { sum.ln() as f32 } else { (1.0 / sum) as f32 }
}

/// A row that lies together. Where all of it is -inf the result is NaN.
#[inline(always)]
fn row<I: Isa, T: Network>(x: &[T], y: &mut [T], log: bool) {
    let (mut wide, mut out) = ([0.0; BLOCK], [0.0; BLOCK]);
    let mut max = f32::NEG_INFINITY;
    for x in x.chunks(BLOCK) {
        let m = max_of(T::widened(x, &mut wide));
        max = if m > max { m } else { max };
    }
    let mut sum = 0.0f64;
    for x in x.chunks(BLOCK) {
        let x = T::widened(x, &mut wide);
        let e = &mut out[..x.len()];
        for (e, x) in e.iter_mut().zip(x) {
            *e = exp::<I>(x - max);
        }
        sum += sum_f64(e);
    }
    let by = by(sum, log);
    for (x, y) in x.chunks(BLOCK).zip(y.chunks_mut(BLOCK)) {
        let x = T::widened(x, &mut wide);
        T::produce(y, &mut out, |y| {
            for (y, x) in y.iter_mut().zip(x) {
                *y = finish::<I>(*x, max, by, log);
            }
        });
    }
}

/// Rows that lie across: so many columns at a time, side by side.
#[inline(always)]
fn slab<I: Isa, T: Network>(x: &[T], y: &mut [T], split: Split, log: bool) {
    let (mut wide, mut out) = ([0.0; COLUMNS], [0.0; COLUMNS]);
    for first in (0..split.inner).step_by(COLUMNS) {
        let n = COLUMNS.min(split.inner - first);
        let (mut max, mut sum) = ([f32::NEG_INFINITY; COLUMNS], [0.0f64; COLUMNS]);
        let places = || (0..split.length).map(|i| i * split.inner + first);
        for at in places() {
            for (m, x) in max.iter_mut().zip(T::widened(&x[at..at + n], &mut wide)) {
                *m = if *x > *m { *x } else { *m };
            }
        }
        for at in places() {
            let x = T::widened(&x[at..at + n], &mut wide);
            for ((s, x), m) in sum.iter_mut().zip(x).zip(&max) {
                *s += f64::from(exp::<I>(x - m));
            }
        }
        let mut scale = [0.0; COLUMNS];
        for (b, s) in scale[..n].iter_mut().zip(&sum) {
            *b = by(*s, log);
        }
        for at in places() {
            let x = T::widened(&x[at..at + n], &mut wide);
            T::produce(&mut y[at..at + n], &mut out, |y| {
                for (((y, x), m), b) in y.iter_mut().zip(x).zip(&max).zip(&scale) {
                    *y = finish::<I>(*x, *m, *b, log);
                }
            });
        }
    }
}
