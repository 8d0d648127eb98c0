use std::collections::{BTreeMap, HashMap};

use nitrox_engine::device::Id;
use nitrox_engine::op::*;
use nitrox_engine::program::{
    Feed, Graph, Mode, Node, Options, Output, Program, Ref, Session, Started,
};
use nitrox_engine::{DType, Device, Spec, Tensor};

pub use crate::eager::eager;
use crate::oracle::{self, Array, Expected};
use crate::rng;

pub const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// The first GPU, where the tests may use it; else says which test is left out.
pub fn cuda(test: &str) -> Option<Device> {
    if std::env::var_os("NITROX_TEST_CUDA").is_none() {
        println!("left out: {test}: NITROX_TEST_CUDA is not set");
        return None;
    }
    Some(Device::open(Id::Cuda(0), None).unwrap())
}

/// How many cases run under a sanitizer, as for the ops.
pub fn thinned() -> Option<usize> {
    std::env::var("NITROX_SANITIZE").ok().and_then(|n| n.parse().ok())
}

/// The bound on the relative L2 between fused and not: rounding in f32; for the rest the rounding
/// of what is between too, which is not stored where it is fused.
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

pub fn floats(device: &Device, x: &Tensor) -> Vec<f32> {
    let bytes = cast(device, x, DType::F32).to_bytes().unwrap();
    bytes.chunks_exact(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap())).collect()
}

/// Graphs under construction, of one type. Each takes the parameters of the one before.
pub struct Builder<'a> {
    pub device: &'a Device,
    pub dtype: DType,
    pub params: Vec<Tensor>,
    /// Those that this graph has taken so far.
    taken: usize,
    pub nodes: Vec<Node>,
    seed: u64,
}

impl<'a> Builder<'a> {
    pub fn new(device: &'a Device, dtype: DType) -> Self {
        let seed = rng::seed();
        Builder { device, dtype, params: vec![], taken: 0, nodes: vec![], seed }
    }

    /// The graph, with an input of this shape; the next one begins.
    pub fn graph(&mut self, input: &[usize], outputs: Vec<Ref>, next_state: Vec<Ref>) -> Graph {
        self.taken = 0;
        let inputs = vec![Spec::new(self.dtype, input).unwrap()];
        Graph { nodes: std::mem::take(&mut self.nodes), inputs, outputs, next_state }
    }

    /// Uniform in offset ± scale.
    pub fn random(&mut self, shape: &[usize], offset: f32, scale: f32) -> Tensor {
        self.random_as(self.dtype, shape, offset, scale)
    }

    pub fn random_as(&mut self, dtype: DType, shape: &[usize], offset: f32, scale: f32) -> Tensor {
        let count: usize = shape.iter().product();
        let mut bytes = Vec::with_capacity(4 * count);
        for _ in 0..count {
            let unit = (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
            bytes.extend_from_slice(&(offset + scale * unit).to_ne_bytes());
        }
        let spec = Spec::new(DType::F32, shape).unwrap();
        let exact = Tensor::from_bytes(self.device, spec, &bytes).unwrap();
        cast(self.device, &exact, dtype)
    }

    fn bits(&mut self) -> u64 {
        self.seed = self.seed.wrapping_mul(6364136223846793005).wrapping_add(1);
        self.seed
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() >> 33) as usize % n
    }

    pub fn integers(&self, values: &[i32]) -> Tensor {
        let spec = Spec::new(DType::S32, [values.len()]).unwrap();
        let bytes: Vec<_> = values.iter().flat_map(|v| v.to_ne_bytes()).collect();
        Tensor::from_bytes(self.device, spec, &bytes).unwrap()
    }

    pub fn param(&mut self, shape: &[usize], offset: f32, scale: f32) -> Option<Ref> {
        if self.taken == self.params.len() {
            let tensor = self.random(shape, offset, scale);
            self.params.push(tensor);
        }
        assert_eq!(self.params[self.taken].spec().shape(), shape);
        self.taken += 1;
        Some(Ref::Param(self.taken - 1))
    }

    /// A parameter of these integers.
    pub fn known(&mut self, values: &[i32]) -> Option<Ref> {
        if self.taken == self.params.len() {
            self.params.push(self.integers(values));
        }
        assert_eq!(self.params[self.taken].spec().dtype, DType::S32);
        self.taken += 1;
        Some(Ref::Param(self.taken - 1))
    }

    pub fn weights(&mut self, rows: usize, columns: usize) -> Option<Ref> {
        self.param(&[rows, columns], 0.0, 1.7 / (rows as f32).sqrt())
    }

    pub fn node(&mut self, op: Op, inputs: Vec<Option<Ref>>) -> usize {
        self.nodes.push(Node { op, inputs });
        self.nodes.len() - 1
    }

    pub fn norm(&mut self, x: Ref, width: usize, centred: bool) -> Ref {
        let mut inputs = vec![Some(x), self.param(&[width], 1.0, 0.5)];
        let attrs = Norm { epsilon: 1e-5 };
        if !centred {
            return Ref::Node(self.node(Op::RmsNorm(attrs), inputs), 0);
        }
        // Far from zero: what leaks into padding is seen.
        inputs.push(self.param(&[width], 1.0, 0.5));
        Ref::Node(self.node(Op::LayerNorm(attrs), inputs), 0)
    }

    pub fn dense(&mut self, x: Ref, input: usize, output: usize) -> Ref {
        let inputs = vec![Some(x), self.weights(input, output), self.param(&[output], 0.0, 0.5)];
        let attrs = Dense { activation: Activation::Tanh, norm: None };
        Ref::Node(self.node(Op::Dense(attrs), inputs), 0)
    }

    pub fn reshape(&mut self, x: Ref, shape: &[usize]) -> Ref {
        let attrs = Reshape { shape: shape.to_vec() };
        Ref::Node(self.node(Op::Reshape(attrs), vec![Some(x)]), 0)
    }

    /// A layer with its states from `state` on; gives its node.
    pub fn recurrent(
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

pub fn done(started: Started) -> Vec<Tensor> {
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

/// What a graph should give, in f64: its outputs and next states.
pub type Exact = fn(&Graph, &[Tensor], &Tensor, &[Tensor]) -> [Vec<Array>; 2];

/// What `graph` gives in f64: its outputs and next states.
pub fn exact(graph: &Graph, params: &[Tensor], x: &Tensor, states: &[Tensor]) -> [Vec<Array>; 2] {
    let array = |t: &Tensor| {
        let array = Array::new(t.spec().clone(), t.to_bytes().unwrap());
        let float = array.dtype().is_float();
        if float { Array::floats(DType::F64, array.shape(), &array.to_f64()) } else { array }
    };
    let mut known: HashMap<Ref, Array> = HashMap::new();
    known.insert(Ref::Input(0), array(x));
    known.extend(params.iter().enumerate().map(|(i, t)| (Ref::Param(i), array(t))));
    known.extend(states.iter().enumerate().map(|(i, t)| (Ref::State(i), array(t))));
    for (n, node) in graph.nodes.iter().enumerate() {
        let inputs: Vec<_> = node.inputs.iter().map(|r| r.map(|r| &known[&r])).collect();
        for (k, expected) in oracle::evaluate(&node.op, &inputs).into_iter().enumerate() {
            let value = match expected {
                Expected::Bits(array) => array,
                Expected::Real(r) => Array::floats(DType::F64, r.spec.shape(), &r.values),
                Expected::Choices(_) => panic!("nothing is drawn"),
            };
            known.insert(Ref::Node(n, k), value);
        }
    }
    [&graph.outputs, &graph.next_state].map(|refs| refs.iter().map(|r| known[r].clone()).collect())
}

/// The worst errors against their bounds, and every failure, so that one run shows them all.
#[derive(Default)]
pub struct Report {
    worst: BTreeMap<&'static str, f64>,
    failures: Vec<String>,
    programs: usize,
    fused: usize,
    /// How many of each type were asked for, also of those that were left out.
    seen: BTreeMap<&'static str, usize>,
}

impl Report {
    pub fn compare(
        &mut self,
        device: &Device,
        what: &str,
        dtype: DType,
        got: &Tensor,
        expected: &Tensor,
    ) {
        let expected: Vec<_> = floats(device, expected).into_iter().map(f64::from).collect();
        self.within(what, dtype, bound(dtype), &floats(device, got), &expected);
    }

    /// The relative L2.
    fn within(&mut self, what: &str, dtype: DType, bound: f64, got: &[f32], expected: &[f64]) {
        assert_eq!(got.len(), expected.len());
        let square = |v: f64| v * v;
        let off: f64 = got.iter().zip(expected).map(|(&a, b)| square(f64::from(a) - b)).sum();
        let norm: f64 = expected.iter().map(|&b| square(b)).sum();
        let error = (off / norm.max(1e-30)).sqrt() / bound;
        if error.is_nan() || error > 1.0 {
            self.failures.push(format!("{what}: {error:.2} times the bound"));
        }
        let worst = self.worst.entry(dtype.name()).or_default();
        *worst = worst.max(error);
    }

    fn compare_exact(&mut self, what: &str, b: &Builder, got: &[Tensor], exact: &[Array]) {
        assert_eq!(got.len(), exact.len());
        for (k, (got, exact)) in got.iter().zip(exact).enumerate() {
            let what = format!("{what} {k} against f64");
            if exact.dtype().is_float() {
                let got = floats(b.device, got);
                self.within(&what, b.dtype, oracle::bound(b.dtype), &got, &exact.to_f64());
            } else if got.to_bytes().unwrap() != exact.bytes {
                self.failures.push(what);
            }
        }
    }

    /// `state` is what the program's states begin as; `kernels` are those of its ops, `before` those
    /// of the same ops without fusion.
    pub fn check(
        &mut self,
        what: &str,
        b: &mut Builder,
        graph: Graph,
        state: Vec<Tensor>,
        kernels: [usize; 2],
    ) {
        self.check_frames(what, b, graph, state, kernels, 2, None);
    }

    /// So many frames, and against the oracle too where there is one.
    pub fn check_frames(
        &mut self,
        what: &str,
        b: &mut Builder,
        graph: Graph,
        mut state: Vec<Tensor>,
        [kernels, before]: [usize; 2],
        frames: usize,
        reference: Option<Exact>,
    ) {
        // Under a sanitizer so many of each type, and two frames of each.
        let thinned = thinned();
        let seen = self.seen.entry(b.dtype.name()).or_default();
        *seen += 1;
        if thinned.is_some_and(|most| *seen > most) {
            return;
        }
        let frames = if thinned.is_some() { frames.min(2) } else { frames };
        let device = b.device;
        let options = Options { readback: false, instances: 1 };
        let program =
            Program::compile(device, graph.clone(), b.params.clone(), state.clone(), options);
        let program = program.unwrap();
        let info = program.info();
        // Above eight rows a product may be cuBLASLt's, with a second kernel for what comes after.
        let rows: usize = graph.inputs[0].shape().split_last().unwrap().1.iter().product();
        let exact = rows > 8 || info.kernel_nodes == kernels;
        if info.steps != kernels || info.kernel_nodes < kernels || !exact {
            let got = format!("{} steps, {} kernels", info.steps, info.kernel_nodes);
            self.failures.push(format!("{what}: {got} where {kernels} were expected"));
        }
        self.programs += 1;
        self.fused += before - kernels;
        let session = (!state.is_empty()).then(|| Session::new(&program).unwrap());
        for frame in 0..frames {
            let x = b.random(graph.inputs[0].shape(), 0.0, 1.0);
            let feeds = [Feed::Tensor(&x)];
            let started = match &session {
                Some(session) => session.step(&feeds, Mode::Block),
                None => program.run(&feeds, Mode::Block),
            };
            let outputs = done(started.unwrap());
            let (expected, next) =
                eager(device, &graph, &b.params, std::slice::from_ref(&x), &state);
            let reference = reference.map(|exact| exact(&graph, &b.params, &x, &state));
            if let Some([exact, _]) = &reference {
                self.compare_exact(&format!("{what} frame {frame} output"), b, &outputs, exact);
            }
            for (k, (got, expected)) in outputs.iter().zip(&expected).enumerate() {
                let what = format!("{what} frame {frame} output {k}");
                self.compare(device, &what, b.dtype, got, expected);
            }
            if let Some(session) = &session {
                // Both go on from the session's own, so that no error piles up.
                let now = session.snapshot().unwrap();
                if let Some([_, exact]) = &reference {
                    self.compare_exact(&format!("{what} frame {frame} state"), b, &now, exact);
                }
                for (k, (got, expected)) in now.iter().zip(&next).enumerate() {
                    let what = format!("{what} frame {frame} state {k}");
                    self.compare(device, &what, b.dtype, got, expected);
                }
                state = now;
            }
        }
    }

    pub fn finish(self, name: &str) {
        let Report { worst, failures, programs, fused, .. } = self;
        println!("{name}: {programs} programs, {fused} kernels fewer, of the bound {worst:.3?}");
        assert!(failures.is_empty(), "{}: {}", failures.len(), failures.join("\n"));
        assert!(fused > 0, "nothing was fused");
    }
}
