//! Products in programs: captured before anything ran eagerly, their results are those of the eager
//! ops, bit for bit, each time and on many threads. With `NITROX_TEST_CUDA=1` on the first GPU too,
//! where they are a library's that is opened at the first need.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use half::{bf16, f16};
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

/// The inputs of an op: numbers from −1 to 1, but a triangle has a large diagonal.
fn inputs(device: &Device, op: &Op, dtype: DType, shapes: &[Vec<usize>], seed: u32) -> Vec<Tensor> {
    let one = |(i, shape): (usize, &Vec<usize>)| {
        let diagonal = match (op, i, &shape[..]) {
            (Op::TriangularSolve(_), 0, &[n, _]) => Some(n),
            _ => None,
        };
        tensor(device, dtype, shape, diagonal, seed + i as u32)
    };
    shapes.iter().enumerate().map(one).collect()
}

fn tensor(
    device: &Device,
    dtype: DType,
    shape: &[usize],
    diagonal: Option<usize>,
    seed: u32,
) -> Tensor {
    let spec = Spec::new(dtype, shape).unwrap();
    let mut state = seed.wrapping_mul(0x9E37_79B9) | 1;
    let mut bytes = Vec::with_capacity(spec.bytes());
    for at in 0..spec.len() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let x = match diagonal {
            Some(n) if at / n == at % n => n as f32,
            _ => (state >> 8) as f32 / (1 << 23) as f32 - 1.0,
        };
        match dtype {
            DType::F16 => bytes.extend(f16::from_f32(x).to_ne_bytes()),
            DType::BF16 => bytes.extend(bf16::from_f32(x).to_ne_bytes()),
            DType::F64 => bytes.extend(f64::from(x).to_ne_bytes()),
            _ => bytes.extend(x.to_ne_bytes()),
        }
    }
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

fn conv(feature_groups: usize) -> Op {
    Op::Conv(Conv {
        strides: vec![1, 1],
        padding: vec![vec![1, 1]; 2],
        input_dilation: vec![1, 1],
        kernel_dilation: vec![1, 1],
        feature_groups,
        batch_groups: 1,
    })
}

/// Convolutions that are cuDNN's where it is there.
fn convolutions() -> Vec<(Op, DType, Vec<Vec<usize>>)> {
    let shapes = vec![vec![4, 16, 36, 33], vec![24, 16, 3, 3]];
    let mut all: Vec<_> =
        [DType::F32, DType::F16, DType::BF16].map(|dtype| (conv(1), dtype, shapes.clone())).into();
    all.push((conv(2), DType::BF16, vec![vec![3, 32, 20, 20], vec![16, 16, 3, 3]]));
    all
}

/// Large triangles, which are cuBLAS's where it is there.
fn solves() -> Vec<(Op, DType, Vec<Vec<usize>>)> {
    let op = |left_side| {
        Op::TriangularSolve(TriangularSolve { lower: true, left_side, transpose: false })
    };
    vec![
        (op(true), DType::F32, vec![vec![300, 300], vec![300]]),
        (op(true), DType::F64, vec![vec![260, 260], vec![260, 40]]),
        (op(false), DType::F32, vec![vec![300, 300], vec![70, 300]]),
    ]
}

/// A layer, attention's two products, convolutions, and triangular systems.
fn ops() -> Vec<(Op, DType, Vec<Vec<usize>>)> {
    let dense = Dense { activation: Activation::Gelu, norm: None };
    let mut all = vec![
        (Op::Dense(dense), DType::F32, vec![vec![48, 96], vec![96, 80], vec![80]]),
        (dot(2, 2, 1), DType::F32, vec![vec![4, 33, 24], vec![4, 40, 24]]),
        (dot(2, 1, 1), DType::F32, vec![vec![4, 33, 40], vec![4, 40, 24]]),
        (dot(0, 1, 0), DType::F32, vec![vec![70, 65], vec![31, 70]]),
        (conv(1), DType::F32, vec![vec![3, 32, 14, 14], vec![48, 32, 3, 3]]),
    ];
    all.extend(convolutions());
    all.extend(solves());
    all
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    tensor.to_bytes().unwrap()
}

#[test]
fn programs_give_what_eager_calls_give() {
    for device in devices() {
        let (mut nodes, mut params, mut eager) = (Vec::new(), Vec::new(), Vec::new());
        for (op, dtype, shapes) in ops() {
            let first = params.len();
            params.extend(inputs(&device, &op, dtype, &shapes, 1));
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
            .map(|(op, dtype, shapes)| {
                let inputs = inputs(&device, &op, dtype, &shapes, 7);
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

#[test]
fn what_is_a_librarys_where_it_is_there() {
    for device in devices().into_iter().filter(|device| device.id() != Id::Cpu) {
        for (op, dtype, shapes) in [convolutions(), solves()].concat() {
            let (library, variant) = match op {
                Op::Conv(_) => ("no cuDNN", "cudnn"),
                _ => ("no cuBLAS:", "cublas"),
            };
            let specs: Vec<_> = shapes.iter().map(|s| Spec::new(dtype, &s[..]).unwrap()).collect();
            let specs: Vec<_> = specs.iter().map(Some).collect();
            let explanation = device.explain(&op, &specs).unwrap();
            if explanation.why.contains(library) {
                println!("left out, {library}: {}", explanation.why);
                continue;
            }
            assert_eq!(explanation.variant, variant, "{dtype:?}: {}", explanation.why);
            println!("{dtype:?}: {}", explanation.why);
        }
    }
}

/// The first call and the later ones, on as little stack as a scheduler's thread of the VM has.
#[test]
fn a_schedulers_stack_is_enough() {
    const STACK: usize = 320 << 10;
    for device in &devices() {
        let run = || {
            for (op, dtype, shapes) in ops() {
                let inputs = inputs(device, &op, dtype, &shapes, 3);
                let inputs: Vec<_> = inputs.iter().map(Some).collect();
                for _ in 0..3 {
                    device.run(&op, &inputs).unwrap();
                }
            }
        };
        std::thread::scope(|scope| {
            let builder = std::thread::Builder::new().stack_size(STACK);
            builder.spawn_scoped(scope, run).unwrap().join().unwrap();
        });
    }
}
