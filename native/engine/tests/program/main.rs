//! Programs against the same ops run one by one: whatever the plan does with places, the results
//! are those of the eager ops, bit for bit.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod eager;
mod places;
mod rows;

use std::sync::Arc;

use nitrox_engine::device::{Device, Id};
use nitrox_engine::op::*;
use nitrox_engine::program::{
    Feed, Graph, Mode, Node, Options, Output, Program, Ref, Session, Started,
};
use nitrox_engine::{DType, Spec, Tensor};

use eager::eager;

/// The CPU, and the first GPU where `NITROX_TEST_CUDA` asks for it.
fn devices() -> Vec<Device> {
    let mut devices = vec![Device::open(Id::Cpu, None).unwrap()];
    if std::env::var_os("NITROX_TEST_CUDA").is_some() {
        devices.push(Device::open(Id::Cuda(0), None).unwrap());
    }
    devices
}

fn f32s(shape: &[usize]) -> Spec {
    Spec::new(DType::F32, shape).unwrap()
}

fn tensor(device: &Device, shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::from_bytes(device, f32s(shape), &bytes(values)).unwrap()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_ne_bytes()).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap())).collect()
}

fn values(output: &Output) -> Vec<f32> {
    match output {
        Output::Bytes(bytes) => floats(bytes),
        Output::Tensor(tensor) => floats(&tensor.to_bytes().unwrap()),
    }
}

fn node(op: Op, inputs: &[Ref]) -> Node {
    Node { op, inputs: inputs.iter().map(|&r| Some(r)).collect() }
}

fn binary(kind: BinaryKind, a: Ref, b: Ref) -> Node {
    node(Op::Binary(Binary { kind }), &[a, b])
}

fn put(x: Ref, slice: Ref, starts: &[i64]) -> Node {
    node(Op::PutSlice(PutSlice { starts: starts.to_vec(), axis: 0, wrap: false }), &[x, slice])
}

fn options(readback: bool) -> Options {
    Options { readback, instances: 1 }
}

fn done(started: Started) -> Vec<Output> {
    match started {
        Started::Done(outputs) => outputs,
        Started::Pending(pending) => pending.wait().unwrap(),
        Started::Busy => panic!("busy"),
    }
}

fn step(session: &Session, x: &[f32]) -> Vec<Vec<f32>> {
    let x = bytes(x);
    done(session.step(&[Feed::Bytes(&x)], Mode::Block).unwrap()).iter().map(values).collect()
}

use Ref::{Input, Param, State};
fn n(i: usize) -> Ref {
    Ref::Node(i, 0)
}

fn counter(device: &Device) -> Arc<Program> {
    let graph = Graph {
        nodes: vec![binary(BinaryKind::Add, State(0), Input(0))],
        inputs: vec![f32s(&[1])],
        outputs: vec![n(0)],
        next_state: vec![n(0)],
    };
    let state = vec![tensor(device, &[1], &[0.0])];
    Program::compile(device, graph, vec![], state, options(true)).unwrap()
}

#[test]
fn snapshot_restore_and_fork() {
    for device in devices() {
        let program = counter(&device);
        let session = Session::new(&program).unwrap();
        assert_eq!(step(&session, &[1.0]), [[1.0]]);
        let saved = session.snapshot().unwrap();
        assert_eq!(step(&session, &[1.0]), [[2.0]]);
        let fork = session.fork().unwrap();
        assert_eq!(step(&fork, &[10.0]), [[12.0]]);
        assert_eq!(step(&session, &[1.0]), [[3.0]]);
        assert_eq!(step(&fork, &[10.0]), [[22.0]]);
        session.restore(&saved).unwrap();
        assert_eq!(step(&session, &[1.0]), [[2.0]]);
        // A second session starts from the program's own state.
        assert_eq!(step(&Session::new(&program).unwrap(), &[5.0]), [[5.0]]);
        drop((session, fork, saved));
    }
}

/// x is added to a fading total, and written into a ring at a position that counts up; out come the
/// total and the ring's sum. With a position among the inputs a run can't be thrown away.
fn fading(device: &Device, free: bool) -> Arc<Program> {
    let total = binary(BinaryKind::Multiply, State(0), Param(0));
    let ring = PutSlice { starts: vec![0], axis: 0, wrap: true };
    let position = if free { Input(1) } else { State(2) };
    let sum = Reduce { kind: ReduceKind::Sum, axes: vec![], keep_axes: false };
    let one = Tensor::from_bytes(device, Spec::scalar(DType::S32), &1i32.to_ne_bytes()).unwrap();
    let zero = Tensor::from_bytes(device, Spec::scalar(DType::S32), &0i32.to_ne_bytes()).unwrap();
    let nodes = vec![
        total,
        binary(BinaryKind::Add, n(0), Input(0)),
        node(Op::PutSlice(ring), &[State(1), Input(0), position]),
        node(Op::Reduce(sum), &[n(2)]),
        binary(BinaryKind::Add, State(2), Param(1)),
    ];
    let mut inputs = vec![f32s(&[1])];
    inputs.extend(free.then(|| Spec::scalar(DType::S32)));
    let next_state = vec![n(1), n(2), n(4)];
    let graph = Graph { nodes, inputs, outputs: vec![n(1), n(3)], next_state };
    let state = vec![tensor(device, &[1], &[0.0]), tensor(device, &[7], &[0.0; 7]), zero];
    let params = vec![tensor(device, &[1], &[0.9]), one];
    Program::compile(device, graph, params, state, options(true)).unwrap()
}

/// In either mode. The results of the rehearsal, if there was one.
fn prepare(session: &Session, feeds: &[Feed]) -> Option<Vec<Output>> {
    let rehearsal = match session.prepare(feeds, Mode::Try).unwrap() {
        Some(Started::Busy) => session.prepare(feeds, Mode::Block).unwrap(),
        other => other,
    };
    rehearsal.map(done)
}

#[test]
fn a_rehearsal_gives_what_the_step_after_it_gives() {
    for device in devices() {
        for free in [false, true] {
            let session = Session::new(&fading(&device, free)).unwrap();
            let place = 3i32.to_ne_bytes();
            let mut random = Random(11);
            let mut rehearsed = 0;
            for frame in 0..200 {
                let x = bytes(&random.floats(1));
                let mut feeds = vec![Feed::Bytes(&x[..])];
                feeds.extend(free.then_some(Feed::Bytes(&place)));
                let rehearsal = prepare(&session, &feeds);
                // How long a step takes is not known before the first.
                assert!(frame > 0 || rehearsal.is_none());
                let outputs = done(session.step(&feeds, Mode::Block).unwrap());
                if let Some(results) = rehearsal {
                    rehearsed += 1;
                    let [a, b] =
                        [results, outputs].map(|o| o.iter().map(values).collect::<Vec<_>>());
                    assert_eq!(a, b, "frame {frame} on {:?}", device.id());
                }
            }
            assert_eq!(rehearsed > 0, !free, "{rehearsed} rehearsals on {:?}", device.id());
        }
    }
}

#[test]
fn a_prepared_step_gives_what_it_gives_unprepared() {
    for device in devices() {
        for free in [false, true] {
            let program = fading(&device, free);
            let (plain, prepared) =
                (Session::new(&program).unwrap(), Session::new(&program).unwrap());
            let mut random = Random(7);
            for frame in 0..400 {
                let x = bytes(&random.floats(1));
                let place = (random.below(7) as i32).to_ne_bytes();
                let mut feeds = vec![Feed::Bytes(&x[..])];
                feeds.extend(free.then_some(Feed::Bytes(&place)));
                // Of what it was prepared with nothing is left. In time, about when the device gives up,
                // and too late.
                let other = bytes(&random.floats(1));
                let mut others = feeds.clone();
                others[0] = Feed::Bytes(&other);
                prepare(&prepared, &others);
                let wait = [0, 0, 300, 2_000, 4_900, 4_990, 5_000, 5_010, 5_100, 7_000];
                let wait = wait[if frame < 200 { 0 } else { random.below(wait.len()) }];
                let began = std::time::Instant::now();
                while began.elapsed().as_micros() < wait {
                    std::hint::spin_loop();
                }
                match random.below(12) {
                    0 => prepared.restore(&plain.snapshot().unwrap()).unwrap(),
                    1 => drop(prepared.fork().unwrap()),
                    2 => {
                        let other = prepared.fork().unwrap();
                        other.step(&feeds, Mode::Block).unwrap();
                        prepare(&other, &feeds); // and goes
                    }
                    _ => {}
                }
                let held = Tensor::from_bytes(&device, f32s(&[1]), &x).unwrap();
                if random.below(5) == 0 {
                    feeds[0] = Feed::Tensor(&held);
                }
                let [a, b] = [&plain, &prepared].map(|s| {
                    let mode = if frame % 2 == 0 { Mode::Block } else { Mode::Try };
                    match s.step(&feeds, mode).unwrap() {
                        Started::Busy => done(s.step(&feeds, Mode::Block).unwrap()),
                        Started::Pending(run) => run.wait().unwrap(),
                        Started::Done(outputs) => outputs,
                    }
                });
                let [a, b] = [a, b].map(|o| o.iter().map(values).collect::<Vec<_>>());
                assert_eq!(a, b, "frame {frame}, {wait} µs after, on {:?}", device.id());
            }
            let [a, b] = [plain, prepared].map(|s| {
                let state = s.snapshot().unwrap();
                state.iter().map(|t| t.to_bytes().unwrap()).collect::<Vec<_>>()
            });
            assert_eq!(a, b);
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let device = Device::open(Id::Cpu, None).unwrap();
    let program = counter(&device);
    let x = bytes(&[1.0, 2.0]);
    let session = Session::new(&program).unwrap();
    let error = session.step(&[Feed::Bytes(&x)], Mode::Block).unwrap_err();
    assert_eq!(error.reason(), "argument");
    assert!(error.to_string().contains("4 bytes, got 8"), "{error}");
    assert!(session.step(&[], Mode::Block).is_err());
    assert!(program.run(&[Feed::Bytes(&x[..4])], Mode::Block).is_err());
    let other = Device::open(Id::Cpu, None).unwrap();
    let foreign = tensor(&other, &[1], &[1.0]);
    let error = session.step(&[Feed::Tensor(&foreign)], Mode::Block).unwrap_err();
    assert_eq!(error.reason(), "device");
    assert!(session.restore(&[]).is_err());
    for bad in [
        Graph { nodes: vec![], inputs: vec![], outputs: vec![n(0)], next_state: vec![] },
        Graph { nodes: vec![], inputs: vec![], outputs: vec![Param(1)], next_state: vec![] },
        Graph { nodes: vec![], inputs: vec![], outputs: vec![], next_state: vec![State(0)] },
        // A node that reads itself.
        Graph {
            nodes: vec![node(Op::Unary(Unary { kind: UnaryKind::Abs }), &[n(0)])],
            inputs: vec![],
            outputs: vec![],
            next_state: vec![],
        },
    ] {
        assert!(Program::compile(&device, bad, vec![], vec![], options(true)).is_err());
    }
}

#[test]
fn many_threads_share_a_program_and_a_session() {
    for device in devices() {
        let graph = Graph {
            nodes: vec![binary(BinaryKind::Add, Input(0), Input(0))],
            inputs: vec![f32s(&[1000])],
            outputs: vec![n(0)],
            next_state: vec![],
        };
        let options = Options { readback: true, instances: 3 };
        let program = Program::compile(&device, graph, vec![], vec![], options).unwrap();
        let session = Session::new(&counter(&device)).unwrap();
        std::thread::scope(|scope| {
            for t in 0..64 {
                let (program, session) = (&program, &session);
                scope.spawn(move || {
                    let mut last = 0.0;
                    for i in 0..20 {
                        let v = (t * 100 + i) as f32;
                        let x = bytes(&vec![v; 1000]);
                        let out = done(program.run(&[Feed::Bytes(&x)], Mode::Block).unwrap());
                        assert_eq!(values(&out[0]), vec![2.0 * v; 1000]);
                        let count = step(session, &[1.0])[0][0];
                        assert!(count > last, "a later call saw an earlier state");
                        last = count;
                    }
                });
            }
        });
        assert_eq!(step(&session, &[0.0]), [[64.0 * 20.0]]);
    }
}

#[test]
fn memory_returns_when_all_is_dropped() {
    for device in devices() {
        let program = counter(&device);
        let session = Session::new(&program).unwrap();
        let fork = session.fork().unwrap();
        let kept = session.snapshot().unwrap();
        step(&fork, &[1.0]);
        assert!(device.stats().in_use > 0);
        drop((program, session, fork, kept));
        device.synchronize().unwrap();
        assert_eq!(device.stats().in_use, 0);
        assert_eq!(device.stats().allocations, 0);
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    fn floats(&mut self, n: usize) -> Vec<f32> {
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
                    let host: Vec<_> =
                        graph.inputs.iter().map(|_| bytes(&random.floats(60))).collect();
                    prepare(&session, &host.iter().map(|b| Feed::Bytes(b)).collect::<Vec<_>>());
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

/// Tensors of some pages go in and come out where they lie on the CPU: inputs that are outputs, one
/// value under two shapes, a value that is read again, and results that later runs leave alone.
#[test]
fn large_tensors() {
    for device in devices() {
        let shape = [64, 64];
        let unary = |kind, x| node(Op::Unary(Unary { kind }), &[x]);
        let flat = Op::Reshape(Reshape { shape: vec![64 * 64] });
        let half = Op::Slice(Slice {
            starts: vec![32, 0],
            lengths: vec![32, 64],
            strides: vec![1, 1],
            axis: 0,
            wrap: false,
        });
        let graph = Graph {
            nodes: vec![
                binary(BinaryKind::Add, Input(0), Input(1)),
                unary(UnaryKind::Negate, Ref::Node(0, 0)),
                node(flat, &[Ref::Node(0, 0)]),
                Node { op: half, inputs: vec![Some(Ref::Node(1, 0)), None] },
                unary(UnaryKind::Abs, Ref::Node(3, 0)),
            ],
            inputs: vec![f32s(&shape), f32s(&shape)],
            outputs: vec![
                Ref::Node(0, 0),
                Input(1),
                Ref::Node(2, 0),
                Ref::Node(1, 0),
                Ref::Node(0, 0),
                Ref::Node(4, 0),
                Ref::Node(3, 0),
            ],
            next_state: vec![],
        };
        let program = Program::compile(&device, graph, vec![], vec![], options(false)).unwrap();
        let values_of = |k: f32| (0..64 * 64).map(|i| i as f32 * k).collect::<Vec<_>>();
        let b = values_of(0.5);
        let mut runs = Vec::new();
        for k in 1..4 {
            let a = values_of(k as f32);
            let feeds = [tensor(&device, &shape, &a), tensor(&device, &shape, &b)];
            let mixed = [Feed::Tensor(&feeds[0]), Feed::Bytes(&bytes(&b))];
            for feeds in [feeds.each_ref().map(Feed::Tensor), mixed] {
                match program.run(&feeds, Mode::Block).unwrap() {
                    Started::Done(outputs) => runs.push((a.clone(), outputs)),
                    Started::Pending(run) => runs.push((a.clone(), run.wait().unwrap())),
                    Started::Busy => panic!("a blocking run was refused"),
                }
            }
            assert_eq!(floats(&feeds[0].to_bytes().unwrap()), a, "an input was written to");
        }
        for (a, outputs) in runs {
            let sum: Vec<f32> = a.iter().zip(&b).map(|(x, y)| x + y).collect();
            let negative: Vec<f32> = sum.iter().map(|x| -x).collect();
            let half = negative[32 * 64..].to_vec();
            let expected = [
                sum.clone(),
                b.clone(),
                sum.clone(),
                negative,
                sum.clone(),
                sum[32 * 64..].to_vec(),
                half,
            ];
            for (output, expected) in outputs.iter().zip(&expected) {
                assert_eq!(&values(output), expected);
            }
        }
    }
}
