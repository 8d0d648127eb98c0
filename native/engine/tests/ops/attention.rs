use nitrox_engine::op::{FlashAttention, Op};
use nitrox_engine::{DType, Spec, infer};

use crate::harness::{NETWORK, Run, each_device, outputs};
use crate::oracle::Array;
use crate::rng::Rng;

const LENGTHS: [usize; 12] = [1, 2, 3, 7, 31, 33, 60, 63, 65, 127, 129, 300];
const HEADS: [usize; 10] = [1, 8, 32, 40, 64, 80, 96, 128, 192, 256];

const PLAIN: FlashAttention = FlashAttention {
    scale: None,
    causal: false,
    left: None,
    right: None,
    softcap: None,
    offset: None,
    lse: true,
};

struct Case {
    attrs: FlashAttention,
    q: Array,
    k: Array,
    v: Array,
    bias: Option<Array>,
    key_mask: Option<Array>,
    kv_len: Option<Array>,
    offset: Option<Array>,
}

impl Case {
    /// Batch, queries, keys, query heads, key heads, head size.
    fn new(rng: &mut Rng, dtype: DType, [b, sq, sk, hq, hkv, d]: [usize; 6]) -> Self {
        let q = rng.normal(dtype, &[b, sq, hq, d], 1.0);
        let [k, v] = [(); 2].map(|()| rng.normal(dtype, &[b, sk, hkv, d], 1.0));
        Case { attrs: PLAIN, q, k, v, bias: None, key_mask: None, kv_len: None, offset: None }
    }

    fn op(&self) -> Op {
        Op::FlashAttention(self.attrs)
    }

    fn inputs(&self) -> [Option<&Array>; 7] {
        let [bias, mask, length, offset] =
            [&self.bias, &self.key_mask, &self.kv_len, &self.offset].map(Option::as_ref);
        [Some(&self.q), Some(&self.k), Some(&self.v), bias, mask, length, offset]
    }

    fn check(&self, run: &mut Run) {
        run.check(self.op(), &self.inputs());
    }
}

#[test]
fn lengths() {
    let mut run = Run::new("attention lengths");
    for (n, (&sq, &sk)) in
        LENGTHS.iter().flat_map(|q| LENGTHS.iter().map(move |k| (q, k))).enumerate()
    {
        let mut case = Case::new(&mut run.rng, NETWORK[n % 3], [1, sq, sk, 2, 1, 40]);
        case.attrs.causal = n % 2 == 0;
        case.check(&mut run);
    }
    // Errors must not add up along the keys.
    for dtype in NETWORK {
        for sizes in [[1, 1, 20_000, 4, 1, 64], [1, 70, 6_000, 2, 2, 16], [1, 1000, 1000, 1, 1, 64]]
        {
            let mut case = Case::new(&mut run.rng, dtype, sizes);
            case.attrs.causal = true;
            case.check(&mut run);
        }
        // Enough rows for the largest tiles on the largest GPU.
        Case::new(&mut run.rng, dtype, [4, 130, 50, 32, 8, 128]).check(&mut run);
    }
    run.finish();
}

#[test]
fn head_sizes_and_shared_heads() {
    let mut run = Run::new("attention heads");
    for dtype in NETWORK {
        for d in HEADS.into_iter().chain([3, 7, 65, 255]) {
            for (hq, hkv) in [(1, 1), (3, 3), (8, 2), (6, 1)] {
                Case::new(&mut run.rng, dtype, [2, 5, 35, hq, hkv, d]).check(&mut run);
            }
            Case::new(&mut run.rng, dtype, [1, 70, 70, 2, 1, d]).check(&mut run);
            Case::new(&mut run.rng, dtype, [3, 70, 70, 10, 10, d]).check(&mut run);
        }
    }
    run.finish();
}

#[test]
fn every_option_with_every_other() {
    let mut run = Run::new("attention options");
    for n in 0..600 {
        let rng = &mut run.rng;
        let (sq, sk) = (*rng.pick(&LENGTHS[..11]), *rng.pick(&LENGTHS[..11]));
        let (b, hkv, group) = (1 + rng.below(3), 1 + rng.below(2), *rng.pick(&[1, 2, 4]));
        // Now and then enough heads to leave the kernels for few rows.
        let hkv = if rng.below(8) == 0 { 16 } else { hkv };
        let (hq, d, dtype) = (hkv * group, *rng.pick(&HEADS[..9]), NETWORK[n % 3]);
        let mut case = Case::new(rng, dtype, [b, sq, sk, hq, hkv, d]);
        let some = |rng: &mut Rng, of: &[usize]| (rng.below(3) == 0).then(|| *rng.pick(of));
        case.attrs = FlashAttention {
            scale: (rng.below(3) == 0).then(|| *rng.pick(&[0.3, -0.2, 0.0, 0.0625])),
            causal: rng.coin(),
            left: some(rng, &[0, 1, 5, 64, 200]),
            right: some(rng, &[0, 1, 5, 64, usize::MAX]),
            softcap: (rng.below(3) == 0).then(|| *rng.pick(&[1.0, 5.0, 50.0])),
            offset: None,
            lse: rng.below(4) > 0,
        };
        if rng.below(5) < 2 {
            let drop = rng.below(4);
            let shape: Vec<_> =
                [b, hq, sq, sk][drop..].iter().map(|&n| if rng.coin() { n } else { 1 }).collect();
            let dtype = if rng.coin() { DType::F32 } else { dtype };
            case.bias = Some(rng.floats(dtype, &shape, |rng, _| {
                if rng.below(7) == 0 { f64::NEG_INFINITY } else { rng.gauss() }
            }));
        }
        if rng.below(3) == 0 {
            let most = *rng.pick(&[1, 9]);
            let mask: Vec<_> = (0..b * sk).map(|_| 3 * i64::from(rng.below(10) < most)).collect();
            case.key_mask = Some(Array::ints(DType::U8, &[b, sk], &mask));
        }
        if rng.below(5) < 2 {
            case.kv_len = Some(rng.ints(DType::S32, &[b], -1, sk as i64 + 3));
        }
        let last = sk as i64 + 3;
        match rng.below(4) {
            0 => case.attrs.offset = Some(rng.below(2 * sk) as i64 - sk as i64 / 2),
            1 => case.offset = Some(rng.ints(DType::S32, &[], -3, last)),
            2 => case.offset = Some(rng.ints(DType::S32, &[b], -3, last)),
            _ => {}
        }
        case.check(&mut run);
    }
    run.finish();
}

#[test]
fn what_is_hidden_may_be_anything() {
    let mut rng = Rng::new("attention hidden");
    for dtype in NETWORK {
        for (b, sq) in [(2, 1), (2, 9), (2, 80), (150, 20)] {
            let mut case = Case::new(&mut rng, dtype, [b, sq, 75, 2, 1, 64]);
            let length = |n: usize| [33, 70][n % 2];
            let seen = |n: usize, j: usize| !(n * 75 + j).is_multiple_of(7);
            let lengths: Vec<_> = (0..b).map(|n| length(n) as i64).collect();
            case.kv_len = Some(Array::ints(DType::S32, &[b], &lengths));
            let mask: Vec<_> = (0..b * 75).map(|i| seen(i / 75, i % 75).into()).collect();
            case.key_mask = Some(Array::ints(DType::U8, &[b, 75], &mask));
            let poisoned = |of: &Array| {
                let mut values = of.to_f64();
                for (at, x) in values.iter_mut().enumerate() {
                    let (n, j) = (at / 64 / 75, at / 64 % 75);
                    if j >= length(n) || !seen(n, j) {
                        *x = f64::NAN;
                    }
                }
                Array::floats(dtype, of.shape(), &values)
            };
            let (k, v) = (poisoned(&case.k), poisoned(&case.v));
            each_device(|device| {
                let clean = outputs(device, &case.op(), &case.inputs()).unwrap();
                let mut inputs = case.inputs();
                (inputs[1], inputs[2]) = (Some(&k), Some(&v));
                let hidden = outputs(device, &case.op(), &inputs).unwrap();
                assert!(clean == hidden, "{dtype}, {sq} rows on {}", device.id());
                assert!(clean[0].to_f64().iter().all(|x| x.is_finite()));
            });
        }
    }
}

#[test]
fn large_scores_neither_overflow_nor_vanish() {
    let mut run = Run::new("attention large scores");
    for dtype in NETWORK {
        for sizes in [[1, 40, 90, 2, 2, 32], [16, 40, 90, 12, 12, 32]] {
            let mut case = Case::new(&mut run.rng, dtype, sizes);
            // Scores of several hundred: their exponentials alone would be infinite. A score's own
            // rounding, 2^-24 of it, is a relative error of its exponential.
            case.attrs.scale = Some(20.0);
            case.attrs.causal = true;
            let within = if dtype == DType::F32 { 1e-4 } else { 1e-2 };
            run.check_within(case.op(), &case.inputs(), Some(within));
        }
    }
    run.finish();
}

#[test]
fn nothing_to_attend_to() {
    let mut run = Run::new("attention to nothing");
    let zeros = |case: &Case| {
        each_device(|device| {
            let got = outputs(device, &case.op(), &case.inputs()).unwrap();
            assert!(got[0].bytes.iter().all(|&b| b == 0), "{}: {}", device.id(), got[0].spec);
            assert!(got[1].to_f64().iter().all(|&l| l == f64::NEG_INFINITY));
        });
    };
    for dtype in NETWORK {
        for (b, sq) in [(2, 1), (2, 40), (150, 40)] {
            zeros(&Case::new(&mut run.rng, dtype, [b, sq, 0, 2, 1, 16]));
            let mut none = Case::new(&mut run.rng, dtype, [b, sq, 20, 2, 1, 16]);
            none.attrs.causal = true;
            none.attrs.offset = Some(-100);
            zeros(&none);
            none.attrs = PLAIN;
            none.kv_len = Some(Array::ints(DType::S32, &[b], &vec![0; b]));
            zeros(&none);
            none.kv_len = None;
            none.bias = Some(Array::floats(dtype, &[20], &[f64::NEG_INFINITY; 20]));
            zeros(&none);
            let mut some = Case::new(&mut run.rng, dtype, [b, sq, 20, 2, 1, 16]);
            some.attrs.causal = true;
            some.attrs.offset = Some(1 - sq as i64);
            some.check(&mut run);
        }
        for sizes in [[0, 4, 4, 2, 1, 16], [2, 0, 4, 2, 1, 16], [2, 4, 4, 0, 1, 16]] {
            Case::new(&mut run.rng, dtype, sizes).check(&mut run);
        }
    }
    run.finish();
}

#[test]
fn a_nan_is_not_hidden() {
    let mut run = Run::new("attention nan");
    for dtype in NETWORK {
        for b in [1, 150] {
            let mut case = Case::new(&mut run.rng, dtype, [b, 20, 20, 1, 1, 16]);
            let mut values = case.q.to_f64();
            values[16] = f64::NAN;
            case.q = Array::floats(dtype, &[b, 20, 1, 16], &values);
            case.check(&mut run);
        }
    }
    run.finish();
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
