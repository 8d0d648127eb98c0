//! For daily work: eager ops at the shapes of a policy's frame, and a few larger ones.
//! `NITROX_BENCH_DEVICE=cuda` takes the GPU instead of the CPU; what the host spends is in it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cases;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use nitrox_engine::op::*;
use nitrox_engine::{DType, Device, Id, Tensor};

/// Values in -scale..scale.
fn tensor(device: &Device, dtype: DType, shape: &[usize], scale: f32) -> Tensor {
    cases::tensor(device, dtype, shape, [-scale, scale])
}

fn benches(c: &mut Criterion) {
    let (name, id) = match std::env::var("NITROX_BENCH_DEVICE").as_deref() {
        Ok("cuda") => ("cuda", Id::Cuda(0)),
        _ => ("cpu", Id::Cpu),
    };
    let device = Device::open(id, None).unwrap();
    let mut group = c.benchmark_group(name);
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    let mut case = |name: String, op: Op, inputs: &[Option<&Tensor>]| {
        let run = |count| {
            let start = Instant::now();
            (0..count).for_each(|_| drop(device.run(black_box(&op), inputs).unwrap()));
            device.synchronize().unwrap();
            start.elapsed()
        };
        group.bench_function(name, |b| b.iter_custom(run));
    };

    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let make = |shape: &[usize], scale| tensor(&device, dtype, shape, scale);
        let dense = Op::Dense(Dense { activation: Activation::None, norm: None });
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
            case(name, Op::Lstm(Recurrent { reverse: false, norm: None }), &inputs);
            let (wi, wh) = (make(&[h, 3 * h], 0.06), make(&[h, 3 * h], 0.06));
            let inputs = [&x, &h0, &wi, &wh, &b].map(Some);
            let name = format!("gru/{dtype}-b1t{time}i{h}h{h}", dtype = dtype.name());
            case(name, Op::Gru(Recurrent { reverse: false, norm: None }), &inputs);
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

criterion_group!(ops, benches);
criterion_main!(ops);
