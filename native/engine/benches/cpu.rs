//! The CPU device's kernels at the shapes of a policy's frame, and a few larger ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use half::{bf16, f16};
use nitrox_engine::op::*;
use nitrox_engine::{DType, Device, Id, Spec, Tensor};

/// Values in -1..1 times `scale`, the same each time.
fn tensor(device: &Device, dtype: DType, shape: &[usize], scale: f32) -> Tensor {
    let spec = Spec::new(dtype, shape).unwrap();
    let mut state = 0x2545_F491u32;
    let mut bytes = Vec::with_capacity(spec.bytes());
    for _ in 0..spec.len() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let x = ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * scale;
        match dtype {
            DType::F16 => bytes.extend(f16::from_f32(x).to_ne_bytes()),
            DType::BF16 => bytes.extend(bf16::from_f32(x).to_ne_bytes()),
            _ => bytes.extend(x.to_ne_bytes()),
        }
    }
    Tensor::from_bytes(device, spec, &bytes).unwrap()
}

fn benches(c: &mut Criterion) {
    let device = Device::open(Id::Cpu, None).unwrap();
    let mut group = c.benchmark_group("cpu");
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    let mut case = |name: String, op: Op, inputs: &[Option<&Tensor>]| {
        group.bench_function(name, |b| b.iter(|| device.run(black_box(&op), inputs).unwrap()));
    };

    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let make = |shape: &[usize], scale| tensor(&device, dtype, shape, scale);
        let dense = Op::Dense(Dense { activation: Activation::None });
        for rows in [1, 2, 4, 8, 512] {
            let (x, w) = (make(&[rows, 512], 1.0), make(&[512, 512], 0.04));
            let name = format!("dense/{dtype}-{rows}x512x512", dtype = dtype.name());
            case(name, dense.clone(), &[Some(&x), Some(&w)]);
        }
        let state = |h| tensor(&device, DType::F32, &[1, h], 0.5);
        for (time, h) in [(1, 256), (60, 512)] {
            let x = make(&[1, time, h], 1.0);
            let (wi, wh) = (make(&[h, 4 * h], 0.06), make(&[h, 4 * h], 0.06));
            let (b, c0, h0) = (make(&[4 * h], 0.1), state(h), state(h));
            let inputs = [&x, &c0, &h0, &wi, &wh, &b].map(Some);
            let name = format!("lstm/{dtype}-b1t{time}i{h}h{h}", dtype = dtype.name());
            case(name, Op::Lstm(Recurrent { reverse: false }), &inputs);
            let (wi, wh) = (make(&[h, 3 * h], 0.06), make(&[h, 3 * h], 0.06));
            let inputs = [&x, &h0, &wi, &wh, &b].map(Some);
            let name = format!("gru/{dtype}-b1t{time}i{h}h{h}", dtype = dtype.name());
            case(name, Op::Gru(Recurrent { reverse: false }), &inputs);
        }
        let attention = |causal| {
            let (scale, left, right, softcap, offset) = (None, None, None, None, None);
            let lse = false;
            Op::FlashAttention(FlashAttention { scale, causal, left, right, softcap, offset, lse })
        };
        for (queries, keys, heads) in [(1, 60, 4), (60, 60, 8), (512, 512, 8), (1, 8192, 8)] {
            let q = make(&[1, queries, heads, 64], 1.0);
            let (k, v) = (make(&[1, keys, heads, 64], 1.0), make(&[1, keys, heads, 64], 1.0));
            let name = format!("attn/{}-b1h{heads}q{queries}k{keys}d64-causal", dtype.name());
            case(name, attention(true), &[&q, &k, &v].map(Some));
        }
        let (x, gamma, beta) = (make(&[64, 512], 1.0), make(&[512], 1.0), make(&[512], 1.0));
        let name = format!("layer_norm/{dtype}-64x512", dtype = dtype.name());
        let inputs = [&x, &gamma, &beta].map(Some);
        case(name, Op::LayerNorm(Norm { epsilon: 1e-5 }), &inputs);
        let name = format!("softmax/{dtype}-64x512", dtype = dtype.name());
        case(name, Op::Softmax(Softmax { axis: -1, log: false }), &[Some(&x)]);
        let name = format!("tanh/{dtype}-64x512", dtype = dtype.name());
        case(name, Op::Unary(Unary { kind: UnaryKind::Tanh }), &[Some(&x)]);
        let name = format!("add/{dtype}-64x512", dtype = dtype.name());
        case(name, Op::Binary(Binary { kind: BinaryKind::Add }), &[Some(&x), Some(&x)]);
        let name = format!("sum/{dtype}-64x512", dtype = dtype.name());
        let sum = Reduce { kind: ReduceKind::Sum, axes: vec![], keep_axes: false };
        case(name, Op::Reduce(sum), &[Some(&x)]);
        let name = format!("transpose/{dtype}-64x512", dtype = dtype.name());
        case(name, Op::Transpose(Transpose { axes: vec![1, 0] }), &[Some(&x)]);
    }
    group.finish();
}

criterion_group!(cpu, benches);
criterion_main!(cpu);
