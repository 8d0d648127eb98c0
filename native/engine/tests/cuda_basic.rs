//! What the oracle's harness does not reach: a slice put in place, and sums of ten million.
//! `NITROX_TEST_CUDA=1` runs it on the first GPU.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use nitrox_engine::op::{Op, PutSlice, Reduce, ReduceKind};
use nitrox_engine::{Call, DType, Device, Id, Spec, Tensor};

fn cuda(test: &str) -> Option<Device> {
    if std::env::var("NITROX_TEST_CUDA").as_deref() != Ok("1") {
        println!("left out: {test}: NITROX_TEST_CUDA is not set");
        return None;
    }
    Some(Device::open(Id::Cuda(0), None).expect("NITROX_TEST_CUDA is set"))
}

fn tensor(device: &Device, dtype: DType, shape: &[usize], byte: impl Fn(usize) -> u8) -> Tensor {
    let spec = Spec::new(dtype, shape).unwrap();
    let bytes: Vec<u8> = (0..spec.bytes()).map(byte).collect();
    Tensor::from_bytes(device, spec, &bytes).unwrap()
}

/// In place the result is that of a new tensor, by packs and by elements, on a ring and off it.
#[test]
fn a_slice_is_put_in_place() {
    let Some(device) = cuda("a_slice_is_put_in_place") else { return };
    let shapes: [(&[usize], &[usize]); 6] = [
        (&[5, 7, 8], &[2, 7, 8]),
        (&[3, 60, 16], &[3, 1, 16]),
        (&[3, 9], &[2, 4]),
        (&[2, 6, 5], &[2, 4, 5]),
        (&[40], &[13]),
        (&[4, 8, 4], &[4, 8, 4]),
    ];
    let positions = [None, Some(0), Some(2), Some(-1), Some(59), Some(i32::MAX), Some(i32::MIN)];
    let mut cases = Vec::new();
    for (x, slice) in shapes {
        for axis in 0..x.len() {
            for start in [0, 1, 4, -3, 100] {
                let mut starts = vec![1; x.len()];
                starts[axis] = start;
                for wrap in [false, true] {
                    cases.push((
                        x,
                        slice,
                        PutSlice { starts: starts.clone(), axis: axis as i64, wrap },
                    ));
                }
            }
        }
    }
    for (x, slice, attrs) in cases {
        let op = Op::PutSlice(attrs);
        for dtype in [DType::U8, DType::BF16, DType::F32, DType::F64] {
            let slice = tensor(&device, dtype, slice, |i| 128 + (i % 127) as u8);
            for position in positions {
                let x = tensor(&device, dtype, x, |i| (i % 101) as u8);
                let at = position.map(|p: i32| {
                    let scalar = Spec::scalar(DType::S32);
                    Tensor::from_bytes(&device, scalar, &p.to_ne_bytes()).unwrap()
                });
                let new = device.run(&op, &[Some(&x), Some(&slice), at.as_ref()]).unwrap();
                let inputs = [Some(x.view()), Some(slice.view()), at.as_ref().map(Tensor::view)];
                let call = Call { op: &op, inputs: &inputs, outputs: &[x.view()], workspace: 0 };
                // SAFETY: all of these live until the bytes are read.
                unsafe { device.execute(&call) }.unwrap();
                let (got, expected) = (x.to_bytes().unwrap(), new[0].to_bytes().unwrap());
                assert_eq!(got, expected, "{op:?} on {} at {position:?}", x.spec());
            }
        }
    }
}

/// Sums of 10⁷ keep f32's bound, in one row, many rows and columns.
#[test]
fn long_sums_are_accurate() {
    let Some(device) = cuda("long_sums_are_accurate") else { return };
    let n = 10_000_000;
    let values: Vec<f32> =
        (0..n as u64).map(|i| (i * 2_654_435_761 % 1_000_003) as f32 / 1_000_003.0).collect();
    let exact: f64 = values.iter().map(|&x| f64::from(x)).sum();
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_ne_bytes()).collect();
    for shape in [&[n][..], &[n / 10, 10], &[10, n / 10]] {
        let spec = Spec::new(DType::F32, shape).unwrap();
        let x = Tensor::from_bytes(&device, spec, &bytes).unwrap();
        for axes in (0..shape.len() as i64).map(|a| vec![a]).chain([vec![]]) {
            let op = Op::Reduce(Reduce { kind: ReduceKind::Sum, axes, keep_axes: false });
            let sums = device.run(&op, &[Some(&x)]).unwrap().remove(0).to_bytes().unwrap();
            let total: f64 = sums
                .chunks_exact(4)
                .map(|b| f64::from(f32::from_ne_bytes(b.try_into().unwrap())))
                .sum();
            let error = (total - exact).abs() / exact;
            assert!(error < 1e-6, "{op:?} of {shape:?}: {error:e}");
        }
    }
}
