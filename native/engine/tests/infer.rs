//! The shape and type rules: whatever comes in they answer, and never panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use nitrox_engine::infer::{broadcast, normalize_axis, reduced_axes};
use nitrox_engine::op::*;
use nitrox_engine::{DType, Error, Spec, infer};
use proptest::prelude::*;
use proptest::sample::select;

const ACTIVATIONS: [Activation; 3] = [Activation::None, Activation::Gelu, Activation::Tanh];

fn spec(dtype: DType, shape: &[usize]) -> Spec {
    Spec::new(dtype, shape).unwrap()
}

/// Small lengths, zero, and lengths whose products overflow.
fn length() -> impl Strategy<Value = usize> {
    let huge = vec![
        1 << 20,
        1 << 31,
        (1 << 31) - 1,
        1 << 32,
        1 << 40,
        (1 << 61) - 1,
        1 << 62,
        isize::MAX as usize,
        usize::MAX - 1,
        usize::MAX,
    ];
    prop_oneof![6 => 0..6usize, 1 => select(huge)]
}

fn dtype() -> impl Strategy<Value = DType> {
    select(DType::ALL.to_vec())
}

/// A spec of any type and of 0 to 8 axes, whatever of those fits the address space.
fn any_spec() -> impl Strategy<Value = Spec> {
    (dtype(), prop::collection::vec(length(), 0..9))
        .prop_filter_map("overflows", |(dtype, shape)| Spec::new(dtype, shape).ok())
}

fn axis() -> impl Strategy<Value = i64> {
    prop_oneof![8 => -9..9i64, 1 => select(vec![i64::MIN, i64::MAX, 1 << 32])]
}

fn number() -> impl Strategy<Value = f64> {
    select(vec![0.0, 1e-5, 0.5, 1.0, -1.0, 1e300, f64::NAN, f64::INFINITY, f64::NEG_INFINITY])
}

fn lengths() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(length(), 0..10)
}

fn starts() -> impl Strategy<Value = Vec<i64>> {
    let start = prop_oneof![4 => -9..9i64, 1 => select(vec![i64::MIN, i64::MAX])];
    prop::collection::vec(start, 0..10)
}

fn sequence_op() -> impl Strategy<Value = Op> {
    let kind = select(vec![None, Some(NormKind::LayerNorm), Some(NormKind::RmsNorm)]);
    prop_oneof![
        select(ACTIVATIONS.to_vec())
            .prop_map(|activation| Op::CausalConv1d(CausalConv1d { activation })),
        select(ACTIVATIONS.to_vec()).prop_map(|activation| Op::GatedMlp(GatedMlp { activation })),
        (number(), number(), prop::option::of(length()), any::<bool>()).prop_map(
            |(base, scale, dims, interleaved)| Op::Rope(Rope { base, scale, dims, interleaved })
        ),
        (any::<bool>(), prop::option::of((number(), number())), kind, number()).prop_map(
            |(dt_softplus, dt_clamp, norm, epsilon)| {
                Op::SelectiveScan(SelectiveScan { dt_softplus, dt_clamp, norm, epsilon })
            }
        ),
    ]
}

fn flash_attention() -> impl Strategy<Value = FlashAttention> {
    let rare = || prop::option::weighted(0.2, number());
    let many = || prop::option::of(length());
    let start = prop::option::weighted(0.2, axis());
    let options = (rare(), any::<bool>(), many(), many(), rare(), start);
    (options, any::<bool>()).prop_map(|((scale, causal, left, right, softcap, offset), lse)| {
        FlashAttention { scale, causal, left, right, softcap, offset, lse }
    })
}

fn any_op() -> impl Strategy<Value = Op> {
    use UnaryKind::*;
    let unary = select(vec![Negate, Sign, Exp, Relu, LogicalNot, Round]);
    let binary = {
        use BinaryKind::*;
        select(vec![Add, Divide, Quotient, Remainder, Max, Pow, Less, LogicalXor])
    };
    let reduce = {
        use ReduceKind::*;
        select(vec![Sum, Mean, Product, Max, Min])
    };
    prop_oneof![
        select(ACTIVATIONS.to_vec())
            .prop_map(|activation| Op::Dense(Dense { activation, norm: None })),
        number().prop_map(|epsilon| Op::LayerNorm(Norm { epsilon })),
        number().prop_map(|epsilon| Op::RmsNorm(Norm { epsilon })),
        any::<bool>().prop_map(|reverse| Op::Lstm(Recurrent { reverse, norm: None })),
        any::<bool>().prop_map(|reverse| Op::Gru(Recurrent { reverse, norm: None })),
        flash_attention().prop_map(Op::FlashAttention),
        Just(Op::Embedding(Embedding {})),
        sequence_op(),
        (axis(), any::<bool>()).prop_map(|(axis, log)| Op::Softmax(Softmax { axis, log })),
        (axis(), any::<bool>())
            .prop_map(|(axis, keep_axis)| Op::Argmax(Argmax { axis, keep_axis })),
        (number(), prop::option::of(length()), prop::option::of(number()), any::<u64>()).prop_map(
            |(temperature, top_k, top_p, seed)| {
                Op::Sample(Sample { temperature, top_k, top_p, seed })
            }
        ),
        unary.prop_map(|kind| Op::Unary(Unary { kind })),
        binary.prop_map(|kind| Op::Binary(Binary { kind })),
        Just(Op::Select(Select {})),
        dtype().prop_map(|t| Op::Cast(Cast { r#type: t })),
        lengths().prop_map(|shape| Op::Reshape(Reshape { shape })),
        lengths().prop_map(|axes| Op::Transpose(Transpose { axes })),
        lengths().prop_map(|shape| Op::Broadcast(Reshape { shape })),
        (starts(), lengths(), lengths(), axis(), any::<bool>()).prop_map(
            |(starts, lengths, strides, axis, wrap)| {
                Op::Slice(Slice { starts, lengths, strides, axis, wrap })
            }
        ),
        (starts(), axis(), any::<bool>()).prop_map(|(starts, axis, wrap)| Op::PutSlice(PutSlice {
            starts,
            axis,
            wrap
        })),
        axis().prop_map(|axis| Op::Concatenate(Concatenate { axis })),
        (reduce, prop::collection::vec(axis(), 0..4), any::<bool>())
            .prop_map(|(kind, axes, keep_axes)| Op::Reduce(Reduce { kind, axes, keep_axes })),
    ]
}

/// Inputs that an op might take, of these sizes: most of them fit, unless a size overflows.
fn plausible(op: &Op, t: DType, n: [usize; 4], given: u8) -> Option<Vec<Option<Spec>>> {
    let [a, b, c, d] = n;
    let s = |t: DType, shape: &[usize]| Spec::new(t, shape).ok();
    let or = |bit: u8, spec: Option<Spec>| if given >> bit & 1 == 1 { spec } else { None };
    let times = |n: usize, by: usize| n.checked_mul(by);
    let inputs = match op {
        Op::Dense(_) => {
            vec![s(t, &[a, b]), s(t, &[b, c]), or(0, s(t, &[c])), or(1, s(t, &[a, c]))]
        }
        Op::LayerNorm(_) => {
            vec![s(t, &[a, b]), s(t, &[b]), s(t, &[b]), or(0, s(t, &[a, b]))]
        }
        Op::RmsNorm(_) => vec![s(t, &[a, b]), s(t, &[b]), or(0, s(t, &[a, b]))],
        Op::Lstm(_) => vec![
            s(t, &[a, b, c]),
            or(0, s(t, &[a, d])),
            or(0, s(t, &[a, d])),
            s(t, &[c, times(d, 4)?]),
            s(t, &[d, times(d, 4)?]),
            or(1, s(t, &[times(d, 4)?])),
            or(2, s(DType::U8, &[a, b])),
        ],
        Op::Gru(_) => vec![
            s(t, &[a, b, c]),
            or(0, s(DType::F32, &[a, d])),
            s(t, &[c, times(d, 3)?]),
            s(t, &[d, times(d, 3)?]),
            or(1, s(t, &[times(d, 4)?])),
            or(2, s(DType::U8, &[a, b])),
        ],
        Op::FlashAttention(_) => vec![
            s(t, &[a, b, times(c, 2)?, d]),
            s(t, &[a, d, c, d]),
            s(t, &[a, d, c, d]),
            or(0, s(t, &[times(c, 2)?, 1, d])),
            or(1, s(DType::U8, &[a, d])),
            or(2, s(DType::S32, &[a])),
            or(3, s(DType::S32, &[])),
        ],
        Op::CausalConv1d(_) => {
            let kept = d.checked_sub(1)?;
            vec![s(t, &[a, b, c]), s(t, &[d, c]), or(0, s(t, &[c])), or(1, s(t, &[a, kept, c]))]
        }
        Op::SelectiveScan(attrs) => {
            let (row, states, one) = (s(t, &[a, b, c]), s(t, &[a, b, d]), s(t, &[c]));
            let norm = |spec: &Option<Spec>| attrs.norm.and(spec.clone());
            vec![
                row.clone(),
                row.clone(),
                s(if given & 1 == 1 { DType::F32 } else { t }, &[c, d]),
                states.clone(),
                states,
                or(1, one.clone()),
                or(2, row.clone()),
                or(3, s(DType::F32, &[c])),
                or(4, s(DType::F32, &[a, c, d])),
                or(5, row),
                norm(&one),
                norm(&one),
            ]
        }
        Op::Rope(_) => {
            let positions: &[usize] = match given % 3 {
                0 => &[],
                1 => &[b],
                _ => &[a, b],
            };
            vec![s(t, &[a, b, c, d]), s(DType::S32, positions)]
        }
        Op::GatedMlp(_) => {
            let x = s(t, &[a, b]);
            vec![x.clone(), s(t, &[b, c]), s(t, &[b, c]), s(t, &[c, b]), or(0, x)]
        }
        Op::Embedding(_) => vec![s(t, &[a, b]), s(DType::S64, &[c, d])],
        Op::Sample(_) => vec![s(t, &[a, b]), s(DType::S32, &[])],
        Op::Binary(_) => vec![s(t, &[a, 1, b]), s(t, &[c, 1])],
        Op::Select(_) => vec![s(DType::U8, &[d]), s(t, &[a, 1, b]), s(t, &[c, 1])],
        Op::PutSlice(_) => vec![s(t, &[a, b]), s(t, &[a.min(c), b.min(d)])],
        Op::Concatenate(_) => vec![s(t, &[a, b]), s(t, &[a, b]), s(t, &[a, b])],
        _ => vec![s(t, &[a, b, c])],
    };
    Some(inputs)
}

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
        let at = at % inputs.len();
        inputs[at] = other;
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

fn rope(dims: Option<usize>) -> Rope {
    Rope { base: 10_000.0, scale: 1.0, dims, interleaved: false }
}

fn scan(norm: Option<NormKind>) -> SelectiveScan {
    SelectiveScan { dt_softplus: true, dt_clamp: Some((0.0, 1.0)), norm, epsilon: 1e-5 }
}

/// What the ops on sequences refuse, and what they say.
#[test]
fn sequences_refuse() {
    let f = |shape: &[usize]| spec(DType::F32, shape);
    let h = |shape: &[usize]| spec(DType::F16, shape);
    let no = |op: Op, inputs: &[Option<&Spec>], parts: &[&str]| {
        let message = infer(&op, inputs).unwrap_err().to_string();
        for part in parts.iter().chain(&[op.name()]) {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
    };
    let conv = || Op::CausalConv1d(CausalConv1d { activation: Activation::None });
    let x = f(&[2, 3, 4]);
    no(conv(), &[Some(&x), Some(&f(&[17, 4]))], &["1 to 16 taps", "17"]);
    no(conv(), &[Some(&x), Some(&f(&[0, 4]))], &["1 to 16 taps", "got 0"]);
    no(conv(), &[Some(&x), Some(&f(&[4, 5]))], &["w", "{4, 4}", "{4, 5}"]);
    let state = f(&[2, 4, 4]);
    no(conv(), &[Some(&x), Some(&f(&[4, 4])), None, Some(&state)], &["state", "{2, 3, 4}"]);
    no(conv(), &[Some(&f(&[3, 4])), Some(&f(&[4, 4]))], &["{batch, length, channels}"]);

    let (a, b) = (f(&[4, 5]), f(&[2, 3, 5]));
    let of = |attrs| Op::SelectiveScan(attrs);
    let five = [Some(&x), Some(&x), Some(&a), Some(&b), Some(&b)];
    assert!(infer(&of(scan(None)), &five).is_ok());
    no(of(scan(Some(NormKind::RmsNorm))), &five, &["gamma is missing"]);
    let backwards = SelectiveScan { dt_clamp: Some((1.0, 0.5)), ..scan(None) };
    no(of(backwards), &five, &["dt_clamp", "1 and 0.5"]);
    no(of(SelectiveScan { epsilon: -1.0, ..scan(None) }), &five, &["epsilon", "-1"]);
    let with = |i: usize, spec: &Spec, op: Op, parts: &[&str]| {
        let mut inputs = five.map(|s| s.cloned()).to_vec();
        inputs.resize(12, None);
        inputs[i] = Some(spec.clone());
        no(op, &inputs.iter().map(Option::as_ref).collect::<Vec<_>>(), parts);
    };
    with(2, &f(&[4, 257]), of(scan(None)), &["at most 256 states", "257"]);
    with(2, &h(&[4, 5]), of(scan(None)), &["a has type {:f, 16}"]);
    with(4, &f(&[2, 3, 6]), of(scan(None)), &["c", "{2, 3, 5}"]);
    with(8, &h(&[2, 4, 5]), of(scan(None)), &["state", "{:f, 32}"]);
    with(8, &f(&[2, 5, 4]), of(scan(None)), &["state", "{2, 4, 5}"]);
    with(10, &f(&[4]), of(scan(None)), &["gamma without a norm"]);
    with(10, &f(&[4]), of(scan(Some(NormKind::LayerNorm))), &["beta is missing"]);

    let x = f(&[2, 3, 4, 6]);
    let at = spec(DType::S32, &[3]);
    let turn = |attrs: Rope, parts: &[&str]| no(Op::Rope(attrs), &[Some(&x), Some(&at)], parts);
    turn(rope(Some(3)), &["dims", "even", "got 3"]);
    turn(rope(Some(8)), &["dims", "6 features", "got 8"]);
    turn(Rope { base: 0.0, ..rope(None) }, &["base", "got 0"]);
    turn(Rope { scale: f64::NAN, ..rope(None) }, &["scale", "NaN"]);
    no(Op::Rope(rope(None)), &[Some(&x), Some(&f(&[3]))], &["positions", "{:s, 32}"]);
    let wrong = spec(DType::S32, &[4]);
    no(Op::Rope(rope(None)), &[Some(&x), Some(&wrong)], &["{2, 3}, {3} or {}", "{4}"]);
    no(Op::Rope(rope(None)), &[Some(&f(&[1, 3, 2, 5])), Some(&at)], &["even", "got 5"]);

    let mlp = || Op::GatedMlp(GatedMlp { activation: Activation::Silu });
    let (x, w) = (f(&[2, 4]), f(&[4, 8]));
    no(mlp(), &[Some(&x), Some(&w), Some(&w), Some(&w)], &["down", "{8, 4}", "{4, 8}"]);
    no(mlp(), &[Some(&x), Some(&w), Some(&f(&[4, 9]))], &["takes 4 to 5"]);
    let huge = f(&[0, 1 << 40]);
    let tall = f(&[1 << 40, 0]);
    assert!(infer(&mlp(), &[Some(&tall), Some(&huge), Some(&huge), Some(&tall)]).is_err());
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
        (Op::Argmax(Argmax { axis: 2, keep_axis: true }), DType::U8, [2, 3, 4, 1]),
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
    ];
    for (op, dtype, sizes) in yes {
        for given in [0, u8::MAX] {
            let inputs = plausible(&op, dtype, sizes, given).unwrap();
            assert!(answer(&op, &inputs), "{op:?} of {inputs:?}");
        }
    }
}

/// Every kind of number that an input list may have, but for those it must.
#[test]
fn counts() {
    let x = spec(DType::F32, &[2, 3]);
    let ops: [(Op, std::ops::RangeInclusive<usize>); 12] = [
        (Op::Dense(Dense { activation: Activation::None, norm: None }), 2..=4),
        (Op::LayerNorm(Norm { epsilon: 0.0 }), 3..=4),
        (Op::RmsNorm(Norm { epsilon: 0.0 }), 2..=3),
        (Op::Lstm(Recurrent { reverse: false, norm: None }), 5..=7),
        (Op::Gru(Recurrent { reverse: false, norm: None }), 4..=6),
        (Op::CausalConv1d(CausalConv1d { activation: Activation::None }), 2..=4),
        (Op::SelectiveScan(scan(None)), 5..=12),
        (Op::Rope(rope(None)), 2..=2),
        (Op::GatedMlp(GatedMlp { activation: Activation::None }), 4..=5),
        (Op::Softmax(Softmax { axis: 0, log: false }), 1..=1),
        (Op::Select(Select {}), 3..=3),
        (Op::Binary(Binary { kind: BinaryKind::Add }), 2..=2),
    ];
    for (op, takes) in ops {
        for n in 0..10 {
            let Err(e) = infer(&op, &vec![Some(&x); n]) else {
                assert!(takes.contains(&n), "{op:?} took {n} inputs");
                continue;
            };
            let counted = e.to_string().contains(&format!("inputs, got {n}"));
            assert_eq!(counted, !takes.contains(&n), "{op:?} of {n}: {e}");
        }
        assert!(
            infer(&op, &vec![None; *takes.start()]).unwrap_err().to_string().contains("is missing")
        );
    }
    let concatenate = Op::Concatenate(Concatenate { axis: 0 });
    assert!(infer(&concatenate, &[]).is_err());
    assert!(infer(&concatenate, &[Some(&x), None]).is_err());
}

/// A refusal names the op, what is wrong, what was expected and what came.
#[test]
fn messages_name_expected_and_got() {
    let f = |shape: &[usize]| spec(DType::F32, shape);
    let h = |shape: &[usize]| spec(DType::F16, shape);
    let s32 = |shape: &[usize]| spec(DType::S32, shape);
    let dense = || Op::Dense(Dense { activation: Activation::None, norm: None });
    let lstm = || Op::Lstm(Recurrent { reverse: false, norm: None });
    let slice = |lengths: &[usize], strides: &[usize]| {
        Op::Slice(Slice {
            starts: vec![0; lengths.len()],
            lengths: lengths.to_vec(),
            strides: strides.to_vec(),
            axis: 0,
            wrap: false,
        })
    };
    let sample =
        |temperature, top_k, top_p| Op::Sample(Sample { temperature, top_k, top_p, seed: 0 });
    let add = || Op::Binary(Binary { kind: BinaryKind::Add });
    let reduce =
        |kind, axes: &[i64]| Op::Reduce(Reduce { kind, axes: axes.to_vec(), keep_axes: false });
    let cases: Vec<(Op, Vec<Spec>, &str, &[&str])> = vec![
        (dense(), vec![f(&[2, 3]), f(&[4, 5])], "shape", &["dense", "w", "{3, 5}", "{4, 5}"]),
        (dense(), vec![f(&[2, 3]), h(&[3, 5])], "type", &["w", "{:f, 32}", "{:f, 16}"]),
        (dense(), vec![f(&[2, 3]), f(&[3])], "shape", &["w", "{in, out}", "{3}"]),
        (dense(), vec![f(&[]), f(&[3, 5])], "shape", &["x", "{}", "at least one axis"]),
        (dense(), vec![s32(&[2, 3]), s32(&[3, 5])], "type", &["x", "{:bf, 16}", "{:s, 32}"]),
        (dense(), vec![f(&[2, 3]), f(&[3, 5]), f(&[4])], "shape", &["b", "{5}", "{4}"]),
        (
            dense(),
            vec![f(&[2, 3]), f(&[3, 5]), f(&[5]), f(&[2, 3])],
            "shape",
            &["residual", "{2, 5}", "{2, 3}"],
        ),
        (
            lstm(),
            vec![f(&[2, 3]), f(&[2, 4]), f(&[2, 4]), f(&[3, 16]), f(&[4, 16])],
            "shape",
            &["lstm", "x", "{batch, time, features}", "{2, 3}"],
        ),
        (
            lstm(),
            vec![f(&[2, 3, 5]), f(&[2, 4]), f(&[2, 4]), f(&[5, 16]), f(&[4, 12])],
            "shape",
            &["wh", "{4, 16}", "{4, 12}"],
        ),
        (
            lstm(),
            vec![h(&[2, 3, 5]), h(&[2, 4]), f(&[2, 4]), h(&[5, 16]), h(&[4, 16])],
            "type",
            &["h0", "{:f, 16}", "{:f, 32}"],
        ),
        (
            lstm(),
            vec![f(&[2, 3, 5]), h(&[2, 4]), h(&[2, 4]), f(&[5, 16]), f(&[4, 16])],
            "type",
            &["c0", "{:f, 32}", "{:f, 16}"],
        ),
        (
            Op::Gru(Recurrent { reverse: false, norm: None }),
            vec![f(&[2, 3, 5]), f(&[3, 4]), f(&[5, 12]), f(&[4, 12])],
            "shape",
            &["gru", "h0", "{2, 4}", "{3, 4}"],
        ),
        (
            Op::LayerNorm(Norm { epsilon: -1.0 }),
            vec![f(&[2, 3]), f(&[3]), f(&[3])],
            "argument",
            &["epsilon", "-1"],
        ),
        (
            Op::RmsNorm(Norm { epsilon: f64::NAN }),
            vec![f(&[2, 3]), f(&[3])],
            "argument",
            &["epsilon", "NaN"],
        ),
        (
            Op::Embedding(Embedding {}),
            vec![f(&[5, 3]), f(&[2])],
            "type",
            &["ids", "integer", "{:f, 32}"],
        ),
        (
            Op::Softmax(Softmax { axis: 2, log: false }),
            vec![f(&[5, 3])],
            "argument",
            &["softmax", "axis 2", "2 axes"],
        ),
        (
            Op::Argmax(Argmax { axis: -1, keep_axis: false }),
            vec![f(&[5, 0])],
            "shape",
            &["axis 1", "not empty", "{5, 0}"],
        ),
        (sample(-0.5, None, None), vec![f(&[5]), s32(&[])], "argument", &["temperature", "-0.5"]),
        (sample(1.0, Some(0), None), vec![f(&[5]), s32(&[])], "argument", &["top_k", "1", "0"]),
        (sample(1.0, None, Some(1.5)), vec![f(&[5]), s32(&[])], "argument", &["top_p", "1.5"]),
        (sample(1.0, None, None), vec![f(&[5]), s32(&[1])], "shape", &["counter", "{}", "{1}"]),
        (add(), vec![f(&[2, 3]), f(&[2, 4])], "argument", &["binary", "{2, 3}", "{2, 4}"]),
        (add(), vec![f(&[2]), h(&[2])], "type", &["b", "{:f, 32}", "{:f, 16}"]),
        (
            Op::Binary(Binary { kind: BinaryKind::Divide }),
            vec![s32(&[2]), s32(&[2])],
            "type",
            &["float", "{:s, 32}", "quotient"],
        ),
        (
            Op::Unary(Unary { kind: UnaryKind::Exp }),
            vec![s32(&[2])],
            "type",
            &["unary", "float", "{:s, 32}"],
        ),
        (
            Op::Select(Select {}),
            vec![s32(&[2]), f(&[2]), f(&[2])],
            "type",
            &["predicate", "{:u, 8}", "{:s, 32}"],
        ),
        (
            Op::Reshape(Reshape { shape: vec![4] }),
            vec![f(&[2, 3])],
            "argument",
            &["{2, 3}", "6", "{4}", "4"],
        ),
        (
            Op::Reshape(Reshape { shape: vec![1 << 40, 1 << 40] }),
            vec![f(&[2, 3])],
            "argument",
            &["overflows"],
        ),
        (
            Op::Transpose(Transpose { axes: vec![0, 0] }),
            vec![f(&[2, 3])],
            "argument",
            &["0..2", "[0, 0]"],
        ),
        (
            Op::Broadcast(Reshape { shape: vec![2] }),
            vec![f(&[2, 3])],
            "argument",
            &["broadcast", "{2, 3}", "{2}"],
        ),
        (slice(&[3], &[2]), vec![f(&[4])], "argument", &["length 3", "stride 2", "{4}"]),
        (slice(&[1], &[0]), vec![f(&[4])], "argument", &["stride", "at least 1"]),
        (slice(&[1, 1], &[1, 1]), vec![f(&[4])], "argument", &["1 axes"]),
        (slice(&[2], &[usize::MAX]), vec![f(&[4])], "argument", &["does not fit"]),
        (
            Op::PutSlice(PutSlice { starts: vec![0], axis: 0, wrap: true }),
            vec![f(&[4]), f(&[5])],
            "shape",
            &["put_slice", "slice", "{4}", "{5}"],
        ),
        (
            Op::Concatenate(Concatenate { axis: 0 }),
            vec![f(&[2, 3]), f(&[2, 4])],
            "shape",
            &["tensor 1", "{2, 3}", "axis 0", "{2, 4}"],
        ),
        (reduce(ReduceKind::Max, &[1]), vec![f(&[2, 0])], "shape", &["not empty", "{2, 0}"]),
        (reduce(ReduceKind::Mean, &[]), vec![s32(&[2])], "type", &["float", "{:s, 32}"]),
        (reduce(ReduceKind::Sum, &[0, -2]), vec![f(&[2, 3])], "argument", &["[0, -2]", "repeat"]),
    ];
    for (op, inputs, reason, parts) in cases {
        let inputs: Vec<_> = inputs.iter().map(Some).collect();
        let e = infer(&op, &inputs).unwrap_err();
        assert_eq!(e.reason(), reason, "{op:?}: {e}");
        assert!(e.op().is_some_and(|o| o == op.name() || o == "tensor"), "{e:?}");
        let text = e.to_string();
        for part in parts {
            assert!(text.contains(part), "{part:?} is not in: {text}");
        }
    }
}

/// Sizes at the border of what memory can hold.
#[test]
fn sizes_near_overflow() {
    let most = isize::MAX as usize / 2;
    assert!(Spec::new(DType::U8, [most]).is_ok());
    assert!(Spec::new(DType::U8, [most + 1]).is_err());
    assert!(Spec::new(DType::F64, [most / 8]).is_ok());
    assert!(Spec::new(DType::F64, [most / 8 + 1]).is_err());
    // A zero axis hides nothing: the strides of the others have to fit as well.
    assert!(Spec::new(DType::F32, [0, 1 << 40, 1 << 40]).is_err());
    assert!(Spec::new(DType::U8, [0, usize::MAX]).is_err());
    assert!(Spec::new(DType::U8, [1; 8]).is_ok());
    assert!(matches!(Spec::new(DType::U8, [1; 9]), Err(Error::Unsupported { .. })));

    let wide = spec(DType::U8, &[most]);
    let refused = |op: Op, inputs: &[&Spec]| {
        let inputs: Vec<_> = inputs.iter().map(|&s| Some(s)).collect();
        let e = infer(&op, &inputs).unwrap_err();
        assert!(e.to_string().contains("overflow"), "{op:?}: {e}");
    };
    refused(Op::Cast(Cast { r#type: DType::F64 }), &[&wide]);
    refused(Op::Concatenate(Concatenate { axis: 0 }), &[&wide, &wide, &wide, &wide, &wide]);
    let (row, column) = (spec(DType::F16, &[1 << 40]), spec(DType::F16, &[1 << 40, 1]));
    refused(Op::Binary(Binary { kind: BinaryKind::Add }), &[&row, &column]);
    let (x, w) = (spec(DType::F32, &[1 << 40, 0]), spec(DType::F32, &[0, 1 << 40]));
    refused(Op::Dense(Dense { activation: Activation::None, norm: None }), &[&x, &w]);
    let (table, ids) = (spec(DType::F32, &[0, 1 << 40]), spec(DType::S32, &[1 << 40]));
    refused(Op::Embedding(Embedding {}), &[&table, &ids]);
    // A predicate takes less than what it compares.
    let all = spec(DType::F64, &[most / 8]);
    let less = Op::Binary(Binary { kind: BinaryKind::Less });
    assert_eq!(infer(&less, &[Some(&all), Some(&all)]).unwrap()[0].bytes(), most / 8);
}
