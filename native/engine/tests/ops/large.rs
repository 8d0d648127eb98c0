//! One size of each family beyond what one thread, one block or one tile does.

use nitrox_engine::DType::*;
use nitrox_engine::op::*;

use crate::harness::Run;
use crate::oracle::Array;

#[test]
fn elementwise() {
    let mut run = Run::new("large elementwise");
    for (dtype, kind) in [(F32, UnaryKind::Gelu), (BF16, UnaryKind::Exp), (S64, UnaryKind::Abs)] {
        let x = run.rng.any(dtype, &[1_000_003]);
        run.check(Op::Unary(Unary { kind }), &[Some(&x)]);
    }
    for (dtype, kind, a, b) in [
        (F32, BinaryKind::Subtract, &[1_000_003][..], &[1_000_003][..]),
        (F16, BinaryKind::Multiply, &[1021, 1031], &[1031]),
        (F64, BinaryKind::Divide, &[1021, 1031], &[1021, 1]),
        (S64, BinaryKind::Less, &[1031, 1], &[1, 1021]),
        (U8, BinaryKind::Add, &[3, 1, 257, 65], &[5, 1, 65]),
    ] {
        let (a, b) = (run.rng.any(dtype, a), run.rng.any(dtype, b));
        run.check(Op::Binary(Binary { kind }), &[Some(&a), Some(&b)]);
    }
    let p = run.rng.ints(U8, &[1021, 1], 0, 1);
    let (a, b) = (run.rng.any(F32, &[1021, 1031]), run.rng.any(F32, &[1031]));
    run.check(Op::Select(Select {}), &[Some(&p), Some(&a), Some(&b)]);
    for (from, to) in [(F32, BF16), (S64, F32), (F16, F64), (F64, U8)] {
        let x = run.rng.any(from, &[1_000_003]);
        run.check(Op::Cast(Cast { r#type: to }), &[Some(&x)]);
    }
    run.finish();
}

#[test]
fn shape() {
    let mut run = Run::new("large shape");
    for (dtype, shape, axes) in [
        (F32, &[1021, 1031][..], &[1, 0][..]),
        (U8, &[1025, 1023], &[1, 0]),
        (BF16, &[33, 257, 65], &[2, 0, 1]),
        (F64, &[65, 33, 127], &[1, 0, 2]),
    ] {
        let x = run.rng.raw(dtype, shape);
        run.check(Op::Transpose(Transpose { axes: axes.to_vec() }), &[Some(&x)]);
    }
    let x = run.rng.raw(F16, &[1031, 1]);
    run.check(Op::Broadcast(Reshape { shape: vec![1031, 1021] }), &[Some(&x)]);
    let x = run.rng.raw(F32, &[1021, 1031]);
    let at = Array::ints(S32, &[], &[1000]);
    for wrap in [false, true] {
        let slice = Slice {
            starts: vec![0, 5],
            lengths: vec![700, 1001],
            strides: vec![1, 1],
            axis: 0,
            wrap,
        };
        run.check(Op::Slice(slice), &[Some(&x), Some(&at)]);
        let part = run.rng.raw(F32, &[500, 1029]);
        let put = PutSlice { starts: vec![0, 1], axis: 0, wrap };
        run.check(Op::PutSlice(put), &[Some(&x), Some(&part), Some(&at)]);
    }
    let other = run.rng.raw(F32, &[1021, 33]);
    run.check(Op::Concatenate(Concatenate { axis: 1 }), &[Some(&x), Some(&other), Some(&x)]);
    run.finish();
}

#[test]
fn reduce() {
    let mut run = Run::new("large reduce");
    let sum = |axes: &[i64]| {
        Op::Reduce(Reduce { kind: ReduceKind::Sum, axes: axes.to_vec(), keep_axes: false })
    };
    let max = |axes: &[i64]| {
        Op::Reduce(Reduce { kind: ReduceKind::Max, axes: axes.to_vec(), keep_axes: true })
    };
    for dtype in [F32, BF16, S64] {
        let x = run.rng.any(dtype, &[2001, 503]);
        for axes in [&[0][..], &[1], &[]] {
            run.check(sum(axes), &[Some(&x)]);
            run.check(max(axes), &[Some(&x)]);
        }
        let x = run.rng.any(dtype, &[63, 257, 65]);
        for axes in [&[1][..], &[0, 2]] {
            run.check(sum(axes), &[Some(&x)]);
        }
        let x = run.rng.any(dtype, &[2001, 1003]);
        for axis in [0, 1] {
            run.check(
                Op::Argmax(Argmax { axis, keep_axis: false, min: false, last: false }),
                &[Some(&x)],
            );
        }
    }
    // Equals far apart: the first wins, whichever thread finds which.
    let mut flat = vec![0.0; 3_000_001];
    flat[1_234_567] = 1.0;
    flat[2_999_999] = 1.0;
    let argmax = || Op::Argmax(Argmax { axis: 0, keep_axis: false, min: false, last: false });
    run.check(argmax(), &[Some(&Array::floats(F32, &[flat.len()], &flat))]);
    flat[2_000_000] = f64::NAN;
    run.check(argmax(), &[Some(&Array::floats(F32, &[flat.len()], &flat))]);
    run.finish();
}

#[test]
fn network() {
    let mut run = Run::new("large network");
    for dtype in [F32, F16, BF16] {
        for [m, k, n] in [[300, 700, 500], [1, 4096, 4097], [3, 2000, 1025], [1027, 65, 63]] {
            let x = run.rng.normal(dtype, &[m, k], 1.0);
            let w = run.rng.normal(dtype, &[k, n], 1.0 / (k as f64).sqrt());
            let b = run.rng.normal(dtype, &[n], 1.0);
            let dense = Dense { activation: Activation::Gelu, norm: None };
            run.check(Op::Dense(dense), &[Some(&x), Some(&w), Some(&b)]);
        }
        for shape in [[301, 4096], [5003, 129]] {
            let x = run.rng.normal(dtype, &shape, 1.0);
            let r = run.rng.normal(dtype, &shape, 1.0);
            let (g, b) =
                (run.rng.normal(dtype, &shape[1..], 1.0), run.rng.normal(dtype, &shape[1..], 1.0));
            let attrs = Norm { epsilon: 1e-5 };
            run.check(Op::LayerNorm(attrs), &[Some(&x), Some(&g), Some(&b), Some(&r)]);
            run.check(Op::RmsNorm(attrs), &[Some(&x), Some(&g)]);
        }
        for (shape, axis) in [(&[701, 1501][..], 1), (&[701, 1501], 0), (&[33, 257, 65], 1)] {
            let x = run.rng.normal(dtype, shape, 3.0);
            for log in [false, true] {
                run.check(Op::Softmax(Softmax { axis, log }), &[Some(&x)]);
            }
        }
        let table = run.rng.normal(dtype, &[1000, 512], 1.0);
        let ids = run.rng.ints(S32, &[3001], -1, 1000);
        run.check(Op::Embedding(Embedding {}), &[Some(&table), Some(&ids)]);
    }
    run.finish();
}

#[test]
fn sample() {
    let mut run = Run::new("large sample");
    for dtype in [F32, BF16] {
        let logits = run.rng.normal(dtype, &[501, 1003], 2.0);
        let at = Array::ints(S32, &[], &[i64::from(i32::MAX)]);
        for (temperature, top_k, top_p) in [
            (0.0, None, None),
            (1.0, None, None),
            (0.8, Some(40), None),
            (1.0, Some(500), Some(0.9)),
        ] {
            let attrs = Sample { temperature, top_k, top_p, seed: run.rng.bits() };
            run.check(Op::Sample(attrs), &[Some(&logits), Some(&at)]);
        }
    }
    run.finish();
}
