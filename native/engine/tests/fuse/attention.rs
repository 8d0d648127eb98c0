//! Layers of attention: a launch each for a frame, where they fit.

use nitrox_engine::op::*;
use nitrox_engine::program::{Feed, Graph, Mode, Options, Output, Program, Ref, Session, Started};
use nitrox_engine::{DType, Spec, Tensor};

use crate::harness::{Builder, DTYPES, Report, cuda, exact};

#[derive(Debug, Clone, Copy)]
struct Sizes {
    heads: usize,
    size: usize,
    inner: usize,
    context: usize,
    /// Layer norms, no biases, another activation, and pairs that are neighbours, of a part of a head.
    other: bool,
}

const BACKBONE: Sizes = Sizes { heads: 4, size: 64, inner: 256, context: 60, other: false };

fn slice(b: &mut Builder, x: Ref, start: usize, lengths: &[usize]) -> Ref {
    let mut starts = vec![0; lengths.len()];
    starts[0] = start as i64;
    let (lengths, strides) = (lengths.to_vec(), vec![1; lengths.len()]);
    let attrs = Slice { starts, lengths, strides, axis: 0, wrap: false };
    Ref::Node(b.node(Op::Slice(attrs), vec![Some(x)]), 0)
}

fn dense(b: &mut Builder, activation: Activation, inputs: Vec<Option<Ref>>) -> Ref {
    Ref::Node(b.node(Op::Dense(Dense { activation, norm: None }), inputs), 0)
}

/// A layer, as nets have it: its result, and its ring.
fn layer(b: &mut Builder, x: Ref, batch: usize, ring: Ref, turns: Ref, s: Sizes) -> [Ref; 2] {
    let Sizes { heads, size, inner, context, other } = s;
    let width = heads * size;
    let normed = b.norm(x, width, other);
    let inputs = vec![Some(normed), b.weights(width, 3 * width)];
    let qkv = dense(b, Activation::None, inputs);
    let rows = b.reshape(qkv, &[batch, 3, heads, size]);
    let dims = other.then_some(size / 2);
    let rope = Rope { base: 1e4, scale: 1.0, dims, interleaved: other };
    let turned = Ref::Node(b.node(Op::Rope(rope), vec![Some(rows), Some(turns)]), 0);
    let apart = if batch == 1 {
        b.reshape(turned, &[3, 1, heads, size])
    } else {
        let op = Op::Transpose(Transpose { axes: vec![1, 0, 2, 3] });
        Ref::Node(b.node(op, vec![Some(turned)]), 0)
    };
    let q = slice(b, apart, 0, &[1, batch, heads, size]);
    let kv = slice(b, apart, 1, &[2, batch, heads, size]);
    let kv = b.reshape(kv, &[2, batch, 1, heads, size]);
    let first = slice(b, turns, 0, &[1]);
    let number = b.reshape(first, &[]);
    let put = Op::PutSlice(PutSlice { starts: vec![0; 5], axis: 2, wrap: true });
    let ring = Ref::Node(b.node(put, vec![Some(ring), Some(kv), Some(number)]), 0);
    let halves = [0, 1].map(|half| {
        let half = slice(b, ring, half, &[1, batch, context, heads, size]);
        Some(b.reshape(half, &[batch, context, heads, size]))
    });
    let q = b.reshape(q, &[batch, 1, heads, size]);
    let attrs = FlashAttention {
        scale: other.then_some(0.3),
        causal: true,
        left: None,
        right: None,
        softcap: None,
        offset: None,
        lse: false,
    };
    let inputs = vec![Some(q), halves[0], halves[1], None, None, None, Some(number)];
    let seen = Ref::Node(b.node(Op::FlashAttention(attrs), inputs), 0);
    let seen = b.reshape(seen, &[batch, 1, width]);
    let inputs = vec![Some(seen), b.weights(width, width), None, Some(x)];
    let sum = dense(b, Activation::None, inputs);
    let normed = b.norm(sum, width, other);
    let bias = |b: &mut Builder, n| if other { None } else { b.param(&[n], 0.0, 0.5) };
    let inputs = vec![Some(normed), b.weights(width, inner), bias(b, inner)];
    let activation = if other { Activation::Silu } else { Activation::Gelu };
    let hidden = dense(b, activation, inputs);
    let inputs = vec![Some(hidden), b.weights(inner, width), bias(b, width), Some(sum)];
    [dense(b, Activation::None, inputs), ring]
}

/// Layers for one game each frame; the states are their rings, and the places of the next frame.
fn net(b: &mut Builder, layers: usize, batch: usize, s: Sizes) -> Graph {
    let turns = Ref::State(layers);
    let (mut x, mut next) = (Ref::Input(0), Vec::new());
    for n in 0..layers {
        let ring;
        [x, ring] = layer(b, x, batch, Ref::State(n), turns, s);
        next.push(ring);
    }
    let add = Op::Binary(Binary { kind: BinaryKind::Add });
    let step = b.known(&[1, 1, 0]);
    next.push(Ref::Node(b.node(add, vec![Some(turns), step]), 0));
    b.graph(&[batch, 1, s.heads * s.size], vec![x], next)
}

/// What the states are before frame `number`: rings full of what may have been there, and the places.
fn before(b: &mut Builder, [layers, batch, number]: [usize; 3], s: Sizes) -> Vec<Tensor> {
    let ring = [2, batch, s.context, s.heads, s.size];
    let mut state: Vec<_> = (0..layers).map(|_| b.random(&ring, 0.0, 1.0)).collect();
    state.push(b.integers(&[number as i32, number as i32, 0]));
    state
}

/// Frames from `number` on. A layer is `kernels` of the ops, with the sum of the places beside.
fn check(
    report: &mut Report,
    b: &mut Builder,
    [layers, batch, number, frames]: [usize; 4],
    s: Sizes,
    kernels: usize,
) {
    let graph = net(b, layers, batch, s);
    let state = before(b, [layers, batch, number], s);
    // Of several rows q, k and v have to be put in order.
    let apart = if batch == 1 { 9 } else { 10 };
    let what = format!("{} {layers} layers of {batch} rows from {number} on {s:?}", b.dtype);
    let kernels = [layers * kernels + 1, layers * apart + 1];
    report.check_frames(&what, b, graph, state, kernels, frames, Some(exact));
}

/// The ring before it is full, when it becomes so, and all around it.
#[test]
fn a_frame_of_a_layer_of_attention_is_one_launch() {
    let name = "a_frame_of_a_layer_of_attention_is_one_launch";
    let Some(device) = cuda(name) else { return };
    let mut report = Report::default();
    for dtype in DTYPES {
        let mut b = Builder::new(&device, dtype);
        check(&mut report, &mut b, [2, 1, 0, 3], BACKBONE, 1);
        let mut b = Builder::new(&device, dtype);
        check(&mut report, &mut b, [1, 3, 58, 3], BACKBONE, 1);
        check(&mut report, &mut b, [1, 8, 70, 1], BACKBONE, 1);
        let mut b = Builder::new(&device, dtype);
        let s = Sizes { heads: 2, size: 64, inner: 128, context: 3, other: true };
        check(&mut report, &mut b, [1, 2, 0, 8], s, 1);
        // As far as a number of 32 bits goes.
        check(&mut report, &mut b, [1, 1, i32::MAX as usize - 2, 2], s, 1);
    }
    report.finish("attention");
}

#[test]
fn layers_of_many_sizes_are_one_launch() {
    let Some(device) = cuda("layers_of_many_sizes") else {
        return;
    };
    let mut report = Report::default();
    let sizes = |heads, size, inner, context, other| Sizes { heads, size, inner, context, other };
    for s in [
        sizes(1, 256, 128, 100, false),
        sizes(16, 8, 256, 1, true),
        sizes(8, 48, 128, 200, false),
        sizes(2, 192, 128, 7, true),
        sizes(4, 32, 1024, 1000, false),
        sizes(16, 24, 128, 130, true),
        // By clusters of 12 and of 10 blocks.
        sizes(3, 64, 192, 60, false),
        sizes(5, 64, 320, 30, true),
    ] {
        for dtype in DTYPES {
            let mut b = Builder::new(&device, dtype);
            let number = b.below(3 * s.context);
            let batch = 1 + b.below(4);
            check(&mut report, &mut b, [1, batch, number, 1], s, 1);
        }
    }
    report.finish("attention of many sizes");
}

/// Sizes that the kernel's threads do not divide evenly, and many rows.
#[test]
fn layers_that_do_not_fit_stay() {
    let Some(device) = cuda("layers_that_do_not_fit_stay") else {
        return;
    };
    let mut report = Report::default();
    let small = Sizes { heads: 2, size: 64, inner: 128, context: 5, other: false };
    let apart = |report: &mut Report, device, dtype, batch, s, kernels| {
        let mut b = Builder::new(device, dtype);
        check(report, &mut b, [1, batch, 3, 1], s, kernels);
    };
    // Norms go into the products after them, and the inner layer and the one back are one.
    apart(&mut report, &device, DType::F32, 1, Sizes { size: 24, ..small }, 6);
    apart(&mut report, &device, DType::BF16, 1, Sizes { size: 32, ..small }, 6);
    apart(&mut report, &device, DType::F32, 1, Sizes { inner: 96, ..small }, 6);
    apart(&mut report, &device, DType::F32, 1, Sizes { heads: 3, size: 64, ..small }, 6);
    apart(&mut report, &device, DType::F32, 9, small, 8);
    apart(&mut report, &device, DType::BF16, 9, small, 10);
    report.finish("attention without");
}

#[test]
fn a_layer_says_what_it_does_and_refuses_what_it_cannot() {
    let name = "a_layer_says_what_it_does_and_refuses_what_it_cannot";
    let Some(device) = cuda(name) else { return };
    let explain = |rows| {
        let Sizes { heads, size, inner, context, .. } = BACKBONE;
        let width = heads * size;
        let norm = FusedNorm { centred: false, epsilon: 1e-5 };
        let rope = Rope { base: 1e4, scale: 1.0, dims: None, interleaved: false };
        let activation = Activation::Gelu;
        let block = AttentionBlock { norm, ffn_norm: norm, activation, rope, scale: 0.125 };
        let spec = |shape: &[usize]| Some(Spec::new(DType::F32, shape).unwrap());
        let whole = |shape: &[usize]| Some(Spec::new(DType::S32, shape).unwrap());
        let mut inputs = vec![spec(&[rows, 1, width])];
        inputs.extend([[width, 3 * width], [width, width], [width, inner]].map(|s| spec(&s)));
        inputs.extend([None, spec(&[inner, width]), None]);
        inputs.extend([spec(&[2, rows, context, heads, size]), whole(&[3]), whole(&[])]);
        inputs.extend([spec(&[width]), None, spec(&[width]), None]);
        let inputs: Vec<_> = inputs.iter().map(Option::as_ref).collect();
        device.explain(&Op::AttentionBlock(block), &inputs)
    };
    let explanation = explain(8).unwrap();
    assert_eq!((explanation.variant, explanation.launches), ("cluster", 1));
    let why = "16 blocks a row of the batch, 4 a head, with the RMS norm of x in its prologue";
    assert!(explanation.why.ends_with(why), "{}", explanation.why);
    assert_eq!(explain(9).unwrap_err().reason(), "internal");
}

/// A run that is made for nobody writes the ring where the next one does, and changes nothing.
#[test]
fn a_frame_that_was_prepared_is_the_same() {
    let name = "a_frame_that_was_prepared_is_the_same";
    let Some(device) = cuda(name) else { return };
    let s = Sizes { heads: 2, size: 64, inner: 128, context: 4, other: false };
    let mut b = Builder::new(&device, DType::F32);
    let graph = net(&mut b, 2, 1, s);
    let state = before(&mut b, [2, 1, 2], s);
    let options = Options { readback: true, instances: 1 };
    let program = Program::compile(&device, graph, b.params.clone(), state, options).unwrap();
    assert_eq!(program.info().steps, 3);
    let [plain, prepared] = [(); 2].map(|()| Session::new(&program).unwrap());
    let bytes = |started: Started| -> Vec<Vec<u8>> {
        let outputs = match started {
            Started::Done(outputs) => outputs,
            Started::Pending(pending) => pending.wait().unwrap(),
            Started::Busy => panic!("busy"),
        };
        let bytes = |output| match output {
            Output::Bytes(bytes) => bytes,
            Output::Tensor(_) => panic!("a tensor"),
        };
        outputs.into_iter().map(bytes).collect()
    };
    let mut rehearsals = 0;
    for frame in 0..6 {
        let [x, other] = [(); 2].map(|()| b.random(&[1, 1, s.heads * s.size], 0.0, 1.0));
        let [x, other] = [x, other].map(|x| x.to_bytes().unwrap());
        // Of what it was prepared with nothing is left. Where steps take long, as over the emulator, it
        // is not prepared at all.
        let rehearsal = prepared.prepare(&[Feed::Bytes(&other)], Mode::Block).unwrap();
        rehearsals += rehearsal.map(bytes).iter().count();
        let [a, b] = [&plain, &prepared]
            .map(|session| bytes(session.step(&[Feed::Bytes(&x)], Mode::Block).unwrap()));
        assert!(a == b, "frame {frame}");
        let [a, b] = [&plain, &prepared].map(|session| session.snapshot().unwrap());
        for (k, (a, b)) in a.iter().zip(&b).enumerate() {
            assert!(a.to_bytes().unwrap() == b.to_bytes().unwrap(), "frame {frame}, state {k}");
        }
    }
    println!("{rehearsals} of 6 frames were prepared");
}
