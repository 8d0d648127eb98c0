use nitrox_engine::DType;
use nitrox_engine::op::{Conv, Op};

use crate::harness::Run;
use crate::oracle::Array;

const FLOATS: [DType; 4] = [DType::F32, DType::F16, DType::BF16, DType::F64];

/// Steps of 1, nothing padded, one group.
fn plain(spatial: usize) -> Conv {
    Conv {
        strides: vec![1; spatial],
        padding: vec![vec![0, 0]; spatial],
        input_dilation: vec![1; spatial],
        kernel_dilation: vec![1; spatial],
        feature_groups: 1,
        batch_groups: 1,
    }
}

fn check(run: &mut Run, dtype: DType, conv: Conv, input: &[usize], kernel: &[usize]) {
    let fan_in: usize = kernel[1..].iter().product();
    let x = run.rng.normal(dtype, input, 1.0);
    let w = run.rng.normal(dtype, kernel, 1.0 / (fan_in.max(1) as f64).sqrt());
    run.check(Op::Conv(conv), &[Some(&x), Some(&w)]);
}

#[test]
fn shapes() {
    let mut run = Run::new("conv shapes");
    for dtype in FLOATS {
        for (input, kernel) in [
            (&[1, 1, 1][..], &[1, 1, 1][..]),
            (&[2, 3, 17], &[5, 3, 4]),
            (&[3, 1, 100], &[1, 1, 100]),
            (&[1, 1, 5, 5], &[1, 1, 3, 3]),
            (&[2, 3, 9, 11], &[4, 3, 3, 2]),
            (&[2, 8, 16, 16], &[16, 8, 1, 1]),
            (&[1, 17, 7, 7], &[65, 17, 7, 7]),
            (&[2, 3, 33, 40], &[7, 3, 5, 5]),
            (&[2, 2, 5, 6, 7], &[3, 2, 2, 3, 4]),
            (&[1, 2, 3, 4, 3, 4], &[2, 2, 2, 2, 2, 2]),
            (&[1, 1, 2, 2, 2, 2, 2, 3], &[2, 1, 2, 1, 2, 1, 2, 2]),
            // Nothing there, or nothing to sum.
            (&[0, 3, 5], &[2, 3, 2]),
            (&[2, 3, 5], &[0, 3, 2]),
            (&[2, 0, 5], &[3, 0, 2]),
        ] {
            check(&mut run, dtype, plain(input.len() - 2), input, kernel);
        }
    }
    run.finish();
}

#[test]
fn options() {
    let mut run = Run::new("conv options");
    for dtype in FLOATS {
        let (input, kernel) = (&[2, 3, 13, 11][..], &[4, 3, 3, 2][..]);
        for strides in [[1, 2], [3, 1], [2, 2], [7, 9]] {
            let conv = Conv { strides: strides.to_vec(), ..plain(2) };
            check(&mut run, dtype, conv, input, kernel);
        }
        for padding in [
            [[1, 1], [1, 1]],
            [[0, 3], [2, 0]],
            [[-2, 1], [0, -3]],
            [[-1, -1], [-4, 5]],
            [[20, 0], [0, 20]],
        ] {
            let padding: Vec<_> = padding.iter().map(|p| p.to_vec()).collect();
            let conv = Conv { padding: padding.clone(), ..plain(2) };
            check(&mut run, dtype, conv, input, kernel);
            let conv = Conv { padding, strides: vec![2, 3], ..plain(2) };
            check(&mut run, dtype, conv, input, kernel);
        }
        for (input_dilation, kernel_dilation) in [
            ([2, 1], [1, 1]),
            ([1, 1], [2, 3]),
            ([3, 2], [2, 1]),
            ([2, 2], [2, 2]),
            ([5, 4], [3, 6]),
        ] {
            for padding in [[0, 0], [2, 1], [-1, 2]] {
                let conv = Conv {
                    input_dilation: input_dilation.to_vec(),
                    kernel_dilation: kernel_dilation.to_vec(),
                    padding: vec![padding.to_vec(); 2],
                    ..plain(2)
                };
                check(&mut run, dtype, conv.clone(), input, kernel);
                let conv = Conv { strides: vec![2, 1], ..conv };
                check(&mut run, dtype, conv, input, kernel);
            }
        }
    }
    run.finish();
}

#[test]
fn groups() {
    let mut run = Run::new("conv groups");
    for dtype in FLOATS {
        for (feature_groups, input, kernel) in [
            (2, &[2, 6, 9, 8][..], &[4, 3, 3, 3][..]),
            (3, &[2, 6, 9, 8], &[9, 2, 2, 3]),
            // Depthwise, with one output a channel and with two.
            (6, &[2, 6, 9, 8], &[6, 1, 3, 3]),
            (6, &[2, 6, 9, 8], &[12, 1, 3, 3]),
            (4, &[3, 8, 20], &[8, 2, 5]),
            (70, &[1, 70, 12], &[70, 1, 4]),
        ] {
            let conv = Conv { feature_groups, ..plain(input.len() - 2) };
            check(&mut run, dtype, conv, input, kernel);
        }
        for (batch_groups, input, kernel) in [
            (2, &[4, 3, 9, 8][..], &[6, 3, 3, 3][..]),
            (4, &[4, 3, 9, 8], &[4, 3, 2, 2]),
            (3, &[6, 2, 20], &[9, 2, 5]),
        ] {
            let spatial = input.len() - 2;
            let conv = Conv {
                batch_groups,
                strides: vec![2; spatial],
                padding: vec![vec![1, 2]; spatial],
                ..plain(spatial)
            };
            check(&mut run, dtype, conv, input, kernel);
        }
    }
    run.finish();
}

/// Random options together.
#[test]
fn any() {
    let mut run = Run::new("conv any");
    for case in 0..200 {
        let dtype = FLOATS[case % FLOATS.len()];
        let spatial = 1 + run.rng.below(3);
        let group = [1, 2, 3][run.rng.below(3)];
        let [feature_groups, batch_groups] = if run.rng.coin() { [group, 1] } else { [1, group] };
        let mut draw = |low: usize, high: usize| low + run.rng.below(high - low + 1);
        let channels = draw(1, 9);
        let mut input = vec![draw(1, 3) * batch_groups, channels * feature_groups];
        let mut kernel = vec![draw(1, 9) * group, channels];
        let mut conv = Conv { feature_groups, batch_groups, ..plain(spatial) };
        for axis in 0..spatial {
            conv.strides[axis] = draw(1, 3);
            conv.input_dilation[axis] = draw(1, 3);
            conv.kernel_dilation[axis] = draw(1, 3);
            conv.padding[axis] = vec![draw(0, 4) as i64 - 2, draw(0, 4) as i64 - 2];
            let taps = draw(1, 4);
            kernel.push(taps);
            // Long enough for the window with whatever is cropped.
            input.push((taps - 1) * conv.kernel_dilation[axis] + 1 + draw(4, 12));
        }
        check(&mut run, dtype, conv, &input, &kernel);
    }
    run.finish();
}

/// Large enough to be cuDNN's where it is there: in f32 or in 16-bit types, mostly in both.
#[test]
fn many_positions() {
    let mut run = Run::new("conv many positions");
    for dtype in FLOATS {
        for (input, kernel) in [
            (&[5, 8, 900][..], &[8, 8, 5][..]),
            (&[4, 8, 34, 34], &[8, 8, 3, 3]),
            (&[4, 3, 36, 36], &[16, 3, 5, 5]),
            (&[5, 24, 33, 31], &[7, 24, 3, 3]),
            (&[2, 64, 16, 16], &[16, 64, 3, 3]),
            (&[3, 8, 12, 16, 18], &[8, 8, 2, 3, 3]),
        ] {
            check(&mut run, dtype, plain(input.len() - 2), input, kernel);
        }
        for (conv, input, kernel) in [
            // Along one axis.
            (
                Conv {
                    strides: vec![2],
                    kernel_dilation: vec![4],
                    padding: vec![vec![4, 4]],
                    ..plain(1)
                },
                &[5, 16, 2000][..],
                &[8, 16, 3][..],
            ),
            (
                Conv {
                    strides: vec![2, 2],
                    kernel_dilation: vec![2, 3],
                    padding: vec![vec![1, 1], vec![2, 2]],
                    ..plain(2)
                },
                &[3, 8, 80, 70],
                &[16, 8, 3, 2],
            ),
            // As many windows as with an even padding, and not as many.
            (
                Conv { strides: vec![2, 2], padding: vec![vec![1, 0]; 2], ..plain(2) },
                &[4, 8, 66, 66],
                &[8, 8, 3, 3],
            ),
            (Conv { padding: vec![vec![1, 0]; 2], ..plain(2) }, &[4, 8, 34, 34], &[8, 8, 3, 3]),
            (
                Conv { strides: vec![1, 2, 1], padding: vec![vec![1, 1]; 3], ..plain(3) },
                &[2, 8, 10, 20, 24],
                &[8, 8, 3, 3, 3],
            ),
            // More padding than there are taps.
            (Conv { padding: vec![vec![4, 4]; 2], ..plain(2) }, &[4, 8, 30, 30], &[8, 8, 2, 2]),
        ] {
            check(&mut run, dtype, conv, input, kernel);
        }
        for (feature_groups, input, kernel) in [
            (2, &[4, 16, 34, 34][..], &[32, 8, 3, 3][..]),
            (2, &[4, 16, 34, 34], &[16, 8, 3, 3]),
            (32, &[3, 32, 42, 42], &[32, 1, 3, 3]),
            (4, &[5, 32, 900], &[32, 8, 5]),
        ] {
            let conv = Conv { feature_groups, ..plain(input.len() - 2) };
            check(&mut run, dtype, conv, input, kernel);
        }
    }
    run.finish();
}

#[test]
fn extremes() {
    let mut run = Run::new("conv extremes");
    for dtype in FLOATS {
        let mut x = run.rng.normal(dtype, &[1, 2, 9, 9], 1.0).to_f64();
        // Seen by the windows around them, and by no others.
        (x[0], x[40], x[100]) = (f64::NAN, f64::INFINITY, 1e4);
        let x = Array::floats(dtype, &[1, 2, 9, 9], &x);
        let w = run.rng.normal(dtype, &[3, 2, 3, 3], 0.3);
        let conv = Conv { padding: vec![vec![1, 1]; 2], ..plain(2) };
        run.check(Op::Conv(conv.clone()), &[Some(&x), Some(&w)]);

        let shape = [2, 8, 48, 48];
        let mut x = run.rng.normal(dtype, &shape, 1.0).to_f64();
        (x[0], x[3000], x[30_000], x[36_863]) = (f64::NAN, f64::INFINITY, 1e4, f64::NEG_INFINITY);
        let x = Array::floats(dtype, &shape, &x);
        let w = run.rng.normal(dtype, &[8, 8, 3, 3], 0.1);
        run.check(Op::Conv(conv.clone()), &[Some(&x), Some(&w)]);
        // The padding is zeros, and times infinity they are NaN.
        let x = run.rng.normal(dtype, &shape, 1.0);
        let mut w = w.to_f64();
        (w[0], w[200]) = (f64::INFINITY, f64::NAN);
        let w = Array::floats(dtype, &[8, 8, 3, 3], &w);
        run.check(Op::Conv(conv), &[Some(&x), Some(&w)]);
    }
    run.finish();
}
