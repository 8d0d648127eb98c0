//! The arithmetic of the elementwise ops, type by type.

use super::math;
use super::numeric::Compute;
use super::simd::Isa;
use crate::op::{BinaryKind, UnaryKind};

/// Types that `binary` is computed in.
pub(super) trait Arithmetic: Compute {
    fn add(self, b: Self) -> Self;
    fn subtract(self, b: Self) -> Self;
    fn multiply(self, b: Self) -> Self;
    /// The quotient; of integers truncated, and zero by zero.
    fn divide(self, b: Self) -> Self;
    /// With the sign of `self`; an integer by zero gives zero.
    fn remainder(self, b: Self) -> Self;
    fn pow(self, b: Self) -> Self;
    /// The angle of the point (b, self), of floats.
    fn atan2(self, b: Self) -> Self;
    /// `and`, `or`, `xor` and the shifts, of integers.
    fn bitwise(kind: BinaryKind, a: &[Self], b: &[Self], to: &mut [Self]);

    /// NaN if either is.
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        if b > self || b.is_nan() { b } else { self }
    }

    #[inline(always)]
    fn min(self, b: Self) -> Self {
        if b < self || b.is_nan() { b } else { self }
    }

    #[inline(always)]
    fn truth(self) -> bool {
        self != Self::default()
    }

    #[inline(always)]
    fn binary<I: Isa>(kind: BinaryKind, a: &[Self], b: &[Self], to: &mut [Self]) {
        match kind {
            BinaryKind::Add => zip(a, b, to, Self::add),
            BinaryKind::Subtract => zip(a, b, to, Self::subtract),
            BinaryKind::Multiply => zip(a, b, to, Self::multiply),
            BinaryKind::Divide | BinaryKind::Quotient => zip(a, b, to, Self::divide),
            BinaryKind::Remainder => zip(a, b, to, Self::remainder),
            BinaryKind::Max => zip(a, b, to, Self::max),
            BinaryKind::Min => zip(a, b, to, Self::min),
            BinaryKind::Pow => zip(a, b, to, Self::pow),
            BinaryKind::Atan2 => zip(a, b, to, Self::atan2),
            // The others are predicates.
            _ if kind.is_predicate() => debug_assert!(false, "{kind:?} is a predicate"),
            _ => Self::bitwise(kind, a, b, to),
        }
    }

    #[inline(always)]
    fn predicate<I: Isa>(kind: BinaryKind, a: &[Self], b: &[Self], to: &mut [u8]) {
        match kind {
            BinaryKind::Equal => zip(a, b, to, |a, b| u8::from(a == b)),
            BinaryKind::NotEqual => zip(a, b, to, |a, b| u8::from(a != b)),
            BinaryKind::Less => zip(a, b, to, |a, b| u8::from(a < b)),
            BinaryKind::LessEqual => zip(a, b, to, |a, b| u8::from(a <= b)),
            BinaryKind::Greater => zip(a, b, to, |a, b| u8::from(a > b)),
            BinaryKind::GreaterEqual => zip(a, b, to, |a, b| u8::from(a >= b)),
            BinaryKind::LogicalAnd => zip(a, b, to, |a, b| u8::from(a.truth() & b.truth())),
            BinaryKind::LogicalOr => zip(a, b, to, |a, b| u8::from(a.truth() | b.truth())),
            BinaryKind::LogicalXor => zip(a, b, to, |a, b| u8::from(a.truth() ^ b.truth())),
            _ => debug_assert!(kind.is_predicate()),
        }
    }
}

#[inline(always)]
fn zip<T: Copy, O>(a: &[T], b: &[T], to: &mut [O], f: impl Fn(T, T) -> O) {
    for ((to, a), b) in to.iter_mut().zip(a).zip(b) {
        *to = f(*a, *b);
    }
}

macro_rules! float_arithmetic {
    ($($t:ty),*) => {$(
        impl Arithmetic for $t {
            #[inline(always)]
            fn add(self, b: $t) -> $t {
                self + b
            }

            #[inline(always)]
            fn subtract(self, b: $t) -> $t {
                self - b
            }

            #[inline(always)]
            fn multiply(self, b: $t) -> $t {
                self * b
            }

            #[inline(always)]
            fn divide(self, b: $t) -> $t {
                self / b
            }

            #[inline(always)]
            fn remainder(self, b: $t) -> $t {
                self % b
            }

            #[inline(always)]
            fn pow(self, b: $t) -> $t {
                self.powf(b)
            }

            #[inline(always)]
            fn atan2(self, b: $t) -> $t {
                <$t>::atan2(self, b)
            }

            fn bitwise(kind: BinaryKind, _a: &[$t], _b: &[$t], _to: &mut [$t]) {
                // `infer` passes none on floats.
                debug_assert!(false, "{kind:?} on floats");
            }
        }
    )*};
}

float_arithmetic!(f32, f64);

macro_rules! integer_arithmetic {
    ($($t:ty),*) => {$(
        impl Arithmetic for $t {
            #[inline(always)]
            fn add(self, b: $t) -> $t {
                self.wrapping_add(b)
            }

            #[inline(always)]
            fn subtract(self, b: $t) -> $t {
                self.wrapping_sub(b)
            }

            #[inline(always)]
            fn multiply(self, b: $t) -> $t {
                self.wrapping_mul(b)
            }

            #[inline(always)]
            fn divide(self, b: $t) -> $t {
                if b == 0 { 0 } else { self.wrapping_div(b) }
            }

            #[inline(always)]
            fn remainder(self, b: $t) -> $t {
                if b == 0 { 0 } else { self.wrapping_rem(b) }
            }

            /// A negative power is zero, but for a base of 1 or -1.
            fn pow(self, b: $t) -> $t {
                #[allow(unused_comparisons)]
                if b < 0 {
                    return match self.wrapping_add(1) {
                        2 => 1,
                        0 => if b & 1 == 0 { 1 } else { self },
                        _ => 0,
                    };
                }
                let (mut base, mut left, mut power) = (self, b, 1 as $t);
                while left != 0 {
                    if left & 1 == 1 {
                        power = power.wrapping_mul(base);
                    }
                    base = base.wrapping_mul(base);
                    left >>= 1;
                }
                power
            }

            #[inline(always)]
            fn atan2(self, _b: $t) -> $t {
                // `infer` passes none on integers.
                debug_assert!(false, "atan2 on integers");
                self
            }

            #[inline(always)]
            fn bitwise(kind: BinaryKind, a: &[$t], b: &[$t], to: &mut [$t]) {
                /// Bits of the type, and the mask of a count below them.
                const BITS: $t = <$t>::BITS as $t;
                let fits = |count: $t| (0..BITS).contains(&count);
                // Computed whatever the count is, and then chosen: no branch.
                let by = |count: $t| (count & (BITS - 1)) as u32;
                match kind {
                    BinaryKind::BitwiseAnd => zip(a, b, to, |a, b| a & b),
                    BinaryKind::BitwiseOr => zip(a, b, to, |a, b| a | b),
                    BinaryKind::BitwiseXor => zip(a, b, to, |a, b| a ^ b),
                    BinaryKind::LeftShift => {
                        zip(a, b, to, |a, b| if fits(b) { a.wrapping_shl(by(b)) } else { 0 });
                    }
                    // All that is left of a number below zero is its sign.
                    BinaryKind::RightShift => zip(a, b, to, |a, b| {
                        let by = if fits(b) { by(b) } else { <$t>::BITS - 1 };
                        let rest = a.wrapping_shr(by);
                        #[allow(unused_comparisons)]
                        if fits(b) | (<$t>::MIN < 0) { rest } else { 0 }
                    }),
                    _ => debug_assert!(false, "{kind:?} is not bitwise"),
                }
            }
        }
    )*};
}

integer_arithmetic!(u8, u16, u32, u64, i8, i16, i32, i64);

/// Types that `unary` is computed in.
pub(super) trait Unary: Compute {
    fn unary<I: Isa>(kind: UnaryKind, from: &[Self], to: &mut [Self]);

    /// Never of an integer.
    fn is_infinite(self) -> bool;

    #[inline(always)]
    fn test<I: Isa>(kind: UnaryKind, from: &[Self], to: &mut [u8]) {
        match kind {
            UnaryKind::LogicalNot => {
                map(from, to, |x| u8::from(x == Self::default()));
            }
            UnaryKind::IsNan => map(from, to, |x| u8::from(x.is_nan())),
            UnaryKind::IsInfinity => map(from, to, |x| u8::from(x.is_infinite())),
            _ => debug_assert!(false, "{kind:?} is no predicate"),
        }
    }
}

#[inline(always)]
fn map<T: Copy, O>(from: &[T], to: &mut [O], f: impl Fn(T) -> O) {
    for (to, x) in to.iter_mut().zip(from) {
        *to = f(*x);
    }
}

macro_rules! integer_unary {
    ($($t:ty: $abs:expr, $sign:expr;)*) => {$(
        impl Unary for $t {
            #[inline(always)]
            fn unary<I: Isa>(kind: UnaryKind, from: &[$t], to: &mut [$t]) {
                match kind {
                    UnaryKind::Negate => map(from, to, <$t>::wrapping_neg),
                    UnaryKind::Abs => map(from, to, $abs),
                    UnaryKind::Sign => map(from, to, $sign),
                    UnaryKind::Relu => map(from, to, |x| Ord::max(x, 0)),
                    UnaryKind::BitwiseNot => map(from, to, |x| !x),
                    UnaryKind::PopulationCount => map(from, to, |x| x.count_ones() as $t),
                    UnaryKind::CountLeadingZeros => map(from, to, |x| x.leading_zeros() as $t),
                    // `infer` passes no other on integers.
                    _ => debug_assert!(false, "{kind:?} on integers"),
                }
            }

            #[inline(always)]
            fn is_infinite(self) -> bool {
                false
            }
        }
    )*};
}

integer_unary! {
    u8: |x| x, |x| Ord::min(x, 1);
    u16: |x| x, |x| Ord::min(x, 1);
    u32: |x| x, |x| Ord::min(x, 1);
    u64: |x| x, |x| Ord::min(x, 1);
    i8: i8::wrapping_abs, i8::signum;
    i16: i16::wrapping_abs, i16::signum;
    i32: i32::wrapping_abs, i32::signum;
    i64: i64::wrapping_abs, i64::signum;
}

/// The functions that differ between f32, which has its own of `math`, and f64.
trait Float: Copy {
    fn exp<I: Isa>(self) -> Self;
    fn tanh<I: Isa>(self) -> Self;
    fn erf<I: Isa>(self) -> Self;
    fn sigmoid<I: Isa>(self) -> Self;
    fn gelu<I: Isa>(self) -> Self;
    fn gelu_tanh<I: Isa>(self) -> Self;
    fn erfc(self) -> Self;
    fn erf_inv(self) -> Self;
}

impl Float for f32 {
    #[inline(always)]
    fn exp<I: Isa>(self) -> f32 {
        math::exp::<I>(self)
    }

    #[inline(always)]
    fn tanh<I: Isa>(self) -> f32 {
        math::tanh::<I>(self)
    }

    #[inline(always)]
    fn erf<I: Isa>(self) -> f32 {
        math::erf::<I>(self)
    }

    #[inline(always)]
    fn sigmoid<I: Isa>(self) -> f32 {
        math::sigmoid::<I>(self)
    }

    #[inline(always)]
    fn gelu<I: Isa>(self) -> f32 {
        math::gelu::<I>(self)
    }

    #[inline(always)]
    fn gelu_tanh<I: Isa>(self) -> f32 {
        math::gelu_tanh::<I>(self)
    }

    fn erfc(self) -> f32 {
        libm::erfc(self.into()) as f32
    }

    fn erf_inv(self) -> f32 {
        math::erf_inv(self.into()) as f32
    }
}

impl Float for f64 {
    fn exp<I: Isa>(self) -> f64 {
        f64::exp(self)
    }

    fn tanh<I: Isa>(self) -> f64 {
        f64::tanh(self)
    }

    fn erf<I: Isa>(self) -> f64 {
        libm::erf(self)
    }

    fn sigmoid<I: Isa>(self) -> f64 {
        1.0 / (1.0 + f64::exp(-self))
    }

    fn gelu<I: Isa>(self) -> f64 {
        0.5 * self * libm::erfc(-self * std::f64::consts::FRAC_1_SQRT_2)
    }

    fn gelu_tanh<I: Isa>(self) -> f64 {
        let twice_u = (8.0 / std::f64::consts::PI).sqrt() * (self + 0.044715 * self.powi(3));
        self * twice_u.sigmoid::<I>()
    }

    fn erfc(self) -> f64 {
        libm::erfc(self)
    }

    fn erf_inv(self) -> f64 {
        math::erf_inv(self)
    }
}

macro_rules! float_unary {
    ($($t:ty),*) => {$(
        impl Unary for $t {
            #[inline(always)]
            fn unary<I: Isa>(kind: UnaryKind, from: &[$t], to: &mut [$t]) {
                match kind {
                    UnaryKind::Negate => map(from, to, |x| -x),
                    UnaryKind::Abs => map(from, to, <$t>::abs),
                    // Zero and NaN stay what they are.
                    UnaryKind::Sign => map(from, to, |x| {
                        if x > 0.0 { 1.0 } else if x < 0.0 { -1.0 } else { x }
                    }),
                    UnaryKind::Exp => map(from, to, |x| Float::exp::<I>(x)),
                    UnaryKind::Expm1 => map(from, to, <$t>::exp_m1),
                    UnaryKind::Log => map(from, to, <$t>::ln),
                    UnaryKind::Log1p => map(from, to, <$t>::ln_1p),
                    UnaryKind::Sqrt => map(from, to, <$t>::sqrt),
                    UnaryKind::Rsqrt => map(from, to, |x| 1.0 / x.sqrt()),
                    UnaryKind::Reciprocal => map(from, to, |x| 1.0 / x),
                    UnaryKind::Sin => map(from, to, <$t>::sin),
                    UnaryKind::Cos => map(from, to, <$t>::cos),
                    UnaryKind::Tanh => map(from, to, |x| Float::tanh::<I>(x)),
                    UnaryKind::Erf => map(from, to, |x| Float::erf::<I>(x)),
                    UnaryKind::Floor => map(from, to, <$t>::floor),
                    UnaryKind::Ceil => map(from, to, <$t>::ceil),
                    UnaryKind::Round => map(from, to, <$t>::round),
                    UnaryKind::Sigmoid => map(from, to, |x| Float::sigmoid::<I>(x)),
                    UnaryKind::Relu => map(from, to, |x| if x < 0.0 { 0.0 } else { x }),
                    UnaryKind::Silu => map(from, to, |x| x * Float::sigmoid::<I>(x)),
                    UnaryKind::Gelu => map(from, to, |x| Float::gelu::<I>(x)),
                    UnaryKind::GeluTanh => map(from, to, |x| Float::gelu_tanh::<I>(x)),
                    UnaryKind::Softplus => map(from, to, |x| {
                        // In this order a NaN is kept.
                        let positive = if x < 0.0 { 0.0 } else { x };
                        positive + Float::exp::<I>(-x.abs()).ln_1p()
                    }),
                    UnaryKind::Tan => map(from, to, <$t>::tan),
                    UnaryKind::Asin => map(from, to, <$t>::asin),
                    UnaryKind::Acos => map(from, to, <$t>::acos),
                    UnaryKind::Atan => map(from, to, <$t>::atan),
                    UnaryKind::Sinh => map(from, to, <$t>::sinh),
                    UnaryKind::Cosh => map(from, to, <$t>::cosh),
                    // Not std's own: they lose the digits of small numbers.
                    UnaryKind::Asinh => map(from, to, |x| libm::asinh(x as f64) as $t),
                    UnaryKind::Acosh => map(from, to, |x| {
                        if x < 1.0 { <$t>::NAN } else { libm::acosh(x as f64) as $t }
                    }),
                    UnaryKind::Atanh => map(from, to, |x| libm::atanh(x as f64) as $t),
                    UnaryKind::Cbrt => map(from, to, <$t>::cbrt),
                    UnaryKind::Erfc => map(from, to, Float::erfc),
                    UnaryKind::ErfInv => map(from, to, Float::erf_inv),
                    // The results are no floats, or the arguments are none.
                    _ => debug_assert!(false, "{kind:?} on floats"),
                }
            }

            #[inline(always)]
            fn is_infinite(self) -> bool {
                <$t>::is_infinite(self)
            }
        }
    )*};
}

float_unary!(f32, f64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integer_powers() {
        assert_eq!(3i32.pow(4), Arithmetic::pow(3i32, 4));
        assert_eq!(Arithmetic::pow(0i64, 0), 1);
        assert_eq!((Arithmetic::pow(-1i64, -3), Arithmetic::pow(-1i64, -4)), (-1, 1));
        assert_eq!((Arithmetic::pow(1i32, -7), Arithmetic::pow(2i32, -1)), (1, 0));
        assert_eq!(Arithmetic::pow(0i32, -1), 0);
        assert_eq!(Arithmetic::pow(3i64, 100), 3i64.wrapping_pow(100));
        assert_eq!(Arithmetic::pow(255u8, 200), 255u8.wrapping_pow(200));
    }

    #[test]
    fn integer_division() {
        assert_eq!(Arithmetic::divide(i32::MIN, -1), i32::MIN);
        assert_eq!((Arithmetic::divide(7i64, 0), Arithmetic::remainder(7i64, 0)), (0, 0));
        assert_eq!((Arithmetic::divide(-7i32, 2), Arithmetic::remainder(-7i32, 2)), (-3, -1));
    }
}
