//! Dense, norms, embedding and softmax.

use nitrox_engine::op;
use nitrox_engine::{DType, Spec};

use super::array::spec;
use super::special::activate;
use super::{Array, Expected, Real};

/// The root of the mean of squares given as their sum.
pub fn rms(squares: f64, n: usize) -> f64 {
    (squares / n.max(1) as f64).sqrt()
}

/// activation(x·w + b) + residual
pub fn dense(
    attrs: &op::Dense,
    x: &Array,
    w: &Array,
    b: Option<&Array>,
    residual: Option<&Array>,
) -> Expected {
    let (inner, outer) = (w.shape()[0], w.shape()[1]);
    let mut shape = x.shape().to_vec();
    let rows: usize = shape[..shape.len() - 1].iter().product();
    *shape.last_mut().unwrap() = outer;
    let (x64, w64) = (x.to_f64(), w.to_f64());
    let b = b.map(Array::to_f64);
    let residual = residual.map(Array::to_f64);

    let mut values = vec![0.0; rows * outer];
    let mut squares = 0.0;
    for m in 0..rows {
        let out = &mut values[m * outer..(m + 1) * outer];
        for k in 0..inner {
            let xk = x64[m * inner + k];
            for (n, o) in out.iter_mut().enumerate() {
                let term = xk * w64[k * outer + n];
                *o += term;
                squares += term * term;
            }
        }
        for (n, o) in out.iter_mut().enumerate() {
            if let Some(b) = &b {
                *o += b[n];
                squares += b[n] * b[n];
            }
            *o = activate(attrs.activation, *o);
            if let Some(r) = &residual {
                let r = r[m * outer + n];
                *o += r;
                squares += r * r;
            }
        }
    }
    let scale = if squares.is_finite() { rms(squares, values.len()) } else { 0.0 };
    Real::whole(spec(x.dtype(), &shape), values, scale)
}

/// With s = x + residual: (s − mean)/√(variance + ε)·gamma + beta where there is a beta, and
/// s/√(mean of s² + ε)·gamma where there is none; then s, where there is a residual.
pub fn norm(
    attrs: &op::Norm,
    x: &Array,
    gamma: &Array,
    beta: Option<&Array>,
    residual: Option<&Array>,
) -> Vec<Expected> {
    let width = *x.shape().last().unwrap();
    let mut sum = x.to_f64();
    let mut sum_squares: f64 = sum.iter().map(|v| v * v).sum();
    if let Some(r) = residual {
        for (s, r) in sum.iter_mut().zip(r.to_f64()) {
            *s += r;
            sum_squares += r * r;
        }
    }
    let gamma = gamma.to_f64();
    let beta64 = beta.map(Array::to_f64);

    let mut values = Vec::with_capacity(sum.len());
    let mut squares = 0.0;
    if width > 0 {
        for row in sum.chunks(width) {
            let n = width as f64;
            let mean = if beta.is_some() { row.iter().sum::<f64>() / n } else { 0.0 };
            let variance = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
            let deviation = (variance + attrs.epsilon).sqrt();
            for (i, v) in row.iter().enumerate() {
                let scaled = (v - mean) / deviation * gamma[i];
                let shift = beta64.as_ref().map_or(0.0, |b| b[i]);
                values.push(scaled + shift);
                squares += scaled * scaled + shift * shift;
            }
        }
    }
    let finite = |squares: f64, n| if squares.is_finite() { rms(squares, n) } else { 0.0 };
    let n = values.len();
    let mut outputs = vec![Real::whole(x.spec.clone(), values, finite(squares, n))];
    if residual.is_some() {
        outputs.push(Real::whole(x.spec.clone(), sum, finite(sum_squares, n)));
    }
    outputs
}

/// The rows of a table; NaN where the id is none of its rows.
pub fn embedding(table: &Array, ids: &Array) -> Expected {
    let (rows, width) = (table.shape()[0], table.shape()[1]);
    let mut shape = ids.shape().to_vec();
    shape.push(width);
    let table64 = table.to_f64();
    let mut values = Vec::new();
    for id in ids.to_i64() {
        match usize::try_from(id) {
            Ok(id) if id < rows => values.extend(&table64[id * width..(id + 1) * width]),
            _ => values.extend(vec![f64::NAN; width]),
        }
    }
    Real::exact(spec(table.dtype(), &shape), values)
}

/// exp(x − max)/Σ exp(x − max), or its logarithm. A row without a finite maximum is NaN.
pub fn softmax(attrs: &op::Softmax, x: &Array) -> Expected {
    let (outer, length, inner) = split(&x.spec, attrs.axis);
    let x64 = x.to_f64();
    let mut values = vec![0.0; x64.len()];
    for o in 0..outer {
        for i in 0..inner {
            let at = |j: usize| (o * length + j) * inner + i;
            let max = (0..length).map(|j| x64[at(j)]).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = (0..length).map(|j| (x64[at(j)] - max).exp()).sum();
            for j in 0..length {
                let shifted = x64[at(j)] - max;
                values[at(j)] = if attrs.log { shifted - sum.ln() } else { shifted.exp() / sum };
            }
        }
    }
    assert_ne!(x.dtype(), DType::F64);
    Real::whole(x.spec.clone(), values, 0.0)
}

/// An axis, and the products of the lengths before and after it.
pub fn split(spec: &Spec, axis: i64) -> (usize, usize, usize) {
    let shape = spec.shape();
    let axis = if axis < 0 { axis + shape.len() as i64 } else { axis } as usize;
    (shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product())
}
