//! `rope`: the sines and cosines of a position, and then all heads by them.

use super::numeric::{Network, with_network};
use super::threads;
use crate::call::{Call, View};
use crate::error::{Error, Result};
use crate::op::Rope;
use crate::spec::Spec;

/// Nanoseconds on one thread, roughly.
pub(super) fn cost(attrs: &Rope, x: &Spec) -> f64 {
    let heads = x.shape().get(2).copied().unwrap_or(1).max(1);
    let pairs = (x.len() / heads) as f64 * attrs.dims.unwrap_or(x.last()) as f64
        / x.last().max(1) as f64
        / 2.0;
    x.len() as f64 * 1.0 + pairs * 15.0
}

/// # Safety
/// As for [`crate::Device::execute`].
pub(super) unsafe fn execute(call: &Call, attrs: &Rope) -> Result<()> {
    let (Some(x), Some(positions)) = (call.input(0), call.input(1)) else {
        return Err(Error::Internal("rope without its inputs".into()));
    };
    with_network!(x.spec.dtype, T => {
        // SAFETY: the caller's promise.
        unsafe { run::<T>(call, attrs, x, positions) };
        Ok(())
    })
}

/// # Safety
/// As for [`execute`].
unsafe fn run<T: Network>(call: &Call, attrs: &Rope, x: View, positions: View) {
    let shape = x.spec.shape();
    let (length, features) = (shape[1], x.spec.last());
    let row = shape[2] * features;
    let dims = attrs.dims.unwrap_or(features);
    let half = dims / 2;
    // SAFETY: the caller's promise; `infer` has checked types and shapes.
    let (from, at, y) =
        unsafe { (x.slice::<T>(), positions.slice::<i32>(), call.outputs[0].slice_mut::<T>()) };
    let position = |frame: usize| match positions.spec.rank() {
        0 => at[0].wrapping_add((frame % length) as i32),
        1 => at[frame % length],
        _ => at[frame],
    };
    let turns: Vec<u64> = attrs.turns(dims).collect();
    threads::over_rows(y, row, cost(attrs, x.spec), |first, y| {
        let mut angles = vec![(0.0f32, 0.0f32); half];
        for (i, y) in y.chunks_exact_mut(row).enumerate() {
            let frame = first + i;
            let position = i64::from(position(frame)) as u64;
            for (angle, turn) in angles.iter_mut().zip(&turns) {
                // As signed, a fraction of a turn between −½ and ½.
                let turned = position.wrapping_mul(*turn) as i64 as f64;
                let (sin, cos) = (turned * (std::f64::consts::TAU / 2f64.powi(64))).sin_cos();
                *angle = (sin as f32, cos as f32);
            }
            let from = &from[frame * row..][..row];
            for (y, x) in y.chunks_exact_mut(features).zip(from.chunks_exact(features)) {
                for (i, (sin, cos)) in angles.iter().enumerate() {
                    let (j, k) = if attrs.interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
                    let (a, b): (f32, f32) = (x[j].into(), x[k].into());
                    y[j] = T::narrow(a * cos - b * sin);
                    y[k] = T::narrow(a * sin + b * cos);
                }
                y[dims..].copy_from_slice(&x[dims..]);
            }
        }
    });
}
