//! LSTM and GRU, one frame after the other, states never rounded.

use nitrox_engine::op::Recurrent;
use nitrox_engine::{DType, Spec};

use super::array::spec;
use super::special::sigmoid;
use super::{Array, Expected, Real};

/// States of trained size; see [`Real::scale`].
const SCALE: f64 = 0.1;

/// The sizes, and the frames in the order in which they are run.
struct Frames {
    batch: usize,
    time: usize,
    features: usize,
    hidden: usize,
    order: Vec<usize>,
    x: Vec<f64>,
    wi: Vec<f64>,
    wh: Vec<f64>,
    mask: Option<Vec<i64>>,
}

impl Frames {
    fn new(attrs: &Recurrent, x: &Array, wi: &Array, wh: &Array, mask: Option<&Array>) -> Self {
        let time = x.shape()[1];
        let forward = 0..time;
        let order = if attrs.reverse { forward.rev().collect() } else { forward.collect() };
        Frames {
            batch: x.shape()[0],
            time,
            features: x.shape()[2],
            hidden: wh.shape()[0],
            order,
            x: x.to_f64(),
            wi: wi.to_f64(),
            wh: wh.to_f64(),
            mask: mask.map(Array::to_i64),
        }
    }

    fn keeps(&self, b: usize, t: usize) -> bool {
        self.mask.as_ref().is_some_and(|m| m[b * self.time + t] != 0)
    }

    fn input(&self, b: usize, t: usize) -> &[f64] {
        let at = (b * self.time + t) * self.features;
        &self.x[at..at + self.features]
    }

    fn state(&self, given: Option<&Array>) -> Vec<f64> {
        given.map_or_else(|| vec![0.0; self.batch * self.hidden], Array::to_f64)
    }
}

/// v·w for a w of `width` columns.
fn product(v: &[f64], w: &[f64], width: usize) -> Vec<f64> {
    let mut out = vec![0.0; width];
    for (k, v) in v.iter().enumerate() {
        for (o, w) in out.iter_mut().zip(&w[k * width..(k + 1) * width]) {
            *o += v * w;
        }
    }
    out
}

fn state_spec(given: Option<&Array>, x: &Array, shape: &[usize]) -> Spec {
    spec(given.map_or(x.dtype(), Array::dtype), shape)
}

/// i f g o = x·wi + h·wh + b; c' = σ(f)·c + σ(i)·tanh(g); h' = σ(o)·tanh(c').
pub fn lstm(
    attrs: &Recurrent,
    x: &Array,
    [c0, h0]: [Option<&Array>; 2],
    wi: &Array,
    wh: &Array,
    b: Option<&Array>,
    mask: Option<&Array>,
) -> Vec<Expected> {
    let f = Frames::new(attrs, x, wi, wh, mask);
    let n = f.hidden;
    let bias = b.map_or_else(|| vec![0.0; 4 * n], Array::to_f64);
    let (mut c, mut h) = (f.state(c0), f.state(h0));
    let mut seq = vec![0.0; f.batch * f.time * n];
    for row in 0..f.batch {
        let (c, h) = (&mut c[row * n..(row + 1) * n], &mut h[row * n..(row + 1) * n]);
        for &t in &f.order {
            if !f.keeps(row, t) {
                let zi = product(f.input(row, t), &f.wi, 4 * n);
                let zh = product(h, &f.wh, 4 * n);
                let z = |gate: usize, j: usize| {
                    let at = gate * n + j;
                    zi[at] + zh[at] + bias[at]
                };
                for j in 0..n {
                    c[j] = sigmoid(z(1, j)) * c[j] + sigmoid(z(0, j)) * z(2, j).tanh();
                    h[j] = sigmoid(z(3, j)) * c[j].tanh();
                }
            }
            let at = (row * f.time + t) * n;
            seq[at..at + n].copy_from_slice(h);
        }
    }
    let shape = [f.batch, n];
    vec![
        Real::whole(spec(x.dtype(), &[f.batch, f.time, n]), seq, SCALE),
        Real::whole(state_spec(c0, x, &shape), c, SCALE),
        Real::whole(state_spec(h0, x, &shape), h, SCALE),
    ]
}

/// r z = σ(x·wi + h·wh + b); n = tanh(x·wi + b + r·(h·wh + b_recurrent)); h' = (1 − z)·n + z·h.
pub fn gru(
    attrs: &Recurrent,
    x: &Array,
    h0: Option<&Array>,
    wi: &Array,
    wh: &Array,
    b: Option<&Array>,
    mask: Option<&Array>,
) -> Vec<Expected> {
    let f = Frames::new(attrs, x, wi, wh, mask);
    let n = f.hidden;
    let bias = b.map_or_else(|| vec![0.0; 4 * n], Array::to_f64);
    let mut h = f.state(h0);
    let mut seq = vec![0.0; f.batch * f.time * n];
    for row in 0..f.batch {
        let h = &mut h[row * n..(row + 1) * n];
        for &t in &f.order {
            if !f.keeps(row, t) {
                let zi = product(f.input(row, t), &f.wi, 3 * n);
                let zh = product(h, &f.wh, 3 * n);
                for j in 0..n {
                    let (r, z, m) = (j, n + j, 2 * n + j);
                    let reset = sigmoid(zi[r] + zh[r] + bias[r]);
                    let update = sigmoid(zi[z] + zh[z] + bias[z]);
                    let new = (zi[m] + bias[m] + reset * (zh[m] + bias[3 * n + j])).tanh();
                    h[j] = (1.0 - update) * new + update * h[j];
                }
            }
            let at = (row * f.time + t) * n;
            seq[at..at + n].copy_from_slice(h);
        }
    }
    assert!(matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16));
    vec![
        Real::whole(spec(x.dtype(), &[f.batch, f.time, n]), seq, SCALE),
        Real::whole(state_spec(h0, x, &[f.batch, n]), h, SCALE),
    ]
}
