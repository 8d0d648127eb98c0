//! `triangular_solve`.

use nitrox_engine::op::TriangularSolve;

use super::network::rms;
use super::{Array, Expected, Real};

/// x by substitution: an unknown is found once all others of its row of op(a) are.
pub fn triangular(attrs: &TriangularSolve, a: &Array, b: &Array) -> Expected {
    let size = *a.shape().last().unwrap();
    let batch: usize = a.shape()[..a.shape().len() - 2].iter().product();
    let columns = b.len().checked_div(batch * size).unwrap_or(0);
    let vectors = b.shape().len() < a.shape().len();
    let (a64, b64) = (a.to_f64(), b.to_f64());
    // A system on the right is one on the left with everything transposed.
    let turned = attrs.transpose == attrs.left_side;
    let upwards = attrs.lower == turned;
    let mut values = vec![0.0; b.len()];
    let mut squares = 0.0;
    for entry in 0..batch {
        let factor = |i: usize, k: usize| {
            let (i, k) = if turned { (k, i) } else { (i, k) };
            a64[(entry * size + i) * size + k]
        };
        let place = |i: usize, c: usize| match attrs.left_side || vectors {
            true => (entry * size + i) * columns + c,
            false => (entry * columns + c) * size + i,
        };
        for c in 0..columns {
            for step in 0..size {
                let row = |step: usize| if upwards { size - 1 - step } else { step };
                let i = row(step);
                let mut left = b64[place(i, c)];
                let mut terms = left * left;
                for k in (0..step).map(row) {
                    let term = factor(i, k) * values[place(k, c)];
                    left -= term;
                    terms += term * term;
                }
                values[place(i, c)] = left / factor(i, i);
                squares += terms / factor(i, i).powi(2);
            }
        }
    }
    let scale = if squares.is_finite() { rms(squares, values.len()) } else { 0.0 };
    Real::whole(b.spec.clone(), values, scale)
}
