use nitrox_engine::DType;
use nitrox_engine::op::{Cumulative, FoldKind, Op, Sort};

use crate::harness::Run;
use crate::oracle::{Array, extremes};

const FLAGS: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

/// Few values, so that many are equal; both zeros among the floats, and now and then a NaN.
fn few(run: &mut Run, dtype: DType, shape: &[usize]) -> Array {
    if !dtype.is_float() {
        return run.rng.ints(dtype, shape, -3, 3);
    }
    run.rng.floats(dtype, shape, |r, _| match r.below(40) {
        0 => f64::NAN,
        1 => f64::INFINITY,
        2 => f64::NEG_INFINITY,
        3..10 => -0.0,
        n => n as f64 / 8.0 - 2.0,
    })
}

#[test]
fn sort() {
    let mut run = Run::new("sort");
    for dtype in DType::ALL {
        for shape in [
            &[1][..],
            &[2],
            &[7],
            &[31],
            &[64],
            &[1000],
            &[1025],
            &[5, 33],
            &[33, 5],
            &[3, 7, 5],
            &[2, 130, 3],
            &[0, 3],
            &[3, 0],
        ] {
            let rank = shape.len() as i64;
            for axis in -rank..rank {
                let (few, any) = (few(&mut run, dtype, shape), run.rng.raw(dtype, shape));
                for (descending, indices) in FLAGS {
                    let op = Op::Sort(Sort { axis, descending, indices });
                    run.check(op.clone(), &[Some(&few)]);
                    run.check(op, &[Some(&any)]);
                }
            }
        }
        for (descending, indices) in FLAGS {
            let op = Op::Sort(Sort { axis: 0, descending, indices });
            run.check(op, &[Some(&extremes(dtype))]);
        }
    }
    run.finish();
}

/// Longer than a block of threads holds, along a row and across columns.
#[test]
fn long_sort() {
    let mut run = Run::new("long sort");
    for (dtype, shape, axis) in [
        (DType::F32, &[2, 2048][..], 1),
        (DType::F32, &[3, 2049], 1),
        (DType::S64, &[2, 5000], 1),
        (DType::BF16, &[20_000], 0),
        (DType::U8, &[70_000], 0),
        (DType::F64, &[9001, 3], 0),
        (DType::F32, &[300_007], 0),
        (DType::S32, &[2, 131_072], 1),
        (DType::F32, &[400, 260], 1),
        (DType::F32, &[400, 260], 0),
    ] {
        let (few, any) = (few(&mut run, dtype, shape), run.rng.raw(dtype, shape));
        for (descending, indices) in FLAGS {
            let op = Op::Sort(Sort { axis, descending, indices });
            run.check(op.clone(), &[Some(&few)]);
            run.check(op, &[Some(&any)]);
        }
        // In order already, and the other way round.
        let n: usize = shape.iter().product();
        let values: Vec<i64> = (0..n as i64).map(|i| i / 2).collect();
        let floats: Vec<f64> = values.iter().map(|&v| v as f64).collect();
        let ordered = match dtype.is_float() {
            true => Array::floats(dtype, shape, &floats),
            false => Array::ints(dtype, shape, &values),
        };
        for (descending, indices) in FLAGS {
            run.check(Op::Sort(Sort { axis, descending, indices }), &[Some(&ordered)]);
        }
    }
    run.finish();
}

const KINDS: [FoldKind; 4] = [FoldKind::Sum, FoldKind::Product, FoldKind::Max, FoldKind::Min];

fn terms(run: &mut Run, kind: FoldKind, dtype: DType, shape: &[usize]) -> Array {
    match (kind, dtype.is_float()) {
        (FoldKind::Product, true) => run.rng.floats(dtype, shape, |r, _| {
            let v = r.uniform(0.95, 1.05);
            if r.coin() { v } else { -v }
        }),
        (FoldKind::Product, false) => run.rng.ints(dtype, shape, -3, 3),
        (FoldKind::Sum, true) => run.rng.normal(dtype, shape, 1.0),
        (_, true) => run.rng.floats(dtype, shape, |r, _| match r.below(500) {
            0 => f64::NAN,
            1 => f64::INFINITY,
            _ => r.gauss(),
        }),
        (_, false) => run.rng.ints(dtype, shape, i64::MIN, i64::MAX),
    }
}

#[test]
fn cumulative() {
    let mut run = Run::new("cumulative");
    for dtype in DType::ALL {
        for shape in [
            &[1][..],
            &[31],
            &[33],
            &[256],
            &[1025],
            &[5000],
            &[5, 33],
            &[33, 5],
            &[3, 70, 5],
            &[2, 3, 300],
            &[130, 300],
            &[0, 3],
            &[3, 0],
        ] {
            let rank = shape.len() as i64;
            for axis in 0..rank {
                let axis = if run.rng.coin() { axis } else { axis - rank };
                for kind in KINDS {
                    let x = terms(&mut run, kind, dtype, shape);
                    for reverse in [false, true] {
                        let op = Op::Cumulative(Cumulative { kind, axis, reverse });
                        run.check(op, &[Some(&x)]);
                    }
                }
            }
        }
    }
    run.finish();
}

/// Longer than a block of threads takes at once.
#[test]
fn long_cumulative() {
    let mut run = Run::new("long cumulative");
    for (dtype, shape, axis) in [
        (DType::F32, &[300_007][..], 0),
        (DType::S64, &[3, 70_001], 1),
        (DType::F32, &[70_001, 3], 0),
        (DType::U8, &[1, 100_003], 1),
        (DType::BF16, &[2, 9001], 1),
        (DType::F64, &[40_001], 0),
    ] {
        for kind in KINDS {
            let x = terms(&mut run, kind, dtype, shape);
            for reverse in [false, true] {
                let op = Op::Cumulative(Cumulative { kind, axis, reverse });
                run.check(op, &[Some(&x)]);
            }
        }
    }
    run.finish();
}
