//! `selective_scan`: frame after frame, the states of a channel side by side. What a frame adds
//! (D, the gate, the residual) goes over a block of channels at once; a norm takes whole rows when
//! all is done.

use std::ops::Range;

use rayon::prelude::*;

use super::math::{exp, silu};
use super::norm;
use super::numeric::{BLOCK, Network, Scratch, read_f32, with_network};
use super::simd::{Isa, dispatch};
use super::threads;
use crate::call::{Call, View};
use crate::error::{Error, Result};
use crate::op::{NormKind, SelectiveScan};
use crate::spec::{DType, Spec};

/// States that are summed up side by side.
const LANES: usize = 16;
/// As `infer` has it: what a frame's b and c are widened into.
const STATES: usize = crate::infer::sequence::MAX_STATES;

/// Nanoseconds on one thread, roughly.
pub(super) fn cost(attrs: &SelectiveScan, x: &Spec, a: &Spec) -> f64 {
    let step = if attrs.dt_softplus { 12.0 } else { 2.0 };
    x.len() as f64 * (step + 2.0 + 0.8 * a.last() as f64)
}

/// a where it is not f32, then d and dt_bias: as f32.
fn pieces(inputs: &[Option<&Spec>]) -> [usize; 3] {
    let len = |i: usize| inputs.get(i).copied().flatten().map_or(0, Spec::len);
    let is_f32 = |i: usize| inputs.get(i).copied().flatten().is_none_or(|s| s.dtype == DType::F32);
    [if is_f32(2) { 0 } else { len(2) }, len(5), len(7)]
}

pub(super) fn workspace(inputs: &[Option<&Spec>]) -> usize {
    pieces(inputs).into_iter().map(Scratch::bytes).fold(0, usize::saturating_add)
}

/// # Safety
/// As for [`crate::Device::execute`].
pub(super) unsafe fn execute(call: &Call, attrs: &SelectiveScan) -> Result<()> {
    let Some(x) = call.input(0) else {
        return Err(Error::Internal("selective_scan without x".into()));
    };
    with_network!(x.spec.dtype, T => {
        // SAFETY: the caller's promise.
        unsafe { run::<T>(call, attrs, x) }
    })
}

/// # Safety
/// As for [`execute`].
unsafe fn run<T: Network>(call: &Call, attrs: &SelectiveScan, x: View) -> Result<()> {
    let (Some(dt), Some(a), Some(b), Some(c)) =
        (call.input(1), call.input(2), call.input(3), call.input(4))
    else {
        return Err(Error::Internal("selective_scan without its inputs".into()));
    };
    let &[batch, length, channels] = x.spec.shape() else {
        return Err(Error::Internal("selective_scan: x of another rank".into()));
    };
    let states = a.spec.last();
    let specs: Vec<_> = call.inputs.iter().map(|v| v.map(|v| v.spec)).collect();
    // SAFETY: `workspace` asked for these pieces.
    let mut scratch = unsafe { Scratch::new(call.workspace) };
    let [wide, d, bias] = pieces(&specs).map(|n| scratch.take::<f32>(n));
    let (y_at, h_at) = if attrs.norm.is_some() { (1, 2) } else { (0, 1) };
    // SAFETY: the caller's promise, here and below; `infer` has checked types and shapes.
    unsafe {
        if !wide.is_empty() {
            read_f32(&a, wide);
        }
        for (i, to) in [(5, &mut *d), (7, &mut *bias)] {
            if let Some(view) = call.input(i) {
                read_f32(&view, to);
            }
        }
    }
    // SAFETY: as above.
    let (y, h, kernel) = unsafe {
        let optional = |i: usize| call.input(i).map(|v| v.slice::<T>());
        let kernel = Kernel::<T> {
            x: x.slice(),
            dt: dt.slice(),
            a: if wide.is_empty() { a.slice() } else { wide },
            b: b.slice(),
            c: c.slice(),
            d: call.input(5).map(|_| &*d),
            z: optional(6),
            bias: call.input(7).map(|_| &*bias),
            residual: optional(9),
            softplus: attrs.dt_softplus,
            clamp: attrs.dt_clamp.map(|(low, high)| [low as f32, high as f32]),
            length,
            channels,
            states,
        };
        (call.outputs[y_at].slice_mut::<T>(), call.outputs[h_at].slice_mut::<f32>(), kernel)
    };
    match call.input(8) {
        // SAFETY: as above.
        Some(state) => h.copy_from_slice(unsafe { state.slice::<f32>() }),
        None => h.fill(0.0),
    }
    if y.is_empty() {
        return Ok(());
    }
    // No two parts have a row and a channel in common.
    let out = Shared { y: y.as_mut_ptr(), h: h.as_mut_ptr() };
    let threads = threads::count(cost(attrs, x.spec, a.spec));
    let parts = threads.div_ceil(batch).min(channels.div_ceil(LANES));
    let share = channels.div_ceil(parts);
    let part = |i: usize| {
        let (row, first) = (i / parts, i % parts * share);
        let last = channels.min(first + share);
        if first < last {
            dispatch!(I => kernel.part::<I>(row, first..last, &out));
        }
    };
    if threads <= 1 {
        (0..batch * parts).for_each(part);
    } else {
        (0..batch * parts).into_par_iter().for_each(part);
    }
    if let Some(kind) = attrs.norm {
        // SAFETY: as above.
        let (parameters, normed) = unsafe {
            let parameter = |i: usize| call.input(i).map(|v| v.slice::<T>());
            ([parameter(10), parameter(11)], call.outputs[0].slice_mut::<T>())
        };
        let centred = kind == NormKind::LayerNorm;
        norm::over_rows(y, parameters, centred, attrs.epsilon, channels, normed);
    }
    Ok(())
}

/// Outputs of the kernel's shapes. Who makes one has nobody else touch them, and gives no row and
/// channel to two parts.
struct Shared<T> {
    y: *mut T,
    h: *mut f32,
}

// SAFETY: parts write to places of their own.
unsafe impl<T: Send> Sync for Shared<T> {}

struct Kernel<'a, T> {
    x: &'a [T],
    dt: &'a [T],
    a: &'a [f32],
    b: &'a [T],
    c: &'a [T],
    d: Option<&'a [f32]>,
    z: Option<&'a [T]>,
    bias: Option<&'a [f32]>,
    residual: Option<&'a [T]>,
    softplus: bool,
    clamp: Option<[f32; 2]>,
    length: usize,
    channels: usize,
    states: usize,
}

impl<T: Network> Kernel<'_, T> {
    /// All frames of some channels of a row.
    #[inline(always)]
    fn part<I: Isa>(&self, row: usize, channels: Range<usize>, out: &Shared<T>) {
        let n = self.states;
        // SAFETY: the promise of `Shared`; the range lies within the row.
        let h = unsafe {
            let first = out.h.add((row * self.channels + channels.start) * n);
            std::slice::from_raw_parts_mut(first, channels.len() * n)
        };
        let mut vectors = [[0.0; STATES]; 2];
        let [b, c] = &mut vectors;
        let mut buffers = [[0.0; BLOCK]; 5];
        let [x_buffer, dt, sums, buffer, y_buffer] = &mut buffers;
        for t in 0..self.length {
            let frame = row * self.length + t;
            let b = T::widened::<I>(&self.b[frame * n..][..n], b);
            let c = T::widened::<I>(&self.c[frame * n..][..n], c);
            for first in channels.clone().step_by(BLOCK) {
                let here = first..channels.end.min(first + BLOCK);
                let at = frame * self.channels + first..frame * self.channels + here.end;
                let x = T::widened::<I>(&self.x[at.clone()], x_buffer);
                let dt = &mut dt[..x.len()];
                T::widen::<I>(&self.dt[at.clone()], dt);
                self.steps::<I>(&here, dt);
                let sums = &mut sums[..x.len()];
                for (i, (sum, (dt, x))) in sums.iter_mut().zip(dt.iter().zip(x)).enumerate() {
                    let a = &self.a[(first + i) * n..][..n];
                    let h = &mut h[(first - channels.start + i) * n..][..n];
                    *sum = advance::<I>(*dt, dt * x, a, b, c, h);
                }
                if let Some(d) = self.d {
                    for ((sum, d), x) in sums.iter_mut().zip(&d[here.clone()]).zip(x) {
                        *sum = I::fma(*d, *x, *sum);
                    }
                }
                if let Some(z) = self.z {
                    for (sum, z) in sums.iter_mut().zip(T::widened::<I>(&z[at.clone()], buffer)) {
                        *sum *= silu::<I>(*z);
                    }
                }
                if let Some(residual) = self.residual {
                    let residual = T::widened::<I>(&residual[at.clone()], buffer);
                    for (sum, r) in sums.iter_mut().zip(residual) {
                        *sum += r;
                    }
                }
                // SAFETY: the promise of `Shared`; the range lies within the frame.
                let y = unsafe { std::slice::from_raw_parts_mut(out.y.add(at.start), at.len()) };
                T::produce::<I>(
                    y,
                    y_buffer,
                    #[inline(always)]
                    |y| y.copy_from_slice(sums),
                );
            }
        }
    }

    /// What dt takes before it is used.
    #[inline(always)]
    fn steps<I: Isa>(&self, here: &Range<usize>, dt: &mut [f32]) {
        if let Some(bias) = self.bias {
            for (dt, bias) in dt.iter_mut().zip(&bias[here.clone()]) {
                *dt += bias;
            }
        }
        if self.softplus {
            for dt in dt.iter_mut() {
                // In this order a NaN is kept.
                let positive = if *dt < 0.0 { 0.0 } else { *dt };
                *dt = positive + exp::<I>(-dt.abs()).ln_1p();
            }
        }
        if let Some([low, high]) = self.clamp {
            for dt in dt.iter_mut() {
                let least = if *dt < low { low } else { *dt };
                *dt = if least > high { high } else { least };
            }
        }
    }
}

/// h ← exp(dt·a)·h + u·b; gives c·h.
#[inline(always)]
fn advance<I: Isa>(dt: f32, u: f32, a: &[f32], b: &[f32], c: &[f32], h: &mut [f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let mut from = 0;
    while from < h.len() {
        let to = h.len().min(from + LANES);
        let (a, b, c, h) = (&a[from..to], &b[from..to], &c[from..to], &mut h[from..to]);
        // The whole case has a length that the compiler knows.
        match (a.first_chunk(), b.first_chunk(), c.first_chunk(), h.first_chunk_mut()) {
            (Some(a), Some(b), Some(c), Some(h)) => lanes::<I, LANES>(dt, u, a, b, c, h, &mut sums),
            _ => {
                for i in 0..h.len() {
                    h[i] = I::fma(exp::<I>(dt * a[i]), h[i], u * b[i]);
                    sums[i] = I::fma(h[i], c[i], sums[i]);
                }
            }
        }
        from = to;
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0]
}

#[inline(always)]
fn lanes<I: Isa, const N: usize>(
    dt: f32,
    u: f32,
    a: &[f32; N],
    b: &[f32; N],
    c: &[f32; N],
    h: &mut [f32; N],
    sums: &mut [f32; N],
) {
    for i in 0..N {
        h[i] = I::fma(exp::<I>(dt * a[i]), h[i], u * b[i]);
        sums[i] = I::fma(h[i], c[i], sums[i]);
    }
}
