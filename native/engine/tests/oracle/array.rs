//! Host tensors: bytes as a device takes them, and their elements as f64 or i128.

use half::{bf16, f16};
use nitrox_engine::{DType, Spec};

/// A tensor on the host. Integers are exact in `i128`, floats in `f64`, whatever the type.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    pub spec: Spec,
    pub bytes: Vec<u8>,
}

impl Array {
    pub fn new(spec: Spec, bytes: Vec<u8>) -> Self {
        assert_eq!(spec.bytes(), bytes.len(), "{spec}");
        Array { spec, bytes }
    }

    /// Rounds to the type.
    pub fn floats(dtype: DType, shape: &[usize], values: &[f64]) -> Self {
        let mut bytes = Vec::with_capacity(values.len() * dtype.size());
        values.iter().for_each(|&v| push_float(&mut bytes, dtype, v));
        Array::new(spec(dtype, shape), bytes)
    }

    /// Wraps to the type.
    pub fn ints(dtype: DType, shape: &[usize], values: &[i64]) -> Self {
        let values: Vec<i128> = values.iter().map(|&v| v.into()).collect();
        Array::integers(dtype, shape, &values)
    }

    /// As `ints`, for what i64 does not hold.
    pub fn integers(dtype: DType, shape: &[usize], values: &[i128]) -> Self {
        let mut bytes = Vec::with_capacity(values.len() * dtype.size());
        for v in values {
            bytes.extend_from_slice(&v.to_le_bytes()[..dtype.size()]);
        }
        Array::new(spec(dtype, shape), bytes)
    }

    pub fn dtype(&self) -> DType {
        self.spec.dtype
    }

    pub fn shape(&self) -> &[usize] {
        self.spec.shape()
    }

    pub fn len(&self) -> usize {
        self.spec.len()
    }

    /// The elements of a float tensor.
    pub fn to_f64(&self) -> Vec<f64> {
        let b = &self.bytes;
        match self.dtype() {
            DType::F16 => words(b).map(|w| f16::from_ne_bytes(w).to_f64()).collect(),
            DType::BF16 => words(b).map(|w| bf16::from_ne_bytes(w).to_f64()).collect(),
            DType::F32 => words(b).map(|w| f32::from_ne_bytes(w).into()).collect(),
            DType::F64 => words(b).map(f64::from_ne_bytes).collect(),
            t => panic!("{t} is not a float type"),
        }
    }

    /// The elements of an integer tensor.
    pub fn to_ints(&self) -> Vec<i128> {
        let b = &self.bytes;
        match self.dtype() {
            DType::U8 => b.iter().map(|&v| v.into()).collect(),
            DType::U16 => words(b).map(|w| u16::from_ne_bytes(w).into()).collect(),
            DType::U32 => words(b).map(|w| u32::from_ne_bytes(w).into()).collect(),
            DType::U64 => words(b).map(|w| u64::from_ne_bytes(w).into()).collect(),
            DType::S8 => b.iter().map(|&v| (v as i8).into()).collect(),
            DType::S16 => words(b).map(|w| i16::from_ne_bytes(w).into()).collect(),
            DType::S32 => words(b).map(|w| i32::from_ne_bytes(w).into()).collect(),
            DType::S64 => words(b).map(|w| i64::from_ne_bytes(w).into()).collect(),
            t => panic!("{t} is not an integer type"),
        }
    }

    /// The same, where all of them fit.
    pub fn to_i64(&self) -> Vec<i64> {
        self.to_ints().into_iter().map(|v| v.try_into().unwrap()).collect()
    }

    /// The bytes of one element.
    pub fn element(&self, i: usize) -> &[u8] {
        let n = self.dtype().size();
        &self.bytes[i * n..(i + 1) * n]
    }
}

pub fn spec(dtype: DType, shape: &[usize]) -> Spec {
    Spec::new(dtype, shape).unwrap()
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.chunks_exact(N).map(|word| word.try_into().unwrap())
}

fn push_float(bytes: &mut Vec<u8>, dtype: DType, v: f64) {
    let v = round_to(dtype, v);
    match dtype {
        DType::F16 => bytes.extend(f16::from_f64(v).to_le_bytes()),
        DType::BF16 => bytes.extend(bf16::from_f64(v).to_le_bytes()),
        DType::F32 => bytes.extend((v as f32).to_le_bytes()),
        DType::F64 => bytes.extend(v.to_le_bytes()),
        t => panic!("{t} is not a float type"),
    }
}

/// `v` rounded once to the nearest number of a float type, ties to even, beyond the largest to
/// infinity.
pub fn round_to(dtype: DType, v: f64) -> f64 {
    // Digits of the significand, the least exponent of a normal number, the largest number.
    let (digits, least, max) = match dtype {
        DType::F16 => (11, -14, 65504.0),
        DType::BF16 => (8, -126, f64::from(bf16::MAX)),
        DType::F32 => return f64::from(v as f32),
        _ => return v,
    };
    if v == 0.0 || !v.is_finite() {
        return v;
    }
    let exponent = ((v.to_bits() >> 52) & 0x7ff) as i32 - 1023;
    let unit = 2f64.powi(exponent.max(least) - (digits - 1));
    let rounded = (v / unit).round_ties_even() * unit;
    if rounded.abs() > max { f64::INFINITY.copysign(v) } else { rounded }
}

/// `v` as the type holds it, wrapped.
pub fn wrap(dtype: DType, v: i128) -> i128 {
    Array::integers(dtype, &[], &[v]).to_ints()[0]
}

/// The least and the largest number of an integer type.
pub fn int_range(dtype: DType) -> (i128, i128) {
    let bits = 8 * dtype.size() as u32;
    match dtype.pair().0 {
        "u" => (0, (1 << bits) - 1),
        _ => (-(1 << (bits - 1)), (1 << (bits - 1)) - 1),
    }
}

/// Values of a type at which ops go wrong.
pub fn extremes(dtype: DType) -> Array {
    if !dtype.is_float() {
        let (least, most) = int_range(dtype);
        let mut values = vec![least, least + 1, most, most - 1, most / 2, most / 2 + 1];
        values.extend([0, 1, 2, 3, 7, 10, 255, -1, -2, -3, -7, 65_537, 16_777_217]);
        values.push((1 << 53) + 1);
        values.extend([(1 << 63) - 1, 1 << 63]);
        let n = values.len();
        return Array::integers(dtype, &[n], &values);
    }
    let (tiniest, normal, max) = match dtype {
        DType::F16 => (2f64.powi(-24), 2f64.powi(-14), 65504.0),
        DType::BF16 => (2f64.powi(-133), 2f64.powi(-126), f64::from(bf16::MAX)),
        DType::F32 => (2f64.powi(-149), 2f64.powi(-126), f32::MAX.into()),
        _ => (f64::from_bits(1), f64::MIN_POSITIVE, f64::MAX),
    };
    let mut values = vec![f64::NAN];
    for v in [
        0.0,
        tiniest,
        3.0 * tiniest,
        normal / 2.0,
        normal,
        max,
        max / 2.0,
        f64::INFINITY,
        1e30,
        1e-30,
        1e-10,
        1e-4,
        0.25,
        // Next to ½: adding ½ to it rounds up.
        0.5 - 2f64.powi(-25),
        0.5,
        1.0 - 2f64.powi(-24),
        1.0,
        1.0 + 2f64.powi(-23),
        1.5,
        2.0,
        2.5,
        3.0,
        std::f64::consts::PI,
        5.0,
        9.0,
        11.0,
        17.0,
        20.0,
        88.5,
        89.5,
        104.0,
        700.0,
        1e5,
        // The first numbers of f32 with no half between them.
        8_388_607.5,
        8_388_609.0,
    ] {
        values.extend([v, -v]);
    }
    let n = values.len();
    Array::floats(dtype, &[n], &values)
}
