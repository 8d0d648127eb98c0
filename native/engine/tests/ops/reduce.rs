use nitrox_engine::DType;
use nitrox_engine::op::{Argmax, Op, Reduce, ReduceKind};

use crate::harness::Run;
use crate::oracle::{Array, extremes};

const KINDS: [ReduceKind; 7] = {
    use ReduceKind::*;
    [Sum, Mean, Product, Max, Min, All, Any]
};

/// Numbers whose product stays within the type.
fn input(run: &mut Run, kind: ReduceKind, dtype: DType, shape: &[usize]) -> Array {
    match (kind, dtype.is_float()) {
        // Zeros among ones, about one in each case.
        (ReduceKind::All | ReduceKind::Any, float) => {
            let n: usize = shape.iter().product();
            let (zero, rare) = (kind == ReduceKind::All, run.rng.below(2 * n + 1));
            let values: Vec<i64> = (0..n).map(|i| i64::from((i == rare) != zero)).collect();
            match float {
                true => Array::floats(
                    dtype,
                    shape,
                    &values.iter().map(|&v| -0.5 * v as f64).collect::<Vec<_>>(),
                ),
                false => Array::ints(dtype, shape, &values),
            }
        }
        (ReduceKind::Product, true) => run.rng.floats(dtype, shape, |r, _| {
            let v = r.uniform(0.95, 1.05);
            if r.coin() { v } else { -v }
        }),
        (_, true) => run.rng.normal(dtype, shape, 1.0),
        (ReduceKind::Product, false) => run.rng.ints(dtype, shape, -3, 3),
        // Sums that leave the type, and wrap.
        (_, false) => run.rng.ints(dtype, shape, i64::MIN, i64::MAX),
    }
}

fn check(run: &mut Run, dtype: DType, shape: &[usize], axes: &[i64]) {
    let empty = shape.iter().enumerate().any(|(a, &d)| {
        d == 0
            && (axes.is_empty()
                || axes.iter().any(|&x| x.rem_euclid(shape.len() as i64) == a as i64))
    });
    for kind in KINDS {
        let undefined = match kind {
            ReduceKind::Mean => !dtype.is_float(),
            ReduceKind::Max | ReduceKind::Min => empty,
            _ => false,
        };
        if !undefined {
            let x = input(run, kind, dtype, shape);
            let keep_axes = run.rng.coin();
            run.check(Op::Reduce(Reduce { kind, axes: axes.to_vec(), keep_axes }), &[Some(&x)]);
        }
    }
}

#[test]
fn axes() {
    let mut run = Run::new("reduce axes");
    for dtype in DType::ALL {
        let shape = [3, 7, 2, 5];
        for bits in 0..16 {
            let axes: Vec<i64> = (0..4)
                .filter(|a| bits >> a & 1 == 1)
                .map(|a| if run.rng.coin() { a } else { a - 4 })
                .collect();
            check(&mut run, dtype, &shape, &axes);
        }
        check(&mut run, dtype, &shape, &[3, 0, -2]);
        check(&mut run, dtype, &[], &[]);
        check(&mut run, dtype, &[2, 1, 3, 1, 2], &[1, 2, 4]);
    }
    run.finish();
}

#[test]
fn lengths() {
    let mut run = Run::new("reduce lengths");
    for dtype in DType::ALL {
        for n in [1, 2, 3, 7, 31, 33, 60, 63, 65, 127, 129, 1000, 1025] {
            check(&mut run, dtype, &[5, n], &[-1]);
            check(&mut run, dtype, &[n, 5], &[0]);
            check(&mut run, dtype, &[2, n, 3], &[1]);
            check(&mut run, dtype, &[n], &[]);
        }
        check(&mut run, dtype, &[1, 10_007], &[1]);
        check(&mut run, dtype, &[129, 127], &[0]);
        check(&mut run, dtype, &[33, 9, 65], &[0, 2]);
        for (shape, axis) in [(&[0, 3][..], 0), (&[0, 3], 1), (&[3, 0, 2], 1), (&[3, 0, 2], 0)] {
            check(&mut run, dtype, shape, &[axis]);
            check(&mut run, dtype, shape, &[]);
        }
    }
    // Long sums of one sign, where a single f32 accumulator drifts.
    for n in [100_003, 1 << 20] {
        let x = run.rng.floats(DType::F32, &[1, n], |r, _| r.uniform(0.5, 1.5));
        for kind in [ReduceKind::Sum, ReduceKind::Mean] {
            let reduce = Reduce { kind, axes: vec![], keep_axes: false };
            run.check(Op::Reduce(reduce), &[Some(&x)]);
            let reduce = Reduce { kind, axes: vec![0], keep_axes: false };
            run.check(Op::Reduce(reduce), &[Some(&x)]);
            let tall = Array::new(x.spec.with_shape([n, 1]).unwrap(), x.bytes.clone());
            let reduce = Reduce { kind, axes: vec![0], keep_axes: true };
            run.check(Op::Reduce(reduce), &[Some(&tall)]);
        }
    }
    run.finish();
}

#[test]
fn extreme_values() {
    let mut run = Run::new("reduce extremes");
    for dtype in DType::ALL {
        let x = extremes(dtype);
        let n = x.len();
        let column = Array::new(x.spec.with_shape([n, 1]).unwrap(), x.bytes.clone());
        for kind in KINDS {
            if kind == ReduceKind::Mean && !dtype.is_float() {
                continue;
            }
            for (x, axes) in [(&x, vec![0]), (&column, vec![0]), (&column, vec![1])] {
                run.check(Op::Reduce(Reduce { kind, axes, keep_axes: false }), &[Some(x)]);
            }
        }
    }
    // A NaN anywhere, and infinities of both signs.
    for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
        for n in [2, 33, 300] {
            for at in [0, n / 2, n - 1] {
                for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                    for kind in KINDS {
                        let mut values = input(&mut run, kind, dtype, &[3, n]).to_f64();
                        values[n + at] = bad;
                        let x = Array::floats(dtype, &[3, n], &values);
                        let reduce = |axis| Reduce { kind, axes: vec![axis], keep_axes: false };
                        run.check(Op::Reduce(reduce(1)), &[Some(&x)]);
                        run.check(Op::Reduce(reduce(0)), &[Some(&x)]);
                        for (min, last) in [(false, false), (true, false), (true, true)] {
                            for axis in [0, 1] {
                                let argmax = Argmax { axis, keep_axis: false, min, last };
                                run.check(Op::Argmax(argmax), &[Some(&x)]);
                            }
                        }
                    }
                }
            }
        }
    }
    run.finish();
}

#[test]
fn argmax() {
    let mut run = Run::new("argmax");
    for dtype in DType::ALL {
        for n in [1, 2, 3, 7, 31, 33, 63, 65, 127, 129, 1000, 1025, 5000] {
            for keep_axis in [false, true] {
                // Few values: many equals, the first of which wins.
                for shape in [&[n][..], &[5, n], &[3, n, 2]] {
                    let few = if dtype.is_float() {
                        run.rng.floats(dtype, shape, |r, _| r.below(4) as f64 - 2.0)
                    } else {
                        run.rng.ints(dtype, shape, -2, 1)
                    };
                    let axis = if shape.len() == 1 { 0 } else { 1 };
                    let axis = if run.rng.coin() { axis } else { axis - shape.len() as i64 };
                    let any = run.rng.any(dtype, shape);
                    for (min, last) in [(false, false), (true, false), (false, true), (true, true)]
                    {
                        let op = Op::Argmax(Argmax { axis, keep_axis, min, last });
                        run.check(op.clone(), &[Some(&few)]);
                        run.check(op, &[Some(&any)]);
                    }
                }
            }
        }
        let x = run.rng.any(dtype, &[3, 4, 2, 5]);
        for axis in -4..4 {
            let [keep_axis, min, last] = [(); 3].map(|_| run.rng.coin());
            run.check(Op::Argmax(Argmax { axis, keep_axis, min, last }), &[Some(&x)]);
        }
        let empty = run.rng.any(dtype, &[0, 4]);
        run.check(
            Op::Argmax(Argmax { axis: 1, keep_axis: false, min: false, last: false }),
            &[Some(&empty)],
        );
        for (min, last) in [(false, false), (true, false), (false, true), (true, true)] {
            let argmax = Argmax { axis: 0, keep_axis: true, min, last };
            run.check(Op::Argmax(argmax), &[Some(&extremes(dtype))]);
        }
        let least = if dtype.is_float() {
            Array::floats(dtype, &[4], &[f64::NEG_INFINITY; 4])
        } else {
            run.rng.ints(dtype, &[4], 0, 0)
        };
        run.check(
            Op::Argmax(Argmax { axis: 0, keep_axis: false, min: false, last: false }),
            &[Some(&least)],
        );
    }
    // Neighbours that only s64 and f64 can tell apart.
    let near = Array::ints(DType::S64, &[3], &[i64::MAX - 2, i64::MAX, i64::MAX - 1]);
    run.check(
        Op::Argmax(Argmax { axis: 0, keep_axis: false, min: false, last: false }),
        &[Some(&near)],
    );
    let near = Array::floats(DType::F64, &[3], &[1.0, 1.0 + 1e-15, 1.0 + 5e-16]);
    run.check(
        Op::Argmax(Argmax { axis: 0, keep_axis: false, min: false, last: false }),
        &[Some(&near)],
    );
    let zeros = Array::floats(DType::F32, &[3], &[-0.0, 0.0, -0.0]);
    run.check(
        Op::Argmax(Argmax { axis: 0, keep_axis: false, min: false, last: false }),
        &[Some(&zeros)],
    );
    run.finish();
}
