//! `layer_norm` and `rms_norm`: rows in two passes for the statistics and one for the result, the
//! sums in f64, so that rows far from zero lose nothing.

use super::numeric::{BLOCK, Network, with_network};
use super::reduce::{fold, sum_f64};
use super::simd::{Isa, dispatch};
use super::threads;
use crate::call::Call;
use crate::error::Result;
use crate::op::{Norm, Op};

/// # Safety
/// As for [`crate::Device::execute`].
pub(super) unsafe fn execute(call: &Call, attrs: &Norm) -> Result<()> {
    let centred = matches!(call.op, Op::LayerNorm(_));
    let (Some(x), Some(gamma)) = (call.input(0), call.input(1)) else { return Ok(()) };
    let (beta, residual) =
        if centred { (call.input(2), call.input(3)) } else { (None, call.input(2)) };
    let row = x.spec.last();
    let ns = cost(x.spec.len());
    with_network!(x.spec.dtype, T => {
        // SAFETY: the caller's promise; `infer` has checked types and shapes.
        let (x, gamma, beta, residual, y) = unsafe {
            (
                x.slice::<T>(),
                gamma.slice::<T>(),
                beta.map(|v| v.slice::<T>()),
                residual.map(|v| v.slice::<T>()),
                call.outputs[0].slice_mut::<T>(),
            )
        };
        let kernel = Kernel { x, gamma, beta, residual, centred, epsilon: attrs.epsilon };
        match residual {
            None => threads::over_rows(y, row, ns, |first, y| {
                for (i, y) in y.chunks_exact_mut(row).enumerate() {
                    dispatch!(I => kernel.row::<I>((first + i) * row, y, None));
                }
            }),
            Some(_) => {
                // SAFETY: as above.
                let sum = unsafe { call.outputs[1].slice_mut::<T>() };
                threads::over_row_pairs(y, sum, row, ns, |first, y, sum| {
                    let rows = y.chunks_exact_mut(row).zip(sum.chunks_exact_mut(row));
                    for (i, (y, sum)) in rows.enumerate() {
                        dispatch!(I => kernel.row::<I>((first + i) * row, y, Some(sum)));
                    }
                });
            }
        }
        Ok(())
    })
}

/// Nanoseconds on one thread, roughly.
pub(super) fn cost(elements: usize) -> f64 {
    elements as f64 * 0.5
}

struct Kernel<'a, T> {
    x: &'a [T],
    gamma: &'a [T],
    beta: Option<&'a [T]>,
    residual: Option<&'a [T]>,
    centred: bool,
    epsilon: f64,
}

impl<T: Network> Kernel<'_, T> {
    /// Calls `f` with the place in the row and the values of each block, x + residual.
    #[inline(always)]
    fn blocks(&self, start: usize, n: usize, mut f: impl FnMut(usize, &[f32])) {
        let (mut a, mut b) = ([0.0; BLOCK], [0.0; BLOCK]);
        for at in (0..n).step_by(BLOCK) {
            let here = start + at..start + n.min(at + BLOCK);
            let x = T::widened(&self.x[here.clone()], &mut a);
            let Some(residual) = self.residual else {
                f(at, x);
                continue;
            };
            // The sum wants a buffer of its own where x is used in place.
            let mut sum = [0.0; BLOCK];
            let sum = &mut sum[..x.len()];
            for ((s, x), r) in sum.iter_mut().zip(x).zip(T::widened(&residual[here], &mut b)) {
                *s = x + r;
            }
            f(at, sum);
        }
    }

    #[inline(always)]
    fn row<I: Isa>(&self, start: usize, y: &mut [T], mut sum: Option<&mut [T]>) {
        let n = y.len();
        let mut mean = 0.0f64;
        if self.centred {
            self.blocks(start, n, |_, x| mean += sum_f64(x));
            mean /= n as f64;
        }
        // The mean as two f32: x - high is exact where it matters, and what is left is small.
        let high = mean as f32;
        let low = if high.is_finite() { (mean - f64::from(high)) as f32 } else { 0.0 };
        let mut squares = 0.0f64;
        self.blocks(start, n, |_, x| squares += squares_f64(x, high, low));
        let scale = (1.0 / (squares / n as f64 + self.epsilon).sqrt()) as f32;
        let (mut gamma, mut beta, mut out) = ([0.0; BLOCK], [0.0; BLOCK], [0.0; BLOCK]);
        self.blocks(start, n, |at, x| {
            let here = at..at + x.len();
            let gamma = T::widened(&self.gamma[here.clone()], &mut gamma);
            if let Some(sum) = sum.as_deref_mut() {
                T::narrow_to(x, &mut sum[here.clone()]);
            }
            match self.beta {
                Some(b) => {
                    let beta = T::widened(&b[here.clone()], &mut beta);
                    T::produce(&mut y[here], &mut out, |y| {
                        shift_scale::<I>(x, [high, low, scale], gamma, beta, y);
                    });
                }
                None => T::produce(&mut y[here], &mut out, |y| scale_row(x, scale, gamma, y)),
            }
        });
    }
}

#[inline(always)]
fn shift_scale<I: Isa>(x: &[f32], m: [f32; 3], gamma: &[f32], beta: &[f32], y: &mut [f32]) {
    let [high, low, scale] = m;
    for (((y, x), g), b) in y.iter_mut().zip(x).zip(gamma).zip(beta) {
        *y = I::fma(((x - high) - low) * scale, *g, *b);
    }
}

#[inline(always)]
fn scale_row(x: &[f32], scale: f32, gamma: &[f32], y: &mut [f32]) {
    for ((y, x), g) in y.iter_mut().zip(x).zip(gamma) {
        *y = x * scale * g;
    }
}

#[inline(always)]
fn squares_f64(x: &[f32], high: f32, low: f32) -> f64 {
    let square = |x| {
        let d = f64::from((x - high) - low);
        d * d
    };
    fold(x, 0.0, |a, b| a + b, square)
}
