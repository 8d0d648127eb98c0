//! One op at a time on the GPU, beside `bench/peers.py`: the median of CUDA-graph replays of many
//! calls in a row, less those of one call, so that only the calls are in the figure.
//!
//! `cargo bench --bench gpu -- [part of a name …]` prints a JSON line a case, as
//! `bench/results/h200.jsonl` keeps them. `NITROX_COMMIT` and `NITROX_DATE` say what was timed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cases;

use std::time::{Duration, Instant};

use cases::{Case, cases};
use nitrox_engine::Tensor;
use nitrox_engine::device::{Device, Id};
use nitrox_engine::op::{Norm, Op};
use nitrox_engine::program::{Graph, Mode, Node, Options, Program, Ref, Started};

/// What a graph should take at least, so that its launch is lost in it.
const GRAPH: f64 = 3000.0;
const MOST_CALLS: usize = 200;
const TIME: Duration = Duration::from_millis(150);

/// µs of a graph of so many calls.
fn time(device: &Device, case: &Case, given: &[Option<Tensor>], calls: usize) -> f64 {
    let mut params: Vec<Tensor> = Vec::new();
    let mut param = |tensor: Tensor| {
        params.push(tensor);
        Ref::Param(params.len() - 1)
    };
    let refs: Vec<_> = given.iter().map(|t| t.clone().map(&mut param)).collect();
    let norm = case.norm.as_ref().map(|affine| {
        affine
            .clone()
            .map(|(dtype, shape, range)| Some(param(cases::tensor(device, dtype, &shape, range))))
    });
    let mut nodes: Vec<Node> = Vec::new();
    for i in 0..calls {
        let mut inputs = refs.clone();
        // One figure's layers stand upon each other, and not upon those of the one before.
        if i > 0 && (case.layers == 1 || i % case.layers > 0) && chains(case) {
            inputs[0] = Some(Ref::Node(nodes.len() - 1, 0));
        }
        if let Some([gamma, beta]) = norm {
            let op = Op::LayerNorm(Norm { epsilon: 1e-5 });
            nodes.push(Node { op, inputs: vec![inputs[0], gamma, beta] });
            inputs[0] = Some(Ref::Node(nodes.len() - 1, 0));
        }
        nodes.push(Node { op: case.op.clone(), inputs });
    }
    // What nobody reads is computed all the same, in the order given.
    let outputs = vec![Ref::Node(nodes.len() - 1, case.output)];
    let graph = Graph { nodes, inputs: vec![], outputs, next_state: vec![] };
    let options = Options { readback: false, instances: 1 };
    let program = Program::compile(device, graph, params, vec![], options).unwrap();
    let (mut times, began) = (Vec::new(), Instant::now());
    while times.len() < 5 || began.elapsed() < TIME {
        let start = Instant::now();
        let Started::Done(_outputs) = program.run(&[], Mode::Block).unwrap() else {
            panic!("a blocking run is done when it returns")
        };
        device.synchronize().unwrap();
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    times.drain(..times.len() / 10); // the first runs load and warm up
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Whether a call's first output can be the next one's first input.
fn chains(case: &Case) -> bool {
    match (&case.op, &case.inputs[..]) {
        (Op::Dense(_), [Some((_, x, _)), Some((_, w, _)), ..]) => x.last() == w.last(),
        (Op::TriangularSolve(_), _) => false,
        // A program would make one op of several layers.
        (Op::Lstm(_) | Op::Gru(_), [Some((_, x, _)), ..]) => case.layers > 1 || x[1] == 1,
        _ => true,
    }
}

fn main() {
    let wanted: Vec<_> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let device = match Device::open(Id::Cuda(0), None) {
        Ok(device) => device,
        Err(error) => return println!("left out: {error}"),
    };
    let said = |name| std::env::var(name).unwrap_or_default();
    let (commit, date) = (said("NITROX_COMMIT"), said("NITROX_DATE"));
    let named = |c: &Case| wanted.is_empty() || wanted.iter().any(|w| c.name.contains(w));
    for case in cases().into_iter().filter(named) {
        let given = case.tensors(&device);
        let specs: Vec<_> = given.iter().map(|t| t.as_ref().map(Tensor::spec)).collect();
        let explained = device.explain(&case.op, &specs).unwrap();
        // Whole nets, each of so many calls.
        let one = time(&device, &case, &given, case.layers);
        let nets = ((GRAPH / one).ceil() as usize).clamp(8, MOST_CALLS);
        let many = time(&device, &case, &given, (nets + 1) * case.layers);
        println!(
            "{{\"case\": \"{}\", \"variant\": \"{}\", \"launches\": {}, \"us\": {:.2}, \
             \"commit\": \"{commit}\", \"date\": \"{date}\"}}",
            case.name,
            explained.variant,
            explained.launches,
            (many - one) / nets as f64
        );
    }
}
