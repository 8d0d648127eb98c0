//! Memory that runs out in the middle of a program, on each device: what was held is whole, the run
//! has not begun, and the next one works. `NITROX_TEST_CUDA=1` runs the GPU's part.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use nitrox_engine::op::{Binary, BinaryKind, Op, PutSlice, Reshape};
use nitrox_engine::program::{Node, Options, Ref, Session};
use nitrox_engine::{
    DType, Device, Error, Feed, Graph, Id, Mode, Output, Program, Spec, Started, Tensor,
};

const LIMIT: usize = 32 << 20;
/// Elements of the output: three of them fit, beside the rest.
const WIDE: usize = 2 << 20;

fn cuda(test: &str) -> Option<Device> {
    if std::env::var("NITROX_TEST_CUDA").as_deref() != Ok("1") {
        println!("left out: {test}: NITROX_TEST_CUDA is not 1");
        return None;
    }
    Some(Device::open(Id::Cuda(0), Some(LIMIT)).unwrap())
}

fn scalar(device: &Device, x: f32) -> Tensor {
    Tensor::from_bytes(device, Spec::scalar(DType::F32), &x.to_ne_bytes()).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    let bytes = tensor.to_bytes().unwrap();
    bytes.chunks_exact(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap())).collect()
}

/// Adds x to a sum, puts x into a ring, and gives out the sum many times over.
fn program(device: &Device) -> std::sync::Arc<Program> {
    let at = Tensor::from_bytes(device, Spec::scalar(DType::S32), &1i32.to_ne_bytes()).unwrap();
    let ring = Spec::new(DType::F32, [4]).unwrap();
    let ring = Tensor::from_bytes(device, ring, &[0; 16]).unwrap();
    let add = || Op::Binary(Binary { kind: BinaryKind::Add });
    let node = |op, inputs: &[Option<Ref>]| Node { op, inputs: inputs.to_vec() };
    let put = PutSlice { starts: vec![0], axis: 0, wrap: true };
    let graph = Graph {
        nodes: vec![
            node(add(), &[Some(Ref::State(0)), Some(Ref::Input(0))]),
            node(Op::Reshape(Reshape { shape: vec![1] }), &[Some(Ref::Input(0))]),
            node(
                Op::PutSlice(put),
                &[Some(Ref::State(1)), Some(Ref::Node(1, 0)), Some(Ref::State(2))],
            ),
            node(add(), &[Some(Ref::State(2)), Some(Ref::Param(0))]),
            node(Op::Broadcast(Reshape { shape: vec![WIDE] }), &[Some(Ref::Node(0, 0))]),
        ],
        inputs: vec![Spec::scalar(DType::F32)],
        outputs: vec![Ref::Node(4, 0)],
        next_state: vec![Ref::Node(0, 0), Ref::Node(2, 0), Ref::Node(3, 0)],
    };
    let start = Tensor::from_bytes(device, Spec::scalar(DType::S32), &[0; 4]).unwrap();
    let options = Options { readback: false, instances: 1 };
    let state = vec![scalar(device, 0.0), ring, start];
    Program::compile(device, graph, vec![at], state, options).unwrap()
}

fn step(session: &Session, x: &Tensor) -> Result<Tensor, Error> {
    match session.step(&[Feed::Tensor(x)], Mode::Block)? {
        Started::Done(mut outputs) => match outputs.remove(0) {
            Output::Tensor(tensor) => Ok(tensor),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

fn state(session: &Session) -> Vec<Vec<u8>> {
    session.snapshot().unwrap().iter().map(|t| t.to_bytes().unwrap()).collect()
}

fn runs_out(device: &Device) {
    let session = Session::new(&program(device)).unwrap();
    let (one, two) = (scalar(device, 1.0), scalar(device, 2.0));
    let mut held = Vec::new();
    let error = loop {
        match step(&session, &one) {
            Ok(tensor) => held.push(tensor),
            Err(error) => break error,
        }
        assert!(held.len() < 10, "it never runs out");
    };
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
    assert!(!held.is_empty());
    let before = state(&session);
    let stats = device.stats();
    for _ in 0..5 {
        assert!(matches!(step(&session, &two), Err(Error::OutOfMemory { .. })));
        assert_eq!(state(&session), before, "a step that failed has done something");
    }
    assert_eq!(device.stats().in_use, stats.in_use, "a step that failed keeps something");
    for (i, tensor) in held.iter().enumerate() {
        assert!(floats(tensor).iter().all(|&x| x == (i + 1) as f32));
    }
    let steps = held.len();
    held.clear();
    assert!(floats(&step(&session, &two).unwrap()).iter().all(|&x| x == steps as f32 + 2.0));
    let mut ring = [0.0; 4];
    (0..steps).for_each(|i| ring[i % 4] = 1.0);
    ring[steps % 4] = 2.0;
    assert_eq!(floats(&session.snapshot().unwrap()[1]), ring);
}

/// A program that goes away right after a run of it failed leaves nothing that still runs: its memory
/// is given to others at once, and stays as they write it.
fn goes_away(device: &Device) {
    let one = scalar(device, 1.0);
    for _ in 0..20 {
        let session = Session::new(&program(device)).unwrap();
        let held: Vec<_> = std::iter::from_fn(|| step(&session, &one).ok()).collect();
        drop(held);
        let _ = step(&session, &one);
        drop(session);
        let spec = Spec::new(DType::U8, [WIDE]).unwrap();
        let pattern: Vec<u8> = (0..WIDE).map(|i| (i * 7) as u8).collect();
        let tensors: Vec<_> =
            (0..4).map_while(|_| Tensor::from_bytes(device, spec.clone(), &pattern).ok()).collect();
        assert!(!tensors.is_empty());
        device.synchronize().unwrap();
        assert!(tensors.iter().all(|t| t.to_bytes().unwrap() == pattern));
    }
}

#[test]
fn memory_that_runs_out_in_a_program_on_the_cpu() {
    runs_out(&Device::open(Id::Cpu, Some(LIMIT)).unwrap());
}

#[test]
fn a_program_that_goes_away_after_it_failed_on_the_cpu() {
    goes_away(&Device::open(Id::Cpu, Some(LIMIT)).unwrap());
}

/// Both in one test: a GPU is opened once in a process.
#[test]
fn memory_that_runs_out_in_a_program_on_a_gpu() {
    let Some(device) = cuda("memory_that_runs_out_in_a_program_on_a_gpu") else { return };
    runs_out(&device);
    goes_away(&device);
}
