//! The causal convolution, the selective scan, rotary positions and the gated MLP.

use nitrox_engine::DType;
use nitrox_engine::op::{CausalConv1d, GatedMlp, NormKind, Rope, SelectiveScan};

use super::array::spec;
use super::network::rms;
use super::special::{activate, silu, softplus};
use super::{Array, Expected, Real};

fn scale(squares: f64, n: usize) -> f64 {
    if squares.is_finite() { rms(squares, n) } else { 0.0 }
}

/// y[t] = activation(b + Σ w[k]·x[t − K + 1 + k]), where x before the first frame is the state;
/// the new state is the last K − 1 frames.
pub fn causal_conv1d(
    attrs: &CausalConv1d,
    x: &Array,
    w: &Array,
    b: Option<&Array>,
    state: Option<&Array>,
) -> Vec<Expected> {
    let &[batch, length, channels] = x.shape() else { panic!("{}", x.spec) };
    let taps = w.shape()[0];
    let kept = taps - 1;
    let (x64, w) = (x.to_f64(), w.to_f64());
    let b = b.map(Array::to_f64);
    let state = state.map(Array::to_f64);
    let mut y = vec![0.0; x64.len()];
    let mut last = vec![0.0; batch * kept * channels];
    let mut squares = 0.0;
    for row in 0..batch {
        for ch in 0..channels {
            // Frame `t` of the state and then of x.
            let frame = |t: usize| {
                if t < kept {
                    state.as_ref().map_or(0.0, |s| s[(row * kept + t) * channels + ch])
                } else {
                    x64[(row * length + t - kept) * channels + ch]
                }
            };
            for t in 0..length {
                let mut sum = b.as_ref().map_or(0.0, |b| b[ch]);
                squares += sum * sum;
                for k in 0..taps {
                    let term = w[k * channels + ch] * frame(t + k);
                    sum += term;
                    squares += term * term;
                }
                y[(row * length + t) * channels + ch] = activate(attrs.activation, sum);
            }
            for j in 0..kept {
                last[(row * kept + j) * channels + ch] = frame(length + j);
            }
        }
    }
    let n = y.len();
    vec![
        Real::whole(x.spec.clone(), y, scale(squares, n)),
        Real::exact(spec(x.dtype(), &[batch, kept, channels]), last),
    ]
}

/// h ← exp(dt·A)·h + dt·B·x; y = (C·h + d·x)·silu(z) + residual; then the norm.
pub fn selective_scan(attrs: &SelectiveScan, inputs: &[Option<&Array>]) -> Vec<Expected> {
    let at = |i: usize| inputs.get(i).copied().flatten();
    let given = |i: usize| at(i).map(Array::to_f64);
    let x_spec = &at(0).unwrap().spec;
    let &[batch, length, channels] = x_spec.shape() else { panic!("{x_spec}") };
    let states = at(2).unwrap().shape()[1];
    let need = |i: usize| given(i).unwrap();
    let (x, dt, a, b, c) = (need(0), need(1), need(2), need(3), need(4));
    let (d, z, bias, residual) = (given(5), given(6), given(7), given(9));
    let mut h = given(8).unwrap_or_else(|| vec![0.0; batch * channels * states]);

    let mut y = vec![0.0; x.len()];
    let (mut y_squares, mut h_squares) = (0.0, 0.0);
    for row in 0..batch {
        for t in 0..length {
            for ch in 0..channels {
                let i = (row * length + t) * channels + ch;
                let mut step = dt[i] + bias.as_ref().map_or(0.0, |v| v[ch]);
                if attrs.dt_softplus {
                    step = softplus(step);
                }
                if let Some((low, high)) = attrs.dt_clamp {
                    step = if step.is_nan() { step } else { step.clamp(low, high) };
                }
                let gate = z.as_ref().map_or(1.0, |z| silu(z[i]));
                let skip = d.as_ref().map_or(0.0, |d| d[ch] * x[i]);
                let rest = residual.as_ref().map_or(0.0, |r| r[i]);
                let mut sum = 0.0;
                for n in 0..states {
                    let bc = (row * length + t) * states + n;
                    let h = &mut h[(row * channels + ch) * states + n];
                    let (kept, new) = ((step * a[ch * states + n]).exp() * *h, step * b[bc] * x[i]);
                    *h = kept + new;
                    sum += c[bc] * *h;
                    y_squares += (c[bc] * *h * gate).powi(2);
                    if t + 1 == length {
                        h_squares += kept * kept + new * new;
                    }
                }
                y[i] = (sum + skip) * gate + rest;
                y_squares += (skip * gate).powi(2) + rest * rest;
            }
        }
    }
    let n = y.len();
    let h_scale = if length == 0 { 0.0 } else { scale(h_squares, h.len()) };
    let state = Real::whole(spec(DType::F32, &[batch, channels, states]), h, h_scale);
    let Some(norm) = attrs.norm else {
        return vec![Real::whole(x_spec.clone(), y, scale(y_squares, n)), state];
    };
    let (gamma, beta) = (need(10), given(11));
    let mut normed = Vec::with_capacity(n);
    let mut squares = 0.0;
    for row in y.chunks(channels.max(1)) {
        let width = channels as f64;
        let mean = match norm {
            NormKind::LayerNorm => row.iter().sum::<f64>() / width,
            NormKind::RmsNorm => 0.0,
        };
        let variance = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / width;
        let deviation = (variance + attrs.epsilon).sqrt();
        for (ch, v) in row.iter().enumerate() {
            let scaled = (v - mean) / deviation * gamma[ch];
            let shift = beta.as_ref().map_or(0.0, |b| b[ch]);
            normed.push(scaled + shift);
            squares += scaled * scaled + shift * shift;
        }
    }
    vec![
        Real::whole(x_spec.clone(), normed, scale(squares, n)),
        Real::whole(x_spec.clone(), y, scale(y_squares, n)),
        state,
    ]
}

/// Pair i of each head turned by position·scale·base^(−2i/dims).
pub fn rope(attrs: &Rope, x: &Array, positions: &Array) -> Expected {
    let &[batch, length, heads, features] = x.shape() else { panic!("{}", x.spec) };
    let dims = attrs.dims.unwrap_or(features);
    let at = positions.to_i64();
    let mut y = x.to_f64();
    for row in 0..batch {
        for s in 0..length {
            let position = match positions.shape() {
                // Positions are counted on as s32 are.
                [] => i64::from((at[0] as i32).wrapping_add(s as i32)),
                [_] => at[s],
                _ => at[row * length + s],
            };
            for head in 0..heads {
                let first = ((row * length + s) * heads + head) * features;
                for i in 0..dims / 2 {
                    let frequency = attrs.base.powf(-2.0 * i as f64 / dims as f64);
                    let (sin, cos) = (position as f64 * attrs.scale * frequency).sin_cos();
                    let (j, k) = match attrs.interleaved {
                        true => (first + 2 * i, first + 2 * i + 1),
                        false => (first + i, first + i + dims / 2),
                    };
                    (y[j], y[k]) = (y[j] * cos - y[k] * sin, y[j] * sin + y[k] * cos);
                }
            }
        }
    }
    let squares = y.iter().map(|v| v * v).sum();
    let n = y.len();
    Real::whole(x.spec.clone(), y, scale(squares, n))
}

/// (activation(x·gate) ⊙ (x·up))·down + residual
pub fn gated_mlp(
    attrs: &GatedMlp,
    x: &Array,
    [gate, up, down]: [&Array; 3],
    residual: Option<&Array>,
) -> Expected {
    let (width, hidden) = (gate.shape()[0], gate.shape()[1]);
    let rows = x.spec.rows();
    let (x64, gate, up, down) = (x.to_f64(), gate.to_f64(), up.to_f64(), down.to_f64());
    let mut y = residual.map_or_else(|| vec![0.0; x64.len()], Array::to_f64);
    let mut squares: f64 = y.iter().map(|v| v * v).sum();
    for m in 0..rows {
        let row = &x64[m * width..(m + 1) * width];
        for f in 0..hidden {
            let dot = |w: &[f64]| -> f64 {
                row.iter().enumerate().map(|(i, x)| x * w[i * hidden + f]).sum()
            };
            let between = activate(attrs.activation, dot(&gate)) * dot(&up);
            for i in 0..width {
                let term = between * down[f * width + i];
                y[m * width + i] += term;
                squares += term * term;
            }
        }
    }
    let n = y.len();
    Real::whole(x.spec.clone(), y, scale(squares, n))
}
