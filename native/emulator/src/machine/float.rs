//! Floating point: sums and products as IEEE 754 has them, a NaN as GPUs give it, and functions
//! that are closer to the truth than the hardware's approximations.

use super::alu::{Run, runs, set};
use super::convert;
use super::file::{File, Value, map, map2, map3, test};
use crate::ptx::instruction::{Cmp, FloatOne, FloatOp, Mode, Op, Reg, Round, Ty};

/// The NaN that every operation on f32 gives.
const NAN: u32 = 0x7fff_ffff;

#[inline(always)]
pub fn flush(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { f32::from_bits(x.to_bits() & 1 << 31) } else { x }
}

/// On bits: of floats the compiler may take one NaN for another.
#[inline(always)]
fn canonical(x: f32) -> f32 {
    let bits = x.to_bits();
    let over = bits & 0x7fff_ffff > f32::INFINITY.to_bits();
    f32::from_bits(if over { NAN } else { bits })
}

/// Clamped to [0, 1]; a NaN is 0.
#[inline(always)]
pub fn saturate(x: f32) -> f32 {
    if x > 0. { x.min(1.) } else { 0. }
}

/// `sum + error`, two f64 that do not overlap, as f32.
pub fn round(sum: f64, error: f64, mode: Round) -> f32 {
    let near = sum as f32;
    if near.is_nan() || sum.is_infinite() {
        return near;
    }
    // Whether the exact value lies above or below what was rounded to.
    let wide = f64::from(near);
    let above = sum > wide || (sum == wide && error > 0.);
    let below = sum < wide || (sum == wide && error < 0.);
    match mode {
        Round::Nearest => near,
        Round::Up if above => near.next_up(),
        Round::Down if below => near.next_down(),
        Round::Zero if below && wide > 0. => near.next_down(),
        Round::Zero if above && wide < 0. => near.next_up(),
        _ => near,
    }
}

/// A sum and what is missing from it.
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let part = sum - a;
    (sum, (a - (sum - part)) + (b - part))
}

fn directed(sum: f64, error: f64, mode: Round) -> f64 {
    match mode {
        Round::Up if error > 0. => sum.next_up(),
        Round::Down if error < 0. => sum.next_down(),
        Round::Zero if error < 0. && sum > 0. => sum.next_down(),
        Round::Zero if error > 0. && sum < 0. => sum.next_up(),
        _ => sum,
    }
}

/// The function of an instruction on floating-point numbers.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
pub fn function(op: &Op) -> Option<Run> {
    macro_rules! two {
        ($f:expr) => {
            runs!(Float { d, a, b } in file, mask => {
                map2(file, mask, [d, a, b], |a: f32, b: f32| canonical($f(a, b)))
            })
        };
    }
    Some(match *op {
        Op::Float { op: FloatOp::Add, ty: Ty::F32, mode, .. } if mode.is_plain() => {
            two!(|a, b| a + b)
        }
        Op::Float { op: FloatOp::Sub, ty: Ty::F32, mode, .. } if mode.is_plain() => {
            two!(|a, b| a - b)
        }
        Op::Float { op: FloatOp::Mul, ty: Ty::F32, mode, .. } if mode.is_plain() => {
            two!(|a, b| a * b)
        }
        Op::Fma { ty: Ty::F32, mode, .. } if mode.is_plain() => {
            runs!(Fma { d, a, b, c } in file, mask => {
                map3(file, mask, [d, a, b, c], |a: f32, b: f32, c: f32| canonical(a.mul_add(b, c)))
            })
        }
        Op::Float { ty: Ty::F32 | Ty::F64, .. }
        | Op::FloatOne { ty: Ty::F32 | Ty::F64, .. }
        | Op::Fma { ty: Ty::F32 | Ty::F64, .. } => run,
        Op::Cvt { .. } | Op::CvtPair { .. } => convert::run,
        _ => return None,
    })
}

/// Runs one of those that have no function of their own.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn run(file: &mut File, mask: u32, op: &Op) {
    match *op {
        Op::Float { op, ty: Ty::F32, mode, d, a, b } => binary(file, mask, op, mode, [d, a, b]),
        Op::Float { op, mode, d, a, b, .. } => binary_f64(file, mask, op, mode, [d, a, b]),
        Op::FloatOne { op, ty: Ty::F32, mode, d, a } => unary(file, mask, op, mode, d, a),
        Op::FloatOne { op, d, a, .. } => unary_f64(file, mask, op, d, a),
        Op::Fma { ty: Ty::F32, mode, d, a, b, c } => fma(file, mask, mode, [d, a, b, c]),
        Op::Fma { mode, d, a, b, c, .. } => {
            // The error of a fused sum is exact where nothing under- or overflows.
            map3(file, mask, [d, a, b, c], |a: f64, b: f64, c: f64| {
                let near = a.mul_add(b, c);
                if mode.round == Round::Nearest {
                    return near;
                }
                let product = a * b;
                let (sum, error) = two_sum(product, c);
                let rest = error + a.mul_add(b, -product) + (sum - near);
                directed(near, rest, mode.round)
            });
        }
        _ => {}
    }
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn finish2(file: &mut File, mask: u32, mode: Mode, r: [Reg; 3], f: impl Fn(f32, f32) -> f32) {
    if !mode.ftz && !mode.sat {
        map2(file, mask, r, |a: f32, b: f32| canonical(f(a, b)));
        return;
    }
    map2(file, mask, r, |a: f32, b: f32| {
        let (a, b) = if mode.ftz { (flush(a), flush(b)) } else { (a, b) };
        let x = canonical(f(a, b));
        let x = if mode.ftz { flush(x) } else { x };
        if mode.sat { saturate(x) } else { x }
    });
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn binary(file: &mut File, mask: u32, op: FloatOp, mode: Mode, r: [Reg; 3]) {
    let (near, to) = (mode.round == Round::Nearest, mode.round);
    match op {
        FloatOp::Add if near => finish2(file, mask, mode, r, |a, b| a + b),
        FloatOp::Sub if near => finish2(file, mask, mode, r, |a, b| a - b),
        FloatOp::Mul if near => finish2(file, mask, mode, r, |a, b| a * b),
        FloatOp::Div => finish2(file, mask, mode, r, |a, b| a / b),
        FloatOp::Add => finish2(file, mask, mode, r, |a, b| {
            let (sum, error) = two_sum(f64::from(a), f64::from(b));
            round(sum, error, to)
        }),
        FloatOp::Sub => finish2(file, mask, mode, r, |a, b| {
            let (sum, error) = two_sum(f64::from(a), -f64::from(b));
            round(sum, error, to)
        }),
        FloatOp::Mul => {
            finish2(file, mask, mode, r, |a, b| round(f64::from(a) * f64::from(b), 0., to))
        }
        FloatOp::Min => finish2(file, mask, mode, r, |a, b| least(a, b, mode.nan)),
        FloatOp::Max => finish2(file, mask, mode, r, |a, b| -least(-a, -b, mode.nan)),
        FloatOp::Copysign => map2(file, mask, r, |a: f32, b: f32| b.copysign(a)),
    }
}

/// The lesser; −0 is less than +0. Of a number and a NaN the number, unless a NaN is asked for.
#[inline(always)]
fn least(a: f32, b: f32, nan: bool) -> f32 {
    let zeros = f32::from_bits(a.to_bits() | b.to_bits());
    let less = if a == b {
        if a == 0. { zeros } else { a }
    } else if a < b {
        a
    } else {
        b
    };
    if a.is_nan() || b.is_nan() {
        if nan {
            f32::NAN
        } else if a.is_nan() {
            b
        } else {
            a
        }
    } else {
        less
    }
}

#[inline(always)]
fn least_f64(a: f64, b: f64) -> f64 {
    if a.is_nan() {
        b
    } else if b.is_nan() {
        a
    } else if a == b && a == 0. {
        f64::from_bits(a.to_bits() | b.to_bits())
    } else if a < b {
        a
    } else {
        b
    }
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn binary_f64(file: &mut File, mask: u32, op: FloatOp, mode: Mode, r: [Reg; 3]) {
    let to = mode.round;
    match op {
        FloatOp::Add => map2(file, mask, r, |a: f64, b: f64| sum_f64(a, b, to)),
        FloatOp::Sub => map2(file, mask, r, |a: f64, b: f64| sum_f64(a, -b, to)),
        FloatOp::Mul => map2(file, mask, r, |a: f64, b: f64| {
            let product = a * b;
            if to == Round::Nearest {
                product
            } else {
                directed(product, a.mul_add(b, -product), to)
            }
        }),
        FloatOp::Div => map2(file, mask, r, |a: f64, b: f64| a / b),
        FloatOp::Min => map2(file, mask, r, least_f64),
        FloatOp::Max => map2(file, mask, r, |a: f64, b: f64| -least_f64(-a, -b)),
        FloatOp::Copysign => map2(file, mask, r, |a: f64, b: f64| b.copysign(a)),
    }
}

#[inline(always)]
fn sum_f64(a: f64, b: f64, to: Round) -> f64 {
    if to == Round::Nearest {
        return a + b;
    }
    let (sum, error) = two_sum(a, b);
    if error.is_nan() { sum } else { directed(sum, error, to) }
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn fma(file: &mut File, mask: u32, mode: Mode, r: [Reg; 4]) {
    map3(file, mask, r, |a: f32, b: f32, c: f32| {
        let (a, b, c) = if mode.ftz { (flush(a), flush(b), flush(c)) } else { (a, b, c) };
        let x = match mode.round {
            Round::Nearest => a.mul_add(b, c),
            to => {
                // The product of two f32 is exact.
                let (sum, error) = two_sum(f64::from(a) * f64::from(b), f64::from(c));
                round(sum, error, to)
            }
        };
        let x = canonical(x);
        let x = if mode.ftz { flush(x) } else { x };
        if mode.sat { saturate(x) } else { x }
    });
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn finish(file: &mut File, mask: u32, mode: Mode, d: Reg, a: Reg, f: impl Fn(f32) -> f32) {
    map(file, mask, d, a, |x: f32| {
        let x = canonical(f(if mode.ftz { flush(x) } else { x }));
        let x = if mode.ftz { flush(x) } else { x };
        if mode.sat { saturate(x) } else { x }
    });
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn unary(file: &mut File, mask: u32, op: FloatOne, mode: Mode, d: Reg, a: Reg) {
    // In f64 and then rounded.
    let exactly = |f: fn(f64) -> f64| move |x: f32| f(f64::from(x)) as f32;
    match op {
        FloatOne::Neg if mode.ftz => map(file, mask, d, a, |x: f32| -flush(x)),
        FloatOne::Abs if mode.ftz => map(file, mask, d, a, |x: f32| flush(x).abs()),
        FloatOne::Neg => map(file, mask, d, a, |x: f32| -x),
        FloatOne::Abs => map(file, mask, d, a, |x: f32| x.abs()),
        FloatOne::Sqrt => finish(file, mask, mode, d, a, |x| x.sqrt()),
        FloatOne::Rcp | FloatOne::RcpGross => finish(file, mask, mode, d, a, |x| 1. / x),
        FloatOne::Rsqrt | FloatOne::RsqrtGross => {
            finish(file, mask, mode, d, a, |x| (1. / f64::from(x).sqrt()) as f32);
        }
        FloatOne::Ex2 => finish(file, mask, mode, d, a, exp2),
        FloatOne::Lg2 => finish(file, mask, mode, d, a, exactly(f64::log2)),
        FloatOne::Sin => finish(file, mask, mode, d, a, exactly(f64::sin)),
        FloatOne::Cos => finish(file, mask, mode, d, a, exactly(f64::cos)),
        FloatOne::Tanh => finish(file, mask, mode, d, a, exactly(f64::tanh)),
    }
}

/// 2ˣ: the whole part into the exponent, the rest by its series, in f64.
#[inline(always)]
fn exp2(x: f32) -> f32 {
    // Past these it is 0 or infinite in f32.
    let wide = f64::from(x).clamp(-160., 160.);
    let whole = wide.round_ties_even();
    // ln 2 · the rest: at most 0.35, so that ten terms give 1e-12.
    let y = (wide - whole) * std::f64::consts::LN_2;
    let mut sum = 1. / 3_628_800.;
    sum = sum * y + 1. / 362_880.;
    sum = sum * y + 1. / 40_320.;
    sum = sum * y + 1. / 5_040.;
    sum = sum * y + 1. / 720.;
    sum = sum * y + 1. / 120.;
    sum = sum * y + 1. / 24.;
    sum = sum * y + 1. / 6.;
    sum = sum * y + 0.5;
    sum = sum * y + 1.;
    sum = sum * y + 1.;
    let scale = f64::from_bits(((whole as i32 + 1023) as u64) << 52);
    if x.is_nan() { x } else { (sum * scale) as f32 }
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn unary_f64(file: &mut File, mask: u32, op: FloatOne, d: Reg, a: Reg) {
    /// Without the lower half; subnormals are zeros.
    fn upper(x: f64) -> f64 {
        let x = f64::from_bits(x.to_bits() & !0xffff_ffff);
        if x.abs() < f64::MIN_POSITIVE { f64::from_bits(x.to_bits() & 1 << 63) } else { x }
    }
    match op {
        FloatOne::Neg => map(file, mask, d, a, |x: f64| -x),
        FloatOne::Abs => map(file, mask, d, a, |x: f64| x.abs()),
        FloatOne::Sqrt => map(file, mask, d, a, f64::sqrt),
        FloatOne::Rcp => map(file, mask, d, a, |x: f64| 1. / x),
        FloatOne::RcpGross => map(file, mask, d, a, |x: f64| upper(1. / upper(x))),
        FloatOne::Rsqrt => map(file, mask, d, a, |x: f64| 1. / x.sqrt()),
        FloatOne::RsqrtGross => map(file, mask, d, a, |x: f64| upper(1. / upper(x).sqrt())),
        FloatOne::Ex2 => map(file, mask, d, a, f64::exp2),
        FloatOne::Lg2 => map(file, mask, d, a, f64::log2),
        FloatOne::Sin => map(file, mask, d, a, f64::sin),
        FloatOne::Cos => map(file, mask, d, a, f64::cos),
        FloatOne::Tanh => map(file, mask, d, a, f64::tanh),
    }
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
pub fn compare<T>(file: &File, cmp: Cmp, a: Reg, b: Reg, f: impl Fn(T) -> T) -> u32
where
    T: Value + PartialOrd,
{
    // One is a NaN, where they have no order.
    let odd = |a: T, b: T| a.partial_cmp(&b).is_none();
    match cmp {
        Cmp::Eq => test(file, a, b, |a: T, b: T| f(a) == f(b)),
        Cmp::Ne => test(file, a, b, |a: T, b: T| f(a) != f(b) && !odd(a, b)),
        Cmp::Lt => test(file, a, b, |a: T, b: T| f(a) < f(b)),
        Cmp::Le => test(file, a, b, |a: T, b: T| f(a) <= f(b)),
        Cmp::Gt => test(file, a, b, |a: T, b: T| f(a) > f(b)),
        Cmp::Ge => test(file, a, b, |a: T, b: T| f(a) >= f(b)),
        Cmp::Equ => test(file, a, b, |a: T, b: T| f(a) == f(b) || odd(a, b)),
        Cmp::Neu => test(file, a, b, |a: T, b: T| f(a) != f(b)),
        Cmp::Ltu => test(file, a, b, |a: T, b: T| f(a) < f(b) || odd(a, b)),
        Cmp::Leu => test(file, a, b, |a: T, b: T| f(a) <= f(b) || odd(a, b)),
        Cmp::Gtu => test(file, a, b, |a: T, b: T| f(a) > f(b) || odd(a, b)),
        Cmp::Geu => test(file, a, b, |a: T, b: T| f(a) >= f(b) || odd(a, b)),
        Cmp::Num => test(file, a, b, |a: T, b: T| !odd(a, b)),
        Cmp::Nan => test(file, a, b, odd),
    }
}

/// A `setp` of numbers as they are.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
pub fn setp<T: Value + PartialOrd>(cmp: Cmp) -> Run {
    macro_rules! of {
        ($cmp:expr) => {
            runs!(Setp { a, b } in file, mask, op => {
                let bits = compare::<T>(file, $cmp, a, b, |x| x);
                set(file, mask, op, bits)
            })
        };
    }
    match cmp {
        Cmp::Eq => of!(Cmp::Eq),
        Cmp::Neu => of!(Cmp::Neu),
        Cmp::Lt => of!(Cmp::Lt),
        Cmp::Le => of!(Cmp::Le),
        Cmp::Gt => of!(Cmp::Gt),
        Cmp::Ge => of!(Cmp::Ge),
        _ => runs!(Setp { cmp, a, b } in file, mask, op => {
            let bits = compare::<T>(file, cmp, a, b, |x| x);
            set(file, mask, op, bits)
        }),
    }
}
