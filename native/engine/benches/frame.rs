//! What a policy frame costs from Rust: the step forms of `bench/frame_time.exs` as programs, the
//! draw of the action with them, host bytes in and out. That bench has the same frames from Elixir;
//! the difference is the cost of the call. `least` is a network of next to nothing, so that the call
//! is most of it.
//!
//! A frame comes back to back, at 60 Hz, or after 64 MB of other memory were read, which leaves the
//! caches as a sleep on a busy machine does; the latter two also prepared. "Ready" is prepared again and
//! again until the frame is due, as `Nitrox.Session.prepare_until/2` does.
//!
//! `cargo bench --bench frame -- [cpu|cuda] [frames] [paced frames] [kinds]` prints a JSON line a
//! case; kinds are `least,mlp,lstm,gru,attention` or some of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::{Duration, Instant};

use nitrox_engine::device::{Device, Id};
use nitrox_engine::op::*;
use nitrox_engine::program::{
    Feed, Graph, Mode, Node, Options, Output, Program, Ref, Session, Started,
};
use nitrox_engine::{DType, Spec, Tensor};

/// What is read between frames that are to find the caches cold.
const OTHER: usize = 64 << 20;

/// Numbers in, and logits out.
fn sizes(kind: &str) -> (usize, usize) {
    if kind == "least" { (16, 4) } else { (288, 53) }
}

fn spec(shape: &[usize]) -> Spec {
    Spec::new(DType::F32, shape).unwrap()
}

/// A graph under construction, with random parameters of scale 1/√fan-in.
struct Builder<'a> {
    device: &'a Device,
    params: Vec<Tensor>,
    nodes: Vec<Node>,
    seed: u64,
}

impl Builder<'_> {
    fn param(&mut self, shape: &[usize]) -> Ref {
        let scale = 1.0 / (shape[0] as f32).sqrt();
        let count: usize = shape.iter().product();
        let values: Vec<u8> = (0..count)
            .flat_map(|_| {
                self.seed = self.seed.wrapping_mul(6364136223846793005).wrapping_add(1);
                (((self.seed >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * scale).to_ne_bytes()
            })
            .collect();
        self.params.push(Tensor::from_bytes(self.device, spec(shape), &values).unwrap());
        Ref::Param(self.params.len() - 1)
    }

    fn node(&mut self, op: Op, inputs: &[Option<Ref>]) -> usize {
        self.nodes.push(Node { op, inputs: inputs.to_vec() });
        self.nodes.len() - 1
    }

    fn dense(&mut self, x: Ref, input: usize, output: usize, activation: Activation) -> Ref {
        let (w, b) = (self.param(&[input, output]), self.param(&[output]));
        Ref::Node(
            self.node(Op::Dense(Dense { activation, norm: None }), &[Some(x), Some(w), Some(b)]),
            0,
        )
    }

    fn reshape(&mut self, x: Ref, shape: &[usize]) -> Ref {
        let op = Op::Reshape(Reshape { shape: shape.to_vec() });
        Ref::Node(self.node(op, &[Some(x)]), 0)
    }

    /// A part along the first axis.
    fn slice(&mut self, x: Ref, start: usize, lengths: &[usize]) -> Ref {
        let mut starts = vec![0; lengths.len()];
        starts[0] = start as i64;
        let (lengths, strides) = (lengths.to_vec(), vec![1; lengths.len()]);
        let op = Op::Slice(Slice { starts, lengths, strides, axis: 0, wrap: false });
        Ref::Node(self.node(op, &[Some(x)]), 0)
    }

    fn rms_norm(&mut self, x: Ref, width: usize) -> Ref {
        let gamma = self.param(&[width]);
        Ref::Node(self.node(Op::RmsNorm(Norm { epsilon: 1e-5 }), &[Some(x), Some(gamma)]), 0)
    }

    fn product(&mut self, x: Ref, input: usize, output: usize, residual: Option<Ref>) -> Ref {
        let w = self.param(&[input, output]);
        let op = Op::Dense(Dense { activation: Activation::None, norm: None });
        Ref::Node(self.node(op, &[Some(x), Some(w), None, residual]), 0)
    }

    /// A layer of 4 heads of 64 over the ring of the last 60 frames, as a backbone has it: what comes out,
    /// and the ring.
    fn attention(&mut self, x: Ref, ring: Ref, turns: Ref) -> [Ref; 2] {
        let normed = self.rms_norm(x, 256);
        let qkv = self.product(normed, 256, 768, None);
        let rows = self.reshape(qkv, &[1, 3, 4, 64]);
        let rope = Rope { base: 1e4, scale: 1.0, dims: None, interleaved: false };
        let turned = Ref::Node(self.node(Op::Rope(rope), &[Some(rows), Some(turns)]), 0);
        let apart = self.reshape(turned, &[3, 1, 4, 64]);
        let q = self.slice(apart, 0, &[1, 1, 4, 64]);
        let kv = self.slice(apart, 1, &[2, 1, 4, 64]);
        let kv = self.reshape(kv, &[2, 1, 1, 4, 64]);
        let first = self.slice(turns, 0, &[1]);
        let number = Some(self.reshape(first, &[]));
        let put = Op::PutSlice(PutSlice { starts: vec![0; 5], axis: 2, wrap: true });
        let ring = Ref::Node(self.node(put, &[Some(ring), Some(kv), number]), 0);
        let [keys, values] = [0, 1].map(|half| {
            let half = self.slice(ring, half, &[1, 1, 60, 4, 64]);
            self.reshape(half, &[1, 60, 4, 64])
        });
        let q = self.reshape(q, &[1, 1, 4, 64]);
        let attend = Op::FlashAttention(FlashAttention {
            scale: None,
            causal: true,
            left: None,
            right: None,
            softcap: None,
            offset: None,
            lse: false,
        });
        let inputs = [Some(q), Some(keys), Some(values), None, None, None, number];
        let seen = Ref::Node(self.node(attend, &inputs), 0);
        let seen = self.reshape(seen, &[1, 1, 256]);
        let sum = self.product(seen, 256, 256, Some(x));
        let normed = self.rms_norm(sum, 256);
        let inner = self.dense(normed, 256, 256, Activation::Gelu);
        [self.product(inner, 256, 256, Some(sum)), ring]
    }

    fn layer_norm(&mut self, x: Ref, width: usize) -> Ref {
        let (gamma, beta) = (self.param(&[width]), self.param(&[width]));
        let op = Op::LayerNorm(Norm { epsilon: 1e-5 });
        Ref::Node(self.node(op, &[Some(x), Some(gamma), Some(beta)]), 0)
    }
}

fn program(device: &Device, kind: &str) -> std::sync::Arc<Program> {
    let mut g = Builder { device, params: vec![], nodes: vec![], seed: 42 };
    let mut state = Vec::new();
    let mut next_state = Vec::new();
    let hidden = 256;
    let (features, actions) = sizes(kind);
    let head = match kind {
        "least" => {
            let x = g.dense(Ref::Input(0), features, 16, Activation::Relu);
            g.dense(x, 16, actions, Activation::None)
        }
        "mlp" => {
            let x = g.dense(Ref::Input(0), features, 512, Activation::Relu);
            let x = g.dense(x, 512, 512, Activation::Relu);
            g.dense(x, 512, actions, Activation::None)
        }
        "attention" => {
            let turns = Ref::State(2);
            let x = g.dense(Ref::Input(0), features, hidden, Activation::None);
            let mut x = g.reshape(x, &[1, 1, hidden]);
            for layer in 0..2 {
                let shape = spec(&[2, 1, 60, 4, 64]);
                let zeros = vec![0; shape.bytes()];
                state.push(Tensor::from_bytes(device, shape, &zeros).unwrap());
                let ring;
                [x, ring] = g.attention(x, Ref::State(layer), turns);
                next_state.push(ring);
            }
            let integers = |values: [i32; 3]| {
                let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_ne_bytes()).collect();
                Tensor::from_bytes(device, Spec::new(DType::S32, [3]).unwrap(), &bytes).unwrap()
            };
            state.push(integers([0; 3]));
            g.params.push(integers([1, 1, 0]));
            let step = Ref::Param(g.params.len() - 1);
            let add = Op::Binary(Binary { kind: BinaryKind::Add });
            next_state.push(Ref::Node(g.node(add, &[Some(turns), Some(step)]), 0));
            let x = g.rms_norm(x, hidden);
            let x = g.reshape(x, &[1, hidden]);
            g.dense(x, hidden, actions, Activation::None)
        }
        _ => {
            let (gates, states) = if kind == "lstm" { (4, 2) } else { (3, 1) };
            let mut x = g.reshape(Ref::Input(0), &[1, 1, features]);
            let mut width = features;
            for _ in 0..2 {
                let (wi, wh) =
                    (g.param(&[width, gates * hidden]), g.param(&[hidden, gates * hidden]));
                let b = g.param(&[4 * hidden]);
                let mut inputs = vec![Some(x)];
                for _ in 0..states {
                    inputs.push(Some(Ref::State(state.len())));
                    let zeros = vec![0; 4 * hidden];
                    state.push(Tensor::from_bytes(device, spec(&[1, hidden]), &zeros).unwrap());
                }
                inputs.extend([Some(wi), Some(wh), Some(b)]);
                let attrs = Recurrent { reverse: false, norm: None };
                let op = if kind == "lstm" { Op::Lstm(attrs) } else { Op::Gru(attrs) };
                let n = g.node(op, &inputs);
                next_state.extend((0..states).map(|k| Ref::Node(n, k + 1)));
                x = g.layer_norm(Ref::Node(n, 0), hidden);
                width = hidden;
            }
            let x = g.reshape(x, &[1, hidden]);
            g.dense(x, hidden, actions, Activation::None)
        }
    };
    let counter = Some(Ref::State(state.len()));
    state.push(Tensor::from_bytes(device, Spec::scalar(DType::S32), &[0; 4]).unwrap());
    let draw = Op::Sample(Sample { temperature: 1.0, top_k: None, top_p: None, seed: 1 });
    let n = g.node(draw, &[Some(head), counter]);
    next_state.push(Ref::Node(n, 1));
    let graph = Graph {
        nodes: g.nodes,
        inputs: vec![spec(&[1, features])],
        outputs: vec![Ref::Node(n, 0), head],
        next_state,
    };
    let options = Options { readback: true, instances: 1 };
    Program::compile(device, graph, g.params, state, options).unwrap()
}

fn results(session: &Session, started: Started, feeds: &[Feed]) -> Vec<Output> {
    match started {
        Started::Done(outputs) => outputs,
        Started::Pending(pending) => pending.wait().unwrap(),
        Started::Busy => match session.step(feeds, Mode::Block).unwrap() {
            Started::Done(outputs) => outputs,
            _ => panic!("a blocking step is done when it returns"),
        },
    }
}

fn frame(session: &Session, x: &[u8]) -> f64 {
    let began = Instant::now();
    let feeds = [Feed::Bytes(x)];
    let outputs = results(session, session.step(&feeds, Mode::Try).unwrap(), &feeds);
    let took = began.elapsed().as_secs_f64() * 1e6;
    assert_eq!(outputs.len(), 2);
    took
}

fn prepare(session: &Session, x: &[u8]) {
    let feeds = [Feed::Bytes(x)];
    match session.prepare(&feeds, Mode::Try).unwrap() {
        Some(Started::Pending(run)) => drop(run.wait().unwrap()),
        Some(Started::Busy) => drop(session.prepare(&feeds, Mode::Block).unwrap()),
        Some(Started::Done(_)) | None => {}
    }
}

/// As `Nitrox.Session.prepare_until/2`, after the first time.
fn ready_until(due: Instant, prepare: impl Fn()) {
    let wait = |time| {
        while Instant::now() < time {
            std::hint::spin_loop();
        }
    };
    loop {
        let began = Instant::now();
        prepare();
        let ended = Instant::now();
        let last = due - 2 * (ended - began) - Duration::from_micros(50);
        let next = last.min(ended + Duration::from_micros(250));
        if next <= ended {
            return wait(due);
        }
        wait(next);
    }
}

fn report(kind: &str, device: &Device, how: &str, kernels: usize, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    let at = |q: f64| times[((times.len() - 1) as f64 * q).round() as usize];
    println!(
        "{{\"case\": \"frame/{kind}\", \"device\": \"{}\", \"from\": \"rust\", \"pacing\": \"{how}\", \
         \"frames\": {}, \"kernel_nodes\": {kernels}, \"p10\": {:.2}, \"p50\": {:.2}, \"p95\": {:.1}, \"p99\": {:.1}, \
         \"p999\": {:.1}, \"max\": {:.1}}}",
        device.id(),
        times.len(),
        at(0.1),
        at(0.5),
        at(0.95),
        at(0.99),
        at(0.999),
        at(1.0)
    );
}

fn main() {
    let args: Vec<_> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let id = if args.first().is_some_and(|a| a == "cuda") { Id::Cuda(0) } else { Id::Cpu };
    let count = |i: usize, default| args.get(i).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (frames, paced) = (count(1, 5000), count(2, 600));
    let kinds = args.get(3).map_or("least,mlp,lstm,gru,attention", String::as_str);
    let device = Device::open(id, None).unwrap();
    let other = vec![1u8; OTHER];
    for kind in kinds.split(',') {
        let program = program(&device, kind);
        let session = Session::new(&program).unwrap();
        let kernels = program.info().kernel_nodes;
        let x: Vec<u8> =
            (0..sizes(kind).0).flat_map(|i| (i as f32 / 288.0).to_ne_bytes()).collect();
        for _ in 0..200 {
            frame(&session, &x);
        }
        let times = (0..frames).map(|_| frame(&session, &x)).collect();
        report(kind, &device, "back to back", kernels, times);
        let period = Duration::from_nanos(16_666_667);
        for how in ["60 Hz", "60 Hz, prepared", "60 Hz, ready"] {
            let mut next = Instant::now();
            let mut times = Vec::new();
            for _ in 0..paced {
                next += period;
                if how != "60 Hz" {
                    let early = next - Duration::from_micros(1500);
                    std::thread::sleep(early.saturating_duration_since(Instant::now()));
                    prepare(&session, &x);
                }
                if how == "60 Hz, ready" {
                    ready_until(next, || prepare(&session, &x));
                } else {
                    std::thread::sleep(next.saturating_duration_since(Instant::now()));
                }
                times.push(frame(&session, &x));
            }
            report(kind, &device, how, kernels, times);
        }
        for prepared in [false, true] {
            let mut times = Vec::new();
            for _ in 0..paced {
                std::hint::black_box(other.iter().step_by(64).map(|&b| b as u64).sum::<u64>());
                if prepared {
                    prepare(&session, &x);
                    let began = Instant::now();
                    while began.elapsed() < Duration::from_micros(300) {
                        std::hint::spin_loop();
                    }
                }
                times.push(frame(&session, &x));
            }
            let how = if prepared { "cold, prepared" } else { "cold" };
            report(kind, &device, how, kernels, times);
        }
    }
}
