//! Programs whose norms were fused into their readers, against the same ops run one by one, and
//! that no other norm is. What the pass does with a graph is tested where it is written.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;

use nitrox_engine::op::*;
use nitrox_engine::program::{
    Feed, Graph, Mode, Node, Options, Output, Program, Ref, Session, Started,
};
use nitrox_engine::{DType, Device, Id, Spec, Tensor, infer};
use serde::Deserialize;
use serde::de::value::{Error as Refusal, MapDeserializer};

const BATCHES: [usize; 5] = [1, 2, 3, 8, 9];
const WIDTHS: [usize; 7] = [1, 3, 31, 256, 257, 1000, 2048];
/// Of x; the norms' rows come out of a layer.
const FEATURES: usize = 24;
/// Columns of the two heads: whole packs in every type, and none.
const HEADS: [usize; 2] = [64, 53];

/// The first GPU, where the tests may use it; else says which test is left out.
fn cuda(test: &str) -> Option<Device> {
    if std::env::var_os("NITROX_TEST_CUDA").is_none() {
        println!("left out: {test}: NITROX_TEST_CUDA is not set");
        return None;
    }
    Some(Device::open(Id::Cuda(0), None).unwrap())
}

/// The bound on the relative L2 between fused and not: rounding in f32; for the rest the rounding
/// of the norm's result too, which is not stored where it is fused.
fn bound(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 1e-6,
        DType::F16 => 2e-3,
        _ => 1e-2,
    }
}

fn cast(device: &Device, x: &Tensor, dtype: DType) -> Tensor {
    device.run(&Op::Cast(Cast { r#type: dtype }), &[Some(x)]).unwrap().remove(0)
}

fn floats(device: &Device, x: &Tensor) -> Vec<f32> {
    let bytes = cast(device, x, DType::F32).to_bytes().unwrap();
    bytes.chunks_exact(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap())).collect()
}

/// Graphs under construction, of one type. Each takes the parameters of the one before.
struct Builder<'a> {
    device: &'a Device,
    dtype: DType,
    params: Vec<Tensor>,
    /// Those that this graph has taken so far.
    taken: usize,
    nodes: Vec<Node>,
    seed: u64,
}

impl<'a> Builder<'a> {
    fn new(device: &'a Device, dtype: DType) -> Self {
        Builder { device, dtype, params: vec![], taken: 0, nodes: vec![], seed: 42 }
    }

    /// The graph, with a `{batch, FEATURES}` input; the next one begins.
    fn graph(&mut self, batch: usize, outputs: Vec<Ref>, next_state: Vec<Ref>) -> Graph {
        self.taken = 0;
        let inputs = vec![Spec::new(self.dtype, [batch, FEATURES]).unwrap()];
        Graph { nodes: std::mem::take(&mut self.nodes), inputs, outputs, next_state }
    }

    /// Uniform in offset ± scale.
    fn random(&mut self, shape: &[usize], offset: f32, scale: f32) -> Tensor {
        let count: usize = shape.iter().product();
        let mut bytes = Vec::with_capacity(4 * count);
        for _ in 0..count {
            self.seed = self.seed.wrapping_mul(6364136223846793005).wrapping_add(1);
            let unit = (self.seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
            bytes.extend_from_slice(&(offset + scale * unit).to_ne_bytes());
        }
        let spec = Spec::new(DType::F32, shape).unwrap();
        let exact = Tensor::from_bytes(self.device, spec, &bytes).unwrap();
        cast(self.device, &exact, self.dtype)
    }

    fn param(&mut self, shape: &[usize], offset: f32, scale: f32) -> Option<Ref> {
        if self.taken == self.params.len() {
            let tensor = self.random(shape, offset, scale);
            self.params.push(tensor);
        }
        assert_eq!(self.params[self.taken].spec().shape(), shape);
        self.taken += 1;
        Some(Ref::Param(self.taken - 1))
    }

    fn weights(&mut self, rows: usize, columns: usize) -> Option<Ref> {
        self.param(&[rows, columns], 0.0, 1.7 / (rows as f32).sqrt())
    }

    fn node(&mut self, op: Op, inputs: Vec<Option<Ref>>) -> usize {
        self.nodes.push(Node { op, inputs });
        self.nodes.len() - 1
    }

    fn norm(&mut self, x: Ref, width: usize, centred: bool) -> Ref {
        let mut inputs = vec![Some(x), self.param(&[width], 1.0, 0.5)];
        let attrs = Norm { epsilon: 1e-5 };
        if !centred {
            return Ref::Node(self.node(Op::RmsNorm(attrs), inputs), 0);
        }
        // Far from zero: what leaks into padding is seen.
        inputs.push(self.param(&[width], 1.0, 0.5));
        Ref::Node(self.node(Op::LayerNorm(attrs), inputs), 0)
    }

    fn dense(&mut self, x: Ref, input: usize, output: usize) -> Ref {
        let inputs = vec![Some(x), self.weights(input, output), self.param(&[output], 0.0, 0.5)];
        let attrs = Dense { activation: Activation::Tanh, norm: None };
        Ref::Node(self.node(Op::Dense(attrs), inputs), 0)
    }

    fn reshape(&mut self, x: Ref, shape: &[usize]) -> Ref {
        let attrs = Reshape { shape: shape.to_vec() };
        Ref::Node(self.node(Op::Reshape(attrs), vec![Some(x)]), 0)
    }

    /// A layer with its states from `state` on; gives its node.
    fn recurrent(
        &mut self,
        x: Ref,
        gates: usize,
        state: usize,
        input: usize,
        hidden: usize,
    ) -> usize {
        let attrs = Recurrent { reverse: false, norm: None };
        let op = if gates == 4 { Op::Lstm(attrs) } else { Op::Gru(attrs) };
        let mut inputs = vec![Some(x)];
        inputs.extend((0..gates - 2).map(|k| Some(Ref::State(state + k))));
        inputs.push(self.weights(input, gates * hidden));
        inputs.push(self.weights(hidden, gates * hidden));
        inputs.push(self.param(&[4 * hidden], 0.0, 0.5));
        self.node(op, inputs)
    }
}

/// Runs the graph's ops one by one: outputs and next states.
fn eager(
    device: &Device,
    graph: &Graph,
    params: &[Tensor],
    x: &Tensor,
    states: &[Tensor],
) -> (Vec<Tensor>, Vec<Tensor>) {
    let mut made: Vec<Vec<Tensor>> = Vec::new();
    let get = |made: &Vec<Vec<Tensor>>, r: Ref| match r {
        Ref::Param(i) => params[i].clone(),
        Ref::Input(_) => x.clone(),
        Ref::State(i) => states[i].clone(),
        Ref::Node(n, k) => made[n][k].clone(),
    };
    for node in &graph.nodes {
        let operands: Vec<_> = node.inputs.iter().map(|r| r.map(|r| get(&made, r))).collect();
        let operands: Vec<_> = operands.iter().map(Option::as_ref).collect();
        made.push(device.run(&node.op, &operands).unwrap());
    }
    let all = |refs: &[Ref]| refs.iter().map(|&r| get(&made, r)).collect();
    (all(&graph.outputs), all(&graph.next_state))
}

fn done(started: Started) -> Vec<Tensor> {
    let outputs = match started {
        Started::Done(outputs) => outputs,
        Started::Pending(pending) => pending.wait().unwrap(),
        Started::Busy => panic!("busy"),
    };
    let tensor = |output| match output {
        Output::Tensor(tensor) => tensor,
        Output::Bytes(_) => panic!("bytes"),
    };
    outputs.into_iter().map(tensor).collect()
}

/// The worst errors against their bounds, and every failure, so that one run shows them all.
#[derive(Default)]
struct Report {
    worst: BTreeMap<&'static str, f64>,
    failures: Vec<String>,
    programs: usize,
    fused: usize,
}

impl Report {
    fn compare(
        &mut self,
        device: &Device,
        what: &str,
        dtype: DType,
        got: &Tensor,
        expected: &Tensor,
    ) {
        let (got, expected) = (floats(device, got), floats(device, expected));
        assert_eq!(got.len(), expected.len());
        let square = |v: f64| v * v;
        let off: f64 = got.iter().zip(&expected).map(|(a, b)| square(f64::from(a - b))).sum();
        let norm: f64 = expected.iter().map(|&b| square(f64::from(b))).sum();
        let error = (off / norm.max(1e-30)).sqrt() / bound(dtype);
        if error.is_nan() || error > 1.0 {
            self.failures.push(format!("{what}: {error:.2} times the bound"));
        }
        let worst = self.worst.entry(dtype.name()).or_default();
        *worst = worst.max(error);
    }

    /// `kernels` are those of the program's ops, `before` those of the same ops without fusion.
    fn check(&mut self, what: &str, b: &mut Builder, graph: Graph, kernels: usize, before: usize) {
        let device = b.device;
        let mut state: Vec<Tensor> = Vec::new();
        for &next in &graph.next_state {
            // Every state is {batch, units}, as an output of a node with such a bias.
            let Ref::Node(n, _) = next else { panic!("a state that is no node's") };
            let (batch, units) = (graph.inputs[0].shape()[0], hidden(b, &graph.nodes[n]));
            state.push(b.random(&[batch, units], 0.0, 1.0));
        }
        let options = Options { readback: false, instances: 1 };
        let program =
            Program::compile(device, graph.clone(), b.params.clone(), state.clone(), options);
        let program = program.unwrap();
        let info = program.info();
        if (info.steps, info.kernel_nodes) != (kernels, kernels) {
            let got = format!("{} steps, {} kernels", info.steps, info.kernel_nodes);
            self.failures.push(format!("{what}: {got} where {kernels} were expected"));
        }
        self.programs += 1;
        self.fused += before - kernels;
        let session = (!state.is_empty()).then(|| Session::new(&program).unwrap());
        for frame in 0..2 {
            let x = b.random(graph.inputs[0].shape(), 0.0, 1.0);
            let feeds = [Feed::Tensor(&x)];
            let started = match &session {
                Some(session) => session.step(&feeds, Mode::Block),
                None => program.run(&feeds, Mode::Block),
            };
            let outputs = done(started.unwrap());
            let (expected, next) = eager(device, &graph, &b.params, &x, &state);
            for (k, (got, expected)) in outputs.iter().zip(&expected).enumerate() {
                let what = format!("{what} frame {frame} output {k}");
                self.compare(device, &what, b.dtype, got, expected);
            }
            if let Some(session) = &session {
                // Both go on from the session's own, so that no error piles up.
                let now = session.snapshot().unwrap();
                for (k, (got, expected)) in now.iter().zip(&next).enumerate() {
                    let what = format!("{what} frame {frame} state {k}");
                    self.compare(device, &what, b.dtype, got, expected);
                }
                state = now;
            }
        }
    }

    fn finish(self, name: &str) {
        let Report { worst, failures, programs, fused } = self;
        println!("{name}: {programs} programs, {fused} norms fused, of the bound {worst:.3?}");
        assert!(failures.is_empty(), "{}: {}", failures.len(), failures.join("\n"));
        assert!(fused > 0, "no norm was fused");
    }
}

/// The units of a recurrent node, by its bias.
fn hidden(b: &Builder, node: &Node) -> usize {
    let at = if matches!(node.op, Op::Lstm(_)) { 5 } else { 4 };
    match node.inputs[at] {
        Some(Ref::Param(i)) => b.params[i].spec().last() / 4,
        _ => panic!("a layer without a bias"),
    }
}

const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

fn recurrent_programs(name: &str, gates: usize) {
    let Some(device) = cuda(name) else { return };
    let mut report = Report::default();
    for dtype in DTYPES {
        for width in WIDTHS {
            let mut b = Builder::new(&device, dtype);
            let second = if width <= 257 { width } else { 40 };
            let states = gates - 2;
            for batch in BATCHES {
                let x = b.reshape(Ref::Input(0), &[batch, 1, FEATURES]);
                let first = b.recurrent(x, gates, 0, FEATURES, width);
                let x = b.norm(Ref::Node(first, 0), width, gates == 4);
                let last = b.recurrent(x, gates, states, width, second);
                let x = b.norm(Ref::Node(last, 0), second, gates == 3);
                let x = b.reshape(x, &[batch, second]);
                let head = b.dense(x, second, HEADS[gates - 3]);
                let next = |n: usize| (0..states).map(move |k| Ref::Node(n, k + 1));
                let graph = b.graph(batch, vec![head], next(first).chain(next(last)).collect());
                let rows = if batch == 1 { 1 } else { 8 };
                let layer = batch <= 8 && (width + second) * rows <= 4096;
                let kernels = 5 - usize::from(layer) - usize::from(batch <= 8);
                let what = format!("{name} {dtype} batch {batch} width {width}");
                report.check(&what, &mut b, graph, kernels, 5);
            }
        }
    }
    report.finish(name);
}

#[test]
fn lstm_norm_lstm_norm_dense() {
    recurrent_programs("lstm_norm_lstm_norm_dense", 4);
}

#[test]
fn gru_norm_gru_norm_dense() {
    recurrent_programs("gru_norm_gru_norm_dense", 3);
}

#[test]
fn dense_norm_two_heads() {
    let name = "dense_norm_two_heads";
    let Some(device) = cuda(name) else { return };
    let mut report = Report::default();
    for dtype in DTYPES {
        for (width, centred) in WIDTHS.into_iter().flat_map(|w| [(w, true), (w, false)]) {
            let mut b = Builder::new(&device, dtype);
            for batch in BATCHES {
                let x = b.dense(Ref::Input(0), FEATURES, width);
                let x = b.norm(x, width, centred);
                let heads = HEADS.map(|columns| b.dense(x, width, columns)).to_vec();
                let graph = b.graph(batch, heads, vec![]);
                // The kernel for columns that are no whole packs holds one row or eight.
                let rows = if batch == 1 { 1 } else { 8 };
                let fused = batch <= 8 && width * rows <= 4096;
                let what = format!("{name} {dtype} batch {batch} width {width} {centred}");
                report.check(&what, &mut b, graph, 4 - usize::from(fused), 4);
            }
        }
    }
    report.finish(name);
}

/// A dense op with a norm of x in it: the op, and the specs of its inputs.
fn fused_dense(rows: usize, beta: bool) -> (Op, Vec<Option<Spec>>) {
    let norm = Some(FusedNorm { centred: true, epsilon: 1e-5 });
    let spec = |shape: &[usize]| Some(Spec::new(DType::F32, shape).unwrap());
    let beta = if beta { spec(&[8]) } else { None };
    let inputs = vec![spec(&[rows, 8]), spec(&[8, 16]), None, None, spec(&[8]), beta];
    (Op::Dense(Dense { activation: Activation::None, norm }), inputs)
}

#[test]
fn a_fused_norm_has_its_inputs_checked() {
    let specs = |inputs: &[Option<Spec>]| {
        let (op, _) = fused_dense(2, true);
        infer(&op, &inputs.iter().map(Option::as_ref).collect::<Vec<_>>())
    };
    let (_, inputs) = fused_dense(2, true);
    assert_eq!(specs(&inputs).unwrap()[0].shape(), [2, 16]);
    assert!(specs(&inputs[..4]).unwrap_err().to_string().contains("gamma"));
    assert!(specs(&inputs[..5]).unwrap_err().to_string().contains("beta"));
    let mut long = inputs.clone();
    long[5] = Some(Spec::new(DType::F32, [9]).unwrap());
    assert!(specs(&long).is_err());
    let plain = Op::Dense(Dense { activation: Activation::None, norm: None });
    assert!(infer(&plain, &inputs.iter().map(Option::as_ref).collect::<Vec<_>>()).is_err());
}

#[test]
fn a_fused_norm_comes_from_no_caller() {
    type Fields =
        MapDeserializer<'static, std::vec::IntoIter<(&'static str, &'static str)>, Refusal>;
    let fields = |more: &[(&'static str, &'static str)]| -> Fields {
        let all = [&[("activation", "relu")], more].concat();
        MapDeserializer::new(all.into_iter())
    };
    let plain = Dense { activation: Activation::Relu, norm: None };
    assert_eq!(Dense::deserialize(fields(&[])).unwrap(), plain);
    let refused = Dense::deserialize(fields(&[("norm", "layer")])).unwrap_err().to_string();
    assert!(refused.contains("unknown field `norm`"), "{refused}");
}

#[test]
fn the_cpu_takes_no_fused_norm() {
    let device = Device::open(Id::Cpu, None).unwrap();
    assert_eq!(run_fused(&device, 2), "internal");
}

/// The reason of the error that an eager fused op gives.
fn run_fused(device: &Device, rows: usize) -> &'static str {
    let (op, inputs) = fused_dense(rows, true);
    let zeros =
        |spec: Spec| Tensor::from_bytes(device, spec.clone(), &vec![0; spec.bytes()]).unwrap();
    let inputs: Vec<_> = inputs.into_iter().map(|spec| spec.map(zeros)).collect();
    let inputs: Vec<_> = inputs.iter().map(Option::as_ref).collect();
    device.run(&op, &inputs).map_or_else(|error| error.reason(), |_| "none")
}

#[test]
fn the_gpu_says_what_it_does_and_refuses_what_it_cannot() {
    let Some(device) = cuda("the_gpu_says_what_it_does_and_refuses_what_it_cannot") else { return };
    let explain = |rows| {
        let (op, inputs) = fused_dense(rows, true);
        device.explain(&op, &inputs.iter().map(Option::as_ref).collect::<Vec<_>>())
    };
    let explanation = explain(2).unwrap();
    assert_eq!(explanation.launches, 1);
    let ends = "with the layer norm of x in its prologue";
    assert!(explanation.why.ends_with(ends), "{}", explanation.why);
    assert_eq!(explain(9).unwrap_err().reason(), "internal");
    assert_eq!((run_fused(&device, 8), run_fused(&device, 9)), ("none", "internal"));
}
