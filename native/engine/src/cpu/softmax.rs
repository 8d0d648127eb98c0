//! `softmax` along any axis: the largest, the sum, and then the result, each a pass over the row.

use super::math::exp;
use super::numeric::{BLOCK, Network, with_network};
use super::reduce::{COLUMNS, Split, fold, sum_f64};
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
            let x = &x[first * split.slab()..];
            dispatch!(I => slabs::<I, T>(x, y, split, attrs.log));
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
    fold(x, f32::NEG_INFINITY, |m, x| if x > m { x } else { m }, |x| x)
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

#[inline(always)]
fn slabs<I: Isa, T: Network>(x: &[T], y: &mut [T], split: Split, log: bool) {
    let (mut wide, mut out) = ([0.0; BLOCK], [0.0; BLOCK]);
    for (y, x) in y.chunks_exact_mut(split.slab()).zip(x.chunks_exact(split.slab())) {
        if split.inner == 1 {
            row::<I, T>(x, y, log, &mut wide, &mut out);
        } else {
            slab::<I, T>(x, y, split, log);
        }
    }
}

/// A row that lies together. Where all of it is -inf the result is NaN.
#[inline(always)]
fn row<I: Isa, T: Network>(
    x: &[T],
    y: &mut [T],
    log: bool,
    wide: &mut [f32; BLOCK],
    out: &mut [f32; BLOCK],
) {
    let mut max = f32::NEG_INFINITY;
    for x in x.chunks(BLOCK) {
        let m = max_of(T::widened::<I>(x, wide));
        max = if m > max { m } else { max };
    }
    let mut sum = 0.0f64;
    for x in x.chunks(BLOCK) {
        let x = T::widened::<I>(x, wide);
        let e = &mut out[..x.len()];
        for (e, x) in e.iter_mut().zip(x) {
            *e = exp::<I>(x - max);
        }
        sum += sum_f64(e);
    }
    let by = by(sum, log);
    for (x, y) in x.chunks(BLOCK).zip(y.chunks_mut(BLOCK)) {
        let x = T::widened::<I>(x, wide);
        T::produce::<I>(y, out, |y| {
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
            for (m, x) in max.iter_mut().zip(T::widened::<I>(&x[at..at + n], &mut wide)) {
                *m = if *x > *m { *x } else { *m };
            }
        }
        for at in places() {
            let x = T::widened::<I>(&x[at..at + n], &mut wide);
            for ((s, x), m) in sum.iter_mut().zip(x).zip(&max) {
                *s += f64::from(exp::<I>(x - m));
            }
        }
        let mut scale = [0.0; COLUMNS];
        for (b, s) in scale[..n].iter_mut().zip(&sum) {
            *b = by(*s, log);
        }
        for at in places() {
            let x = T::widened::<I>(&x[at..at + n], &mut wide);
            T::produce::<I>(&mut y[at..at + n], &mut out, |y| {
                for (((y, x), m), b) in y.iter_mut().zip(x).zip(&max).zip(&scale) {
                    *y = finish::<I>(*x, *m, *b, log);
                }
            });
        }
    }
}
