use nitrox_engine::DType;
use nitrox_engine::op::{Cast, Indexed, Iota, Op, Pad, Reverse};

use crate::harness::{Run, each_device, upload};
use crate::oracle::Array;

const INTEGERS: [DType; 8] =
    [DType::U8, DType::U16, DType::U32, DType::U64, DType::S8, DType::S16, DType::S32, DType::S64];

#[test]
fn iota() {
    let mut run = Run::new("iota");
    for dtype in DType::ALL {
        for shape in [&[][..], &[1], &[7], &[3, 65], &[2, 3, 4], &[0, 5], &[5, 0], &[300, 33]] {
            let rank = shape.len() as i64;
            for axis in (-rank..rank).map(Some).chain([None]) {
                let shape = shape.to_vec();
                run.check(Op::Iota(Iota { r#type: dtype, shape, axis }), &[]);
            }
        }
        // Past what 16 bits hold.
        let long = Iota { r#type: dtype, shape: vec![70_001], axis: None };
        run.check(Op::Iota(long), &[]);
    }
    run.finish();
}

#[test]
fn pad() {
    let mut run = Run::new("pad");
    for dtype in DType::ALL {
        for (shape, low, high, interior) in [
            (&[][..], &[][..], &[][..], &[][..]),
            (&[5], &[2], &[3], &[0]),
            (&[5], &[-2], &[-1], &[0]),
            (&[5], &[-5], &[0], &[0]),
            (&[5], &[0], &[0], &[2]),
            (&[5], &[-3], &[-4], &[2]),
            (&[5], &[-20], &[20], &[1]),
            (&[5], &[20], &[-22], &[1]),
            (&[1], &[1], &[1], &[9]),
            (&[0], &[2], &[1], &[3]),
            (&[3, 4], &[1, -1], &[0, 2], &[1, 0]),
            (&[3, 4], &[0, 0], &[0, 0], &[0, 0]),
            (&[7, 33], &[2, 3], &[1, 28], &[0, 0]),
            (&[16, 64], &[1, 0], &[1, 0], &[0, 0]),
            (&[16, 64], &[0, 16], &[0, 16], &[0, 0]),
            (&[2, 3, 4, 5], &[1, 0, -1, 2], &[0, 1, 2, -3], &[0, 2, 1, 0]),
            (&[1, 2, 1, 2, 1, 2, 1, 2], &[0, 1, 0, 1, 0, 1, 0, 1], &[1; 8], &[1; 8]),
            (&[4, 0], &[1, 2], &[1, 2], &[0, 0]),
            (&[4, 3], &[1, -2], &[1, -1], &[0, 0]),
        ] {
            let (x, value) = (run.rng.raw(dtype, shape), run.rng.raw(dtype, &[]));
            let pad = Pad { low: low.to_vec(), high: high.to_vec(), interior: interior.to_vec() };
            run.check(Op::Pad(pad), &[Some(&x), Some(&value)]);
        }
        for _ in 0..20 {
            let rank = 1 + run.rng.below(4);
            let mut draw = |low: i64, span| -> Vec<i64> {
                (0..rank).map(|_| low + run.rng.below(span) as i64).collect()
            };
            let (shape, low, high, interior) = (draw(2, 7), draw(-1, 4), draw(-1, 4), draw(0, 3));
            let shape: Vec<usize> = shape.into_iter().map(|d| d as usize).collect();
            let (x, value) = (run.rng.raw(dtype, &shape), run.rng.raw(dtype, &[]));
            run.check(Op::Pad(Pad { low, high, interior }), &[Some(&x), Some(&value)]);
        }
    }
    run.finish();
}

#[test]
fn reverse() {
    let mut run = Run::new("reverse");
    for dtype in DType::ALL {
        for (shape, axes) in [
            (&[][..], &[][..]),
            (&[1], &[0][..]),
            (&[1000], &[-1]),
            (&[33, 65], &[0]),
            (&[33, 65], &[1]),
            (&[33, 64], &[0]),
            (&[33, 65], &[1, 0]),
            (&[33, 65], &[]),
            (&[3, 5, 7], &[1]),
            (&[3, 5, 7], &[2, -3]),
            (&[0, 5], &[0]),
            (&[2, 3, 1, 2, 3, 2], &[0, 2, 3, 5]),
        ] {
            let x = run.rng.raw(dtype, shape);
            run.check(Op::Reverse(Reverse { axes: axes.to_vec() }), &[Some(&x)]);
        }
    }
    run.finish();
}

/// Indices of every integer type, most of them in range.
fn numbers(run: &mut Run, dtype: DType, shape: &[usize], lengths: &[usize]) -> Array {
    let n: usize = shape.iter().product();
    let values: Vec<i64> = (0..n)
        .map(|i| {
            let length = lengths[i % lengths.len()].max(1);
            match run.rng.below(16) {
                0 => -1,
                1 => length as i64,
                2 => i64::MAX,
                3 => i64::MIN,
                _ => run.rng.below(length) as i64,
            }
        })
        .collect();
    Array::ints(dtype, shape, &values)
}

/// Shapes, indexed axes, and how many indices there are.
const ADDRESSED: [(&[usize], &[i64], &[usize]); 16] = [
    (&[7], &[0], &[5]),
    (&[7], &[0], &[]),
    (&[1], &[0], &[300]),
    (&[7, 9], &[0], &[4]),
    (&[7, 9], &[1], &[4]),
    (&[7, 9], &[0, 1], &[3, 4]),
    (&[7, 9], &[1, 0], &[11]),
    (&[33, 64], &[0], &[50]),
    (&[33, 64], &[-1], &[50]),
    (&[5, 6, 7], &[0, 2], &[20]),
    (&[5, 6, 7], &[1], &[2, 3, 2]),
    (&[2, 3, 4, 5], &[3, 1], &[9]),
    (&[5, 0], &[0], &[3]),
    (&[5, 4], &[0], &[0]),
    (&[5, 4], &[], &[3]),
    (&[100, 129], &[0], &[1000]),
];

#[test]
fn gather() {
    let mut run = Run::new("gather");
    for dtype in DType::ALL {
        for (shape, axes, leading) in ADDRESSED {
            let x = run.rng.raw(dtype, shape);
            let lengths: Vec<usize> =
                axes.iter().map(|a| shape[a.rem_euclid(shape.len() as i64) as usize]).collect();
            let lengths = if lengths.is_empty() { vec![1] } else { lengths };
            let of = [leading, &[axes.len()]].concat();
            for ids in [DType::S32, *run.rng.pick(&INTEGERS)] {
                let ids = numbers(&mut run, ids, &of, &lengths);
                let op = Op::Gather(Indexed { axes: axes.to_vec() });
                run.check(op, &[Some(&x), Some(&ids)]);
            }
        }
    }
    let x = run.rng.raw(DType::F32, &[300, 5]);
    for ids in INTEGERS {
        let ids = numbers(&mut run, ids, &[1000, 2], &[300, 5]);
        run.check(Op::Gather(Indexed { axes: vec![0, 1] }), &[Some(&x), Some(&ids)]);
    }
    run.finish();
}

#[test]
fn indexed() {
    let mut run = Run::new("indexed");
    for dtype in DType::ALL {
        for (shape, axes, leading) in ADDRESSED {
            let at: Vec<usize> =
                axes.iter().map(|a| a.rem_euclid(shape.len() as i64) as usize).collect();
            let lengths: Vec<usize> = at.iter().map(|&a| shape[a]).collect();
            let lengths = if lengths.is_empty() { vec![1] } else { lengths };
            let k: usize = leading.iter().product();
            let rest = (0..shape.len()).filter(|a| !at.contains(a)).map(|a| shape[a]);
            let of: Vec<usize> = std::iter::once(k).chain(rest).collect();
            for ids in [DType::S64, *run.rng.pick(&INTEGERS)] {
                let ids = numbers(&mut run, ids, &[k, axes.len()], &lengths);
                let (x, updates) = (run.rng.any(dtype, shape), run.rng.any(dtype, &of));
                let attrs = Indexed { axes: axes.to_vec() };
                let inputs = [Some(&x), Some(&ids), Some(&updates)];
                run.check(Op::IndexedAdd(attrs.clone()), &inputs);
                let (x, updates) = (run.rng.raw(dtype, shape), run.rng.raw(dtype, &of));
                let inputs = [Some(&x), Some(&ids), Some(&updates)];
                run.check(Op::IndexedPut(attrs), &inputs);
            }
        }
        // Everything to one place, and to a few.
        for most in [0, 2] {
            let ids = run.rng.ints(DType::S32, &[5000, 1], 0, most);
            let (x, updates) = (run.rng.any(dtype, &[3, 5]), run.rng.any(dtype, &[5000, 5]));
            let attrs = Indexed { axes: vec![0] };
            let inputs = [Some(&x), Some(&ids), Some(&updates)];
            run.check(Op::IndexedAdd(attrs.clone()), &inputs);
            run.check(Op::IndexedPut(attrs), &inputs);
        }
    }
    run.finish();
}

#[test]
fn bitcast_shares_the_buffer() {
    let mut run = Run::new("bitcast");
    for from in DType::ALL {
        for to in DType::ALL.into_iter().filter(|t| t.size() == from.size()) {
            let x = run.rng.raw(from, &[3, 5]);
            let op = Op::Bitcast(Cast { r#type: to });
            run.check(op.clone(), &[Some(&x)]);
            each_device(|device| {
                let x = upload(device, &x);
                assert_eq!(device.run(&op, &[Some(&x)]).unwrap()[0].addr(), x.addr());
            });
        }
    }
    run.finish();
}
