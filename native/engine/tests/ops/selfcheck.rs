//! The oracle and the harness themselves, against values worked out by other means.

use nitrox_engine::op::*;
use nitrox_engine::{DType, Spec, Tensor};

use crate::harness::{each_device, same_numbers};
use crate::oracle::sample::{gumbel, philox};
use crate::oracle::special::{erf, erfc, gelu, gelu_tanh, sigmoid, softplus};
use crate::oracle::{Array, Expected, Real, evaluate, round_to};

fn f32s(shape: &[usize], values: &[f64]) -> Array {
    Array::floats(DType::F32, shape, values)
}

fn numbers(expected: &Expected) -> &[f64] {
    match expected {
        Expected::Real(r) => &r.values,
        e => panic!("{e:?}"),
    }
}

fn bits(expected: &Expected) -> Vec<i64> {
    match expected {
        Expected::Bits(a) => a.to_i64(),
        e => panic!("{e:?}"),
    }
}

fn close(got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len());
    for (g, e) in got.iter().zip(expected) {
        assert!((g - e).abs() <= 1e-12 * e.abs().max(1e-3), "{got:?}, expected {expected:?}");
    }
}

/// One unit, one feature, one frame, by hand: x = 1, h = ½, c = 2.
#[test]
fn lstm_by_hand() {
    let (x, c0, h0) = (f32s(&[1, 1, 1], &[1.0]), f32s(&[1, 1], &[2.0]), f32s(&[1, 1], &[0.5]));
    let wi = f32s(&[1, 4], &[1.0, 2.0, 3.0, 4.0]);
    let wh = f32s(&[1, 4], &[2.0, -2.0, 0.0, -4.0]);
    let b = f32s(&[4], &[0.0, -1.0, -3.0, -2.0]);
    // Pre-activations: i 1 + 1 + 0 = 2, f 2 − 1 − 1 = 0, g 3 + 0 − 3 = 0, o 4 − 2 − 2 = 0.
    let op = Op::Lstm(Recurrent { reverse: false, norm: None });
    let inputs = [Some(&x), Some(&c0), Some(&h0), Some(&wi), Some(&wh), Some(&b)];
    let out = evaluate(&op, &inputs);
    let h = 0.5 * 1f64.tanh();
    close(numbers(&out[0]), &[h]);
    close(numbers(&out[1]), &[1.0]);
    close(numbers(&out[2]), &[h]);

    // g = ln 2: tanh g = 3/5; i = ln 3: σ = ¾; f = −ln 3: σ = ¼. c = ¼·2 + ¾·3/5 = 0.95.
    let ln2 = 2f64.ln();
    let ln3 = 3f64.ln();
    let b = Array::floats(DType::F32, &[4], &[ln3, -ln3, ln2, 0.0]);
    let zero = f32s(&[1, 4], &[0.0; 4]);
    let inputs = [Some(&x), Some(&c0), Some(&h0), Some(&zero), Some(&zero), Some(&b)];
    let out = evaluate(&op, &inputs);
    assert!((numbers(&out[1])[0] - 0.95).abs() < 1e-7);
    assert!((numbers(&out[2])[0] - 0.5 * 0.95f64.tanh()).abs() < 1e-7);
}

/// Two frames of one unit: the first hidden by the mask, in either direction.
#[test]
fn masks_and_reverse_by_hand() {
    let x = f32s(&[1, 3, 1], &[1.0, 2.0, 3.0]);
    let h0 = f32s(&[1, 1], &[0.25]);
    let (wi, wh) = (f32s(&[1, 3], &[0.0, 0.0, 1.0]), f32s(&[1, 3], &[0.0; 3]));
    // r = z = ½, so h' = ½·tanh(x) + ½·h.
    let mask = Array::ints(DType::U8, &[1, 3], &[0, 200, 0]);
    let step = |x: f64, h: f64| 0.5 * x.tanh() + 0.5 * h;
    let run = |reverse| {
        let inputs = [Some(&x), Some(&h0), Some(&wi), Some(&wh), None, Some(&mask)];
        evaluate(&Op::Gru(Recurrent { reverse, norm: None }), &inputs)
    };
    let (a, b) = (step(1.0, 0.25), step(3.0, step(1.0, 0.25)));
    close(numbers(&run(false)[0]), &[a, a, b]);
    close(numbers(&run(false)[1]), &[b]);
    let (a, b) = (step(3.0, 0.25), step(1.0, step(3.0, 0.25)));
    close(numbers(&run(true)[0]), &[b, a, a]);
    close(numbers(&run(true)[1]), &[b]);
}

/// The recurrent bias of a GRU lies inside the product with r.
#[test]
fn gru_by_hand() {
    let x = f32s(&[1, 1, 1], &[1.0]);
    let h0 = f32s(&[1, 1], &[0.5]);
    let (wi, wh) = (f32s(&[1, 3], &[0.0, 0.0, 1.0]), f32s(&[1, 3], &[0.0, 0.0, 2.0]));
    let b = f32s(&[4], &[0.0, 0.0, 4.0, 8.0]);
    // n = tanh(1 + 4 + ½(1 + 8)) = tanh 9.5; h = ½n + ¼.
    let out = evaluate(
        &Op::Gru(Recurrent { reverse: false, norm: None }),
        &[Some(&x), Some(&h0), Some(&wi), Some(&wh), Some(&b)],
    );
    close(numbers(&out[1]), &[0.5 * 9.5f64.tanh() + 0.25]);
}

#[test]
fn network_by_hand() {
    let x = f32s(&[2, 2], &[1.0, 2.0, 3.0, 4.0]);
    let w = f32s(&[2, 3], &[1.0, 0.0, -1.0, 0.0, 1.0, -1.0]);
    let (b, r) = (f32s(&[3], &[0.0, 10.0, 0.0]), f32s(&[2, 3], &[0.5; 6]));
    let op = Op::Dense(Dense { activation: Activation::Relu, norm: None });
    let out = evaluate(&op, &[Some(&x), Some(&w), Some(&b), Some(&r)]);
    close(numbers(&out[0]), &[1.5, 12.5, 0.5, 3.5, 14.5, 0.5]);

    let x = f32s(&[1, 4], &[1.0, 2.0, 3.0, 6.0]);
    let (gamma, beta) = (f32s(&[4], &[1.0, 1.0, 1.0, 2.0]), f32s(&[4], &[0.0, 0.0, 5.0, 0.0]));
    // Mean 3, variance 14/4 = 3½; with ε = ½ the deviation is 2.
    let attrs = Norm { epsilon: 0.5 };
    let out = evaluate(&Op::LayerNorm(attrs), &[Some(&x), Some(&gamma), Some(&beta)]);
    close(numbers(&out[0]), &[-1.0, -0.5, 5.0, 3.0]);
    // Mean of squares 50/4 = 12½; with ε = 12½ the root is 5.
    let attrs = Norm { epsilon: 12.5 };
    let out = evaluate(&Op::RmsNorm(attrs), &[Some(&x), Some(&gamma), Some(&x)]);
    close(numbers(&out[1]), &[2.0, 4.0, 6.0, 12.0]);
    let root = 62.5f64.sqrt();
    close(numbers(&out[0]), &[2.0 / root, 4.0 / root, 6.0 / root, 24.0 / root]);

    let x = f32s(&[3], &[0.0, 0.0, 0.0]);
    let out = evaluate(&Op::Softmax(Softmax { axis: 0, log: true }), &[Some(&x)]);
    close(numbers(&out[0]), &[-(3f64.ln()); 3]);
}

/// Philox's known answers (Random123), and a Gumbel variate from the first.
#[test]
fn philox_known_answers() {
    let all = u32::MAX;
    assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    assert_eq!(philox([all; 4], [all; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    let counter = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
    let expected = [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1];
    assert_eq!(philox(counter, [0xa409_3822, 0x299f_31d0]), expected);
    let u = (f64::from(0x6627_e8d5u32 >> 9) + 0.5) / 8_388_608.0;
    close(&[gumbel(0, 0, 0, 0)], &[-(-u.ln()).ln()]);
}

#[test]
fn special_functions() {
    // Abramowitz and Stegun, table 7.1, and erfc of 3 and 5 to fifteen digits.
    close(
        &[erf(0.5), erf(1.0), erf(2.0)],
        &[0.5204998778130465, 0.8427007929497149, 0.9953222650189527],
    );
    for (x, e) in [(3.0, 2.209049699858544e-5), (5.0, 1.537459794428035e-12)] {
        assert!((erfc(x) / e - 1.0).abs() < 1e-12, "{:e}", erfc(x));
    }
    assert!((erf(-1.5) + 0.9661051464753108).abs() < 1e-14);
    // Both formulas where they meet.
    assert!((erfc(2.0) / (1.0 - erf(1.999_999_999_999)) - 1.0).abs() < 1e-9);
    close(&[sigmoid(0.0), sigmoid(3f64.ln()), softplus(0.0)], &[0.5, 0.75, 2f64.ln()]);
    close(&[gelu(1.0)], &[0.8413447460685429]);
    assert!((gelu_tanh(1.0) - 0.8411919906082768).abs() < 1e-12);
    assert_eq!(erf(f64::INFINITY), 1.0);
    assert!(erf(f64::NAN).is_nan() && erfc(f64::NAN).is_nan());
}

#[test]
fn rounding() {
    let cases = [
        (DType::F16, 1.0 + 2f64.powi(-11), 1.0),
        (DType::F16, 1.0 + 3.0 * 2f64.powi(-11), 1.0 + 2f64.powi(-9)),
        (DType::F16, 65519.9, 65504.0),
        (DType::F16, 65520.0, f64::INFINITY),
        (DType::F16, 2f64.powi(-25), 0.0),
        (DType::F16, 1.1 * 2f64.powi(-25), 2f64.powi(-24)),
        (DType::BF16, 1.0 + 2f64.powi(-8), 1.0),
        (DType::BF16, -1.0 - 3.0 * 2f64.powi(-8), -1.0 - 2f64.powi(-6)),
        (DType::BF16, 3.4e38, f64::INFINITY),
        (DType::F32, 1e39, f64::INFINITY),
    ];
    for (dtype, v, expected) in cases {
        assert_eq!(round_to(dtype, v), expected, "{v:e} as {dtype}");
    }
    // Every number of 16 bits is its own nearest.
    for bits in 0..=u16::MAX {
        for dtype in [DType::F16, DType::BF16] {
            let a = Array::new(Spec::scalar(dtype), bits.to_ne_bytes().to_vec());
            let v = a.to_f64()[0];
            assert!(v.is_nan() || Array::floats(dtype, &[], &[v]) == a, "{bits:x}");
        }
    }
}

#[test]
fn shapes_by_hand() {
    let x = Array::ints(DType::S32, &[5], &[10, 11, 12, 13, 14]);
    let slice = |start, length, stride, wrap, at: i64| {
        let attrs = Slice {
            starts: vec![start],
            lengths: vec![length],
            strides: vec![stride],
            axis: 0,
            wrap,
        };
        let at = Array::ints(DType::S32, &[], &[at]);
        bits(&evaluate(&Op::Slice(attrs), &[Some(&x), Some(&at)])[0])
    };
    assert_eq!(slice(0, 2, 1, false, 1), [11, 12]);
    assert_eq!(slice(0, 2, 1, false, 9), [13, 14]);
    assert_eq!(slice(0, 2, 1, false, -9), [10, 11]);
    assert_eq!(slice(0, 3, 2, false, 1), [10, 12, 14]);
    assert_eq!(slice(0, 3, 1, true, 4), [14, 10, 11]);
    assert_eq!(slice(1, 4, 2, true, -3), [13, 10, 12, 14]);

    let y = Array::ints(DType::S32, &[2], &[1, 2]);
    let put = |wrap, at: i64| {
        let attrs = PutSlice { starts: vec![0], axis: 0, wrap };
        let at = Array::ints(DType::S32, &[], &[at]);
        bits(&evaluate(&Op::PutSlice(attrs), &[Some(&x), Some(&y), Some(&at)])[0])
    };
    assert_eq!(put(false, 4), [10, 11, 12, 1, 2]);
    assert_eq!(put(true, 4), [2, 11, 12, 13, 1]);

    let m = Array::ints(DType::U8, &[2, 3], &[1, 2, 3, 4, 5, 6]);
    let t = evaluate(&Op::Transpose(Transpose { axes: vec![1, 0] }), &[Some(&m)]);
    assert_eq!(bits(&t[0]), [1, 4, 2, 5, 3, 6]);
    let c = evaluate(&Op::Concatenate(Concatenate { axis: 1 }), &[Some(&m), Some(&m)]);
    assert_eq!(bits(&c[0]), [1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6]);
    let sum = Reduce { kind: ReduceKind::Sum, axes: vec![0], keep_axes: false };
    assert_eq!(bits(&evaluate(&Op::Reduce(sum), &[Some(&m)])[0]), [5, 7, 9]);
    let b = evaluate(&Op::Broadcast(Reshape { shape: vec![2, 2, 3] }), &[Some(&m)]);
    assert_eq!(bits(&b[0]), [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6]);
}

/// The comparison fails where it should.
#[test]
fn comparison_has_teeth() {
    let spec = Spec::new(DType::F32, [4]).unwrap();
    let expected = |values: [f64; 4]| Real {
        spec: spec.clone(),
        values: values.to_vec(),
        scale: 0.0,
        slack: None,
    };
    let right = [1.0, -2.0, f64::INFINITY, f64::NAN];
    let compare = |got: [f64; 4]| same_numbers(&f32s(&[4], &got), &expected(right), 1e-5);
    assert!(compare(right).is_ok());
    assert!(compare([1.00001, -2.0, f64::INFINITY, f64::NAN]).is_ok());
    assert!(compare([1.0001, -2.0, f64::INFINITY, f64::NAN]).is_err());
    assert!(compare([1.0, -2.0, f64::NEG_INFINITY, f64::NAN]).is_err());
    assert!(compare([1.0, -2.0, f64::INFINITY, 0.0]).is_err());
    assert!(compare([1.0, f64::NAN, f64::INFINITY, f64::NAN]).is_err());
    // One wrong element among many.
    let mut many = vec![1.0; 1_000_000];
    let spec = Spec::new(DType::BF16, [many.len()]).unwrap();
    let expected = Real { spec, values: many.clone(), scale: 0.0, slack: None };
    many[77] = 2.0;
    let got = Array::floats(DType::BF16, &[many.len()], &many);
    assert!(same_numbers(&got, &expected, 1e-2).is_err());
}

/// What the pool hands out after a block of the same size was dropped is that block's memory: the
/// poison does reach the outputs.
#[test]
fn poison_reaches_new_tensors() {
    each_device(|device| {
        let spec = Spec::new(DType::U8, [1000]).unwrap();
        let kept = Tensor::from_bytes(device, spec.clone(), &[1; 1000]).unwrap();
        drop(Tensor::from_bytes(device, spec.clone(), &[0xff; 1000]).unwrap());
        let fresh = Tensor::uninit(device, spec.clone()).unwrap();
        assert_eq!(fresh.to_bytes().unwrap(), [0xff; 1000]);
        assert_eq!(kept.to_bytes().unwrap(), [1; 1000]);
    });
}
