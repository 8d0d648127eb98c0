//! `causal_conv1d`: a block of channels of a frame at a time adds up its taps.

use super::math::activate;
use super::numeric::{BLOCK, Element, Network, with_network};
use super::simd::{Isa, dispatch};
use super::threads;
use crate::call::Call;
use crate::error::{Error, Result};
use crate::op::{Activation, CausalConv1d};
use crate::spec::Spec;

/// Nanoseconds on one thread, roughly.
pub(super) fn cost(x: &Spec, w: &Spec) -> f64 {
    x.len() as f64 * (1.0 + 0.15 * w.rows() as f64)
}

/// # Safety
/// As for [`crate::Device::execute`].
pub(super) unsafe fn execute(call: &Call, attrs: &CausalConv1d) -> Result<()> {
    let (Some(x), Some(w)) = (call.input(0), call.input(1)) else {
        return Err(Error::Internal("causal_conv1d without its inputs".into()));
    };
    let &[batch, length, channels] = x.spec.shape() else {
        return Err(Error::Internal("causal_conv1d: x of another rank".into()));
    };
    let kept = w.spec.rows() - 1;
    let ns = cost(x.spec, w.spec);
    with_network!(x.spec.dtype, T => {
        // SAFETY: the caller's promise; `infer` has checked types and shapes.
        let (y, last, kernel) = unsafe {
            let kernel = Kernel {
                x: x.slice::<T>(),
                w: w.slice::<T>(),
                b: call.input(2).map(|v| v.slice::<T>()),
                state: call.input(3).map(|v| v.slice::<T>()),
                length,
                channels,
                kept,
                activation: attrs.activation,
            };
            (call.outputs[0].slice_mut::<T>(), call.outputs[1].slice_mut::<T>(), kernel)
        };
        threads::over_rows(y, channels, ns, |first, y| {
            dispatch!(I => kernel.rows::<I>(first, y));
        });
        if channels > 0 && kept > 0 {
            debug_assert_eq!(last.len(), batch * kept * channels);
            for (i, last) in last.chunks_exact_mut(channels).enumerate() {
                match kernel.frame(i / kept, length + i % kept) {
                    Some(frame) => last.copy_from_slice(frame),
                    None => last.fill(T::narrow(0.0)),
                }
            }
        }
        Ok(())
    })
}

struct Kernel<'a, T> {
    x: &'a [T],
    w: &'a [T],
    b: Option<&'a [T]>,
    state: Option<&'a [T]>,
    length: usize,
    channels: usize,
    /// Frames of the state.
    kept: usize,
    activation: Activation,
}

impl<T: Network> Kernel<'_, T> {
    /// Frame `t` of the state and then of x; `None` for zeros.
    #[inline(always)]
    fn frame(&self, row: usize, t: usize) -> Option<&[T]> {
        let (of, frame) = match t.checked_sub(self.kept) {
            Some(t) => (self.x, row * self.length + t),
            None => (self.state?, row * self.kept + t),
        };
        Some(&of[frame * self.channels..][..self.channels])
    }

    #[inline(always)]
    fn rows<I: Isa>(&self, first: usize, y: &mut [T]) {
        let n = self.channels;
        let mut buffers = [[0.0; BLOCK]; 3];
        let [wide, frame, sums] = &mut buffers;
        for (i, y) in y.chunks_exact_mut(n).enumerate() {
            let (row, t) = ((first + i) / self.length, (first + i) % self.length);
            for at in (0..n).step_by(BLOCK) {
                let here = at..n.min(at + BLOCK);
                T::produce::<I>(
                    &mut y[here.clone()],
                    sums,
                    // Inlined, or else it would be compiled for the base set.
                    #[inline(always)]
                    |y| {
                        match self.b {
                            Some(b) => T::widen::<I>(&b[here.clone()], y),
                            None => y.fill(0.0),
                        }
                        for k in 0..=self.kept {
                            let Some(x) = self.frame(row, t + k) else { continue };
                            let x = T::widened::<I>(&x[here.clone()], frame);
                            let w = &self.w[k * n..(k + 1) * n];
                            let w = T::widened::<I>(&w[here.clone()], wide);
                            for ((y, w), x) in y.iter_mut().zip(w).zip(x) {
                                *y = I::fma(*w, *x, *y);
                            }
                        }
                        activate::<I>(self.activation, y);
                    },
                );
            }
        }
    }
}
