use nitrox_engine::DType;
use nitrox_engine::op::{Activation, Dense, Op};

use crate::harness::{ACTIVATIONS, NETWORK, Run};
use crate::oracle::Array;

/// x of these leading axes, with bias and residual or without.
fn check(
    run: &mut Run,
    dtype: DType,
    lead: &[usize],
    [inner, outer]: [usize; 2],
    activation: Activation,
    [bias, residual]: [bool; 2],
) {
    let with = |last: usize| [lead, &[last]].concat();
    let x = run.rng.normal(dtype, &with(inner), 1.0);
    let w = run.rng.normal(dtype, &[inner, outer], 1.0 / (inner.max(1) as f64).sqrt());
    let b = bias.then(|| run.rng.normal(dtype, &[outer], 0.5));
    let r = residual.then(|| run.rng.normal(dtype, &with(outer), 1.0));
    run.check(
        Op::Dense(Dense { activation, norm: None }),
        &[Some(&x), Some(&w), b.as_ref(), r.as_ref()],
    );
}

const BOTH: [[bool; 2]; 4] = [[false, false], [true, false], [false, true], [true, true]];

/// One row of weights that take long to read, in whole batches and not.
#[test]
fn long() {
    let mut run = Run::new("dense long");
    for dtype in NETWORK {
        for [k, n] in [[4096, 1024], [2741, 1544]] {
            check(&mut run, dtype, &[1], [k, n], Activation::Gelu, [true, true]);
        }
    }
    run.finish();
}

#[test]
fn shapes() {
    let mut run = Run::new("dense shapes");
    let sizes = [1, 2, 3, 7, 31, 33, 60, 63, 65, 127, 129, 1000];
    for dtype in NETWORK {
        // Each size on each of M, K and N, the other two drawn from the small ones.
        for &size in &sizes {
            for place in 0..3 {
                let mut mkn = [0; 3].map(|_| *run.rng.pick(&sizes[..11]));
                mkn[place] = size;
                let [m, k, n] = mkn;
                let options = *run.rng.pick(&BOTH);
                let activation = *run.rng.pick(&ACTIVATIONS);
                check(&mut run, dtype, &[m], [k, n], activation, options);
            }
        }
        // One row: a matrix-vector product.
        for &k in &sizes {
            let n = *run.rng.pick(&sizes);
            check(&mut run, dtype, &[1], [k, n], Activation::None, [true, false]);
        }
        for [m, k, n] in [
            [1, 288, 512],
            [1, 512, 53],
            [1, 1024, 1024],
            [7, 127, 129],
            [65, 1000, 33],
            [129, 1000, 129],
            [128, 256, 512],
            [60, 512, 256],
            [2, 333, 257],
            [16, 64, 64],
        ] {
            check(&mut run, dtype, &[m], [k, n], Activation::None, [false, false]);
            let activation = *run.rng.pick(&ACTIVATIONS);
            check(&mut run, dtype, &[m], [k, n], activation, [true, true]);
        }
    }
    run.finish();
}

/// Every number of rows of the kernel for few of them in f32, and K shared out over one to eight blocks.
#[test]
fn few() {
    let mut run = Run::new("dense few");
    let sizes = [4, 12, 16, 48, 60, 64, 68, 124, 128, 132, 260];
    for m in 9..=128 {
        let [k, n] = [0; 2].map(|_| *run.rng.pick(&sizes));
        let activation = *run.rng.pick(&ACTIVATIONS);
        let options = *run.rng.pick(&BOTH);
        check(&mut run, DType::F32, &[m], [k, n], activation, options);
    }
    for [m, k, n] in [
        [60, 288, 256],
        [60, 256, 768],
        [60, 512, 48],
        [60, 16, 512],
        [33, 512, 512],
        [60, 1024, 132],
        [128, 512, 256],
        [9, 2048, 4],
        [17, 1028, 64],
        [65, 100, 1000],
        [127, 252, 36],
    ] {
        for options in [[false, false], [true, true]] {
            let activation = *run.rng.pick(&ACTIVATIONS);
            check(&mut run, DType::F32, &[m], [k, n], activation, options);
        }
    }
    run.finish();
}

#[test]
fn options() {
    let mut run = Run::new("dense options");
    for dtype in NETWORK {
        for activation in ACTIVATIONS {
            for options in BOTH {
                check(&mut run, dtype, &[1], [65, 33], activation, options);
                check(&mut run, dtype, &[9], [31, 70], activation, options);
                check(&mut run, dtype, &[18], [144, 72], activation, options);
            }
        }
        for lead in [&[][..], &[3], &[2, 5], &[3, 1, 4], &[2, 3, 2, 2]] {
            check(&mut run, dtype, lead, [33, 17], Activation::Silu, [true, true]);
        }
        // Nothing to do, or nothing to sum: a bias alone, or zeros.
        for (lead, sizes) in [
            (&[0][..], [7, 5]),
            (&[3, 0], [7, 5]),
            (&[4], [7, 0]),
            (&[4], [0, 5]),
            (&[1], [0, 5]),
            (&[0], [0, 0]),
        ] {
            for options in BOTH {
                check(&mut run, dtype, lead, sizes, Activation::Sigmoid, options);
            }
        }
    }
    run.finish();
}

#[test]
fn extremes() {
    let mut run = Run::new("dense extremes");
    for dtype in NETWORK {
        for (m, k, n) in [(1, 37, 41), (5, 37, 41), (33, 37, 41), (33, 36, 44), (20, 516, 20)] {
            let mut x = run.rng.normal(dtype, &[m, k], 1.0).to_f64();
            // One row for each kind of trouble; the rows beside it are untouched by it.
            for (row, value) in
                [f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1e4, 1e-30, 0.0].iter().enumerate()
            {
                if row < m {
                    x[row * k + row] = *value;
                }
            }
            let x = Array::floats(dtype, &[m, k], &x);
            let w = run.rng.normal(dtype, &[k, n], 1.0 / (k as f64).sqrt());
            let b = run.rng.normal(dtype, &[n], 1.0);
            for activation in [Activation::None, Activation::Relu, Activation::Tanh] {
                run.check(
                    Op::Dense(Dense { activation, norm: None }),
                    &[Some(&x), Some(&w), Some(&b), None],
                );
            }
        }
    }
    // In f32: products of 1e30 and 1e-30, and denormal weights.
    for (a, b) in [(1e30, 1e-30), (1e-30, 1e30), (1.0, 1e-40), (1e-38, 1.0), (1e18, 1e18)] {
        for (m, k, n) in [(1, 50, 19), (6, 50, 19), (17, 48, 20), (60, 256, 12)] {
            let x = run.rng.floats(DType::F32, &[m, k], |r, _| a * r.uniform(0.5, 1.0));
            let w = run.rng.floats(DType::F32, &[k, n], |r, _| b * r.uniform(0.5, 1.0));
            let activation = Activation::None;
            run.check(
                Op::Dense(Dense { activation, norm: None }),
                &[Some(&x), Some(&w), None, None],
            );
        }
    }
    run.finish();
}
