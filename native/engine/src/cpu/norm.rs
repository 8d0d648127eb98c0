//! `layer_norm` and `rms_norm`: rows in two passes for the statistics and one for the result, the
//! sums in f64, so that rows far from zero lose nothing.

use std::ops::Range;

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
                dispatch!(I => kernel.rows::<I>(first, row, y, None));
            }),
            Some(_) => {
                // SAFETY: as above.
                let sum = unsafe { call.outputs[1].slice_mut::<T>() };
                threads::over_row_pairs(y, sum, row, ns, |first, y, sum| {
                    dispatch!(I => kernel.rows::<I>(first, row, y, Some(sum)));
                });
            }
        }
        Ok(())
    })
}

/// Norms rows of `row` elements that another op has made.
pub(super) fn over_rows<T: Network>(
    x: &[T],
    [gamma, beta]: [Option<&[T]>; 2],
    centred: bool,
    epsilon: f64,
    row: usize,
    y: &mut [T],
) {
    let Some(gamma) = gamma else { return };
    let kernel = Kernel { x, gamma, beta, residual: None, centred, epsilon };
    threads::over_rows(y, row, cost(x.len()), |first, y| {
        dispatch!(I => kernel.rows::<I>(first, row, y, None));
    });
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
    #[inline(always)]
    fn rows<I: Isa>(&self, first: usize, row: usize, y: &mut [T], mut sums: Option<&mut [T]>) {
        let mut buffers = Buffers::default();
        for (i, y) in y.chunks_exact_mut(row).enumerate() {
            let sum = sums.as_deref_mut().map(|s| &mut s[i * row..(i + 1) * row]);
            self.row::<I>((first + i) * row, y, sum, &mut buffers);
        }
    }

    /// The values at `here`, x + residual.
    #[inline(always)]
    fn block<'b, I: Isa>(&'b self, here: Range<usize>, buffers: &'b mut [Buffer; 2]) -> &'b [f32] {
        let [a, b] = buffers;
        let Some(residual) = self.residual else {
            return T::widened::<I>(&self.x[here], a);
        };
        let sum = &mut a[..here.len()];
        T::widen::<I>(&self.x[here.clone()], sum);
        for (s, r) in sum.iter_mut().zip(T::widened::<I>(&residual[here], b)) {
            *s += r;
        }
        sum
    }

    #[inline(always)]
    fn row<I: Isa>(
        &self,
        start: usize,
        y: &mut [T],
        mut sum: Option<&mut [T]>,
        buffers: &mut Buffers,
    ) {
        let n = y.len();
        let blocks = || (0..n).step_by(BLOCK).map(|at| at..n.min(at + BLOCK));
        let place = |here: &Range<usize>| start + here.start..start + here.end;
        let mut mean = 0.0f64;
        if self.centred {
            for here in blocks() {
                mean += sum_f64(self.block::<I>(place(&here), &mut buffers.x));
            }
            mean /= n as f64;
        }
        // The mean as two f32: x - high is exact where it matters, and what is left is small.
        let high = mean as f32;
        let low = if high.is_finite() { (mean - f64::from(high)) as f32 } else { 0.0 };
        let mut squares = 0.0f64;
        for here in blocks() {
            squares += squares_f64(self.block::<I>(place(&here), &mut buffers.x), high, low);
        }
        let scale = (1.0 / (squares / n as f64 + self.epsilon).sqrt()) as f32;
        for here in blocks() {
            let x = self.block::<I>(place(&here), &mut buffers.x);
            let gamma = T::widened::<I>(&self.gamma[here.clone()], &mut buffers.gamma);
            if let Some(sum) = sum.as_deref_mut() {
                T::narrow_to::<I>(x, &mut sum[here.clone()]);
            }
            let beta = self.beta.map(|b| T::widened::<I>(&b[here.clone()], &mut buffers.beta));
            T::produce::<I>(
                &mut y[here],
                &mut buffers.y,
                // Inlined, or else it would be compiled for the base set.
                #[inline(always)]
                |y| match beta {
                    Some(beta) => shift_scale::<I>(x, [high, low, scale], gamma, beta, y),
                    None => scale_row(x, scale, gamma, y),
                },
            );
        }
    }
}

type Buffer = [f32; BLOCK];

/// Blocks in f32 of what is not f32.
struct Buffers {
    x: [Buffer; 2],
    gamma: Buffer,
    beta: Buffer,
    y: Buffer,
}

impl Default for Buffers {
    fn default() -> Self {
        let zeros = [0.0; BLOCK];
        Buffers { x: [zeros; 2], gamma: zeros, beta: zeros, y: zeros }
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
