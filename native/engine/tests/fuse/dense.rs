//! Dense layers one upon the other: one op for the rows of a frame, where they fit.

use nitrox_engine::op::*;
use nitrox_engine::program::{Graph, Node, Ref};
use nitrox_engine::{DType, Device, Spec, Tensor};

use crate::harness::{Builder, DTYPES, Report, cuda, exact};

/// A layer: its columns, and of what it is given a norm, centred or not.
type Layer = (usize, Option<bool>);

const ACTIVATIONS: [Activation; 7] = [
    Activation::Gelu,
    Activation::Tanh,
    Activation::None,
    Activation::Silu,
    Activation::Relu,
    Activation::GeluTanh,
    Activation::Sigmoid,
];

/// What an MLP of these layers is, from its input on. Biases and activations take turns.
fn mlp(b: &mut Builder, x: Ref, features: usize, layers: &[Layer], residual: bool) -> Ref {
    let (mut x, mut width) = (x, features);
    for (i, &(columns, norm)) in layers.iter().enumerate() {
        if let Some(centred) = norm {
            x = b.norm(x, width, centred);
        }
        let w = b.weights(width, columns);
        let bias = if i % 3 == 1 { None } else { b.param(&[columns], 0.0, 0.5) };
        let mut inputs = vec![Some(x), w, bias];
        if residual && i + 1 == layers.len() {
            inputs.push(Some(Ref::Input(0)));
        }
        // Of a few values near zero, as most activations leave them, the relative error says nothing.
        let activation = match i + 1 == layers.len() {
            true if columns < 8 => Activation::Sigmoid,
            true => [Activation::None, Activation::Tanh][columns % 2],
            false => ACTIVATIONS[(i + columns) % ACTIVATIONS.len()],
        };
        x = Ref::Node(b.node(Op::Dense(Dense { activation, norm: None }), inputs), 0);
        width = columns;
    }
    x
}

/// `kernels` are those that the program should have.
fn check(
    report: &mut Report,
    b: &mut Builder,
    [batch, features]: [usize; 2],
    layers: &[Layer],
    residual: bool,
    kernels: usize,
) {
    let y = mlp(b, Ref::Input(0), features, layers, residual);
    let graph = b.graph(&[batch, features], vec![y], vec![]);
    let before = layers.len() + layers.iter().filter(|(_, norm)| norm.is_some()).count();
    let what = format!("{} {batch} x {features} {layers:?} residual {residual}", b.dtype);
    report.check_frames(&what, b, graph, vec![], [kernels, before], 2, Some(exact));
}

#[test]
fn layers_of_few_rows_are_one_launch() {
    let Some(device) = cuda("layers_of_few_rows_are_one_launch") else { return };
    let mut report = Report::default();
    let (plain, layer, rms) = (None, Some(true), Some(false));
    for dtype in DTYPES {
        for (features, layers) in [
            // The policy of the benches; a head of one value, of as many as a block has threads, of three.
            (288, vec![(512, plain), (512, plain), (53, plain)]),
            (64, vec![(256, plain), (128, layer), (64, rms), (1, plain)]),
            (17, vec![(512, plain), (512, plain)]),
            (1, vec![(128, plain), (3, plain)]),
            // Norms of x and between.
            (128, vec![(256, rms), (256, layer), (31, plain)]),
            (256, vec![(128, layer), (257, plain)]),
            // By clusters of 15, 12, 10, 8 and 4 blocks.
            (33, vec![(240, plain), (65, plain)]),
            (60, vec![(192, plain), (96, plain), (7, plain)]),
            (127, vec![(320, plain), (640, rms), (60, plain)]),
            (40, vec![(64, plain), (64, plain), (64, layer), (64, plain)]),
            (16, vec![(32, plain), (4, plain)]),
            // More of a layer than registers hold.
            (1000, vec![(480, plain), (129, plain)]),
        ] {
            let mut b = Builder::new(&device, dtype);
            for batch in [1, 2, 3, 7] {
                check(&mut report, &mut b, [batch, features], &layers, false, 1);
            }
        }
        let mut b = Builder::new(&device, dtype);
        check(&mut report, &mut b, [2, 63], &[(256, plain), (63, plain)], true, 1);
    }
    report.finish("dense layers");
}

#[test]
fn layers_that_do_not_fit_in_one_launch_stay() {
    let Some(device) = cuda("layers_that_do_not_fit_in_one_launch_stay") else { return };
    let mut report = Report::default();
    let dtype = DType::F32;
    for (batch, features, layers, kernels) in [
        // The norm is the kernel's that reads it, and ends a row; six layers are four and two.
        (1, 64, vec![(256, None), (128, None), (32, Some(true))], 2),
        (1, 64, vec![(64, None); 6], 2),
        (8, 288, vec![(512, None), (512, None), (53, None)], 3),
        (1, 1024, vec![(1024, None), (53, None)], 2),
        (1, 64, vec![(100, None), (64, None)], 2),
    ] {
        let mut b = Builder::new(&device, dtype);
        check(&mut report, &mut b, [batch, features], &layers, false, kernels);
    }
    report.finish("dense layers without");
}

/// What is no number stays so, and reaches what it should alone.
#[test]
fn extremes_pass_through() {
    let Some(device) = cuda("extremes_pass_through") else { return };
    for value in [f32::NAN, f32::INFINITY, 1e38] {
        let spec = |shape: &[usize]| Spec::new(DType::F32, shape).unwrap();
        let tensor = |shape: &[usize], values: Vec<f32>| {
            let bytes: Vec<_> = values.iter().flat_map(|v| v.to_ne_bytes()).collect();
            Tensor::from_bytes(&device, spec(shape), &bytes).unwrap()
        };
        // The first of x alone is strange, and the first hidden value alone takes it.
        let mut w = vec![0.0; 32 * 64];
        (0..32).for_each(|i| w[i * 64 + i] = 1.0);
        let mut head = vec![0.0; 64 * 3];
        (head[0], head[4], head[8]) = (1.0, 1.0, 1.0);
        let params = vec![tensor(&[32, 64], w), tensor(&[64, 3], head)];
        let dense = |x, w| Node {
            op: Op::Dense(Dense { activation: Activation::None, norm: None }),
            inputs: vec![Some(x), Some(Ref::Param(w))],
        };
        let nodes = vec![dense(Ref::Input(0), 0), dense(Ref::Node(0, 0), 1)];
        let inputs = vec![spec(&[2, 32])];
        let graph = Graph { nodes, inputs, outputs: vec![Ref::Node(1, 0)], next_state: vec![] };
        let mut x = vec![1.0; 64];
        x[32] = value;
        run_extremes(&device, graph, params, &tensor(&[2, 32], x), value);
    }
}

fn run_extremes(device: &Device, graph: Graph, params: Vec<Tensor>, x: &Tensor, value: f32) {
    use nitrox_engine::program::{Feed, Mode, Options, Program};
    let options = Options { readback: false, instances: 1 };
    let program = Program::compile(device, graph, params, vec![], options).unwrap();
    assert_eq!(program.info().steps, 1);
    let y = crate::harness::done(program.run(&[Feed::Tensor(x)], Mode::Block).unwrap()).remove(0);
    let bytes = y.to_bytes().unwrap();
    let y: Vec<_> =
        bytes.chunks_exact(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap())).collect();
    assert_eq!(y[..3], [1.0; 3], "{value}");
    if value == 1e38 {
        assert_eq!(y[3..], [value, 1.0, 1.0]);
    } else {
        // 0 · ∞ is no number, in every column of its row.
        assert!(y[3].is_nan(), "{value}: {y:?}");
        assert!(y[4..].iter().all(|y| y.is_nan()), "{value}: {y:?}");
    }
}
