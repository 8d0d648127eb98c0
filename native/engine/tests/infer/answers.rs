//! Anything is answered, and what is answered with yes has a size.

use nitrox_engine::infer::{broadcast, normalize_axis, reduced_axes};
use nitrox_engine::op::*;
use nitrox_engine::{DType, Spec, infer};
use proptest::prelude::*;
use proptest::sample::select;

use crate::strategies::*;
use crate::{rope, scan};

/// Where it says yes every output has a size, counted with checks.
fn answer(op: &Op, inputs: &[Option<Spec>]) -> bool {
    let inputs: Vec<_> = inputs.iter().map(Option::as_ref).collect();
    match infer(op, &inputs) {
        Ok(outputs) => {
            assert!(!outputs.is_empty());
            for out in outputs {
                let count = match out.shape().contains(&0) {
                    true => Some(0),
                    false => out.shape().iter().try_fold(1usize, |n, &d| n.checked_mul(d)),
                };
                assert_eq!(count, Some(out.len()), "{op:?} gives {out}");
                let bytes = count.unwrap().checked_mul(out.dtype.size());
                assert_eq!(bytes, Some(out.bytes()), "{op:?} gives {out}");
                assert!(out.bytes() <= isize::MAX as usize);
                let _ = (out.strides(), out.rows(), out.last());
            }
            true
        }
        Err(e) => {
            assert!(!e.to_string().is_empty());
            assert!(matches!(e.reason(), "shape" | "type" | "argument" | "unsupported"), "{e:?}");
            false
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn anything_is_answered(
        op in any_op(),
        inputs in prop::collection::vec(prop::option::weighted(0.9, any_spec()), 0..9),
    ) {
        answer(&op, &inputs);
    }

    #[test]
    fn the_plausible_is_answered(
        op in any_op(),
        dtype in select(vec![DType::F32, DType::BF16, DType::F16, DType::F64, DType::S32]),
        sizes in [length(), length(), length(), length()],
        given in any::<u8>(),
    ) {
        if let Some(inputs) = plausible(&op, dtype, sizes, given) {
            answer(&op, &inputs);
        }
    }

    #[test]
    fn one_input_changed_is_answered(
        op in any_op(),
        sizes in [0..5usize, 0..5usize, 1..5usize, 1..5usize],
        given in any::<u8>(),
        at in any::<usize>(),
        other in prop::option::of(any_spec()),
    ) {
        let mut inputs = plausible(&op, DType::F16, sizes, given).unwrap();
        match inputs.len() {
            0 => inputs.push(other),
            n => inputs[at % n] = other,
        }
        answer(&op, &inputs);
    }

    #[test]
    fn helpers_are_total(
        a in lengths(),
        b in lengths(),
        at in axis(),
        rank in 0..9usize,
        axes in prop::collection::vec(axis(), 0..5),
    ) {
        if let Ok(shape) = broadcast("binary", &a, &b) {
            prop_assert_eq!(shape.len(), a.len().max(b.len()));
            prop_assert_eq!(broadcast("binary", &b, &a).unwrap(), shape);
        }
        if let Ok(axis) = normalize_axis("softmax", at, rank) {
            prop_assert!(axis < rank);
        }
        let reduce = Reduce { kind: ReduceKind::Sum, axes, keep_axes: false };
        if let Ok(axes) = reduced_axes(&reduce, rank) {
            prop_assert!(axes.windows(2).all(|w| w[0] < w[1]) && axes.iter().all(|&a| a < rank));
        }
    }
}

/// The generators above do reach the yes of every op, or they would test refusals only.
#[test]
fn every_op_says_yes_to_something() {
    let f = DType::F32;
    let none = Activation::None;
    let attention = FlashAttention {
        scale: None,
        causal: true,
        left: Some(usize::MAX),
        right: None,
        softcap: Some(30.0),
        offset: None,
        lse: true,
    };
    let yes: Vec<(Op, DType, [usize; 4])> = vec![
        (Op::Dense(Dense { activation: none, norm: None }), f, [2, 3, 4, 1]),
        (Op::LayerNorm(Norm { epsilon: 0.0 }), f, [2, 3, 1, 1]),
        (Op::RmsNorm(Norm { epsilon: 1.0 }), f, [0, 3, 1, 1]),
        (Op::Lstm(Recurrent { reverse: true, norm: None }), f, [2, 0, 4, 5]),
        (Op::Gru(Recurrent { reverse: false, norm: None }), DType::F16, [2, 3, 4, 5]),
        (Op::FlashAttention(attention), f, [2, 3, 4, 5]),
        (Op::Embedding(Embedding {}), f, [2, 3, 4, 5]),
        (Op::CausalConv1d(CausalConv1d { activation: none }), f, [2, 3, 4, 16]),
        (Op::GatedMlp(GatedMlp { activation: none }), DType::BF16, [2, 3, 4, 1]),
        (Op::Rope(rope(None)), f, [2, 3, 4, 6]),
        (Op::SelectiveScan(scan(None)), DType::F16, [2, 3, 4, 256]),
        (Op::SelectiveScan(scan(Some(NormKind::LayerNorm))), DType::BF16, [2, 0, 4, 0]),
        (Op::Softmax(Softmax { axis: -3, log: true }), f, [2, 3, 4, 1]),
        (
            Op::Argmax(Argmax { axis: 2, keep_axis: true, min: false, last: false }),
            DType::U8,
            [2, 3, 4, 1],
        ),
        (
            Op::Sample(Sample { temperature: 0.0, top_k: None, top_p: Some(1.0), seed: 0 }),
            f,
            [2, 3, 1, 1],
        ),
        (Op::Unary(Unary { kind: UnaryKind::Exp }), DType::F64, [2, 3, 4, 1]),
        (Op::Binary(Binary { kind: BinaryKind::Divide }), f, [2, 3, 4, 1]),
        (Op::Select(Select {}), DType::S64, [2, 3, 4, 3]),
        (Op::Cast(Cast { r#type: DType::F64 }), DType::U8, [1 << 20, 1 << 20, 1 << 18, 1]),
        (Op::Reshape(Reshape { shape: vec![24] }), f, [2, 3, 4, 1]),
        (Op::Transpose(Transpose { axes: vec![2, 0, 1] }), f, [2, 3, 4, 1]),
        (Op::Broadcast(Reshape { shape: vec![5, 2, 3, 4] }), f, [2, 3, 4, 1]),
        (
            Op::Slice(Slice {
                starts: vec![i64::MIN, 0, i64::MAX],
                lengths: vec![1, 9, 2],
                strides: vec![1, 1, 3],
                axis: 1,
                wrap: true,
            }),
            f,
            [2, 3, 4, 1],
        ),
        (Op::PutSlice(PutSlice { starts: vec![0, 0], axis: 0, wrap: true }), f, [2, 3, 1, 2]),
        (Op::Concatenate(Concatenate { axis: -1 }), f, [2, 3, 1, 1]),
        (
            Op::Reduce(Reduce { kind: ReduceKind::Max, axes: vec![-1, 0], keep_axes: true }),
            f,
            [2, 3, 4, 1],
        ),
        (Op::Iota(Iota { r#type: f, shape: vec![2, 3], axis: Some(-2) }), f, [0; 4]),
        (
            Op::Pad(Pad { low: vec![1, -3, 0], high: vec![0, 1, 2], interior: vec![0, 1, 0] }),
            f,
            [2, 3, 4, 1],
        ),
        (Op::Reverse(Reverse { axes: vec![0, -1] }), DType::U64, [2, 3, 4, 1]),
        (Op::Gather(Indexed { axes: vec![-3] }), DType::S8, [2, 3, 4, 5]),
        (Op::IndexedAdd(Indexed { axes: vec![0] }), DType::S16, [2, 3, 4, 5]),
        (Op::IndexedPut(Indexed { axes: vec![0] }), f, [2, 3, 4, 0]),
        (Op::Bitcast(Cast { r#type: DType::U32 }), f, [2, 3, 4, 1]),
        (
            Op::TriangularSolve(TriangularSolve {
                lower: false,
                left_side: false,
                transpose: true,
            }),
            f,
            [2, 3, 4, 1],
        ),
        (Op::Sort(Sort { axis: 1, descending: true, indices: true }), f, [2, 3, 4, 1]),
        (
            Op::Cumulative(Cumulative { kind: FoldKind::Sum, axis: -1, reverse: true }),
            f,
            [2, 3, 4, 1],
        ),
        (
            Op::WindowReduce(WindowReduce {
                kind: FoldKind::Max,
                window: vec![1, 2, 2],
                strides: vec![1, 2, 1],
                padding: vec![(0, 0), (1, 0), (-1, 1)],
                dilations: vec![1, 1, 2],
            }),
            f,
            [2, 3, 4, 1],
        ),
        (
            Op::WindowScatter(WindowScatter {
                min: false,
                window: vec![1, 2, 2],
                strides: vec![1; 3],
                padding: vec![(0, 0), (1, 0), (0, 1)],
            }),
            f,
            [2, 3, 4, 1],
        ),
    ];
    for (op, dtype, sizes) in yes {
        for given in [0, u8::MAX] {
            let inputs = plausible(&op, dtype, sizes, given).unwrap();
            assert!(answer(&op, &inputs), "{op:?} of {inputs:?}");
        }
    }
}
