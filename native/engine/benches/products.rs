//! `dot`, `dense`, `gated_mlp`, `conv` and the windows of `lstm` on the GPU, as eager calls many in a
//! row and as nodes of one graph: `bench/products.py` times torch's, to be run on the same machine.
//!
//! `cargo bench --bench products -- [name]` prints a line a case: name, µs of an eager call, µs in a
//! graph, TFLOP/s of that, variant.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Instant;

use half::{bf16, f16};
use nitrox_engine::device::{Device, Id};
use nitrox_engine::op::*;
use nitrox_engine::program::{Graph, Mode, Node, Options, Program, Ref, Started};
use nitrox_engine::{DType, Op, Spec, Tensor};

fn tensor(device: &Device, dtype: DType, shape: &[usize], range: f32) -> Tensor {
    let spec = Spec::new(dtype, shape).unwrap();
    let mut state = 0x2545_F491u32;
    let mut bytes = Vec::with_capacity(spec.bytes());
    for _ in 0..spec.len() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let x = ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * range;
        match dtype {
            DType::F16 => bytes.extend(f16::from_f32(x).to_ne_bytes()),
            DType::BF16 => bytes.extend(bf16::from_f32(x).to_ne_bytes()),
            DType::F64 => bytes.extend(f64::from(x).to_ne_bytes()),
            DType::S32 => bytes.extend(((x * 100.0) as i32).to_ne_bytes()),
            _ => bytes.extend(x.to_ne_bytes()),
        }
    }
    Tensor::from_bytes(device, spec, &bytes).unwrap()
}

/// µs of a node among many in a graph.
fn in_graph(device: &Device, op: &Op, tensors: &[Option<Tensor>], eager: f64) -> f64 {
    let mut next = 0..;
    let inputs: Vec<_> =
        tensors.iter().map(|t| t.as_ref().and_then(|_| next.next().map(Ref::Param))).collect();
    let count = ((5_000.0 / eager) as usize).clamp(2, 100);
    // What nobody reads is computed all the same.
    let nodes = vec![Node { op: op.clone(), inputs }; count];
    let outputs = vec![Ref::Node(count - 1, 0)];
    let graph = Graph { nodes, inputs: vec![], outputs, next_state: vec![] };
    let options = Options { readback: false, instances: 1 };
    let params = tensors.iter().flatten().cloned().collect();
    let program = Program::compile(device, graph, params, vec![], options).unwrap();
    let mut times: Vec<_> = (0..7)
        .map(|_| {
            let start = Instant::now();
            let Started::Done(_outputs) = program.run(&[], Mode::Block).unwrap() else {
                panic!("a blocking run is done when it returns")
            };
            device.synchronize().unwrap();
            start.elapsed().as_secs_f64() * 1e6 / count as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[3]
}

/// The median of several rounds.
fn run(
    device: &Device,
    name: &str,
    op: &Op,
    dtype: DType,
    shapes: &[Option<&[usize]>],
    flops: f64,
) {
    let wanted = std::env::args().skip(1).find(|a| !a.starts_with("--"));
    if wanted.is_some_and(|part| !name.contains(&part)) {
        return;
    }
    let tensors: Vec<_> =
        shapes.iter().map(|s| s.map(|shape| tensor(device, dtype, shape, 0.1))).collect();
    let inputs: Vec<_> = tensors.iter().map(Option::as_ref).collect();
    let specs: Vec<_> = tensors.iter().map(|t| t.as_ref().map(Tensor::spec)).collect();
    let variant = device.explain(op, &specs).unwrap();
    let round = |count: usize| {
        let start = Instant::now();
        for _ in 0..count {
            device.run(op, &inputs).unwrap();
        }
        device.synchronize().unwrap();
        start.elapsed().as_secs_f64() * 1e6 / count as f64
    };
    round(2);
    let count = ((20_000.0 / round(3)) as usize).clamp(5, 200);
    let mut times: Vec<_> = (0..5).map(|_| round(count)).collect();
    times.sort_by(f64::total_cmp);
    let (us, launches) = (times[2], variant.launches);
    let graph = in_graph(device, op, &tensors, us);
    let (rate, variant) = (flops / graph / 1e6, variant.variant);
    println!("{name}\t{us:.1}\t{graph:.1}\t{rate:.1}\t{variant} ({launches})");
}

fn dot(contract_a: usize, contract_b: usize, batch: usize) -> Op {
    Op::Dot(Dot {
        contract_a: vec![contract_a],
        batch_a: (0..batch).collect(),
        contract_b: vec![contract_b],
        batch_b: (0..batch).collect(),
    })
}

fn main() {
    let device = match Device::open(Id::Cuda(0), None) {
        Ok(device) => device,
        Err(error) => return println!("left out: {error}"),
    };
    let device = &device;
    for (dtype, t) in
        [(DType::F32, "f32"), (DType::BF16, "bf16"), (DType::F16, "f16"), (DType::F64, "f64")]
    {
        for (m, k, n) in [
            (4096, 4096, 4096),
            (512, 1024, 2816),
            (64, 1024, 1024),
            (16, 4096, 4096),
            (1, 4096, 4096),
            (1023, 1001, 999),
            (8192, 64, 8192),
            (128, 65536, 128),
        ] {
            let flops = 2.0 * (m * k * n) as f64;
            let shapes = [Some(&[m, k][..]), Some(&[k, n][..])];
            run(device, &format!("dot {t} {m}x{k}x{n}"), &dot(1, 0, 0), dtype, &shapes, flops);
        }
        let (m, k, n) = (1024, 1024, 1024);
        let flops = 2.0 * (m * k * n) as f64;
        run(
            device,
            &format!("dot {t} nt {m}x{k}x{n}"),
            &dot(1, 1, 0),
            dtype,
            &[Some(&[m, k]), Some(&[n, k])],
            flops,
        );
        run(
            device,
            &format!("dot {t} tn {m}x{k}x{n}"),
            &dot(0, 0, 0),
            dtype,
            &[Some(&[k, m]), Some(&[k, n])],
            flops,
        );
        run(
            device,
            &format!("dot {t} mv {m}x{k}"),
            &dot(1, 0, 0),
            dtype,
            &[Some(&[4096, 4096]), Some(&[4096])],
            2.0 * 4096.0 * 4096.0,
        );
        run(
            device,
            &format!("dot {t} batch 64x256x256x256"),
            &dot(2, 1, 1),
            dtype,
            &[Some(&[64, 256, 256]), Some(&[64, 256, 256])],
            64.0 * 2.0 * 256f64.powi(3),
        );
        run(
            device,
            &format!("dot {t} batch 512x64x64x64"),
            &dot(2, 1, 1),
            dtype,
            &[Some(&[512, 64, 64]), Some(&[512, 64, 64])],
            512.0 * 2.0 * 64f64.powi(3),
        );
    }
    run(
        device,
        "dot s32 1024x1024x1024",
        &dot(1, 0, 0),
        DType::S32,
        &[Some(&[1024, 1024]), Some(&[1024, 1024])],
        2.0 * 1024f64.powi(3),
    );
    for (dtype, t) in [(DType::F32, "f32"), (DType::BF16, "bf16")] {
        for activation in [Activation::None, Activation::Gelu] {
            for (m, k, n) in [
                (9, 512, 512),
                (16, 512, 512),
                (16, 1024, 4096),
                (32, 512, 512),
                (32, 1024, 4096),
                (64, 512, 512),
                (64, 1024, 4096),
                (128, 512, 2048),
                (256, 1024, 1024),
                (512, 1024, 2816),
                (1024, 256, 256),
                (2048, 1024, 4096),
                (4096, 4096, 4096),
                (4096, 64, 64),
            ] {
                let op = Op::Dense(Dense { activation, norm: None });
                let flops = 2.0 * (m * k * n) as f64;
                let shapes = [Some(&[m, k][..]), Some(&[k, n][..]), Some(&[n][..])];
                let name = format!(
                    "dense {t} {} {m}x{k}x{n}",
                    if activation == Activation::None { "none" } else { "gelu" }
                );
                run(device, &name, &op, dtype, &shapes, flops);
            }
        }
        for (m, k, n) in [
            (16, 1024, 2816),
            (64, 1024, 2816),
            (256, 1024, 2816),
            (512, 1024, 2816),
            (2048, 1024, 2816),
            (4096, 4096, 11008),
        ] {
            let op = Op::GatedMlp(GatedMlp { activation: Activation::Silu });
            let flops = 6.0 * (m * k * n) as f64;
            let shapes =
                [Some(&[m, k][..]), Some(&[k, n][..]), Some(&[k, n][..]), Some(&[n, k][..])];
            run(device, &format!("mlp {t} {m}x{k}x{n}"), &op, dtype, &shapes, flops);
        }
        for (b, steps, i, h) in
            [(1, 60, 256, 512), (8, 60, 256, 512), (32, 60, 512, 512), (128, 64, 512, 512)]
        {
            let op = Op::Lstm(Recurrent { reverse: false, norm: None });
            let shapes = [
                Some(&[b, steps, i][..]),
                None,
                None,
                Some(&[i, 4 * h][..]),
                Some(&[h, 4 * h][..]),
                Some(&[4 * h][..]),
            ];
            run(device, &format!("lstm {t} {b}x{steps}x{i}x{h}"), &op, dtype, &shapes, 0.0);
        }
    }
    for (dtype, t) in
        [(DType::F32, "f32"), (DType::BF16, "bf16"), (DType::F16, "f16"), (DType::F64, "f64")]
    {
        for (input, kernel, stride, pad, groups) in [
            ([1, 4, 84, 84], [32, 4, 8, 8], 4, 0, 1),
            ([32, 4, 84, 84], [32, 4, 8, 8], 4, 0, 1),
            ([32, 32, 20, 20], [64, 32, 4, 4], 2, 0, 1),
            ([32, 64, 9, 9], [64, 64, 3, 3], 1, 0, 1),
            ([32, 3, 224, 224], [64, 3, 7, 7], 2, 3, 1),
            ([32, 64, 56, 56], [64, 64, 3, 3], 1, 1, 1),
            ([32, 256, 56, 56], [64, 256, 1, 1], 1, 0, 1),
            ([32, 128, 28, 28], [128, 128, 3, 3], 1, 1, 1),
            ([32, 256, 14, 14], [256, 256, 3, 3], 1, 1, 1),
            ([32, 512, 7, 7], [512, 512, 3, 3], 1, 1, 1),
            ([32, 256, 56, 56], [256, 1, 3, 3], 1, 1, 256),
            ([32, 256, 28, 28], [256, 8, 3, 3], 1, 1, 32),
            ([1, 256, 56, 56], [256, 256, 3, 3], 1, 1, 1),
            ([1, 64, 256, 256], [64, 64, 3, 3], 1, 1, 1),
            ([32, 128, 56, 56], [128, 128, 3, 3], 2, 1, 1),
            ([32, 256, 56, 56], [512, 256, 1, 1], 2, 0, 1),
            ([32, 256, 28, 28], [256, 32, 3, 3], 1, 1, 8),
            ([32, 64, 1, 4096], [64, 64, 1, 5], 1, 0, 1),
        ] {
            let op = Op::Conv(Conv {
                strides: vec![stride; 2],
                padding: vec![vec![pad, pad]; 2],
                input_dilation: vec![1; 2],
                kernel_dilation: vec![1; 2],
                feature_groups: groups,
                batch_groups: 1,
            });
            let out = |i: usize| (input[i] + 2 * pad as usize - kernel[i]) / stride + 1;
            let flops = 2.0
                * (input[0] * kernel[0] * out(2) * out(3)) as f64
                * (kernel[1] * kernel[2] * kernel[3]) as f64;
            let text = |s: [usize; 4]| s.map(|n| n.to_string()).join("x");
            let name =
                format!("conv {t} {} {} s{stride} p{pad} g{groups}", text(input), text(kernel));
            run(device, &name, &op, dtype, &[Some(&input), Some(&kernel)], flops);
        }
    }
}
