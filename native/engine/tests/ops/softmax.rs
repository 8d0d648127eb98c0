use nitrox_engine::DType;
use nitrox_engine::op::{Op, Softmax};

use crate::harness::{NETWORK, Run};
use crate::oracle::Array;

fn check(run: &mut Run, x: &Array, axis: i64) {
    for log in [false, true] {
        run.check(Op::Softmax(Softmax { axis, log }), &[Some(x)]);
    }
}

#[test]
fn shapes() {
    let mut run = Run::new("softmax shapes");
    for dtype in NETWORK {
        for length in [1, 2, 3, 7, 31, 33, 60, 63, 65, 127, 129, 1000, 1025, 5000] {
            for rows in [1, 5, 33] {
                let x = run.rng.normal(dtype, &[rows, length], 3.0);
                check(&mut run, &x, -1);
            }
            let x = run.rng.normal(dtype, &[3, length, 5], 3.0);
            check(&mut run, &x, 1);
        }
        let x = run.rng.normal(dtype, &[3, 7, 2, 5], 2.0);
        for axis in -4..4 {
            check(&mut run, &x, axis);
        }
        let x = run.rng.normal(dtype, &[65], 2.0);
        check(&mut run, &x, 0);
        let x = run.rng.normal(dtype, &[127, 1, 65], 2.0);
        check(&mut run, &x, 0);
        check(&mut run, &x, 1);
        for shape in [&[0, 4][..], &[4, 0], &[2, 0, 3]] {
            let x = run.rng.normal(dtype, shape, 1.0);
            check(&mut run, &x, 0);
            check(&mut run, &x, 1);
        }
        // A vocabulary.
        let x = run.rng.normal(dtype, &[2, 50_257], 2.0);
        check(&mut run, &x, -1);
    }
    run.finish();
}

#[test]
fn extremes() {
    let mut run = Run::new("softmax extremes");
    let inf = f64::INFINITY;
    for dtype in NETWORK {
        for width in [3, 33, 300] {
            let row = |run: &mut Run, values: &[f64]| {
                let mut x = run.rng.normal(dtype, &[3, width], 1.0).to_f64();
                for (i, v) in values.iter().enumerate() {
                    // In the middle row, from both ends.
                    x[if i % 2 == 0 { width + i / 2 } else { 2 * width - 1 - i / 2 }] = *v;
                }
                Array::floats(dtype, &[3, width], &x)
            };
            for values in [
                &[-inf][..],
                &[-inf, -inf],
                &[f64::NAN],
                &[6e4, -6e4],
                &[6e4, 6e4],
                &[1e30, -1e30],
                &[3e38, -3e38],
                &[1e-40, 1e-7],
            ] {
                // In f16 what is beyond 65504 is infinite, which has rows of its own below.
                if dtype == DType::F16 && values.iter().any(|v| v.is_finite() && v.abs() > 65504.0)
                {
                    continue;
                }
                let x = row(&mut run, values);
                check(&mut run, &x, -1);
            }
            // exp(−∞ − −∞): a row with nothing in it is NaN, as is one that holds +∞.
            let x = row(&mut run, &vec![-inf; width]);
            check(&mut run, &x, -1);
            let x = row(&mut run, &[inf]);
            check(&mut run, &x, -1);
            // The same shift on all of a row changes nothing.
            let x = run.rng.floats(DType::F32, &[4, width], |r, i| {
                [1e4, -1e4, 1e5, -1e5][i / width] + r.gauss()
            });
            check(&mut run, &x, -1);
        }
    }
    run.finish();
}
