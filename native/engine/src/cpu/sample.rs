//! `sample`: one index a row, by Gumbel noise from a counter-based generator, so that the same
//! seed, counter and row give the same noise on every device.

use std::cmp::Ordering;

use super::numeric::{Scratch, widen, with_network};
use super::reduce::largest;
use super::simd::dispatch;
use crate::call::Call;
use crate::error::{Error, Result};
use crate::op::Sample;
use crate::spec::Spec;

/// Rows are sampled one after the other: their logits in f32, and the order of what is kept.
pub(super) fn workspace(logits: &Spec) -> usize {
    2 * Scratch::bytes(logits.last())
}

/// Nanoseconds on one thread, roughly.
pub(super) fn cost(logits: &Spec, attrs: &Sample) -> f64 {
    let each = match (attrs.temperature == 0.0, attrs.top_p.is_some()) {
        (true, _) => 0.5,
        (_, true) => 60.0,
        _ => 20.0,
    };
    logits.len() as f64 * each
}

/// # Safety
/// As for [`crate::Device::execute`].
pub(super) unsafe fn execute(call: &Call, attrs: &Sample) -> Result<()> {
    let (Some(logits), Some(counter)) = (call.input(0), call.input(1)) else {
        return Err(Error::Internal("sample without its inputs".into()));
    };
    let width = logits.spec.last();
    with_network!(logits.spec.dtype, T => {
        // SAFETY: the caller's promise; `infer` has checked types and shapes, and `workspace` asked
        // for the pieces.
        let (x, ids, counter, next, mut scratch) = unsafe {
            (
                logits.slice::<T>(),
                call.outputs[0].slice_mut::<i32>(),
                counter.slice::<i32>()[0],
                call.outputs[1].slice_mut::<i32>(),
                Scratch::new(call.workspace),
            )
        };
        next[0] = counter.wrapping_add(1);
        let (z, order) = (scratch.take(width), scratch.take(width));
        for (row, (id, x)) in ids.iter_mut().zip(x.chunks_exact(width)).enumerate() {
            *id = if attrs.temperature == 0.0 {
                dispatch!(I => largest::<I, T>(x)) as i32
            } else {
                widen(x, z);
                one(attrs, row as u32, counter as u32, z, order) as i32
            };
        }
    });
    Ok(())
}

fn one(attrs: &Sample, row: u32, counter: u32, z: &mut [f32], order: &mut [u32]) -> u32 {
    let temperature = attrs.temperature as f32;
    for z in z.iter_mut() {
        *z /= temperature;
    }
    let noise = Noise { key: [attrs.seed as u32, (attrs.seed >> 32) as u32], row, counter };
    let top_k = attrs.top_k.filter(|&k| k < z.len());
    if top_k.is_none() && attrs.top_p.is_none() {
        return noise.winner(z, 0..z.len() as u32);
    }
    for (place, i) in order.iter_mut().enumerate() {
        *i = place as u32;
    }
    let descending = |a: &u32, b: &u32| descending(z, *a, *b);
    let mut kept = &mut order[..];
    if let Some(k) = top_k {
        kept.select_nth_unstable_by(k - 1, descending);
        kept = &mut kept[..k];
    }
    let mut n = kept.len();
    if let Some(p) = attrs.top_p {
        kept.sort_unstable_by(descending);
        n = nucleus(z, kept, p);
    }
    kept[..n].sort_unstable();
    noise.winner(z, kept[..n].iter().copied())
}

/// From the largest down, equals by index; a NaN before any number.
fn descending(z: &[f32], a: u32, b: u32) -> Ordering {
    let (x, y) = (z[a as usize], z[b as usize]);
    let by_value = match (x.is_nan(), y.is_nan()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        _ => y.partial_cmp(&x).unwrap_or(Ordering::Equal),
    };
    by_value.then(a.cmp(&b))
}

/// How many of `kept`, in descending order, it takes for probabilities that sum to `p`.
fn nucleus(z: &[f32], kept: &[u32], p: f64) -> usize {
    let max = z[kept[0] as usize];
    let weight = |&i: &u32| f64::from((z[i as usize] - max).exp());
    let total: f64 = kept.iter().map(weight).sum();
    let mut sum = 0.0;
    for (n, i) in kept.iter().enumerate() {
        sum += weight(i);
        if sum >= p * total {
            return n + 1;
        }
    }
    kept.len()
}

/// The noise of one row at one count.
struct Noise {
    key: [u32; 2],
    row: u32,
    counter: u32,
}

impl Noise {
    /// The first of the largest z + Gumbel noise among `candidates`, which ascend; NaN beats any.
    fn winner(&self, z: &[f32], candidates: impl Iterator<Item = u32>) -> u32 {
        let mut best: Option<(f32, u32)> = None;
        let mut block = None;
        for i in candidates {
            let words = match block {
                Some((at, words)) if at == i / 4 => words,
                _ => philox([i / 4, self.row, self.counter, 0], self.key),
            };
            block = Some((i / 4, words));
            let u = ((words[i as usize % 4] >> 9) as f32 + 0.5) * 2f32.powi(-23);
            let v = z[i as usize] - (-u.ln()).ln();
            if best.is_none_or(|(b, _)| v > b || (v.is_nan() && !b.is_nan())) {
                best = Some((v, i));
            }
        }
        best.map_or(0, |(_, i)| i)
    }
}

/// Philox4x32 with ten rounds.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    let product = |a: u32, b: u32| {
        let p = u64::from(a) * u64::from(b);
        ((p >> 32) as u32, p as u32)
    };
    for _ in 0..10 {
        let (high0, low0) = product(0xD251_1F53, counter[0]);
        let (high1, low1) = product(0xCD9E_8D57, counter[2]);
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The generator's published known answers.
    #[test]
    fn known_answers() {
        let zeros = [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8];
        assert_eq!(philox([0; 4], [0; 2]), zeros);
        let ones = [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd];
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), ones);
    }

    #[test]
    fn prefixes() {
        let z = [0.1f32.ln(), 0.6f32.ln(), 0.3f32.ln()];
        assert_eq!(nucleus(&z, &[1, 2, 0], 0.5), 1);
        assert_eq!(nucleus(&z, &[1, 2, 0], 0.7), 2);
        assert_eq!(nucleus(&z, &[1, 2, 0], 1.0), 3);
    }
}
