//! Unary, binary, select and cast.

use nitrox_engine::op::{BinaryKind, UnaryKind};
use nitrox_engine::{DType, Spec};

use super::array::{int_range, spec, wrap};
use super::shape::{broadcast_offset, indices};
use super::{Array, Expected, Real, bound, rounding, special};

pub fn unary(kind: UnaryKind, x: &Array) -> Expected {
    use UnaryKind::*;
    let is_float = x.dtype().is_float();
    if kind.is_predicate() {
        let holds: Vec<bool> = match kind {
            LogicalNot => truths(x).into_iter().map(|t| !t).collect(),
            IsNan if is_float => x.to_f64().into_iter().map(f64::is_nan).collect(),
            IsInfinity if is_float => x.to_f64().into_iter().map(f64::is_infinite).collect(),
            _ => vec![false; x.len()],
        };
        let holds: Vec<i64> = holds.into_iter().map(i64::from).collect();
        return Expected::Bits(Array::ints(DType::U8, x.shape(), &holds));
    }
    if !is_float {
        let bits = 8 * x.dtype().size() as i128;
        let pattern = |v: i128| v & ((1 << bits) - 1);
        let f = |v: i128| match kind {
            Negate => -v,
            Abs => v.abs(),
            Sign => v.signum(),
            Relu => v.max(0),
            BitwiseNot => -v - 1,
            PopulationCount => (0..bits).filter(|b| pattern(v) >> b & 1 == 1).count() as i128,
            CountLeadingZeros => (0..=bits).rev().find(|n| pattern(v) >> (bits - n) == 0).unwrap(),
            _ => panic!("{kind:?} of integers"),
        };
        let values: Vec<_> = x.to_ints().into_iter().map(|v| wrap(x.dtype(), f(v))).collect();
        return Expected::Bits(Array::integers(x.dtype(), x.shape(), &values));
    }
    let f = |v: f64| match kind {
        Negate => -v,
        Abs => v.abs(),
        Sign if v.is_nan() || v == 0.0 => v,
        Sign => v.signum(),
        Exp => v.exp(),
        Expm1 => v.exp_m1(),
        Log => v.ln(),
        Log1p => v.ln_1p(),
        Sqrt => v.sqrt(),
        Rsqrt => 1.0 / v.sqrt(),
        Reciprocal => 1.0 / v,
        Sin => v.sin(),
        Cos => v.cos(),
        Tanh => v.tanh(),
        Erf => special::erf(v),
        Floor => v.floor(),
        Ceil => v.ceil(),
        Round => v.round(),
        Sigmoid => special::sigmoid(v),
        Relu => special::relu(v),
        Silu => special::silu(v),
        Gelu => special::gelu(v),
        GeluTanh => special::gelu_tanh(v),
        Softplus => special::softplus(v),
        Tan => v.tan(),
        Asin => v.asin(),
        Acos => v.acos(),
        Atan => v.atan(),
        Sinh => v.sinh(),
        Cosh => v.cosh(),
        Asinh => special::asinh(v),
        Acosh => special::acosh(v),
        Atanh => special::atanh(v),
        Cbrt => v.cbrt(),
        Erfc => special::erfc(v),
        ErfInv => special::erf_inv(v),
        _ => panic!("{kind:?} of floats"),
    };
    let (x64, x_type) = (x.to_f64(), x.dtype());
    let values: Vec<f64> = x64.iter().map(|&v| f(v)).collect();
    match kind {
        Negate | Abs | Sign | Floor | Ceil | Round | Relu => Real::exact(x.spec.clone(), values),
        _ => {
            // What a formula that is accurate for its argument may lose besides: near a zero of
            // sine, and in the negative tail of x·½(1 + erf), where 1 + erf cancels.
            let cancels = |x: f64| match kind {
                Sin | Cos | Tan => x.abs().min(1.0),
                Gelu | GeluTanh => 0.1 * x.abs(),
                // σ(x) may be zero where it is below the least normal number.
                Silu => x.abs() * f64::from(f32::MIN_POSITIVE) / bound(x_type),
                _ => 0.0,
            };
            approximate(x.spec.clone(), values, |i| cancels(x64[i]))
        }
    }
}

/// Each element to the type's relative bound; what is below the least normal number may be zero.
fn approximate(spec: Spec, values: Vec<f64>, besides: impl Fn(usize) -> f64) -> Expected {
    let least = match spec.dtype {
        DType::F16 => 2f64.powi(-24),
        DType::F64 => f64::MIN_POSITIVE,
        _ => f32::MIN_POSITIVE.into(),
    };
    let slack = values
        .iter()
        .enumerate()
        .map(|(i, v)| bound(spec.dtype) * (v.abs() + besides(i)) + least)
        .collect();
    Expected::Real(Real { spec, values, scale: 0.0, slack: Some(slack) })
}

/// Which elements are not zero.
fn truths(x: &Array) -> Vec<bool> {
    if x.dtype().is_float() {
        x.to_f64().into_iter().map(|v| v != 0.0).collect()
    } else {
        x.to_ints().into_iter().map(|v| v != 0).collect()
    }
}

/// Lengths equal or one of them 1, aligned at the last axis.
fn broadcast_shape(a: &[usize], b: &[usize]) -> Vec<usize> {
    let rank = a.len().max(b.len());
    let length = |s: &[usize], i: usize| {
        if i + s.len() < rank { 1 } else { s[i + s.len() - rank] }
    };
    (0..rank).map(|i| if length(a, i) == 1 { length(b, i) } else { length(a, i) }).collect()
}

pub fn binary(kind: BinaryKind, a: &Array, b: &Array) -> Expected {
    use BinaryKind::*;
    let shape = broadcast_shape(a.shape(), b.shape());
    let places: Vec<(usize, usize)> = indices(&shape)
        .iter()
        .map(|i| (broadcast_offset(a.shape(), i), broadcast_offset(b.shape(), i)))
        .collect();
    let dtype = a.dtype();
    if matches!(kind, LogicalAnd | LogicalOr | LogicalXor) {
        let (a, b) = (truths(a), truths(b));
        let f = |(i, j): &(usize, usize)| match kind {
            LogicalAnd => a[*i] && b[*j],
            LogicalOr => a[*i] || b[*j],
            _ => a[*i] != b[*j],
        };
        let values: Vec<i64> = places.iter().map(|p| f(p).into()).collect();
        return Expected::Bits(Array::ints(DType::U8, &shape, &values));
    }
    if dtype.is_float() {
        let (a, b) = (a.to_f64(), b.to_f64());
        let pairs = places.iter().map(|&(i, j)| (a[i], b[j]));
        if kind.is_predicate() {
            let values: Vec<i64> = pairs.map(|(a, b)| compare(kind, &a, &b).into()).collect();
            return Expected::Bits(Array::ints(DType::U8, &shape, &values));
        }
        let values: Vec<f64> = pairs.map(|(a, b)| float(kind, a, b)).collect();
        let spec = spec(dtype, &shape);
        match kind {
            Max | Min | Remainder => Real::exact(spec, values),
            Pow | Atan2 => approximate(spec, values, |_| 0.0),
            // Sums, differences, products and quotients of denormals count too.
            _ => {
                let least = match dtype {
                    DType::F16 => 2f64.powi(-24),
                    DType::BF16 => 2f64.powi(-133),
                    DType::F32 => 2f64.powi(-149),
                    _ => f64::from_bits(1),
                };
                let slack = values.iter().map(|v| bound(dtype) * v.abs() + least).collect();
                Expected::Real(Real { spec, values, scale: 0.0, slack: Some(slack) })
            }
        }
    } else {
        let (a, b) = (a.to_ints(), b.to_ints());
        let pairs = places.iter().map(|&(i, j)| (a[i], b[j]));
        if kind.is_predicate() {
            let values: Vec<i64> = pairs.map(|(a, b)| compare(kind, &a, &b).into()).collect();
            return Expected::Bits(Array::ints(DType::U8, &shape, &values));
        }
        let bits = 8 * dtype.size() as i128;
        let f = |(a, b)| match kind {
            LeftShift | RightShift => shift(kind, a, b, bits),
            _ => integer(kind, a, b),
        };
        let values: Vec<i128> = pairs.map(|p| wrap(dtype, f(p))).collect();
        Expected::Bits(Array::integers(dtype, &shape, &values))
    }
}

fn compare<T: PartialOrd>(kind: BinaryKind, a: &T, b: &T) -> bool {
    use BinaryKind::*;
    match kind {
        Equal => a == b,
        NotEqual => a != b,
        Less => a < b,
        LessEqual => a <= b,
        Greater => a > b,
        GreaterEqual => a >= b,
        _ => panic!("{kind:?} compares nothing"),
    }
}

fn float(kind: BinaryKind, a: f64, b: f64) -> f64 {
    use BinaryKind::*;
    match kind {
        Add => a + b,
        Subtract => a - b,
        Multiply => a * b,
        Divide => a / b,
        Remainder => a % b,
        Max | Min if a.is_nan() || b.is_nan() => f64::NAN,
        Max => a.max(b),
        Min => a.min(b),
        Pow => a.powf(b),
        Atan2 => a.atan2(b),
        _ => panic!("{kind:?} of floats"),
    }
}

/// What a count that is negative or too large leaves is nothing but the sign.
fn shift(kind: BinaryKind, a: i128, b: i128, bits: i128) -> i128 {
    let count = if (0..bits).contains(&b) { b } else { 126 };
    match kind {
        BinaryKind::LeftShift => a.wrapping_shl(count as u32),
        _ => a >> count,
    }
}

fn integer(kind: BinaryKind, a: i128, b: i128) -> i128 {
    use BinaryKind::*;
    match kind {
        Add => a.wrapping_add(b),
        Subtract => a.wrapping_sub(b),
        Multiply => a.wrapping_mul(b),
        Quotient | Remainder if b == 0 => 0,
        Quotient => a.wrapping_div(b),
        Remainder => a.wrapping_rem(b),
        Max => a.max(b),
        Min => a.min(b),
        BitwiseAnd => a & b,
        BitwiseOr => a | b,
        BitwiseXor => a ^ b,
        // 1 over the power, truncated; 0 to a negative power is 0 as a division by it is.
        Pow if b < 0 => match a {
            1 => 1,
            -1 if b % 2 == 0 => 1,
            -1 => -1,
            _ => 0,
        },
        Pow => {
            let (mut result, mut square, mut left) = (1i128, a, b);
            while left > 0 {
                if left & 1 == 1 {
                    result = result.wrapping_mul(square);
                }
                square = square.wrapping_mul(square);
                left >>= 1;
            }
            result
        }
        _ => panic!("{kind:?} of integers"),
    }
}

pub fn select(predicate: &Array, a: &Array, b: &Array) -> Expected {
    let shape = broadcast_shape(&broadcast_shape(a.shape(), b.shape()), predicate.shape());
    let chosen = predicate.to_i64();
    let mut bytes = Vec::new();
    for i in indices(&shape) {
        let from = if chosen[broadcast_offset(predicate.shape(), &i)] != 0 { a } else { b };
        bytes.extend_from_slice(from.element(broadcast_offset(from.shape(), &i)));
    }
    Expected::Bits(Array::new(spec(a.dtype(), &shape), bytes))
}

/// Between integers wraps; float to integer truncates and saturates, NaN giving 0; to a float
/// rounds to nearest, ties to even.
pub fn cast(to: DType, x: &Array) -> Expected {
    match (x.dtype().is_float(), to.is_float()) {
        (false, false) => Expected::Bits(Array::integers(to, x.shape(), &x.to_ints())),
        (true, false) => {
            let (least, most) = int_range(to);
            let values: Vec<i128> = x
                .to_f64()
                .into_iter()
                // `as` truncates, saturates at the limits of i128 and takes NaN to 0.
                .map(|v| (v as i128).clamp(least, most))
                .collect();
            Expected::Bits(Array::integers(to, x.shape(), &values))
        }
        (true, true) => rounded(x.dtype().size() == 8, to, x, x.to_f64()),
        (false, true) => {
            let exact = x.to_ints().into_iter();
            let values = match to {
                DType::F32 => exact.map(|v| f64::from(v as f32)).collect(),
                _ => exact.map(|v| v as f64).collect(),
            };
            rounded(x.dtype().size() >= 4, to, x, values)
        }
    }
}

/// To the nearest number of the type; 16 bits from a `wide` type may be rounded by way of f32.
fn rounded(wide: bool, to: DType, x: &Array, values: Vec<f64>) -> Expected {
    let spec = spec(to, x.shape());
    if to.size() > 2 || !wide {
        return Real::exact(spec, values);
    }
    let slack = values.iter().map(|&v| rounding(to, v) + v.abs() * 2f64.powi(-23)).collect();
    Expected::Real(Real { spec, values, scale: 0.0, slack: Some(slack) })
}
