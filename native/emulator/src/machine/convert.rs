//! Conversions between types.

use half::{bf16, f16};

use super::file::{File, LANES, map};
use super::float::{self, saturate};
use crate::ptx::instruction::{Mode, Op, Reg, Round, Ty};

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
pub fn run(file: &mut File, mask: u32, op: &Op) {
    match *op {
        Op::Cvt { to, from, mode, integral, d, a } => {
            convert(file, mask, to, from, mode, integral, d, a);
        }
        Op::CvtPair { to, relu, d, a, b } => {
            let (high, low) = (file.bits(a), file.bits(b));
            let out = std::array::from_fn(|lane| {
                let one = |bits: u64| {
                    let x = f32::from_bits(bits as u32);
                    let x = if relu && x < 0. { 0. } else { x };
                    u64::from(if to == Ty::F16x2 { to_f16(x) } else { to_bf16(x) })
                };
                one(high[lane]) << 16 | one(low[lane])
            });
            file.set_bits(d, &out, mask);
        }
        _ => {}
    }
}

/// The NaN of 16 bits that GPUs give.
const NAN: u16 = 0x7fff;

pub fn to_f16(x: f32) -> u16 {
    if x.is_nan() { NAN } else { f16::from_f32(x).to_bits() }
}

pub fn to_bf16(x: f32) -> u16 {
    if x.is_nan() { NAN } else { bf16::from_f32(x).to_bits() }
}

/// A number between two types: whole ones exactly, others as f64 with what f64 has left.
#[derive(Clone, Copy)]
enum Number {
    Whole(i128),
    Real(f64),
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn convert(
    file: &mut File,
    mask: u32,
    to: Ty,
    from: Ty,
    mode: Mode,
    integral: bool,
    d: Reg,
    a: Reg,
) {
    let near = mode.round == Round::Nearest && !mode.ftz && !mode.sat && !integral;
    let fits = d.is_wide() == to.is_wide() && a.is_wide() == from.is_wide();
    match (to.integer(), from.integer()) {
        // The most frequent ones.
        (Ty::U32 | Ty::S32, Ty::U64 | Ty::S64) if near && fits && whole(to, from) => {
            map(file, mask, d, a, |x: u64| x as u32);
        }
        (Ty::U64 | Ty::S64, Ty::U32) if near && fits && whole(to, from) => {
            map(file, mask, d, a, |x: u32| u64::from(x));
        }
        (Ty::U64 | Ty::S64, Ty::S32) if near && fits && whole(to, from) => {
            map(file, mask, d, a, |x: i32| i64::from(x));
        }
        (Ty::U32 | Ty::S32, Ty::U16) if near && fits && whole(to, from) => {
            map(file, mask, d, a, |x: u16| u32::from(x));
        }
        (Ty::U16 | Ty::S16, Ty::U32 | Ty::S32) if near && fits && whole(to, from) => {
            map(file, mask, d, a, |x: u32| x);
        }
        _ if near && (to, from) == (Ty::F32, Ty::F16) => {
            map(file, mask, d, a, |x: u16| f16::from_bits(x).to_f32());
        }
        _ if near && (to, from) == (Ty::F16, Ty::F32) => map(file, mask, d, a, to_f16),
        _ if near && (to, from) == (Ty::Bf16, Ty::F32) => map(file, mask, d, a, to_bf16),
        _ if near && (to, from) == (Ty::F64, Ty::F32) => {
            map(file, mask, d, a, |x: f32| f64::from(x))
        }
        _ if (to, from) == (Ty::F32, Ty::F32) && mode.sat && !integral && !mode.ftz => {
            map(file, mask, d, a, saturate);
        }
        _ => {
            let bits = file.bits(a);
            let mut out = [0; LANES];
            for lane in 0..LANES {
                out[lane] = one(bits[lane], to, from, mode, integral);
            }
            // A register that is wider than the type is filled with its sign or zeros.
            file.set_bits(d, &out, mask);
        }
    }
}

fn whole(to: Ty, from: Ty) -> bool {
    !to.is_float() && !from.is_float()
}

fn one(bits: u64, to: Ty, from: Ty, mode: Mode, integral: bool) -> u64 {
    let number = match from {
        Ty::F16 => Number::Real(f16::from_bits(bits as u16).to_f64()),
        Ty::Bf16 => Number::Real(bf16::from_bits(bits as u16).to_f64()),
        Ty::F32 => {
            let x = f32::from_bits(bits as u32);
            Number::Real(f64::from(if mode.ftz { float::flush(x) } else { x }))
        }
        Ty::F64 => Number::Real(f64::from_bits(bits)),
        Ty::S8 => Number::Whole(i128::from(bits as i8)),
        Ty::S16 => Number::Whole(i128::from(bits as i16)),
        Ty::S32 => Number::Whole(i128::from(bits as i32)),
        Ty::S64 => Number::Whole(i128::from(bits as i64)),
        _ => Number::Whole(i128::from(bits & (u64::MAX >> (64 - 8 * from.bytes())))),
    };
    match to {
        Ty::F16 | Ty::Bf16 | Ty::F32 | Ty::F64 => real(number, to, mode, integral),
        _ => integer(number, to, mode),
    }
}

fn rounded(x: f64, to: Round) -> f64 {
    match to {
        Round::Nearest => x.round_ties_even(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
    }
}

fn integer(number: Number, to: Ty, mode: Mode) -> u64 {
    let bits = 8 * to.bytes() as u32;
    let (least, most) = match to.is_signed() {
        true => (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1),
        false => (0, (1i128 << bits) - 1),
    };
    let value = match number {
        // A NaN is 0; what does not fit is the nearest that does.
        Number::Real(x) => (rounded(x, mode.round) as i128).clamp(least, most),
        Number::Whole(x) if mode.sat => x.clamp(least, most),
        Number::Whole(x) => x & ((1i128 << bits) - 1),
    };
    match to.is_signed() {
        // With its sign in all 64 bits.
        true => (((value as u64) << (64 - bits)) as i64 >> (64 - bits)) as u64,
        false => value as u64,
    }
}

fn real(number: Number, to: Ty, mode: Mode, integral: bool) -> u64 {
    let (value, error) = match number {
        Number::Real(x) if integral => (rounded(x, mode.round), 0.),
        Number::Real(x) => (x, 0.),
        Number::Whole(x) => {
            let near = x as f64;
            (near, (x - near as i128) as f64)
        }
    };
    let round = if integral { Round::Nearest } else { mode.round };
    match to {
        Ty::F64 => {
            let value = match (round, error) {
                (Round::Up, e) if e > 0. => value.next_up(),
                (Round::Down, e) if e < 0. => value.next_down(),
                (Round::Zero, e) if e < 0. && value > 0. => value.next_down(),
                (Round::Zero, e) if e > 0. && value < 0. => value.next_up(),
                _ => value,
            };
            value.to_bits()
        }
        Ty::F32 => {
            let x = match number {
                // To the nearest in one step.
                Number::Whole(x) if round == Round::Nearest => x as f32,
                _ => float::round(value, error, round),
            };
            let x = if x.is_nan() { f32::from_bits(0x7fff_ffff) } else { x };
            let x = if mode.ftz { float::flush(x) } else { x };
            u64::from(if mode.sat { saturate(x) } else { x }.to_bits())
        }
        Ty::F16 => u64::from(if value.is_nan() { NAN } else { f16::from_f64(value).to_bits() }),
        _ => u64::from(if value.is_nan() { NAN } else { bf16::from_f64(value).to_bits() }),
    }
}
