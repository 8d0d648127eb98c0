use nitrox_engine::DType;
use nitrox_engine::op::{Activation, CausalConv1d, Op};

use crate::harness::{ACTIVATIONS, NETWORK, Run};
use crate::oracle::Array;

/// Batch, length, channels, taps.
fn check(run: &mut Run, dtype: DType, [batch, length, channels, taps]: [usize; 4], bits: u32) {
    let x = run.rng.normal(dtype, &[batch, length, channels], 1.0);
    let w = run.rng.normal(dtype, &[taps, channels], 1.0 / (taps as f64).sqrt());
    let b = run.rng.normal(dtype, &[channels], 0.5);
    let state = run.rng.normal(dtype, &[batch, taps - 1, channels], 1.0);
    let activation = if bits & 1 == 1 { Activation::Silu } else { Activation::None };
    let inputs =
        [Some(&x), Some(&w), (bits & 2 > 0).then_some(&b), (bits & 4 > 0).then_some(&state)];
    run.check(Op::CausalConv1d(CausalConv1d { activation }), &inputs);
}

#[test]
fn shapes() {
    let mut run = Run::new("causal_conv1d shapes");
    for dtype in NETWORK {
        for shape in [
            [1, 1, 1, 1],
            [1, 1, 512, 4],
            [1, 60, 512, 4],
            [3, 1, 33, 4],
            [2, 7, 31, 3],
            [5, 33, 8, 2],
            [2, 129, 65, 16],
            [1, 1000, 127, 4],
            [7, 2, 64, 4],
            [4, 3, 24, 7],
            [1, 5, 40, 9],
            [33, 4, 129, 4],
            [2, 64, 256, 1],
            [1, 8192, 16, 4],
            [3, 700, 36, 3],
            [2, 301, 20, 2],
        ] {
            for bits in 0..8 {
                check(&mut run, dtype, shape, bits);
            }
        }
        // Every number of taps, with fewer frames than taps and with more.
        for taps in 1..=16 {
            for length in [1, 2, taps - 1, taps, 2 * taps + 1] {
                for channels in [8, 13] {
                    check(&mut run, dtype, [2, length, channels, taps], 7);
                    check(&mut run, dtype, [2, length, channels, taps], 3);
                }
            }
        }
    }
    run.finish();
}

#[test]
fn empty() {
    let mut run = Run::new("causal_conv1d empty");
    for dtype in NETWORK {
        for shape in [[0, 4, 8, 4], [2, 0, 8, 4], [2, 3, 0, 4], [2, 0, 8, 1], [1, 0, 7, 3]] {
            for bits in [0, 7] {
                check(&mut run, dtype, shape, bits);
            }
        }
    }
    run.finish();
}

/// All activations; large numbers; NaN and infinity stay where they are seen.
#[test]
fn extremes() {
    let mut run = Run::new("causal_conv1d extremes");
    for dtype in NETWORK {
        for activation in ACTIVATIONS {
            let mut x = run.rng.normal(dtype, &[2, 20, 9], 1.0).to_f64();
            (x[3], x[40], x[100], x[200]) = (f64::NAN, f64::INFINITY, 6e4, -6e4);
            let x = Array::floats(dtype, &[2, 20, 9], &x);
            let w = run.rng.floats(dtype, &[4, 9], |r, _| r.uniform(0.25, 1.0));
            let op = Op::CausalConv1d(CausalConv1d { activation });
            run.check(op, &[Some(&x), Some(&w)]);
        }
    }
    run.finish();
}
