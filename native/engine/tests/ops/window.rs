use nitrox_engine::DType;
use nitrox_engine::op::{FoldKind, Op, WindowReduce, WindowScatter};

use crate::harness::Run;
use crate::oracle::{Array, evaluate, extremes};

const KINDS: [FoldKind; 4] = [FoldKind::Sum, FoldKind::Product, FoldKind::Max, FoldKind::Min];

type Case<'a> = (&'a [usize], &'a [usize], &'a [usize], &'a [(i64, i64)], &'a [usize]);

const CASES: [Case; 16] = [
    (&[], &[], &[], &[], &[]),
    (&[7], &[3], &[1], &[(0, 0)], &[1]),
    (&[7], &[3], &[2], &[(1, 1)], &[1]),
    (&[8], &[3], &[1], &[(2, 2)], &[2]),
    (&[8], &[2], &[1], &[(-2, -1)], &[2]),
    (&[8], &[2], &[3], &[(-3, 4)], &[1]),
    (&[5], &[1], &[2], &[(0, 0)], &[1]),
    (&[3], &[9], &[1], &[(5, 4)], &[1]),
    (&[300], &[7], &[1], &[(3, 3)], &[1]),
    (&[3, 40], &[2, 1], &[1, 1], &[(0, 0), (0, 0)], &[1, 1]),
    (&[5, 6], &[2, 3], &[2, 3], &[(0, 1), (1, 2)], &[1, 1]),
    (&[2, 9, 9, 3], &[1, 2, 2, 1], &[1, 2, 2, 1], &[(0, 0), (0, 0), (0, 0), (0, 0)], &[1; 4]),
    (&[2, 3, 9, 9], &[1, 1, 3, 3], &[1, 1, 2, 2], &[(0, 0), (0, 0), (1, 1), (1, 1)], &[1; 4]),
    (&[2, 3, 7, 70], &[1, 1, 2, 2], &[1; 4], &[(0, 0), (0, 0), (1, 0), (0, 1)], &[1, 1, 2, 3]),
    (&[1, 4, 1, 5], &[1, 2, 1, 2], &[1, 1, 1, 2], &[(0, 0); 4], &[1; 4]),
    (&[4, 4, 4], &[2, 2, 2], &[1, 2, 1], &[(1, -1), (0, 0), (-1, 2)], &[1; 3]),
];

fn terms(run: &mut Run, dtype: DType, shape: &[usize]) -> Array {
    if dtype.is_float() {
        return run.rng.floats(dtype, shape, |r, _| match r.below(60) {
            0 => f64::NAN,
            1 => f64::INFINITY,
            _ => r.gauss(),
        });
    }
    run.rng.ints(dtype, shape, i64::MIN, i64::MAX)
}

#[test]
fn reduce() {
    let mut run = Run::new("window_reduce");
    for dtype in DType::ALL {
        for (shape, window, strides, padding, dilations) in CASES {
            for kind in KINDS {
                let op = Op::WindowReduce(WindowReduce {
                    kind,
                    window: window.to_vec(),
                    strides: strides.to_vec(),
                    padding: padding.to_vec(),
                    dilations: dilations.to_vec(),
                });
                let any = run.rng.any(dtype, shape);
                run.check(op.clone(), &[Some(&any)]);
                let odd = terms(&mut run, dtype, shape);
                run.check(op, &[Some(&odd)]);
            }
        }
        for kind in [FoldKind::Max, FoldKind::Min] {
            let op = Op::WindowReduce(WindowReduce {
                kind,
                window: vec![2],
                strides: vec![1],
                padding: vec![(3, 3)],
                dilations: vec![1],
            });
            run.check(op, &[Some(&extremes(dtype))]);
        }
    }
    run.finish();
}

#[test]
fn scatter() {
    let mut run = Run::new("window_scatter");
    for dtype in DType::ALL {
        for (shape, window, strides, padding, _) in CASES {
            let like = Op::WindowReduce(WindowReduce {
                kind: FoldKind::Max,
                window: window.to_vec(),
                strides: strides.to_vec(),
                padding: padding.to_vec(),
                dilations: vec![1; shape.len()],
            });
            for min in [false, true] {
                let op = Op::WindowScatter(WindowScatter {
                    min,
                    window: window.to_vec(),
                    strides: strides.to_vec(),
                    padding: padding.to_vec(),
                });
                // Few values: many equals, the last of which wins.
                let few = match dtype.is_float() {
                    true => run.rng.floats(dtype, shape, |r, _| r.below(4) as f64 - 1.5),
                    false => run.rng.ints(dtype, shape, -2, 1),
                };
                let places = match &evaluate(&like, &[Some(&few)])[0] {
                    crate::oracle::Expected::Bits(a) => a.shape().to_vec(),
                    crate::oracle::Expected::Real(r) => r.spec.shape().to_vec(),
                    other => panic!("{other:?}"),
                };
                for x in [few, terms(&mut run, dtype, shape)] {
                    let source = run.rng.any(dtype, &places);
                    let zero = match dtype.is_float() {
                        true => Array::floats(dtype, &[], &[0.0]),
                        false => Array::ints(dtype, &[], &[0]),
                    };
                    for init in [zero, run.rng.any(dtype, &[])] {
                        run.check(op.clone(), &[Some(&x), Some(&source), Some(&init)]);
                    }
                }
            }
        }
    }
    run.finish();
}
