//! The functions that std lacks, in f64.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, PI};

use nitrox_engine::op::Activation;

/// 1 − erf, accurate in its tail too.
pub fn erfc(x: f64) -> f64 {
    if x < 2.0 {
        return 1.0 - erf(x);
    }
    // Laplace's continued fraction x + 1/2/(x + 2/2/(x + 3/2/(x + …))), from the inside out.
    let fraction = (1..=120).rev().fold(x, |tail, k| x + 0.5 * f64::from(k) / tail);
    (-x * x).exp() / (fraction * PI.sqrt())
}

/// The error function, by 2/√π · exp(−x²) · Σ 2ⁿ x²ⁿ⁺¹ / (2n+1)!!, whose terms do not cancel.
pub fn erf(x: f64) -> f64 {
    if x.is_nan() || x == 0.0 {
        return x;
    }
    if x < 0.0 {
        return -erf(-x);
    }
    if x >= 2.0 {
        return 1.0 - erfc(x);
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..100 {
        term *= 2.0 * x * x / f64::from(2 * n + 1);
        sum += term;
    }
    FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

/// The x of erf x = y, found by halving: on erfc where erf is near 1.
pub fn erf_inv(y: f64) -> f64 {
    if y.is_nan() || y.abs() > 1.0 {
        return f64::NAN;
    }
    if y == 0.0 || y.abs() == 1.0 {
        return if y == 0.0 { y } else { f64::INFINITY.copysign(y) };
    }
    let a = y.abs();
    // Small numbers need their relative precision: erf is a line there.
    if a < 1e-9 {
        return y / FRAC_2_SQRT_PI;
    }
    let below = |x: f64| if a > 0.5 { erfc(x) > 1.0 - a } else { erf(x) < a };
    let (mut low, mut high) = (0.0, 6.0);
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if below(middle) { low = middle } else { high = middle }
    }
    low.copysign(y)
}

pub fn asinh(x: f64) -> f64 {
    let a = x.abs();
    // ln(a + √(a² + 1)), and its limit where a² overflows.
    let y = if a > 1e150 { a.ln() + 2f64.ln() } else { (a + a * a / (1.0 + a.hypot(1.0))).ln_1p() };
    y.copysign(x)
}

pub fn acosh(x: f64) -> f64 {
    if x < 1.0 {
        return f64::NAN;
    }
    if x > 1e150 {
        return x.ln() + 2f64.ln();
    }
    let over = x - 1.0;
    (over + (over * (x + 1.0)).sqrt()).ln_1p()
}

pub fn atanh(x: f64) -> f64 {
    (0.5 * (2.0 * x.abs() / (1.0 - x.abs())).ln_1p()).copysign(x)
}

pub fn sigmoid(x: f64) -> f64 {
    // exp of a number that is not positive can't overflow.
    let e = (-x.abs()).exp();
    if x >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) }
}

pub fn silu(x: f64) -> f64 {
    x * sigmoid(x)
}

pub fn gelu(x: f64) -> f64 {
    0.5 * x * erfc(-x * FRAC_1_SQRT_2)
}

/// x · ½(1 + tanh u) with ½(1 + tanh u) = σ(2u), which does not cancel for negative u.
pub fn gelu_tanh(x: f64) -> f64 {
    let u = (2.0 / PI).sqrt() * (x + 0.044715 * x * x * x);
    x * sigmoid(2.0 * u)
}

pub fn softplus(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

pub fn relu(x: f64) -> f64 {
    if x.is_nan() { x } else { x.max(0.0) }
}

pub fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::None => x,
        Activation::Relu => relu(x),
        Activation::Silu => silu(x),
        Activation::Gelu => gelu(x),
        Activation::GeluTanh => gelu_tanh(x),
        Activation::Tanh => x.tanh(),
        Activation::Sigmoid => sigmoid(x),
    }
}
