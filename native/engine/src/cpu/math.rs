//! Exponentials and their kin in f32 without a branch, so that loops over them vectorise. Errors
//! are one to three units in the last place; the coefficients are Chebyshev interpolants of relative error
//! below 1e-7 on the ranges named. Infinities and NaN go where IEEE arithmetic takes them.

use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, LOG2_E};

use super::simd::Isa;
use crate::op::Activation;

/// Horner's rule, the constant first.
#[inline(always)]
fn polynomial<I: Isa, const N: usize>(x: f32, c: [f32; N]) -> f32 {
    let mut sum = c[N - 1];
    for i in (0..N - 1).rev() {
        sum = I::fma(sum, x, c[i]);
    }
    sum
}

/// 2^n for n in -126..=127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits(n.wrapping_add(127).wrapping_shl(23) as u32)
}

#[inline(always)]
pub(super) fn exp<I: Isa>(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_145_75;
    const LN2_LOW: f32 = 1.428_606_8e-6;
    /// Adding it leaves the nearest integer in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    // Beyond these the result is infinite or zero anyway; comparing this way keeps a NaN.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let shifted = I::fma(x, LOG2_E, ROUND);
    let n = shifted - ROUND;
    let whole = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let r = I::fma(-n, LN2_LOW, I::fma(-n, LN2_HIGH, x));
    let q =
        polynomial::<I, 5>(r, [0.5, 0.166_665_73, 0.041_666_55, 0.008_363_774, 0.001_392_692_7]);
    let p = I::fma(q * r, r, r) + 1.0;
    // In two steps, since 2^128 and what makes a denormal are no f32.
    let half = whole >> 1;
    p * power_of_two(half) * power_of_two(whole.wrapping_sub(half))
}

#[inline(always)]
pub(super) fn sigmoid<I: Isa>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<I>(-x))
}

#[inline(always)]
pub(super) fn tanh<I: Isa>(x: f32) -> f32 {
    let a = x.abs();
    let z = x * x;
    let q = polynomial::<I, 5>(
        z,
        [-1.0 / 3.0, 0.133_327_7, -0.053_850_908, 0.020_997_18, -0.006_096_714],
    );
    let near = I::fma(q * z, x, x);
    let far = (1.0 - 2.0 / (exp::<I>(2.0 * a) + 1.0)).copysign(x);
    if a < 0.625 { near } else { far }
}

/// erf for |x| < 0.9.
#[inline(always)]
fn erf_near<I: Isa>(x: f32) -> f32 {
    x * polynomial::<I, 6>(
        x * x,
        [
            FRAC_2_SQRT_PI,
            -0.376_125_28,
            0.112_821_944,
            -0.026_780_719,
            0.005_014_484_3,
            -6.102_687e-4,
        ],
    )
}

/// 1 - erf for x in 0.9..12, to full relative precision; x² is given as the product `a * b`, since
/// its rounding error matters once it is an exponent.
#[inline(always)]
fn erfc_far<I: Isa>(x: f32, a: f32, b: f32) -> f32 {
    let square = a * b;
    let rest = I::fma(a, b, -square);
    let t = 1.0 / x;
    let q = polynomial::<I, 10>(
        t,
        [
            0.564_225_26,
            -0.001_186_889,
            -0.265_633,
            -0.125_634_04,
            1.004_354_4,
            -1.650_744,
            1.520_765_5,
            -0.853_926_54,
            0.274_088_2,
            -0.038_725_22,
        ],
    );
    exp::<I>(-square) * (1.0 - rest) * t * q
}

#[inline(always)]
pub(super) fn erf<I: Isa>(x: f32) -> f32 {
    let a = x.abs();
    let b = if a > 12.0 { 12.0 } else { a };
    let far = (1.0 - erfc_far::<I>(b, b, b)).copysign(x);
    if a < 0.9 { erf_near::<I>(x) } else { far }
}

/// By the error function; the left tail keeps its relative precision, to some ten units.
#[inline(always)]
pub(super) fn gelu<I: Isa>(x: f32) -> f32 {
    let a = x.abs();
    let a = if a > 16.0 { 16.0 } else { a };
    let s = a * FRAC_1_SQRT_2;
    let half_tail = 0.5 * erfc_far::<I>(s, 0.5 * a, a);
    let far = if x < 0.0 { half_tail } else { 1.0 - half_tail };
    let near = I::fma(0.5, erf_near::<I>(s).copysign(x), 0.5);
    x * if s < 0.9 { near } else { far }
}

/// By tanh: 0.5·x·(1 + tanh u) = x·sigmoid(2u).
#[inline(always)]
pub(super) fn gelu_tanh<I: Isa>(x: f32) -> f32 {
    const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769_2;
    let u = TWICE_SQRT_2_OVER_PI * x * I::fma(0.044_715 * x, x, 1.0);
    x * sigmoid::<I>(u)
}

#[inline(always)]
pub(super) fn silu<I: Isa>(x: f32) -> f32 {
    x * sigmoid::<I>(x)
}

/// Keeps a NaN.
#[inline(always)]
pub(super) fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

/// The x of erf x = y: Winitzki's formula, good to two parts in a thousand, then steps of Halley,
/// each of which triples the digits, on whichever of erf and 1 - erf keeps them.
pub(super) fn erf_inv(y: f64) -> f64 {
    use std::f64::consts::{FRAC_2_PI, FRAC_2_SQRT_PI};
    const A: f64 = 0.147;
    let a = y.abs();
    // Near zero erf is a line.
    if a < 1e-8 || a.is_nan() {
        return y / FRAC_2_SQRT_PI;
    }
    if a >= 1.0 {
        return if a == 1.0 { f64::INFINITY.copysign(y) } else { f64::NAN };
    }
    // ln(1 - a²), without a square that rounds to 1.
    let log = (1.0 - a).ln() + a.ln_1p();
    let t = FRAC_2_PI / A + 0.5 * log;
    // √(t² - log / A) - t, which cancels where a is small.
    let mut x = (-log / A / ((t * t - log / A).sqrt() + t)).sqrt();
    for _ in 0..3 {
        let off = if a > 0.5 { (1.0 - a) - libm::erfc(x) } else { libm::erf(x) - a };
        let step = off / (FRAC_2_SQRT_PI * (-x * x).exp());
        x -= step / (1.0 + x * step);
    }
    x.copysign(y)
}

#[inline(always)]
fn map(x: &mut [f32], f: impl Fn(f32) -> f32) {
    for v in x {
        *v = f(*v);
    }
}

#[inline(always)]
pub(super) fn activate<I: Isa>(kind: Activation, x: &mut [f32]) {
    match kind {
        Activation::None => {}
        Activation::Relu => map(x, relu),
        Activation::Silu => map(x, silu::<I>),
        Activation::Gelu => map(x, gelu::<I>),
        Activation::GeluTanh => map(x, gelu_tanh::<I>),
        Activation::Tanh => map(x, tanh::<I>),
        Activation::Sigmoid => map(x, sigmoid::<I>),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::cpu::simd::{Base, dispatch};

    /// The largest error over [lo, hi], in units of the last place of the true value.
    fn worst(lo: f32, hi: f32, f: impl Fn(&mut [f32]), truth: impl Fn(f64) -> f64) -> f64 {
        let n = 400_000;
        let x: Vec<f32> = (0..=n).map(|i| lo + (hi - lo) * (i as f32 / n as f32)).collect();
        let mut y = x.clone();
        f(&mut y);
        x.iter()
            .zip(&y)
            .map(|(&x, &y)| {
                let t = truth(f64::from(x));
                let ulp = (t.abs() * f64::from(f32::EPSILON)).max(f64::from(f32::MIN_POSITIVE));
                (f64::from(y) - t).abs() / ulp
            })
            .fold(0.0, f64::max)
    }

    #[test]
    fn close_to_f64() {
        let sigmoid64 = |x: f64| 1.0 / (1.0 + (-x).exp());
        let gelu64 = |x: f64| 0.5 * x * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2);
        let e = worst(-87.0, 88.7, |x| dispatch!(I => map(x, exp::<I>)), f64::exp);
        let t = worst(-12.0, 12.0, |x| dispatch!(I => map(x, tanh::<I>)), f64::tanh);
        let s = worst(-80.0, 40.0, |x| dispatch!(I => map(x, sigmoid::<I>)), sigmoid64);
        let r = worst(-6.0, 6.0, |x| dispatch!(I => map(x, erf::<I>)), libm::erf);
        let g = worst(-12.0, 12.0, |x| dispatch!(I => map(x, gelu::<I>)), gelu64);
        // Without a fused multiply-add.
        let base = [
            worst(-87.0, 88.7, |x| map(x, exp::<Base>), f64::exp),
            worst(-12.0, 12.0, |x| map(x, tanh::<Base>), f64::tanh),
            worst(-80.0, 40.0, |x| map(x, sigmoid::<Base>), sigmoid64),
            worst(-6.0, 6.0, |x| map(x, erf::<Base>), libm::erf),
        ];
        assert!(base.iter().all(|&e| e < 4.0), "{base:?}");
        eprintln!("ulps: exp {e:.2} tanh {t:.2} sigmoid {s:.2} erf {r:.2} gelu {g:.2}");
        assert!(e < 1.5 && t < 2.5 && s < 2.5 && r < 2.5, "{e} {t} {s} {r}");
        // Where the near form ends, half of erf is taken from one half.
        assert!(g < 12.0, "{g}");
    }

    #[test]
    fn extremes() {
        let inf = f32::INFINITY;
        let on = |f: &dyn Fn(&mut [f32]), x: f32| {
            let mut v = [x; 33];
            f(&mut v);
            v[32]
        };
        let exp = |x| on(&|v| dispatch!(I => map(v, exp::<I>)), x);
        let tanh = |x| on(&|v| dispatch!(I => map(v, tanh::<I>)), x);
        let sigmoid = |x| on(&|v| dispatch!(I => map(v, sigmoid::<I>)), x);
        let erf = |x| on(&|v| dispatch!(I => map(v, erf::<I>)), x);
        let gelu = |x| on(&|v| dispatch!(I => map(v, gelu::<I>)), x);
        assert_eq!((exp(inf), exp(-inf), exp(89.0), exp(1e30)), (inf, 0.0, inf, inf));
        assert_eq!((exp(0.0), exp(-0.0), exp(-200.0)), (1.0, 1.0, 0.0));
        assert!(exp(88.72).is_finite() && exp(-100.0) > 0.0);
        assert_eq!((tanh(inf), tanh(-inf), tanh(1e4), tanh(0.0)), (1.0, -1.0, 1.0, 0.0));
        assert_eq!((sigmoid(1e4), sigmoid(-1e4), sigmoid(0.0)), (1.0, 0.0, 0.5));
        assert_eq!((erf(inf), erf(-inf), erf(0.0)), (1.0, -1.0, 0.0));
        assert_eq!((gelu(1e4), gelu(inf)), (1e4, inf));
        assert!(gelu(-1e4).abs() < 1e-30);
        for f in [exp(f32::NAN), tanh(f32::NAN), sigmoid(f32::NAN), erf(f32::NAN), gelu(f32::NAN)] {
            assert!(f.is_nan());
        }
    }
}
