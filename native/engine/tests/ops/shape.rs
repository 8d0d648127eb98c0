use nitrox_engine::op::{Concatenate, Op, PutSlice, Reshape, Slice, Transpose};
use nitrox_engine::{DType, Tensor};

use crate::harness::{Run, each_device, upload};
use crate::oracle::Array;

fn position(at: i64) -> Array {
    Array::ints(DType::S32, &[], &[at])
}

/// Near both ends, far out, and at the limits of s32.
const POSITIONS: [i64; 12] =
    [0, 1, 2, 5, 9, 100, -1, -3, -9, -1000, i32::MAX as i64, i32::MIN as i64];

#[test]
fn reshape_shares_the_buffer() {
    let mut run = Run::new("reshape");
    for dtype in DType::ALL {
        for (from, to) in [
            (&[][..], &[1, 1][..]),
            (&[6], &[2, 3]),
            (&[4, 5, 3], &[60]),
            (&[2, 2, 2], &[1, 8, 1]),
            (&[0, 3], &[3, 0, 7]),
            (&[1], &[]),
        ] {
            let x = run.rng.raw(dtype, from);
            let op = Op::Reshape(Reshape { shape: to.to_vec() });
            run.check(op.clone(), &[Some(&x)]);
            each_device(|device| {
                let x = upload(device, &x);
                let y = device.run(&op, &[Some(&x)]).unwrap();
                assert_eq!(y[0].addr(), x.addr());
            });
        }
    }
    run.finish();
}

#[test]
fn transpose() {
    let mut run = Run::new("transpose");
    for dtype in DType::ALL {
        for (shape, axes) in [
            (&[][..], &[][..]),
            (&[5], &[0]),
            (&[31, 33], &[1, 0]),
            (&[129, 65], &[1, 0]),
            (&[1, 127], &[1, 0]),
            (&[1000, 3], &[1, 0]),
            (&[64, 64], &[1, 0]),
            (&[31, 33], &[0, 1]),
            (&[0, 3], &[1, 0]),
            (&[2, 1, 2, 3, 1, 2, 2, 3], &[7, 2, 0, 5, 1, 3, 6, 4]),
        ] {
            let x = run.rng.raw(dtype, shape);
            run.check(Op::Transpose(Transpose { axes: axes.to_vec() }), &[Some(&x)]);
        }
        // Every order of three axes, and a draw of those of four and five.
        for axes in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            for shape in [[3, 7, 33], [65, 2, 31]] {
                let x = run.rng.raw(dtype, &shape);
                run.check(Op::Transpose(Transpose { axes: axes.to_vec() }), &[Some(&x)]);
            }
        }
        for _ in 0..12 {
            let rank = 4 + run.rng.below(2);
            let mut axes: Vec<usize> = (0..rank).collect();
            for i in (1..rank).rev() {
                axes.swap(i, run.rng.below(i + 1));
            }
            let shape: Vec<usize> = (0..rank).map(|_| *run.rng.pick(&[1, 2, 3, 5, 9])).collect();
            let x = run.rng.raw(dtype, &shape);
            run.check(Op::Transpose(Transpose { axes }), &[Some(&x)]);
        }
    }
    run.finish();
}

#[test]
fn broadcast() {
    let mut run = Run::new("broadcast");
    for dtype in DType::ALL {
        for (from, to) in [
            (&[][..], &[3, 5][..]),
            (&[1], &[1003]),
            (&[33], &[31, 33]),
            (&[31, 1], &[31, 33]),
            (&[1, 1], &[65, 63]),
            (&[2, 1, 3, 1], &[4, 2, 7, 3, 5]),
            (&[1, 5], &[0, 5]),
            (&[7, 3], &[7, 3]),
            (&[1, 2, 1, 2, 1, 2], &[2, 1, 3, 2, 3, 2, 2, 2]),
        ] {
            let x = run.rng.raw(dtype, from);
            run.check(Op::Broadcast(Reshape { shape: to.to_vec() }), &[Some(&x)]);
        }
    }
    run.finish();
}

#[test]
fn slice() {
    let mut run = Run::new("slice");
    for dtype in DType::ALL {
        let check = |run: &mut Run, shape: &[usize], slice: &Slice, at: Option<i64>| {
            let x = run.rng.raw(dtype, shape);
            let position = at.map(position);
            run.check(Op::Slice(slice.clone()), &[Some(&x), position.as_ref()]);
        };
        for at in POSITIONS.map(Some).into_iter().chain([None]) {
            for wrap in [false, true] {
                for (axis, starts, lengths, strides) in [
                    (0, [1, 2], [3, 4], [1, 1]),
                    (1, [0, -2], [2, 5], [2, 1]),
                    (-1, [4, 7], [1, 3], [1, 3]),
                    (-2, [-1, 20], [7, 9], [1, 1]),
                    (1, [0, 0], [7, 1], [1, 4]),
                    (0, [0, 0], [0, 3], [1, 1]),
                ] {
                    let slice = Slice {
                        starts: starts.to_vec(),
                        lengths: lengths.to_vec(),
                        strides: strides.to_vec(),
                        axis,
                        wrap,
                    };
                    check(&mut run, &[7, 9], &slice, at);
                }
            }
        }
        // A ring may be read round more than once.
        for at in POSITIONS {
            let slice = Slice {
                starts: vec![0, 2],
                lengths: vec![2, 23],
                strides: vec![1, 2],
                axis: 1,
                wrap: true,
            };
            check(&mut run, &[3, 5], &slice, Some(at));
        }
        // Starts at the limits of s64, with a position on top.
        for start in [i64::MAX, i64::MIN, i64::MAX - 1, 1 << 40, -(1 << 40) - 1] {
            for wrap in [false, true] {
                for at in [0, 3, -3, i32::MAX as i64, i32::MIN as i64] {
                    let slice = Slice {
                        starts: vec![start, 1],
                        lengths: vec![3, 2],
                        strides: vec![2, 1],
                        axis: 0,
                        wrap,
                    };
                    check(&mut run, &[11, 3], &slice, Some(at));
                }
            }
        }
        let slice = |starts: &[i64], lengths: &[usize], strides: &[usize], axis| Slice {
            starts: starts.to_vec(),
            lengths: lengths.to_vec(),
            strides: strides.to_vec(),
            axis,
            wrap: false,
        };
        check(&mut run, &[1000], &slice(&[3], &[991], &[1], 0), Some(2));
        check(&mut run, &[1000], &slice(&[3], &[142], &[7], 0), None);
        check(&mut run, &[0, 4], &slice(&[0, 1], &[0, 2], &[1, 1], 1), None);
        check(&mut run, &[5, 33, 65], &slice(&[1, 5, 0], &[3, 20, 65], &[1, 1, 1], 1), Some(4));
        check(
            &mut run,
            &[2, 3, 2, 5, 3],
            &slice(&[0, 1, 0, 1, 2], &[2, 2, 1, 2, 1], &[1, 1, 1, 2, 1], -2),
            Some(1),
        );
    }
    run.finish();
}

#[test]
fn put_slice() {
    let mut run = Run::new("put_slice");
    for dtype in DType::ALL {
        for at in POSITIONS.map(Some).into_iter().chain([None]) {
            for wrap in [false, true] {
                for (shape, axis, starts, part) in [
                    (&[7, 9][..], 0, &[1, 2][..], &[3, 4][..]),
                    (&[7, 9], -1, &[-4, 8], &[2, 9]),
                    (&[7, 9], 1, &[6, 0], &[1, 1]),
                    (&[7, 9], 0, &[0, 0], &[0, 4]),
                    (&[16], 0, &[15], &[1]),
                    (&[2, 16, 33], 1, &[0, 14, 0], &[2, 5, 33]),
                ] {
                    let x = run.rng.raw(dtype, shape);
                    let part = run.rng.raw(dtype, part);
                    let attrs = PutSlice { starts: starts.to_vec(), axis, wrap };
                    let position = at.map(position);
                    let inputs = [Some(&x), Some(&part), position.as_ref()];
                    run.check(Op::PutSlice(attrs), &inputs);
                }
            }
        }
        for start in [i64::MAX, i64::MIN] {
            for wrap in [false, true] {
                let (x, part) = (run.rng.raw(dtype, &[5, 3]), run.rng.raw(dtype, &[2, 3]));
                let attrs = PutSlice { starts: vec![start, 0], axis: 0, wrap };
                for at in [i32::MAX as i64, i32::MIN as i64] {
                    let inputs = [Some(&x), Some(&part), Some(&position(at))];
                    run.check(Op::PutSlice(attrs.clone()), &inputs);
                }
            }
        }
    }
    run.finish();
}

#[test]
fn concatenate() {
    let mut run = Run::new("concatenate");
    for dtype in DType::ALL {
        for count in 1..=12 {
            for (shape, axis) in [
                (&[5][..], 0),
                (&[3, 4], 0),
                (&[3, 4], 1i64),
                (&[2, 3, 5], -2),
                (&[2, 1, 3, 2], -1),
            ] {
                let at = axis.rem_euclid(shape.len() as i64) as usize;
                let parts: Vec<Array> = (0..count)
                    .map(|_| {
                        let mut shape = shape.to_vec();
                        shape[at] = run.rng.below(9);
                        run.rng.raw(dtype, &shape)
                    })
                    .collect();
                let inputs: Vec<_> = parts.iter().map(Some).collect();
                run.check(Op::Concatenate(Concatenate { axis }), &inputs);
            }
        }
        // More than any table of pointers a kernel might be given.
        let parts: Vec<Array> = (0..70).map(|_| run.rng.raw(dtype, &[2, 3])).collect();
        let inputs: Vec<_> = parts.iter().map(Some).collect();
        run.check(Op::Concatenate(Concatenate { axis: 1 }), &inputs);
        let (a, b) = (run.rng.raw(dtype, &[33, 257]), run.rng.raw(dtype, &[33, 1000]));
        run.check(Op::Concatenate(Concatenate { axis: 1 }), &[Some(&a), Some(&b)]);
        // One tensor given twice.
        run.check(Op::Concatenate(Concatenate { axis: 1 }), &[Some(&a), Some(&a)]);
    }
    run.finish();
}

/// What does not fit is refused before anything runs, and a tensor of another device too.
#[test]
fn refusals() {
    each_device(|device| {
        let x = Tensor::uninit(device, nitrox_engine::Spec::scalar(DType::F32)).unwrap();
        let op = Op::Transpose(Transpose { axes: vec![0] });
        assert_eq!(device.run(&op, &[Some(&x)]).unwrap_err().reason(), "argument");
        let other = nitrox_engine::Device::open(nitrox_engine::Id::Cpu, None).unwrap();
        let op = Op::Transpose(Transpose { axes: vec![] });
        assert_eq!(other.run(&op, &[Some(&x)]).unwrap_err().reason(), "device");
    });
}
