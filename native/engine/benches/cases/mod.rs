//! The cases that are timed beside other libraries: one op each, under the names that
//! `bench/peers.py` prints its lines with.
#![allow(dead_code)] // each bench takes what it needs

use half::{bf16, f16};
use nitrox_engine::op::*;
use nitrox_engine::{DType, Device, Spec, Tensor};

use DType::{BF16, F16, F32};

/// Type, shape and range of an input.
pub type Input = (DType, Vec<usize>, [f32; 2]);

pub struct Case {
    pub name: String,
    pub op: Op,
    /// The first takes the first output of the call before, where calls stand in a row.
    pub inputs: Vec<Option<Input>>,
    /// How many calls with this case's inputs in a row are one figure: the layers of a net.
    pub layers: usize,
    /// Whether a layer norm of x, with gamma and beta of these, comes before each call.
    pub norm: Option<[Input; 2]>,
    /// The output that is asked for of the last call: a small one where there is one.
    pub output: usize,
}

impl Case {
    fn new(name: impl Into<String>, op: Op, inputs: Vec<Option<Input>>) -> Self {
        Case { name: name.into(), op, inputs, layers: 1, norm: None, output: 0 }
    }

    pub fn tensors(&self, device: &Device) -> Vec<Option<Tensor>> {
        let made = |input: &Input| tensor(device, input.0, &input.1, input.2);
        self.inputs.iter().map(|input| input.as_ref().map(made)).collect()
    }
}

/// Values in a range, the same each time.
pub fn tensor(device: &Device, dtype: DType, shape: &[usize], [low, high]: [f32; 2]) -> Tensor {
    let spec = Spec::new(dtype, shape).unwrap();
    let mut state = 0x2545_F491u32;
    let mut bytes = Vec::with_capacity(spec.bytes());
    for _ in 0..spec.len() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let x = low + (state >> 8) as f32 / (1 << 24) as f32 * (high - low);
        match dtype {
            F16 => bytes.extend(f16::from_f32(x).to_ne_bytes()),
            BF16 => bytes.extend(bf16::from_f32(x).to_ne_bytes()),
            DType::S32 => bytes.extend((x as i32).to_ne_bytes()),
            DType::F64 => bytes.extend(f64::from(x).to_ne_bytes()),
            _ => bytes.extend(x.to_ne_bytes()),
        }
    }
    Tensor::from_bytes(device, spec, &bytes).unwrap()
}

/// 1/√fan-in to both sides.
fn weights(fan_in: usize) -> [f32; 2] {
    let scale = 1.0 / (fan_in as f32).sqrt();
    [-scale, scale]
}

const UNIT: [f32; 2] = [-1.0, 1.0];

/// As PyTorch spells it.
fn long_name(dtype: DType) -> &'static str {
    match dtype {
        F16 => "float16",
        BF16 => "bfloat16",
        _ => "float32",
    }
}

/// The whole of `lstm` or `gru` with its input projection, layers as wide as their input.
fn recurrent(gates: usize, dtype: DType, [b, t, h, layers]: [usize; 4]) -> Case {
    let kind = if gates == 4 { "lstm" } else { "gru" };
    let attrs = Recurrent { reverse: false, norm: None };
    let mut inputs = vec![Some((dtype, vec![b, t, h], UNIT))];
    inputs.extend(vec![None; if gates == 4 { 2 } else { 1 }]);
    inputs.push(Some((dtype, vec![h, gates * h], weights(h))));
    inputs.push(Some((dtype, vec![h, gates * h], weights(h))));
    inputs.push(Some((dtype, vec![4 * h], weights(h))));
    let op = if gates == 4 { Op::Lstm(attrs) } else { Op::Gru(attrs) };
    let name = format!("{kind}/{}-b{b}t{t}i{h}h{h}l{layers}", long_name(dtype));
    Case { layers, output: 1, ..Case::new(name, op, inputs) }
}

/// The same, with a layer norm before each layer.
fn normed(case: Case) -> Case {
    let Some((dtype, shape, _)) = &case.inputs[0] else { return case };
    let affine = [0.5, 0.0].map(|low| (*dtype, vec![shape[2]], [low, low + 1.0]));
    Case { name: format!("{}-norm", case.name), norm: Some(affine), ..case }
}

fn attention(name: &str, dtype: DType, [b, hq, hkv, sq, sk, d]: [usize; 6]) -> Case {
    let op = Op::FlashAttention(FlashAttention {
        scale: None,
        causal: name.ends_with("causal"),
        left: None,
        right: None,
        softcap: None,
        offset: None,
        lse: false,
    });
    let kv = Some((dtype, vec![b, sk, hkv, d], UNIT));
    Case::new(name, op, vec![Some((dtype, vec![b, sq, hq, d], UNIT)), kv.clone(), kv])
}

/// With D, the gate, dt's bias and its softplus; a norm also with a residual.
fn scan(name: &str, dtype: DType, [b, l, d, n]: [usize; 4], norm: Option<NormKind>) -> Case {
    let row = vec![b, l, d];
    let gamma = norm.map(|_| (dtype, vec![d], [0.5, 1.5]));
    let op = SelectiveScan { dt_softplus: true, dt_clamp: None, norm, epsilon: 1e-5 };
    let inputs = vec![
        Some((dtype, row.clone(), UNIT)),
        Some((dtype, row.clone(), [-2.0, 0.0])),
        Some((F32, vec![d, n], [-4.0, -0.5])),
        Some((dtype, vec![b, l, n], UNIT)),
        Some((dtype, vec![b, l, n], UNIT)),
        Some((F32, vec![d], UNIT)),
        Some((dtype, row.clone(), UNIT)),
        Some((F32, vec![d], [-2.0, 0.0])),
        None,
        norm.map(|_| (dtype, row, UNIT)),
        gamma.clone(),
        gamma.filter(|_| norm == Some(NormKind::LayerNorm)),
    ];
    let name = format!("{name}/{}-b{b}l{l}d{d}n{n}", dtype.name());
    let output = if norm.is_some() { 2 } else { 1 };
    Case { output, ..Case::new(name, Op::SelectiveScan(op), inputs) }
}

fn norm(kind: NormKind, [rows, width]: [usize; 2]) -> Case {
    let (name, op): (_, fn(Norm) -> Op) = match kind {
        NormKind::LayerNorm => ("layernorm", Op::LayerNorm),
        NormKind::RmsNorm => ("rmsnorm", Op::RmsNorm),
    };
    let row = Some((BF16, vec![rows, width], UNIT));
    let parameter = Some((BF16, vec![width], [0.5, 1.5]));
    let mut inputs = vec![row.clone(), parameter.clone()];
    inputs.extend((kind == NormKind::LayerNorm).then_some(parameter));
    inputs.push(row);
    Case::new(format!("{name}-residual/bf16-{rows}x{width}"), op(Norm { epsilon: 1e-5 }), inputs)
}

fn gemm(dtype: DType, [m, n, k]: [usize; 3]) -> Case {
    let op = Op::Dense(Dense { activation: Activation::None, norm: None });
    let inputs = vec![Some((dtype, vec![m, k], UNIT)), Some((dtype, vec![k, n], weights(k)))];
    Case::new(format!("gemm/{}-{m}x{n}x{k}", dtype.name()), op, inputs)
}

fn gated_mlp(dtype: DType, [m, d, f]: [usize; 3]) -> Case {
    let op = Op::GatedMlp(GatedMlp { activation: Activation::Silu });
    let inputs = vec![
        Some((dtype, vec![m, d], UNIT)),
        Some((dtype, vec![d, f], weights(d))),
        Some((dtype, vec![d, f], weights(d))),
        Some((dtype, vec![f, d], weights(f))),
    ];
    Case::new(format!("gated_mlp/{}-m{m}d{d}f{f}", dtype.name()), op, inputs)
}

fn conv(dtype: DType, [b, l, d]: [usize; 3]) -> Case {
    let op = Op::CausalConv1d(CausalConv1d { activation: Activation::Silu });
    let inputs = vec![
        Some((dtype, vec![b, l, d], UNIT)),
        Some((dtype, vec![4, d], UNIT)),
        Some((dtype, vec![d], UNIT)),
    ];
    let name = format!("conv/{}-b{b}l{l}d{d}k4", dtype.name());
    Case { output: 1, ..Case::new(name, op, inputs) }
}

fn rope(dtype: DType, [b, s, h, d]: [usize; 4]) -> Case {
    let op = Op::Rope(Rope { base: 1e4, scale: 1.0, dims: None, interleaved: false });
    let inputs =
        vec![Some((dtype, vec![b, s, h, d], UNIT)), Some((DType::S32, vec![], [100.0, 100.0]))];
    Case::new(format!("rope/{}-b{b}s{s}h{h}d{d}", dtype.name()), op, inputs)
}

fn unary(kind: UnaryKind, name: &str, dtype: DType) -> Case {
    let input = Some((dtype, vec![4096, 4096], [-3.0, 3.0]));
    let name = format!("unary/{}-{name}-4096x4096", dtype.name());
    Case::new(name, Op::Unary(Unary { kind }), vec![input])
}

/// A lower triangle of m rows and n right sides.
fn solve(dtype: DType, [b, m, n]: [usize; 3]) -> Case {
    let op = TriangularSolve { lower: true, left_side: true, transpose: false };
    let inputs = vec![Some((dtype, vec![b, m, m], [0.5, 1.5])), Some((dtype, vec![b, m, n], UNIT))];
    let name = format!("solve/{}-b{b}m{m}n{n}", dtype.name());
    Case::new(name, Op::TriangularSolve(op), inputs)
}

/// All of them, in groups: the part of a name before its first slash.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, dtype, shape) in [
        ("attn/f32-b1h8s60d64-causal", F32, [1, 8, 8, 60, 60, 64]),
        ("attn/f32-b32h8s60d64-causal", F32, [32, 8, 8, 60, 60, 64]),
        ("attn/f16-b1h8s512d64", F16, [1, 8, 8, 512, 512, 64]),
        ("attn/bf16-b4h16s4096d128-causal", BF16, [4, 16, 16, 4096, 4096, 128]),
        ("attn/bf16-b4h16s4096d128", BF16, [4, 16, 16, 4096, 4096, 128]),
        ("attn/bf16-b1h16s16384d128-causal", BF16, [1, 16, 16, 16384, 16384, 128]),
        ("attn/bf16-b1h32s16384d64-causal", BF16, [1, 32, 32, 16384, 16384, 64]),
        ("attn/bf16-b2h8s8192d256-causal", BF16, [2, 8, 8, 8192, 8192, 256]),
        ("attn/bf16-b1h32kv8s8192d128-causal", BF16, [1, 32, 8, 8192, 8192, 128]),
        ("attn/bf16-b1h16s32768d128-causal", BF16, [1, 16, 16, 32768, 32768, 128]),
        ("attn/f32-b4h16s2048d64-causal", F32, [4, 16, 16, 2048, 2048, 64]),
        ("decode/bf16-b1h32kv8s8192d128", BF16, [1, 32, 8, 1, 8192, 128]),
        ("decode/bf16-b32h32kv8s8192d128", BF16, [32, 32, 8, 1, 8192, 128]),
    ] {
        cases.push(attention(name, dtype, shape));
    }
    for gates in [4, 3] {
        for dtype in [F32, BF16, F16] {
            for shape in [
                [1, 60, 512, 1],
                [32, 60, 512, 1],
                [128, 60, 512, 1],
                [256, 60, 512, 1],
                [64, 128, 1024, 1],
                [128, 128, 1024, 1],
                [1, 60, 512, 2],
                [32, 60, 512, 2],
                [1, 1, 512, 1],
                [1, 1, 256, 2],
                [16, 1024, 768, 1],
                [32, 512, 1024, 1],
            ] {
                cases.push(recurrent(gates, dtype, shape));
            }
            for shape in [[1, 60, 512, 2], [1, 1, 512, 1], [1, 1, 256, 2]] {
                cases.push(normed(recurrent(gates, dtype, shape)));
            }
        }
    }
    for (dtype, shape) in [
        (F32, [1, 60, 512, 16]),
        (F32, [1, 60, 1024, 16]),
        (F32, [32, 60, 1024, 16]),
        (F32, [8, 2048, 2048, 16]),
        (BF16, [8, 2048, 2048, 16]),
        (BF16, [8, 2048, 4096, 16]),
        (F32, [1, 1, 512, 16]),
        (F32, [1, 256, 512, 16]),
        (F32, [1, 256, 2048, 16]),
        (BF16, [1, 256, 1024, 16]),
        (F32, [1, 1024, 1024, 16]),
        (F32, [1, 2048, 512, 16]),
        (F32, [1, 4096, 512, 16]),
        (BF16, [1, 2048, 4096, 16]),
        (BF16, [1, 8192, 2048, 16]),
    ] {
        cases.push(scan("scan", dtype, shape, None));
    }
    for (dtype, shape) in [
        (F32, [1, 1, 512, 16]),
        (F32, [1, 60, 512, 16]),
        (F32, [32, 60, 1024, 16]),
        (F32, [8, 2048, 2048, 16]),
        (BF16, [8, 2048, 2048, 16]),
    ] {
        cases.push(scan("scan_norm", dtype, shape, Some(NormKind::RmsNorm)));
    }
    for kind in [NormKind::LayerNorm, NormKind::RmsNorm] {
        for shape in [[60, 512], [4096, 1024], [16384, 4096], [8192, 12288]] {
            cases.push(norm(kind, shape));
        }
    }
    for shape in [[1, 1024, 1024], [60, 1024, 1024], [512, 1024, 1024], [4096; 3], [8192; 3]] {
        cases.push(gemm(BF16, shape));
    }
    for shape in [[1, 512, 512], [60, 512, 512], [512, 1024, 1024], [4096; 3]] {
        cases.push(gemm(F32, shape));
    }
    // Of windows: what lies between a vector and what fills a card. Rows, columns, and what is summed.
    for shape in [
        [60, 256, 288],
        [60, 768, 256],
        [60, 1024, 256],
        [60, 48, 512],
        [60, 256, 512],
        [60, 512, 16],
        [60, 512, 1024],
        [60, 2048, 512],
        [16, 512, 512],
        [32, 512, 512],
        [128, 512, 512],
    ] {
        cases.push(gemm(F32, shape));
    }
    for (dtype, shape) in [
        (F32, [1, 256, 256]),
        (F32, [60, 256, 256]),
        (F32, [512, 1024, 2816]),
        (BF16, [1, 4096, 11_008]),
        (BF16, [4096, 4096, 11_008]),
    ] {
        cases.push(gated_mlp(dtype, shape));
    }
    for (dtype, shape) in
        [(F32, [1, 1, 512]), (F32, [1, 60, 512]), (F32, [8, 2048, 2048]), (BF16, [8, 2048, 2048])]
    {
        cases.push(conv(dtype, shape));
    }
    cases.push(rope(F32, [1, 1, 4, 64]));
    cases.push(rope(BF16, [8, 2048, 16, 128]));
    for dtype in [F32, BF16, F16] {
        for (kind, name) in [
            (UnaryKind::Relu, "relu"),
            (UnaryKind::Gelu, "gelu"),
            (UnaryKind::Tanh, "tanh"),
            (UnaryKind::Sin, "sin"),
            (UnaryKind::Cos, "cos"),
        ] {
            cases.push(unary(kind, name, dtype));
        }
    }
    for dtype in [F32, DType::F64] {
        for shape in [
            [1, 32, 1],
            [10_000, 4, 1],
            [1000, 32, 32],
            [1, 256, 1],
            [1, 256, 256],
            [64, 256, 64],
            [1, 1024, 1],
            [1, 1024, 1024],
            [1, 4096, 1],
        ] {
            cases.push(solve(dtype, shape));
        }
    }
    cases
}
