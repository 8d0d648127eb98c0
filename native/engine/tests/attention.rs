//! Attention against a plain loop in f64 on the same rounded inputs: odd lengths, every head size
//! class, shared heads, and every option alone and together.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::OnceLock;

use half::{bf16, f16};
use nitrox_engine::device::{Device, Id};
use nitrox_engine::op::{FlashAttention, Op};
use nitrox_engine::{DType, Spec, Tensor, infer};

/// The CPU, and the first GPU where `NITROX_TEST_CUDA` asks for it.
fn devices() -> &'static [Device] {
    static DEVICES: OnceLock<Vec<Device>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let mut devices = vec![Device::open(Id::Cpu, None).unwrap()];
        if std::env::var_os("NITROX_TEST_CUDA").is_some() {
            devices.push(Device::open(Id::Cuda(0), None).unwrap());
        }
        devices
    })
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn pick<V: Copy>(&mut self, of: &[V]) -> V {
        of[self.below(of.len())]
    }

    fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    fn normals(&mut self, n: usize, scale: f64) -> Vec<f64> {
        (0..n).map(|_| self.normal() * scale).collect()
    }
}

/// A tensor's bytes, and its values as they are after rounding to its type.
#[derive(Clone)]
struct Values {
    spec: Spec,
    bytes: Vec<u8>,
    exact: Vec<f64>,
}

impl Values {
    fn new(dtype: DType, shape: &[usize], values: Vec<f64>) -> Self {
        let spec = Spec::new(dtype, shape).unwrap();
        assert_eq!(spec.len(), values.len());
        let bytes: Vec<u8> = match dtype {
            DType::F32 => values.iter().flat_map(|&v| (v as f32).to_ne_bytes()).collect(),
            DType::F16 => values.iter().flat_map(|&v| f16::from_f64(v).to_ne_bytes()).collect(),
            DType::BF16 => values.iter().flat_map(|&v| bf16::from_f64(v).to_ne_bytes()).collect(),
            DType::S32 => values.iter().flat_map(|&v| (v as i32).to_ne_bytes()).collect(),
            DType::U8 => values.iter().map(|&v| v as u8).collect(),
            other => panic!("{other}"),
        };
        let exact = floats(dtype, &bytes);
        Values { spec, bytes, exact }
    }

    fn on(&self, device: &Device) -> Tensor {
        Tensor::from_bytes(device, self.spec.clone(), &self.bytes).unwrap()
    }
}

fn floats(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    match dtype {
        DType::F32 => each(bytes, |b| f32::from_ne_bytes(b).into()),
        DType::F16 => each(bytes, |b| f16::from_ne_bytes(b).to_f64()),
        DType::BF16 => each(bytes, |b| bf16::from_ne_bytes(b).to_f64()),
        DType::S32 => each(bytes, |b| i32::from_ne_bytes(b).into()),
        DType::U8 => bytes.iter().map(|&b| b.into()).collect(),
        other => panic!("{other}"),
    }
}

fn each<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    bytes.chunks_exact(N).map(|b| f(b.try_into().unwrap())).collect()
}

const PLAIN: FlashAttention = FlashAttention {
    scale: None,
    causal: false,
    left: None,
    right: None,
    softcap: None,
    offset: None,
    lse: true,
};

#[derive(Clone)]
struct Case {
    attrs: FlashAttention,
    q: Values,
    k: Values,
    v: Values,
    bias: Option<Values>,
    key_mask: Option<Values>,
    kv_len: Option<Values>,
    offset: Option<Values>,
}

impl Case {
    /// Batch, queries, keys, query heads, key heads, head size.
    fn new(random: &mut Random, dtype: DType, [b, sq, sk, hq, hkv, d]: [usize; 6]) -> Self {
        let mut make = |s: usize, h: usize| {
            Values::new(dtype, &[b, s, h, d], random.normals(b * s * h * d, 1.0))
        };
        let (q, k, v) = (make(sq, hq), make(sk, hkv), make(sk, hkv));
        Case { attrs: PLAIN, q, k, v, bias: None, key_mask: None, kv_len: None, offset: None }
    }

    fn sizes(&self) -> [usize; 6] {
        let (q, k) = (self.q.spec.shape(), self.k.spec.shape());
        [q[0], q[1], k[1], q[2], k[2], q[3]]
    }

    fn inputs(&self) -> [Option<&Values>; 7] {
        let (q, k, v) = (Some(&self.q), Some(&self.k), Some(&self.v));
        let [bias, mask, length, offset] =
            [&self.bias, &self.key_mask, &self.kv_len, &self.offset].map(Option::as_ref);
        [q, k, v, bias, mask, length, offset]
    }

    /// The output and the lse, by the definition.
    fn oracle(&self) -> (Vec<f64>, Vec<f64>) {
        let [b, sq, sk, hq, hkv, d] = self.sizes();
        let a = &self.attrs;
        let scale = a.scale.unwrap_or(1.0 / (d as f64).sqrt());
        let (mut out, mut lse) = (vec![0.0; b * sq * hq * d], vec![0.0; b * hq * sq]);
        for (n, h, i) in
            (0..b).flat_map(|n| (0..hq).flat_map(move |h| (0..sq).map(move |i| (n, h, i))))
        {
            let offset = match (&self.offset, a.offset) {
                (Some(o), _) => o.exact[if o.exact.len() == 1 { 0 } else { n }] as i64,
                (None, Some(offset)) => offset,
                (None, None) => sk as i64 - sq as i64,
            };
            let at = i as i64 + offset;
            let q = &self.q.exact[((n * sq + i) * hq + h) * d..][..d];
            let place = |j: usize| ((n * sk + j) * hkv + h / (hq / hkv)) * d;
            let seen = |j: usize| {
                let (key, at) = (j as i128, i128::from(at));
                (!a.causal || key <= at)
                    && a.left.is_none_or(|left| key >= at - left as i128)
                    && a.right.is_none_or(|right| key <= at + right as i128)
                    && self.kv_len.as_ref().is_none_or(|l| key < l.exact[n] as i128)
                    && self.key_mask.as_ref().is_none_or(|m| m.exact[n * sk + j] != 0.0)
            };
            let scores: Vec<_> = (0..sk)
                .filter(|&j| seen(j))
                .map(|j| {
                    let k = &self.k.exact[place(j)..][..d];
                    let mut s = scale * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>();
                    if let Some(cap) = a.softcap {
                        s = cap * (s / cap).tanh();
                    }
                    if let Some(bias) = &self.bias {
                        s += bias.exact[broadcast_index(bias.spec.shape(), [n, h, i, j])];
                    }
                    (j, s)
                })
                .filter(|&(_, s)| s != f64::NEG_INFINITY)
                .collect();
            let top = scores.iter().fold(f64::NEG_INFINITY, |m, &(_, s)| m.max(s));
            let sum: f64 = scores.iter().map(|&(_, s)| (s - top).exp()).sum();
            lse[(n * hq + h) * sq + i] =
                if scores.is_empty() { f64::NEG_INFINITY } else { top + sum.ln() };
            let row = &mut out[((n * sq + i) * hq + h) * d..][..d];
            for &(j, s) in &scores {
                let p = (s - top).exp() / sum;
                for (o, v) in row.iter_mut().zip(&self.v.exact[place(j)..]) {
                    *o += p * v;
                }
            }
        }
        (out, lse)
    }

    fn run(&self, device: &Device) -> (Vec<f64>, Vec<f64>) {
        let tensors = self.inputs().map(|v| v.map(|v| v.on(device)));
        let outputs = device
            .run(&Op::FlashAttention(self.attrs), &tensors.each_ref().map(Option::as_ref))
            .unwrap();
        let read = |t: &Tensor| floats(t.spec().dtype, &t.to_bytes().unwrap());
        (read(&outputs[0]), outputs.get(1).map(read).unwrap_or_default())
    }

    fn check(&self, name: &str) {
        let (expected, expected_lse) = self.oracle();
        let dtype = self.q.spec.dtype;
        let (tolerance, lse_tolerance) = match dtype {
            DType::F32 => (1e-5, 1e-5),
            DType::F16 => (2e-3, 2e-3),
            _ => (1e-2, 1e-2),
        };
        for device in devices() {
            let (out, lse) = self.run(device);
            let at = || {
                format!("{name} on {}: {dtype} {:?} {:?}", device.id(), self.sizes(), self.attrs)
            };
            let error = relative(&out, &expected);
            assert!(error <= tolerance, "{}: error {error:e}", at());
            for (got, want) in lse.iter().zip(&expected_lse) {
                let close = (got - want).abs() <= lse_tolerance * want.abs().max(1.0);
                assert!(close || got == want, "{}: lse {got}, expected {want}", at());
            }
            // Rows with nothing to attend to are zeros exactly.
            let [_, sq, _, hq, _, d] = self.sizes();
            for (r, row) in out.chunks_exact(d).enumerate() {
                let (h, i, n) = (r % hq, r / hq % sq, r / hq / sq);
                let empty = expected_lse[(n * hq + h) * sq + i] == f64::NEG_INFINITY;
                assert!(!empty || row.iter().all(|&x| x == 0.0), "{}: row {r}", at());
            }
            assert!(self.run(device).0 == out, "{}: differs from run to run", at());
        }
    }
}

/// ‖got − want‖ / ‖want‖; a NaN never passes.
fn relative(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let square: f64 = got.iter().zip(want).map(|(g, w)| (g - w) * (g - w)).sum();
    let norm: f64 = want.iter().map(|w| w * w).sum();
    let error = if norm > 0.0 { (square / norm).sqrt() } else { square.sqrt() };
    if error.is_nan() { f64::INFINITY } else { error }
}

fn broadcast_index(shape: &[usize], at: [usize; 4]) -> usize {
    let at = &at[4 - shape.len()..];
    shape.iter().zip(at).fold(0, |n, (&length, &i)| n * length + if length == 1 { 0 } else { i })
}

const TYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
const LENGTHS: [usize; 12] = [1, 2, 3, 7, 31, 33, 60, 63, 65, 127, 129, 300];
const HEADS: [usize; 10] = [1, 8, 32, 40, 64, 80, 96, 128, 192, 256];

#[test]
fn lengths() {
    let mut random = Random(1);
    for (n, (&sq, &sk)) in
        LENGTHS.iter().flat_map(|q| LENGTHS.iter().map(move |k| (q, k))).enumerate()
    {
        let mut case = Case::new(&mut random, TYPES[n % 3], [1, sq, sk, 2, 1, 40]);
        case.attrs.causal = n % 2 == 0;
        case.check("lengths");
    }
    let mut long = Case::new(&mut random, DType::BF16, [1, 1000, 1000, 1, 1, 64]);
    long.attrs.causal = true;
    long.check("long");
    // Errors must not add up along the keys.
    for dtype in TYPES {
        Case::new(&mut random, dtype, [1, 1, 20_000, 4, 1, 64]).check("one long row");
        Case::new(&mut random, dtype, [1, 70, 6_000, 2, 2, 16]).check("long rows");
    }
}

#[test]
fn head_sizes_and_shared_heads() {
    let mut random = Random(2);
    for dtype in TYPES {
        for d in HEADS.into_iter().chain([3, 7, 65, 255]) {
            for (hq, hkv) in [(1, 1), (3, 3), (8, 2), (6, 1)] {
                Case::new(&mut random, dtype, [2, 5, 35, hq, hkv, d]).check("heads");
            }
            Case::new(&mut random, dtype, [1, 70, 70, 2, 1, d]).check("heads");
        }
    }
}

#[test]
fn every_option_with_every_other() {
    let mut random = Random(3);
    for n in 0..600 {
        let (sq, sk) = (random.pick(&LENGTHS[..11]), random.pick(&LENGTHS[..11]));
        let (b, hkv, group) =
            (random.pick(&[1, 2, 3]), random.pick(&[1, 2]), random.pick(&[1, 2, 4]));
        let hq = hkv * group;
        let d = random.pick(&HEADS[..9]);
        let dtype = TYPES[n % 3];
        let mut case = Case::new(&mut random, dtype, [b, sq, sk, hq, hkv, d]);
        let a = &mut case.attrs;
        a.causal = random.chance(0.4);
        a.left = random.chance(0.4).then(|| random.pick(&[0, 1, 5, 64, 200]));
        a.right = random.chance(0.3).then(|| random.pick(&[0, 1, 5, 64, usize::MAX]));
        a.softcap = random.chance(0.3).then(|| random.pick(&[1.0, 5.0, 50.0]));
        a.scale = random.chance(0.3).then(|| random.pick(&[0.3, -0.2, 0.0, 1.0 / 16.0]));
        a.lse = random.chance(0.7);
        if random.chance(0.4) {
            let full = [b, hq, sq, sk];
            let drop = random.below(4);
            let shape: Vec<_> =
                full[drop..].iter().map(|&n| if random.chance(0.5) { n } else { 1 }).collect();
            let mut values = random.normals(shape.iter().product(), 1.0);
            for v in &mut values {
                if random.chance(0.15) {
                    *v = f64::NEG_INFINITY;
                }
            }
            let dtype = if random.chance(0.5) { DType::F32 } else { dtype };
            case.bias = Some(Values::new(dtype, &shape, values));
        }
        if random.chance(0.3) {
            let keep = random.pick(&[0.8, 0.05]);
            let mask = (0..b * sk).map(|_| if random.chance(keep) { 3.0 } else { 0.0 }).collect();
            case.key_mask = Some(Values::new(DType::U8, &[b, sk], mask));
        }
        if random.chance(0.4) {
            let lengths = (0..b).map(|_| random.below(sk + 4) as f64 - 1.0).collect();
            case.kv_len = Some(Values::new(DType::S32, &[b], lengths));
        }
        match random.below(4) {
            0 => case.attrs.offset = Some(random.below(2 * sk) as i64 - sk as i64 / 2),
            1 => {
                let at = random.below(sk + 6) as f64 - 3.0;
                case.offset = Some(Values::new(DType::S32, &[], vec![at]));
            }
            2 => {
                let at = (0..b).map(|_| random.below(sk + 6) as f64 - 3.0).collect();
                case.offset = Some(Values::new(DType::S32, &[b], at));
            }
            _ => {}
        }
        case.check(&format!("case {n}"));
    }
}

#[test]
fn what_is_hidden_may_be_anything() {
    let mut random = Random(4);
    for dtype in TYPES {
        for sq in [1, 9, 80] {
            let mut case = Case::new(&mut random, dtype, [2, sq, 75, 2, 1, 64]);
            case.kv_len = Some(Values::new(DType::S32, &[2], vec![33.0, 70.0]));
            let mask = (0..150).map(|i| f64::from(u8::from(i % 7 != 3))).collect();
            case.key_mask = Some(Values::new(DType::U8, &[2, 75], mask));
            let mut poisoned = case.clone();
            for values in [&mut poisoned.k, &mut poisoned.v] {
                let mut exact = values.exact.clone();
                for (at, x) in exact.iter_mut().enumerate() {
                    let (n, j) = (at / 64 / 75, at / 64 % 75);
                    if j >= [33, 70][n] || (n * 75 + j) % 7 == 3 {
                        *x = f64::NAN;
                    }
                }
                *values = Values::new(dtype, &[2, 75, 1, 64], exact);
            }
            for device in devices() {
                let (clean, poisoned) = (case.run(device), poisoned.run(device));
                assert!(clean == poisoned, "{dtype}, {sq} rows on {}", device.id());
            }
        }
    }
}

#[test]
fn large_scores_neither_overflow_nor_vanish() {
    let mut random = Random(5);
    for dtype in TYPES {
        let mut case = Case::new(&mut random, dtype, [1, 40, 90, 2, 2, 32]);
        // Scores of several hundred: their exponentials alone would be infinite.
        case.attrs.scale = Some(if dtype == DType::F32 { 8.0 } else { 20.0 });
        case.attrs.causal = true;
        let (out, lse) = case.oracle();
        assert!(lse.iter().any(|&l| l > 150.0));
        for device in devices() {
            let (got, got_lse) = case.run(device);
            // A score's own rounding, 2^-24 of several hundred, is the error of its exponential.
            assert!(relative(&got, &out) < if dtype == DType::F32 { 1e-4 } else { 1e-2 });
            assert!(relative(&got_lse, &lse) < 1e-5);
        }
    }
}

#[test]
fn nothing_to_attend_to() {
    let mut random = Random(6);
    for dtype in TYPES {
        for sq in [1, 40] {
            let mut none = Case::new(&mut random, dtype, [2, sq, 0, 2, 1, 16]);
            none.check("no keys");
            none = Case::new(&mut random, dtype, [2, sq, 20, 2, 1, 16]);
            none.kv_len = Some(Values::new(DType::S32, &[2], vec![0.0, 7.0]));
            none.check("kv_len 0");
            none.kv_len = None;
            none.attrs.causal = true;
            none.attrs.offset = Some(-100);
            none.check("before the first key");
            none.attrs = PLAIN;
            none.bias = Some(Values::new(dtype, &[20], vec![f64::NEG_INFINITY; 20]));
            none.check("a bias of -∞");
        }
        for sizes in [[0, 4, 4, 2, 1, 16], [2, 0, 4, 2, 1, 16], [2, 4, 4, 0, 1, 16]] {
            Case::new(&mut random, dtype, sizes).check("empty");
        }
    }
}

#[test]
fn a_nan_is_not_hidden() {
    let mut random = Random(7);
    for dtype in TYPES {
        let mut case = Case::new(&mut random, dtype, [1, 3, 20, 1, 1, 16]);
        let mut exact = case.q.exact.clone();
        exact[16] = f64::NAN;
        case.q = Values::new(dtype, &[1, 3, 1, 16], exact);
        for device in devices() {
            let (out, lse) = case.run(device);
            assert!(out[16..32].iter().all(|x| x.is_nan()) && lse[1].is_nan());
            assert!(out[..16].iter().chain(&out[32..]).all(|x| x.is_finite()));
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let spec = |dtype, shape: &[usize]| Spec::new(dtype, shape).unwrap();
    let f = |shape: &[usize]| spec(DType::F32, shape);
    let refused = |attrs: FlashAttention, inputs: &[Option<&Spec>], word: &str| {
        let error = infer(&Op::FlashAttention(attrs), inputs).unwrap_err();
        assert_eq!((error.op(), error.reason()), (Some("flash_attention"), word), "{error}");
    };
    let (q, k) = (f(&[2, 3, 4, 8]), f(&[2, 5, 2, 8]));
    let ok = infer(&Op::FlashAttention(PLAIN), &[Some(&q), Some(&k), Some(&k)]).unwrap();
    assert_eq!(ok, [q.clone(), f(&[2, 4, 3])]);
    refused(PLAIN, &[Some(&q), Some(&k)], "argument");
    refused(PLAIN, &[Some(&q), Some(&k), None], "argument");
    refused(PLAIN, &[Some(&f(&[2, 3, 32])), Some(&k), Some(&k)], "shape");
    refused(PLAIN, &[Some(&q), Some(&k), Some(&f(&[2, 6, 2, 8]))], "shape");
    refused(PLAIN, &[Some(&q), Some(&f(&[1, 5, 2, 8])), Some(&k)], "shape");
    refused(PLAIN, &[Some(&spec(DType::F64, &[2, 3, 4, 8])), Some(&k), Some(&k)], "type");
    refused(PLAIN, &[Some(&q), Some(&spec(DType::F16, &[2, 5, 2, 8])), Some(&k)], "type");
    let three = f(&[2, 5, 3, 8]);
    refused(PLAIN, &[Some(&q), Some(&three), Some(&three)], "argument");
    let none = f(&[2, 5, 0, 8]);
    refused(PLAIN, &[Some(&q), Some(&none), Some(&none)], "argument");
    let wide = f(&[1, 1, 1, 257]);
    refused(PLAIN, &[Some(&wide), Some(&wide), Some(&wide)], "unsupported");
    let all = |i: usize, extra: &Spec, attrs: FlashAttention, word: &str| {
        let mut inputs = [Some(&q), Some(&k), Some(&k), None, None, None, None];
        inputs[i] = Some(extra);
        refused(attrs, &inputs, word);
    };
    all(3, &f(&[7]), PLAIN, "argument");
    all(3, &f(&[3, 2, 4, 3, 5]), PLAIN, "shape");
    all(3, &spec(DType::F16, &[5]), PLAIN, "type");
    all(4, &f(&[2, 5]), PLAIN, "type");
    all(4, &spec(DType::U8, &[2, 3]), PLAIN, "shape");
    all(5, &spec(DType::S32, &[]), PLAIN, "shape");
    all(6, &spec(DType::S32, &[3]), PLAIN, "shape");
    let offset = FlashAttention { offset: Some(0), ..PLAIN };
    all(6, &spec(DType::S32, &[]), offset, "argument");
    for attrs in [
        FlashAttention { scale: Some(f64::NAN), ..PLAIN },
        FlashAttention { scale: Some(1e300), ..PLAIN },
        FlashAttention { softcap: Some(0.0), ..PLAIN },
        FlashAttention { softcap: Some(-1.0), ..PLAIN },
    ] {
        refused(attrs, &[Some(&q), Some(&k), Some(&k)], "argument");
    }
}
