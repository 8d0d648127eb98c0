use nitrox_engine::DType;
use nitrox_engine::op::{Norm, Op};

use crate::harness::{NETWORK, Run};
use crate::oracle::Array;

/// Both norms of `x`, with and without a residual.
fn check(run: &mut Run, x: &Array, residuals: &[bool], epsilon: f64, within: Option<f64>) {
    let (dtype, shape) = (x.dtype(), x.shape().to_vec());
    let width = *shape.last().unwrap();
    let gamma = run.rng.floats(dtype, &[width], |r, _| r.uniform(0.5, 1.5));
    let beta = run.rng.normal(dtype, &[width], 0.5);
    for &residual in residuals {
        // Small, so that it can't make the elements of a short row equal.
        let r = residual.then(|| run.rng.floats(dtype, &shape, |r, _| r.uniform(-0.25, 0.25)));
        let attrs = Norm { epsilon };
        let layer = [Some(x), Some(&gamma), Some(&beta), r.as_ref()];
        run.check_within(Op::LayerNorm(attrs), &layer, within);
        run.check_within(Op::RmsNorm(attrs), &[Some(x), Some(&gamma), r.as_ref()], within);
    }
}

/// Neighbours well apart: a row of two near equals is ill-conditioned.
fn apart(run: &mut Run, dtype: DType, shape: &[usize], size: f64) -> Array {
    let width = *shape.last().unwrap();
    run.rng.floats(dtype, shape, |r, i| {
        let sign = if (i % width.max(1)).is_multiple_of(2) { 1.0 } else { -1.0 };
        size * (sign + if width < 4 { r.uniform(-0.25, 0.25) } else { r.gauss() })
    })
}

#[test]
fn shapes() {
    let mut run = Run::new("norm shapes");
    let sizes = [1, 2, 3, 7, 31, 33, 60, 63, 65, 127, 129, 256, 512, 1000, 4096, 5000];
    for dtype in NETWORK {
        for width in sizes {
            for rows in [1, 3, 33] {
                let x = apart(&mut run, dtype, &[rows, width], 1.0);
                check(&mut run, &x, &[false, true], 1e-5, None);
            }
        }
        for shape in [&[64][..], &[2, 3, 40], &[2, 1, 3, 9], &[1000, 8], &[1, 8193], &[1, 20_001]] {
            let x = apart(&mut run, dtype, shape, 1.0);
            check(&mut run, &x, &[false, true], 1e-5, None);
        }
        for shape in [&[0, 5][..], &[5, 0], &[2, 0, 7]] {
            let x = apart(&mut run, dtype, shape, 1.0);
            check(&mut run, &x, &[false, true], 1e-5, None);
        }
        for epsilon in [0.0, 1e-12, 1e-3, 1.0] {
            let x = apart(&mut run, dtype, &[5, 65], 1.0);
            check(&mut run, &x, &[false, true], epsilon, None);
        }
    }
    run.finish();
}

#[test]
fn extremes() {
    let mut run = Run::new("norm extremes");
    for dtype in NETWORK {
        // A row of inf and one of NaN do not touch their neighbours.
        let mut values = apart(&mut run, dtype, &[5, 33], 1.0).to_f64();
        values[40] = f64::INFINITY;
        values[70] = f64::NAN;
        values[132..165].fill(0.0);
        let x = Array::floats(dtype, &[5, 33], &values);
        check(&mut run, &x, &[false, true], 1e-5, None);

        let zeros = Array::floats(dtype, &[3, 64], &[0.0; 192]);
        check(&mut run, &zeros, &[false], 1e-5, None);
        let twos = Array::floats(dtype, &[3, 64], &[2.0; 192]);
        check(&mut run, &twos, &[false], 1e-5, None);
        // Where nothing varies and epsilon is 0 the layer norm is 0/0.
        let one = apart(&mut run, dtype, &[4, 1], 1.0);
        check(&mut run, &one, &[false], 0.0, None);
    }
    // A mean of 100 deviations: a variance found as E[x²] − E[x]² would lose all.
    for width in [33, 256, 1000] {
        let x = run.rng.floats(DType::F32, &[7, width], |r, _| 100.0 + r.gauss());
        check(&mut run, &x, &[false, true], 1e-5, None);
        // At 10⁴ deviations the mean itself, kept in f32, is off by as much as 2⁻²⁴ of it.
        let x = run.rng.floats(DType::F32, &[7, width], |r, _| 1e4 + r.gauss());
        check(&mut run, &x, &[false], 1e-5, Some(2.0 * 1e4 * 2f64.powi(-24)));
    }
    for size in [1e15, 1e-15, 1e-3] {
        let x = apart(&mut run, DType::F32, &[5, 129], size);
        check(&mut run, &x, &[false], 1e-5, None);
        let x = apart(&mut run, DType::BF16, &[5, 129], size);
        check(&mut run, &x, &[false], 1e-5, None);
    }
    let x = apart(&mut run, DType::F16, &[5, 129], 1e4);
    check(&mut run, &x, &[false], 1e-5, None);
    run.finish();
}
