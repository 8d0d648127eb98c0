//! Products in programs: captured before anything ran eagerly, their results are those of the eager
//! ops, bit for bit, each time and on many threads. With `NITROX_TEST_CUDA=1` on the first GPU too,
//! where they are a library's that is opened at the first need.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use nitrox_engine::device::{Device, Id};
use nitrox_engine::op::*;
use nitrox_engine::program::{Graph, Mode, Node, Options, Output, Program, Ref, Started};
use nitrox_engine::{DType, Op, Spec, Tensor};

fn devices() -> Vec<Device> {
    let mut devices = vec![Device::open(Id::Cpu, None).unwrap()];
    if std::env::var_os("NITROX_TEST_CUDA").is_some() {
        devices.push(Device::open(Id::Cuda(0), None).unwrap());
    } else {
        println!("left out: the products of a GPU: NITROX_TEST_CUDA is not set");
    }
    devices
}

/// Numbers from −1 to 1.
fn tensor(device: &Device, shape: &[usize], seed: u32) -> Tensor {
    let spec = Spec::new(DType::F32, shape).unwrap();
    let mut state = seed.wrapping_mul(0x9E37_79B9) | 1;
    let bytes: Vec<u8> = (0..spec.len())
        .flat_map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 8) as f32 / (1 << 23) as f32 - 1.0).to_ne_bytes()
        })
        .collect();
    Tensor::from_bytes(device, spec, &bytes).unwrap()
}

fn dot(contract_a: usize, contract_b: usize, batch: usize) -> Op {
    Op::Dot(Dot {
        contract_a: vec![contract_a],
        batch_a: (0..batch).collect(),
        contract_b: vec![contract_b],
        batch_b: (0..batch).collect(),
    })
}

/// A layer, attention's two products, and a convolution.
fn ops() -> Vec<(Op, Vec<Vec<usize>>)> {
    let conv = Conv {
        strides: vec![1, 1],
        padding: vec![vec![1, 1]; 2],
        input_dilation: vec![1, 1],
        kernel_dilation: vec![1, 1],
        feature_groups: 1,
        batch_groups: 1,
    };
    let dense = Dense { activation: Activation::Gelu, norm: None };
    vec![
        (Op::Dense(dense), vec![vec![48, 96], vec![96, 80], vec![80]]),
        (dot(2, 2, 1), vec![vec![4, 33, 24], vec![4, 40, 24]]),
        (dot(2, 1, 1), vec![vec![4, 33, 40], vec![4, 40, 24]]),
        (dot(0, 1, 0), vec![vec![70, 65], vec![31, 70]]),
        (Op::Conv(conv), vec![vec![3, 32, 14, 14], vec![48, 32, 3, 3]]),
    ]
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    tensor.to_bytes().unwrap()
}

#[test]
fn programs_give_what_eager_calls_give() {
    for device in devices() {
        let (mut nodes, mut params, mut eager) = (Vec::new(), Vec::new(), Vec::new());
        for (op, shapes) in ops() {
            let first = params.len();
            params.extend(shapes.iter().enumerate().map(|(i, s)| tensor(&device, s, i as u32 + 1)));
            let inputs = (first..params.len()).map(|i| Some(Ref::Param(i))).collect();
            nodes.push(Node { op: op.clone(), inputs });
            eager.push((op, first..params.len()));
        }
        let outputs = (0..nodes.len()).map(|i| Ref::Node(i, 0)).collect();
        let graph = Graph { nodes, inputs: vec![], outputs, next_state: vec![] };
        let options = Options { readback: true, instances: 1 };
        let program = Program::compile(&device, graph, params.clone(), vec![], options).unwrap();
        let run = || match program.run(&[], Mode::Block).unwrap() {
            Started::Done(outputs) => outputs,
            Started::Pending(pending) => pending.wait().unwrap(),
            Started::Busy => panic!("busy"),
        };
        let runs: Vec<Vec<Vec<u8>>> = (0..3)
            .map(|_| {
                run()
                    .into_iter()
                    .map(|output| match output {
                        Output::Bytes(bytes) => bytes,
                        Output::Tensor(tensor) => bytes(&tensor),
                    })
                    .collect()
            })
            .collect();
        for (i, (op, range)) in eager.iter().enumerate() {
            let inputs: Vec<_> = params[range.clone()].iter().map(Some).collect();
            let alone = bytes(&device.run(op, &inputs).unwrap()[0]);
            for run in &runs {
                assert!(run[i] == alone, "{} on {}", op.name(), device.id());
            }
        }
    }
}

#[test]
fn many_threads_multiply_at_once() {
    for device in devices() {
        let work: Vec<_> = ops()
            .into_iter()
            .map(|(op, shapes)| {
                let inputs: Vec<_> = shapes
                    .iter()
                    .enumerate()
                    .map(|(i, s)| tensor(&device, s, i as u32 + 7))
                    .collect();
                (op, inputs)
            })
            .collect();
        let run = |(op, inputs): &(Op, Vec<Tensor>)| {
            let inputs: Vec<_> = inputs.iter().map(Some).collect();
            bytes(&device.run(op, &inputs).unwrap()[0])
        };
        let rounds: Vec<Vec<Vec<u8>>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|start| {
                    let (work, run) = (&work, &run);
                    scope.spawn(move || {
                        let n = work.len();
                        let mut results = vec![Vec::new(); n];
                        for i in 0..4 * n {
                            let at = (start + i) % n;
                            results[at] = run(&work[at]);
                        }
                        results
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        for results in &rounds {
            for (i, one) in work.iter().enumerate() {
                assert!(results[i] == run(one), "{} on {}", one.0.name(), device.id());
            }
        }
    }
}
