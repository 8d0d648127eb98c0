//! Recurrent layers one upon the other: one op for a window of all of them, where they fit.

use nitrox_engine::op::*;
use nitrox_engine::program::{Feed, Graph, Mode, Node, Options, Program, Ref};
use nitrox_engine::{DType, Device, Tensor};

use crate::harness::{DTYPES, cuda, done, eager, thinned};
use crate::oracle::{Array, Expected, Real, bound, evaluate};
use crate::rng::Rng;

#[derive(Debug, Clone, Copy)]
struct Case {
    dtype: DType,
    lstm: bool,
    layers: usize,
    batch: usize,
    time: usize,
    features: usize,
    hidden: usize,
    /// Between the layers; whether it is a layer norm.
    norm: Option<bool>,
    reverse: bool,
    bias: bool,
    states: bool,
    /// f32 states, where there are any, beside 16-bit x.
    exact: bool,
    mask: bool,
}

/// A graph whose inputs are x, the states and the masks, and all of them with the parameters.
struct Net {
    graph: Graph,
    params: Vec<Array>,
    inputs: Vec<Array>,
}

fn net(rng: &mut Rng, c: Case) -> Net {
    let gates = if c.lstm { 4 } else { 3 };
    let x = rng.normal(c.dtype, &[c.batch, c.time, c.features], 1.0);
    let (mut params, mut inputs, mut nodes) = (Vec::new(), vec![x], Vec::new());
    let (mut x, mut width, mut states) = (Ref::Input(0), c.features, Vec::new());
    for layer in 0..c.layers {
        let mut param = |array: Array| {
            params.push(array);
            Some(Ref::Param(params.len() - 1))
        };
        if let (1.., Some(centred)) = (layer, c.norm) {
            let mut of_norm = vec![Some(x)];
            for middle in if centred { &[1.0, 0.0][..] } else { &[1.0][..] } {
                let affine = rng.floats(c.dtype, &[width], |r, _| middle + 0.3 * r.gauss());
                of_norm.push(param(affine));
            }
            let attrs = Norm { epsilon: 1e-5 };
            let op = if centred { Op::LayerNorm(attrs) } else { Op::RmsNorm(attrs) };
            nodes.push(Node { op, inputs: of_norm });
            x = Ref::Node(nodes.len() - 1, 0);
        }
        let mut input = |array: Array| {
            inputs.push(array);
            Some(Ref::Input(inputs.len() - 1))
        };
        let mut of_layer = vec![Some(x)];
        for _ in 0..gates - 2 {
            let dtype = if c.exact { DType::F32 } else { c.dtype };
            let state = c.states.then(|| rng.normal(dtype, &[c.batch, c.hidden], 0.5));
            of_layer.push(state.and_then(&mut input));
        }
        for rows in [width, c.hidden] {
            let deviation = 1.0 / (rows as f64).sqrt();
            of_layer.push(param(rng.normal(c.dtype, &[rows, gates * c.hidden], deviation)));
        }
        let bias = c.bias.then(|| rng.normal(c.dtype, &[4 * c.hidden], 0.5));
        of_layer.push(bias.and_then(&mut param));
        let mask = c.mask.then(|| rng.ints(DType::U8, &[c.batch, c.time], 0, 1));
        of_layer.push(mask.and_then(&mut input));
        let attrs = Recurrent { reverse: c.reverse, norm: None };
        let op = if c.lstm { Op::Lstm(attrs) } else { Op::Gru(attrs) };
        nodes.push(Node { op, inputs: of_layer });
        let at = nodes.len() - 1;
        states.extend((1..gates - 1).map(|k| Ref::Node(at, k)));
        (x, width) = (Ref::Node(at, 0), c.hidden);
    }
    let specs = inputs.iter().map(|a| a.spec.clone()).collect();
    let outputs = [vec![x], states].concat();
    Net { graph: Graph { nodes, inputs: specs, outputs, next_state: vec![] }, params, inputs }
}

fn tensors(device: &Device, arrays: &[Array]) -> Vec<Tensor> {
    let upload = |a: &Array| Tensor::from_bytes(device, a.spec.clone(), &a.bytes).unwrap();
    arrays.iter().map(upload).collect()
}

fn array(tensor: &Tensor) -> Array {
    Array::new(tensor.spec().clone(), tensor.to_bytes().unwrap())
}

/// The outputs of two runs of the program, which have to be the same, and its steps.
fn run(device: &Device, net: &Net) -> (Vec<Array>, usize) {
    let options = Options { readback: false, instances: 1 };
    let params = tensors(device, &net.params);
    let program = Program::compile(device, net.graph.clone(), params, vec![], options).unwrap();
    let inputs = tensors(device, &net.inputs);
    let feeds: Vec<_> = inputs.iter().map(Feed::Tensor).collect();
    let [first, second] = [0, 1].map(|_| {
        let outputs = done(program.run(&feeds, Mode::Block).unwrap());
        outputs.iter().map(array).collect::<Vec<_>>()
    });
    assert!(first == second, "another run, other bits");
    (first, program.info().steps)
}

/// What the ops give one by one in f64, where each result is rounded to its type.
fn oracle(net: &Net) -> Vec<Real> {
    let mut made: Vec<Vec<Real>> = Vec::new();
    for node in &net.graph.nodes {
        let value = |r: &Ref| match *r {
            Ref::Param(i) => net.params[i].clone(),
            Ref::Input(i) => net.inputs[i].clone(),
            Ref::Node(n, k) => {
                let Real { spec, values, .. } = &made[n][k];
                Array::floats(spec.dtype, spec.shape(), values)
            }
            Ref::State(_) => panic!("a graph without states"),
        };
        let inputs: Vec<_> = node.inputs.iter().map(|r| r.as_ref().map(value)).collect();
        let inputs: Vec<_> = inputs.iter().map(Option::as_ref).collect();
        let real = |expected| match expected {
            Expected::Real(real) => real,
            other => panic!("{other:?}"),
        };
        made.push(evaluate(&node.op, &inputs).into_iter().map(real).collect());
    }
    let output = |r: &Ref| {
        let Ref::Node(n, k) = *r else { panic!("an output that is no node's") };
        let Real { spec, values, scale, .. } = &made[n][k];
        Real { spec: spec.clone(), values: values.clone(), scale: *scale, slack: None }
    };
    net.graph.outputs.iter().map(output).collect()
}

/// The relative L2 between two.
fn off(got: &[f64], expected: &[f64], scale: f64) -> f64 {
    assert_eq!(got.len(), expected.len());
    let root = |sum: f64| (sum / got.len() as f64).sqrt();
    let off = root(got.iter().zip(expected).map(|(a, b)| (a - b).powi(2)).sum());
    off / root(expected.iter().map(|b| b * b).sum()).max(scale)
}

/// How many rows of the batch a layer's share of the clusters has room for; as `cuda/stack.rs` has it.
fn room(device: &Device, c: Case) -> usize {
    let Device::Cuda(cuda) = device else { return 0 };
    let blocks = c.hidden.div_ceil(32).max(2).next_power_of_two();
    let at_once = cuda.props().clusters as usize * (16 / blocks);
    let rows = match (c.dtype, c.exact) {
        (DType::F32, _) => 5,
        (_, true) => 4,
        (_, false) => 8,
    };
    at_once / (2 * c.layers - 1) * rows
}

/// Compares with the ops one by one, on the device and in f64. The worst error off the latter, of the
/// bound; none where the layers were ops apart.
fn check(device: &Device, rng: &mut Rng, c: Case) -> Option<f64> {
    let net = net(rng, c);
    let (got, steps) = run(device, &net);
    let fused = c.batch <= room(device, c);
    let expected = if fused { 1 } else { net.graph.nodes.len() };
    assert_eq!(steps, expected, "{c:?}");
    let inputs = tensors(device, &net.inputs);
    let mut worst = 0f64;
    let (apart, _) = eager(device, &net.graph, &tensors(device, &net.params), &inputs, &[]);
    for (k, ((got, apart), real)) in got.iter().zip(&apart).zip(oracle(&net)).enumerate() {
        // States of f32 come of an x that was rounded to the storage type on its way up.
        let bound = bound(c.dtype);
        let error = off(&got.to_f64(), &real.values, real.scale) / bound;
        assert!(error < 1.0, "{c:?}, output {k}: {error:.2} times the bound off the oracle");
        worst = worst.max(error);
        // Both are within the bound of the oracle.
        let error = off(&got.to_f64(), &array(apart).to_f64(), real.scale) / bound;
        assert!(error < 2.0, "{c:?}, output {k}: {error:.2} times the bound off the ops apart");
    }
    fused.then_some(worst)
}

/// Layers, batch, time, features, hidden.
const SHAPES: [[usize; 5]; 11] = [
    [2, 1, 5, 7, 33],
    [2, 2, 4, 64, 64],
    [3, 1, 6, 12, 20],
    [2, 5, 7, 20, 100],
    [2, 1, 130, 3, 40],
    [3, 2, 9, 1, 64],
    [2, 7, 4, 5, 37],
    [4, 1, 5, 9, 32],
    // Of clusters that only a whole card has.
    [2, 1, 4, 16, 512],
    [2, 3, 4, 9, 260],
    [3, 5, 4, 8, 256],
];

fn shapes(name: &str, dtype: DType) {
    let Some(device) = cuda(name) else { return };
    let mut rng = Rng::new(name);
    let mut fused = Vec::new();
    let most = thinned().unwrap_or(SHAPES.len());
    for (i, [layers, batch, time, features, hidden]) in SHAPES.into_iter().enumerate().take(most) {
        for lstm in [true, false] {
            let c = Case {
                dtype,
                lstm,
                layers,
                batch,
                time,
                features,
                hidden,
                norm: [None, Some(true), Some(false)][(i + usize::from(lstm)) % 3],
                reverse: rng.coin(),
                bias: i % 4 > 0,
                states: i % 3 > 0,
                exact: i % 3 > 0 && rng.coin(),
                mask: rng.coin(),
            };
            fused.extend(check(&device, &mut rng, c));
        }
    }
    let (count, worst) = (fused.len(), fused.into_iter().fold(0.0, f64::max));
    println!("{name}: {count} of {} in one op, of the bound {worst:.3}", 2 * SHAPES.len());
    let Device::Cuda(cuda) = &device else { panic!("{device:?}") };
    assert!(count > 0 || cuda.props().clusters == 0, "none was fused");
}

#[test]
fn layers_in_one_op_f32() {
    shapes("layers_in_one_op_f32", DType::F32);
}

#[test]
fn layers_in_one_op_bf16() {
    shapes("layers_in_one_op_bf16", DType::BF16);
}

#[test]
fn layers_in_one_op_f16() {
    shapes("layers_in_one_op_f16", DType::F16);
}

const PLAIN: Case = Case {
    dtype: DType::F32,
    lstm: true,
    layers: 2,
    batch: 2,
    time: 5,
    features: 6,
    hidden: 40,
    norm: Some(true),
    reverse: false,
    bias: true,
    states: true,
    exact: false,
    mask: true,
};

/// What the caller sees of the lower layer, windows that are too short, and layers of other sizes.
#[test]
fn what_does_not_fit_stays() {
    let name = "a_stack_that_does_not_fit_stays";
    let Some(device) = cuda(name) else { return };
    let mut rng = Rng::new(name);
    let mut seen = net(&mut rng, PLAIN);
    seen.graph.outputs.push(Ref::Node(0, 0));
    assert_eq!(run(&device, &seen).1, 3);
    assert_eq!(run(&device, &net(&mut rng, Case { time: 3, ..PLAIN })).1, 3);
    let mut other = net(&mut rng, Case { norm: None, states: false, mask: false, ..PLAIN });
    other.params[3] = rng.normal(DType::F32, &[40, 4 * 24], 0.1);
    other.params[4] = rng.normal(DType::F32, &[24, 4 * 24], 0.1);
    other.params[5] = rng.normal(DType::F32, &[4 * 24], 0.1);
    assert_eq!(run(&device, &other).1, 2);
}

/// A NaN of the bits that stand for what is yet to come goes up like any other.
#[test]
fn any_nan_goes_up() {
    let name = "any_nan_goes_up";
    let Some(device) = cuda(name) else { return };
    let mut rng = Rng::new(name);
    for dtype in DTYPES {
        let mut net = net(&mut rng, Case { dtype, norm: None, ..PLAIN });
        // Inputs are x, and of each layer c0, h0 and the mask: of the first row h0 is kept all the time.
        let row = PLAIN.hidden * dtype.size();
        net.inputs[2].bytes[..row].fill(0xff);
        net.inputs[3].bytes[..PLAIN.time].fill(1);
        let (got, _) = run(&device, &net);
        let seq = got[0].to_f64();
        let (first, second) = seq.split_at(seq.len() / 2);
        let kept = &net.inputs[6].bytes[..PLAIN.time];
        for (t, frame) in first.chunks_exact(PLAIN.hidden).enumerate() {
            let reached = kept[..=t].contains(&0);
            assert!(frame.iter().all(|v| v.is_nan() == reached), "{dtype} frame {t}: {frame:?}");
        }
        assert!(second.iter().all(|v| v.is_finite()), "{dtype}: another row");
    }
}
