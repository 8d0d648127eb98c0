//! One op at a time on the GPU, by replaying a CUDA graph: a program of nine in a row against a
//! program of one, so that only the op is in the difference.
//!
//! `cargo bench --bench sequence -- [name]` prints a JSON line a case, µs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Instant;

use half::{bf16, f16};
use nitrox_engine::device::{Device, Id};
use nitrox_engine::op::*;
use nitrox_engine::program::{Graph, Mode, Node, Options, Program, Ref, Started};
use nitrox_engine::{DType, Spec, Tensor};

const CHAIN: usize = 9;

/// Type, shape and range.
type Input = (DType, Vec<usize>, [f32; 2]);

struct Case {
    name: String,
    op: Op,
    /// The first is the output of the op before.
    inputs: Vec<Option<Input>>,
    /// The output that is asked for of the last: a small one where there is one.
    output: usize,
}

fn tensor(device: &Device, dtype: DType, shape: &[usize], [low, high]: [f32; 2]) -> Tensor {
    let spec = Spec::new(dtype, shape).unwrap();
    let mut state = 0x2545_F491u32;
    let mut bytes = Vec::with_capacity(spec.bytes());
    for _ in 0..spec.len() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let x = low + (state >> 8) as f32 / (1 << 24) as f32 * (high - low);
        match dtype {
            DType::F16 => bytes.extend(f16::from_f32(x).to_ne_bytes()),
            DType::BF16 => bytes.extend(bf16::from_f32(x).to_ne_bytes()),
            DType::S32 => bytes.extend((x as i32).to_ne_bytes()),
            _ => bytes.extend(x.to_ne_bytes()),
        }
    }
    Tensor::from_bytes(device, spec, &bytes).unwrap()
}

/// The shortest of many runs of `count` in a row, in µs: what else the machine does only adds.
fn time(device: &Device, case: &Case, params: &[Tensor], count: usize) -> f64 {
    let mut refs = Vec::new();
    let mut next = 0;
    for input in &case.inputs {
        refs.push(input.as_ref().map(|_| {
            next += 1;
            Ref::Param(next - 1)
        }));
    }
    let nodes = (0..count)
        .map(|i| {
            let mut inputs = refs.clone();
            if i > 0 {
                inputs[0] = Some(Ref::Node(i - 1, 0));
            }
            Node { op: case.op.clone(), inputs }
        })
        .collect();
    let outputs = vec![Ref::Node(count - 1, case.output)];
    let graph = Graph { nodes, inputs: vec![], outputs, next_state: vec![] };
    let options = Options { readback: false, instances: 1 };
    let program = Program::compile(device, graph, params.to_vec(), vec![], options).unwrap();
    let mut best = f64::INFINITY;
    let began = Instant::now();
    for i in 0..2000 {
        let start = Instant::now();
        let Started::Done(_outputs) = program.run(&[], Mode::Block).unwrap() else {
            panic!("a blocking run is done when it returns")
        };
        device.synchronize().unwrap();
        best = best.min(start.elapsed().as_secs_f64() * 1e6);
        if i > 20 && began.elapsed().as_secs_f64() > 0.3 {
            break;
        }
    }
    best
}

fn scan(name: &str, dtype: DType, [b, l, d, n]: [usize; 4], norm: Option<NormKind>) -> Case {
    let row = vec![b, l, d];
    let unit = [-1.0, 1.0];
    let parameter = norm.map(|_| (dtype, vec![d], [0.5, 1.5]));
    Case {
        name: format!("{name}/{}-b{b}l{l}d{d}n{n}", dtype.name()),
        op: Op::SelectiveScan(SelectiveScan {
            dt_softplus: true,
            dt_clamp: None,
            norm,
            epsilon: 1e-5,
        }),
        inputs: vec![
            Some((dtype, row.clone(), unit)),
            Some((dtype, row.clone(), [-2.0, 0.0])),
            Some((DType::F32, vec![d, n], [-4.0, -0.5])),
            Some((dtype, vec![b, l, n], unit)),
            Some((dtype, vec![b, l, n], unit)),
            Some((DType::F32, vec![d], unit)),
            Some((dtype, row.clone(), unit)),
            Some((DType::F32, vec![d], [-2.0, 0.0])),
            None,
            norm.map(|_| (dtype, row, unit)),
            parameter.clone(),
            parameter.filter(|_| norm == Some(NormKind::LayerNorm)),
        ],
        output: if norm.is_some() { 2 } else { 1 },
    }
}

fn cases() -> Vec<Case> {
    use DType::{BF16, F32};
    let mut cases = Vec::new();
    for (dtype, shape) in [
        (F32, [1, 60, 512, 16]),
        (F32, [32, 60, 1024, 16]),
        (F32, [8, 2048, 2048, 16]),
        (BF16, [8, 2048, 2048, 16]),
        (BF16, [8, 2048, 4096, 16]),
        (F32, [1, 1, 512, 16]),
        (F32, [1, 2048, 512, 16]),
        (F32, [1, 256, 512, 16]),
        (BF16, [1, 8192, 2048, 16]),
    ] {
        cases.push(scan("scan", dtype, shape, None));
    }
    for shape in [[1, 1, 512, 16], [1, 60, 512, 16]] {
        cases.push(scan("scan_norm", F32, shape, Some(NormKind::RmsNorm)));
    }
    for (dtype, [b, l, d]) in
        [(F32, [1, 1, 512]), (F32, [1, 60, 512]), (F32, [8, 2048, 2048]), (BF16, [8, 2048, 2048])]
    {
        cases.push(Case {
            name: format!("conv/{}-b{b}l{l}d{d}k4", dtype.name()),
            op: Op::CausalConv1d(CausalConv1d { activation: Activation::Silu }),
            inputs: vec![
                Some((dtype, vec![b, l, d], [-1.0, 1.0])),
                Some((dtype, vec![4, d], [-1.0, 1.0])),
                Some((dtype, vec![d], [-1.0, 1.0])),
            ],
            output: 1,
        });
    }
    for (dtype, [b, s, h, d]) in [(F32, [1, 1, 4, 64]), (BF16, [8, 2048, 16, 128])] {
        cases.push(Case {
            name: format!("rope/{}-b{b}s{s}h{h}d{d}", dtype.name()),
            op: Op::Rope(Rope { base: 1e4, scale: 1.0, dims: None, interleaved: false }),
            inputs: vec![
                Some((dtype, vec![b, s, h, d], [-1.0, 1.0])),
                Some((DType::S32, vec![], [100.0, 100.0])),
            ],
            output: 0,
        });
    }
    for (dtype, [m, d, f]) in [
        (F32, [1, 256, 256]),
        (BF16, [1, 4096, 11_008]),
        (F32, [60, 256, 256]),
        (BF16, [4096, 4096, 11_008]),
        (F32, [512, 1024, 2816]),
    ] {
        let scale = |n: usize| [-1.0 / (n as f32).sqrt(), 1.0 / (n as f32).sqrt()];
        cases.push(Case {
            name: format!("gated_mlp/{}-m{m}d{d}f{f}", dtype.name()),
            op: Op::GatedMlp(GatedMlp { activation: Activation::Silu }),
            inputs: vec![
                Some((dtype, vec![m, d], [-1.0, 1.0])),
                Some((dtype, vec![d, f], scale(d))),
                Some((dtype, vec![d, f], scale(d))),
                Some((dtype, vec![f, d], scale(f))),
            ],
            output: 0,
        });
    }
    cases
}

fn main() {
    let wanted = std::env::args().skip(1).find(|a| !a.starts_with("--")).unwrap_or_default();
    let device = match Device::open(Id::Cuda(0), None) {
        Ok(device) => device,
        Err(error) => return println!("left out: {error}"),
    };
    for case in cases().into_iter().filter(|c| c.name.contains(&wanted)) {
        let params: Vec<_> = case
            .inputs
            .iter()
            .flatten()
            .map(|(dtype, shape, range)| tensor(&device, *dtype, shape, *range))
            .collect();
        let mut given = params.iter().map(Tensor::spec);
        let specs: Vec<_> =
            case.inputs.iter().map(|i| i.as_ref().and_then(|_| given.next())).collect();
        let explained = device.explain(&case.op, &specs).unwrap();
        let [one, many] = [1, CHAIN].map(|count| time(&device, &case, &params, count));
        println!(
            "{{\"case\": \"{}\", \"variant\": \"{}\", \"launches\": {}, \"us\": {:.2}}}",
            case.name,
            explained.variant,
            explained.launches,
            (many - one) / (CHAIN - 1) as f64
        );
    }
}
