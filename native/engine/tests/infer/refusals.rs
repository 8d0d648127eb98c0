//! What the rules refuse, and what they say.

use nitrox_engine::op::*;
use nitrox_engine::{DType, Error, Spec, infer};

use crate::{rope, scan, spec};

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

/// Every kind of number that an input list may have, but for those it must.
#[test]
fn counts() {
    let x = spec(DType::F32, &[2, 3]);
    let triangle = TriangularSolve { lower: true, left_side: true, transpose: false };
    let ops: [(Op, std::ops::RangeInclusive<usize>); 13] = [
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
        (Op::TriangularSolve(triangle), 2..=2),
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
            Op::Argmax(Argmax { axis: -1, keep_axis: false, min: false, last: false }),
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

/// What products refuse, and what they say.
#[test]
fn products_refuse() {
    let f = |shape: &[usize]| spec(DType::F32, shape);
    let no = |op: Op, a: &Spec, b: &Spec, parts: &[&str]| {
        let message = infer(&op, &[Some(a), Some(b)]).unwrap_err().to_string();
        for part in parts.iter().chain(&[op.name()]) {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
    };
    let dot = |a: &[usize], batch_a: &[usize], b: &[usize], batch_b: &[usize]| {
        let [contract_a, batch_a, contract_b, batch_b] =
            [a, batch_a, b, batch_b].map(<[_]>::to_vec);
        Op::Dot(Dot { contract_a, batch_a, contract_b, batch_b })
    };
    let (a, b) = (f(&[2, 3, 4]), f(&[2, 4, 5]));
    let out = infer(&dot(&[2], &[0], &[1], &[0]), &[Some(&a), Some(&b)]).unwrap();
    assert_eq!(out, [f(&[2, 3, 5])]);
    no(dot(&[1], &[0], &[1], &[0]), &a, &b, &["b must be 3 long on axis 1", "{2, 4, 5}"]);
    no(dot(&[2], &[1], &[1], &[0]), &a, &b, &["batch axes of a", "[1]"]);
    no(dot(&[2], &[0], &[1], &[]), &a, &b, &["as many"]);
    no(dot(&[2, 1], &[0], &[1], &[0]), &a, &b, &["as many"]);
    no(dot(&[0], &[0], &[1], &[0]), &a, &b, &["contracted axes of a", "1..3", "[0]"]);
    no(dot(&[2], &[0], &[3], &[0]), &a, &b, &["contracted axes of b", "1..3", "[3]"]);
    no(dot(&[2, 2], &[], &[1, 1], &[]), &a, &b, &["different"]);
    no(dot(&[2], &[0], &[1], &[0]), &a, &spec(DType::F16, &[2, 4, 5]), &["b has type {:f, 16}"]);

    let solve = |left_side| {
        Op::TriangularSolve(TriangularSolve { lower: true, left_side, transpose: false })
    };
    let (a, b) = (f(&[2, 3, 3]), f(&[2, 3, 4]));
    assert_eq!(infer(&solve(true), &[Some(&a), Some(&b)]).unwrap(), [f(&[2, 3, 4])]);
    no(solve(false), &a, &b, &["b must be {2, 3}", "3 long on the last", "{2, 3, 4}"]);
    no(solve(true), &a, &f(&[2, 4, 3]), &["the last but one", "{2, 4, 3}"]);
    no(solve(true), &a, &f(&[3, 3]), &["b must be {2, 3}", "{3, 3}"]);
    no(solve(true), &a, &f(&[]), &["b must be {2, 3}"]);
    no(solve(true), &f(&[3, 4]), &b, &["a must be square", "{3, 4}"]);
    no(solve(true), &f(&[3]), &b, &["a matrix", "{3}"]);
    no(solve(true), &spec(DType::S32, &[3, 3]), &b, &["a has type {:s, 32}", "a float type"]);
    no(solve(true), &a, &spec(DType::F64, &[2, 3]), &["b has type {:f, 64}"]);

    let plain = Conv {
        strides: vec![1],
        padding: vec![vec![0, 0]],
        input_dilation: vec![1],
        kernel_dilation: vec![1],
        feature_groups: 1,
        batch_groups: 1,
    };
    let of = |change: &dyn Fn(&mut Conv)| {
        let mut conv = plain.clone();
        change(&mut conv);
        Op::Conv(conv)
    };
    let (x, w) = (f(&[4, 6, 9]), f(&[8, 6, 3]));
    assert_eq!(infer(&of(&|_| ()), &[Some(&x), Some(&w)]).unwrap(), [f(&[4, 8, 7])]);
    let cropped = of(&|c| c.padding = vec![vec![-2, 1]]);
    assert_eq!(infer(&cropped, &[Some(&x), Some(&w)]).unwrap(), [f(&[4, 8, 6])]);
    let integers = spec(DType::S32, &[4, 6, 9]);
    no(of(&|_| ()), &integers, &w, &["input has type {:s, 32}", "a float type"]);
    no(of(&|_| ()), &f(&[4, 6]), &w, &["at least one spatial axis", "{4, 6}"]);
    no(of(&|_| ()), &x, &f(&[8, 6, 3, 3]), &["kernel", "as many axes"]);
    no(of(&|_| ()), &x, &f(&[8, 5, 3]), &["kernel", "6 channels in 1 groups", "{8, 5, 3}"]);
    no(of(&|c| c.feature_groups = 3), &x, &f(&[8, 2, 3]), &["whole groups of outputs"]);
    no(of(&|c| c.batch_groups = 3), &x, &f(&[9, 6, 3]), &["batch of 3 whole groups"]);
    no(of(&|c| (c.feature_groups, c.batch_groups) = (2, 2)), &x, &w, &["one of feature_groups"]);
    no(of(&|c| c.feature_groups = 0), &x, &w, &["neither is 0"]);
    no(of(&|c| c.strides = vec![1, 1]), &x, &w, &["strides", "1 spatial axes"]);
    no(of(&|c| c.input_dilation = vec![0]), &x, &w, &["at least 1"]);
    no(of(&|c| c.padding = vec![vec![1]]), &x, &w, &["[low, high]"]);
    no(of(&|c| c.padding = vec![vec![-4, -4]]), &x, &w, &["window of 3", "1 long", "axis 0"]);
    no(of(&|c| c.kernel_dilation = vec![5]), &x, &w, &["window of 11", "9 long"]);
}
