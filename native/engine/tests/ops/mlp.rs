use nitrox_engine::DType;
use nitrox_engine::op::{Activation, GatedMlp, Op};

use crate::harness::{ACTIVATIONS, NETWORK, Run};
use crate::oracle::Array;

fn check(
    run: &mut Run,
    dtype: DType,
    shape: &[usize],
    hidden: usize,
    activation: Activation,
    residual: bool,
) {
    let width = *shape.last().unwrap();
    let weights = |run: &mut Run, inner: usize, outer: usize| {
        run.rng.normal(dtype, &[inner, outer], 1.0 / (inner.max(1) as f64).sqrt())
    };
    let x = run.rng.normal(dtype, shape, 1.0);
    let (gate, up) = (weights(run, width, hidden), weights(run, width, hidden));
    let down = weights(run, hidden, width);
    let r = residual.then(|| run.rng.normal(dtype, shape, 1.0));
    let inputs = [Some(&x), Some(&gate), Some(&up), Some(&down), r.as_ref()];
    run.check(Op::GatedMlp(GatedMlp { activation }), &inputs);
}

#[test]
fn shapes() {
    let mut run = Run::new("gated_mlp shapes");
    for dtype in NETWORK {
        for (shape, hidden) in [
            (&[1, 1][..], 1),
            (&[7], 5),
            (&[1, 256], 256),
            (&[2, 64], 200),
            (&[3, 33], 65),
            (&[4, 1000], 130),
            (&[8, 128], 512),
            (&[9, 31], 33),
            (&[2, 5, 64], 96),
            (&[60, 256], 256),
            (&[65, 129], 127),
            (&[300, 128], 264),
            (&[1, 3, 2, 40], 72),
            (&[129, 8], 16),
        ] {
            check(&mut run, dtype, shape, hidden, Activation::Silu, false);
            check(&mut run, dtype, shape, hidden, Activation::GeluTanh, true);
        }
    }
    run.finish();
}

#[test]
fn activations() {
    let mut run = Run::new("gated_mlp activations");
    for dtype in NETWORK {
        for activation in ACTIVATIONS {
            for rows in [1, 3, 20, 100] {
                check(&mut run, dtype, &[rows, 48], 80, activation, rows == 3);
            }
        }
    }
    run.finish();
}

#[test]
fn empty() {
    let mut run = Run::new("gated_mlp empty");
    for dtype in NETWORK {
        for residual in [false, true] {
            check(&mut run, dtype, &[0, 8], 16, Activation::Silu, residual);
            check(&mut run, dtype, &[3, 0], 16, Activation::Silu, residual);
            check(&mut run, dtype, &[3, 8], 0, Activation::Silu, residual);
            check(&mut run, dtype, &[30, 8], 0, Activation::Silu, residual);
        }
    }
    run.finish();
}

/// A NaN stays in its row.
#[test]
fn extremes() {
    let mut run = Run::new("gated_mlp extremes");
    for dtype in NETWORK {
        for rows in [2, 40] {
            let mut x = run.rng.normal(dtype, &[rows, 24], 1.0).to_f64();
            (x[3], x[30]) = (f64::NAN, 300.0);
            let x = Array::floats(dtype, &[rows, 24], &x);
            let w = run.rng.floats(dtype, &[24, 32], |r, _| r.uniform(0.05, 0.1));
            let down = run.rng.floats(dtype, &[32, 24], |r, _| r.uniform(0.01, 0.02));
            let op = Op::GatedMlp(GatedMlp { activation: Activation::Silu });
            run.check(op, &[&x, &w, &w, &down].map(Some));
        }
    }
    run.finish();
}
