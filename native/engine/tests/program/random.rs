//! Random programs, eagerly and planned.

use nitrox_engine::op::*;
use nitrox_engine::program::Ref::{self, Input, Param, State};
use nitrox_engine::program::{Feed, Graph, Mode, Output, Program, Session};

use crate::{binary, devices, done, eager, f32s, n, node, options, put, tensor};

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    pub fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.below(2001) as f32 / 1000.0 - 1.0).collect()
    }
}

/// The shape of every value but the slices: rank 2, so that a reshape and a transpose matter.
const SHAPE: [usize; 2] = [6, 10];

/// A program of random nodes over values of one shape.
fn random_graph(random: &mut Random) -> (Graph, usize, usize) {
    let (params, inputs, states) = (random.below(3), 1 + random.below(2), 1 + random.below(4));
    let mut known: Vec<Ref> = (0..params).map(Param).collect();
    known.extend((0..inputs).map(Input));
    known.extend((0..states).map(State));
    let mut nodes = Vec::new();
    for _ in 0..random.below(14) {
        // Recent values more often, so that chains form.
        let pick = |random: &mut Random| {
            let from = if random.below(2) == 0 { known.len().saturating_sub(3) } else { 0 };
            known[from + random.below(known.len() - from)]
        };
        let (a, b) = (pick(random), pick(random));
        let next = nodes.len();
        match random.below(6) {
            5 => {
                // A part that lies together, begins at any row, and stands for the whole in the end.
                let (from, rows) = (random.below(6) as i64, 1 + random.below(3));
                let part = Slice {
                    starts: vec![from, 0],
                    lengths: vec![rows, 10],
                    strides: vec![1, 1],
                    axis: 0,
                    wrap: false,
                };
                nodes.push(node(Op::Slice(part), &[a]));
                nodes.push(node(Op::Unary(Unary { kind: UnaryKind::Negate }), &[n(next)]));
                nodes.push(put(b, n(next + random.below(2)), &[random.below(4) as i64, 0]));
            }
            0 => nodes.push(binary(BinaryKind::Max, a, b)),
            1 => nodes.push(node(Op::Unary(Unary { kind: UnaryKind::Negate }), &[a])),
            2 => {
                // There and back through another shape.
                nodes.push(node(Op::Reshape(Reshape { shape: vec![60] }), &[a]));
                nodes.push(node(Op::Reshape(Reshape { shape: SHAPE.to_vec() }), &[n(next)]));
            }
            _ => {
                let slice = Slice {
                    starts: vec![random.below(6) as i64, 0],
                    lengths: vec![2, 7],
                    strides: vec![1, 1],
                    axis: 0,
                    wrap: true,
                };
                nodes.push(node(Op::Slice(slice), &[b]));
                let start = [random.below(6) as i64, random.below(5) as i64];
                nodes.push(put(a, n(next), &start));
            }
        }
        known.push(n(nodes.len() - 1));
    }
    let mut pick = || known[random.below(known.len())];
    let outputs = (0..3).map(|_| pick()).collect();
    let next_state = (0..states).map(|_| pick()).collect();
    let graph = Graph { nodes, inputs: vec![f32s(&SHAPE); inputs], outputs, next_state };
    (graph, params, states)
}

#[test]
fn random_programs_equal_their_ops_run_one_by_one() {
    let seed =
        std::env::var("NITROX_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| {
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos()
                as u64
        });
    println!("NITROX_SEED={seed}");
    for device in devices() {
        let mut random = Random(seed);
        for case in 0..300 {
            let (graph, params, states) = random_graph(&mut random);
            let fresh = |random: &mut Random| tensor(&device, &SHAPE, &random.floats(60));
            let params: Vec<_> = (0..params).map(|_| fresh(&mut random)).collect();
            let mut state: Vec<_> = (0..states).map(|_| fresh(&mut random)).collect();
            let program = Program::compile(
                &device,
                graph.clone(),
                params.clone(),
                state.clone(),
                options(case % 2 == 0),
            )
            .unwrap();
            let session = Session::new(&program).unwrap();
            for frame in 0..4 {
                if random.below(3) == 0 {
                    session.prepare(Mode::Block).unwrap();
                }
                let inputs: Vec<_> = graph.inputs.iter().map(|_| fresh(&mut random)).collect();
                let host: Vec<_> = inputs.iter().map(|t| t.to_bytes().unwrap()).collect();
                let as_bytes = frame % 2 == 0;
                let feeds: Vec<_> = inputs
                    .iter()
                    .zip(&host)
                    .map(|(t, b)| if as_bytes { Feed::Bytes(b) } else { Feed::Tensor(t) })
                    .collect();
                let outputs = done(session.step(&feeds, Mode::Block).unwrap());
                let (expected, next) = eager(&device, &graph, &params, &inputs, &state);
                state = next;
                for (k, (got, expected)) in outputs.iter().zip(&expected).enumerate() {
                    let got = match got {
                        Output::Bytes(bytes) => bytes.clone(),
                        Output::Tensor(tensor) => tensor.to_bytes().unwrap(),
                    };
                    assert_eq!(
                        got,
                        expected.to_bytes().unwrap(),
                        "seed {seed} case {case} frame {frame} output {k} on {:?}: {graph:#?}",
                        device.id()
                    );
                }
                for (k, (got, expected)) in
                    session.snapshot().unwrap().iter().zip(&state).enumerate()
                {
                    assert_eq!(
                        got.to_bytes().unwrap(),
                        expected.to_bytes().unwrap(),
                        "seed {seed} case {case} frame {frame} state {k}: {graph:#?}"
                    );
                }
            }
        }
    }
}
