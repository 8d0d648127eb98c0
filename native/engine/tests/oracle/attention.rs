//! Attention, score by score.

use nitrox_engine::DType;
use nitrox_engine::op::FlashAttention;

use super::array::spec;
use super::network::rms;
use super::{Array, Expected, Real};

/// Inputs in the op's order: q, k, v, bias, key_mask, kv_len, offset.
pub fn flash(a: &FlashAttention, inputs: [Option<&Array>; 7]) -> Vec<Expected> {
    let [q, k, v, bias, key_mask, kv_len, offset] = inputs;
    let (q, k, v) = (q.unwrap(), k.unwrap(), v.unwrap());
    let &[b, sq, hq, d] = q.shape() else { panic!("{:?}", q.spec) };
    let (sk, hkv) = (k.shape()[1], k.shape()[2]);
    let (q64, k64, v64) = (q.to_f64(), k.to_f64(), v.to_f64());
    let bias = bias.map(|bias| (bias.shape(), bias.to_f64()));
    let [key_mask, kv_len, offset] = [key_mask, kv_len, offset].map(|x| x.map(Array::to_i64));
    let scale = a.scale.unwrap_or(1.0 / (d as f64).sqrt());

    let (mut out, mut lse) = (vec![0.0; b * sq * hq * d], vec![0.0; b * hq * sq]);
    let mut squares = 0.0;
    for n in 0..b {
        for h in 0..hq {
            for i in 0..sq {
                let offset = match (&offset, a.offset) {
                    (Some(o), _) => o[if o.len() == 1 { 0 } else { n }].into(),
                    (None, Some(offset)) => offset.into(),
                    (None, None) => sk as i128 - sq as i128,
                };
                let at = i as i128 + offset;
                let sees = |j: usize| {
                    let key = j as i128;
                    (!a.causal || key <= at)
                        && a.left.is_none_or(|left| key >= at - left as i128)
                        && a.right.is_none_or(|right| key <= at + right as i128)
                        && kv_len.as_ref().is_none_or(|l| key < l[n].into())
                        && key_mask.as_ref().is_none_or(|m| m[n * sk + j] != 0)
                };
                let query = &q64[((n * sq + i) * hq + h) * d..][..d];
                let place = |j: usize| ((n * sk + j) * hkv + h / (hq / hkv)) * d;
                let scores: Vec<_> = (0..sk)
                    .filter(|&j| sees(j))
                    .map(|j| {
                        let dot: f64 = query.iter().zip(&k64[place(j)..]).map(|(q, k)| q * k).sum();
                        let mut s = scale * dot;
                        if let Some(cap) = a.softcap {
                            s = cap * (s / cap).tanh();
                        }
                        if let Some((shape, bias)) = &bias {
                            s += bias[broadcast_index(shape, [n, h, i, j])];
                        }
                        (j, s)
                    })
                    .filter(|&(_, s)| s != f64::NEG_INFINITY)
                    .collect();
                let top = scores.iter().fold(f64::NEG_INFINITY, |m, &(_, s)| m.max(s));
                let sum: f64 = scores.iter().map(|&(_, s)| (s - top).exp()).sum();
                lse[(n * hq + h) * sq + i] =
                    if scores.is_empty() { f64::NEG_INFINITY } else { top + sum.ln() };
                let row = &mut out[((n * sq + i) * hq + h) * d..][..d];
                for &(j, s) in &scores {
                    let p = (s - top).exp() / sum;
                    for (o, v) in row.iter_mut().zip(&v64[place(j)..]) {
                        *o += p * v;
                        squares += (p * v) * (p * v);
                    }
                }
            }
        }
    }
    let scale = if squares.is_finite() { rms(squares, out.len()) } else { 0.0 };
    let mut expected = vec![Real::whole(q.spec.clone(), out, scale)];
    if a.lse {
        // A logarithm: what counts is how far it is off, however near to zero it comes.
        expected.push(Real::whole(spec(DType::F32, &[b, hq, sq]), lse, 1.0));
    }
    expected
}

fn broadcast_index(shape: &[usize], at: [usize; 4]) -> usize {
    let at = &at[4 - shape.len()..];
    shape.iter().zip(at).fold(0, |n, (&length, &i)| n * length + if length == 1 { 0 } else { i })
}
