//! Integers, bits, comparisons and selections.

use super::file::{File, LANES, Value, map, map2, map3, test};
use super::float;
use crate::ptx::instruction::{CarryOp, Cmp, IntOne, IntOp, Op, Pred, PredOp, Reg, Ty};

/// What all integer types can do.
pub trait Int: Value + Ord {
    const BITS: u32;
    fn add(self, b: Self) -> Self;
    fn sub(self, b: Self) -> Self;
    fn mul(self, b: Self) -> Self;
    fn mul_hi(self, b: Self) -> Self;
    fn div(self, b: Self) -> Self;
    fn rem(self, b: Self) -> Self;
    fn and(self, b: Self) -> Self;
    fn or(self, b: Self) -> Self;
    fn xor(self, b: Self) -> Self;
    /// Shifts by the number of bits and more give what shifting one by one would.
    fn shl(self, by: u32) -> Self;
    fn shr(self, by: u32) -> Self;
    fn neg(self) -> Self;
    fn abs(self) -> Self;
    /// Without its sign, in 64 bits.
    fn raw(self) -> u64;
    fn of(bits: u64) -> Self;
}

macro_rules! int {
    ($($ty:ident $unsigned:ident $double:ident),*) => {$(
        impl Int for $ty {
            const BITS: u32 = $ty::BITS;
            #[inline(always)]
            fn add(self, b: Self) -> Self { self.wrapping_add(b) }
            #[inline(always)]
            fn sub(self, b: Self) -> Self { self.wrapping_sub(b) }
            #[inline(always)]
            fn mul(self, b: Self) -> Self { self.wrapping_mul(b) }
            #[inline(always)]
            fn mul_hi(self, b: Self) -> Self {
                (($double::from(self) * $double::from(b)) >> $ty::BITS) as $ty
            }
            // By zero: all ones, as GPUs give it.
            #[inline(always)]
            fn div(self, b: Self) -> Self {
                if b == 0 { !0 } else { self.wrapping_div(b) }
            }
            #[inline(always)]
            fn rem(self, b: Self) -> Self {
                if b == 0 { self } else { self.wrapping_rem(b) }
            }
            #[inline(always)]
            fn and(self, b: Self) -> Self { self & b }
            #[inline(always)]
            fn or(self, b: Self) -> Self { self | b }
            #[inline(always)]
            fn xor(self, b: Self) -> Self { self ^ b }
            #[inline(always)]
            fn shl(self, by: u32) -> Self {
                if by < $ty::BITS { self.wrapping_shl(by) } else { 0 }
            }
            #[inline(always)]
            #[allow(unused_comparisons)]
            fn shr(self, by: u32) -> Self {
                if by < $ty::BITS {
                    self.wrapping_shr(by)
                } else if self < 0 { !0 } else { 0 }
            }
            #[inline(always)]
            fn neg(self) -> Self { (0 as $ty).wrapping_sub(self) }
            #[inline(always)]
            #[allow(unused_comparisons)]
            fn abs(self) -> Self { if self < 0 { Int::neg(self) } else { self } }
            #[inline(always)]
            fn raw(self) -> u64 { self as $unsigned as u64 }
            #[inline(always)]
            fn of(bits: u64) -> Self { bits as $ty }
        }
    )*};
}
int!(u16 u16 u32, i16 u16 i32, u32 u32 u64, i32 u32 i64, u64 u64 u128, i64 u64 i128);

/// Calls a generic function with the integer type that a value names.
macro_rules! typed {
    ($ty:expr, $name:ident($($arg:expr),*)) => {
        match $ty {
            Ty::U16 => $name::<u16>($($arg),*),
            Ty::S16 => $name::<i16>($($arg),*),
            Ty::U32 => $name::<u32>($($arg),*),
            Ty::S32 => $name::<i32>($($arg),*),
            Ty::U64 => $name::<u64>($($arg),*),
            _ => $name::<i64>($($arg),*),
        }
    };
}

/// What an instruction does, in the lanes of a mask.
pub type Run = fn(&mut File, u32, &Op);

/// A [`Run`] for an instruction of a form, of which it takes what it names.
macro_rules! runs {
    ($form:ident { $($field:ident),* } in $file:ident, $mask:ident => $body:expr) => {
        runs!($form { $($field),* } in $file, $mask, op => $body)
    };
    ($form:ident { $($field:ident),* } in $file:ident, $mask:ident, $op:ident => $body:expr) => {
        |$file: &mut File, $mask: u32, $op: &Op| {
            if let Op::$form { $($field,)* .. } = *$op {
                $body;
            }
        }
    };
}
pub(super) use runs;

/// The function of an instruction that touches nothing but registers, once for all times that it runs:
/// those that are most frequent have one for each type.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
pub fn function(op: &Op) -> Option<Run> {
    Some(match *op {
        Op::Mov { d, .. } if d.is_wide() => {
            runs!(Mov { d, a } in file, mask => map::<u64, u64>(file, mask, d, a, |x| x))
        }
        Op::Mov { .. } => {
            runs!(Mov { d, a } in file, mask => map::<u32, u32>(file, mask, d, a, |x| x))
        }
        Op::Int { op, ty, .. } => typed!(ty, binary(op)),
        Op::Mad { hi, ty, .. } => typed!(ty, mad(hi)),
        Op::MulWide { ty, .. } => mul_wide(ty),
        Op::MadWide { ty, .. } => mad_wide(ty),
        Op::Setp { cmp, ty: Ty::F32, ftz: false, .. } => float::setp::<f32>(cmp),
        Op::Setp { cmp, ty, .. } if !ty.is_float() => typed!(ty, setp(cmp)),
        Op::Selp { d, .. } if d.is_wide() => runs!(Selp { d, a, b, p } in file, mask => {
            choose::<u64>(file, mask, [d, a, b], file.holds(p))
        }),
        Op::Selp { .. } => runs!(Selp { d, a, b, p } in file, mask => {
            choose::<u32>(file, mask, [d, a, b], file.holds(p))
        }),
        Op::IntOne { .. }
        | Op::Sad { .. }
        | Op::Carry { .. }
        | Op::Setp { .. }
        | Op::Set { .. }
        | Op::Slct { .. }
        | Op::Pred { .. }
        | Op::Pack { .. }
        | Op::Unpack { .. }
        | Op::Funnel { .. }
        | Op::Extract { .. }
        | Op::Insert { .. }
        | Op::Permute { .. }
        | Op::Lop3 { .. }
        | Op::Dot { .. } => run,
        _ => return float::function(op),
    })
}

/// Runs one of those that have no function of their own.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn run(file: &mut File, mask: u32, op: &Op) {
    match *op {
        Op::IntOne { op, ty, d, a } => typed!(ty, unary(file, mask, op, d, a)),
        Op::Sad { ty, d, a, b, c } => typed!(ty, sad(file, mask, [d, a, b, c])),
        Op::Carry { op, takes, gives, ty, d, a, b, c } if ty.bytes() == 8 => {
            carry::<u64>(file, mask, op, [takes, gives], [d, a, b, c]);
        }
        Op::Carry { op, takes, gives, d, a, b, c, .. } => {
            carry::<u32>(file, mask, op, [takes, gives], [d, a, b, c]);
        }
        Op::Setp { cmp, ty, ftz, a, b, .. } => {
            let bits = compare(file, cmp, ty, ftz, a, b);
            set(file, mask, op, bits);
        }
        Op::Set { cmp, to, ty, ftz, d, a, b } => {
            let bits = compare(file, cmp, ty, ftz, a, b);
            let yes = if to == Ty::F32 { u64::from(1f32.to_bits()) } else { u64::MAX };
            let row = std::array::from_fn(|lane| if bits >> lane & 1 != 0 { yes } else { 0 });
            file.set_bits(d, &row, mask);
        }
        Op::Slct { ty, d, a, b, c } => {
            let c = file.bits(c).map(|c| match ty {
                Ty::F32 => f32::from_bits(c as u32) >= 0.,
                _ => c as i32 >= 0,
            });
            let bits = c.iter().enumerate().fold(0, |bits, (lane, &c)| bits | u32::from(c) << lane);
            select(file, mask, d, a, b, bits);
        }
        Op::Pred { op, d, a, b } => {
            let bits = join(op, file.holds(a), file.holds(b));
            file.set_pred(d, bits, mask);
        }
        Op::Pack { d, parts, count } => pack(file, mask, d, &parts[..usize::from(count)]),
        Op::Unpack { parts, count, a } => unpack(file, mask, &parts[..usize::from(count)], a),
        Op::Funnel { left, wrap, d, a, b, c } => {
            map3(file, mask, [d, a, b, c], |low: u32, high: u32, by: u32| {
                let by = if wrap { by & 31 } else { by.min(32) };
                let both = u64::from(high) << 32 | u64::from(low);
                if left { (both << by >> 32) as u32 } else { (both >> by) as u32 }
            });
        }
        Op::Extract { ty, d, a, b, c } => {
            typed!(ty, extract(file, mask, ty.is_signed(), [d, a, b, c]))
        }
        Op::Insert { ty, d, a, b, c, e } => typed!(ty, insert(file, mask, [d, a, b, c], e)),
        Op::Permute { d, a, b, c } => {
            map3(file, mask, [d, a, b, c], |a: u32, b: u32, how: u32| {
                let bytes = u64::from(b) << 32 | u64::from(a);
                (0..4).fold(0, |all, i| {
                    let pick = how >> (4 * i) & 15;
                    let byte = (bytes >> (8 * (pick & 7))) as u8;
                    let byte = if pick & 8 != 0 { ((byte as i8) >> 7) as u8 } else { byte };
                    all | u32::from(byte) << (8 * i)
                })
            });
        }
        Op::Lop3 { lut, d, a, b, c } => {
            map3(file, mask, [d, a, b, c], |a: u32, b: u32, c: u32| {
                (0..8u32).filter(|i| lut >> i & 1 != 0).fold(0, |all, i| {
                    let pick = |x: u32, bit: u32| if i >> bit & 1 != 0 { x } else { !x };
                    all | pick(a, 2) & pick(b, 1) & pick(c, 0)
                })
            });
        }
        Op::Dot { signed, d, a, b, c, .. } => {
            map3(file, mask, [d, a, b, c], |a: u32, b: u32, c: u32| {
                let part = |x: u32, i: u32, signed: bool| {
                    let byte = (x >> (8 * i)) as u8;
                    if signed { i32::from(byte as i8) } else { i32::from(byte) }
                };
                (0..4).fold(c, |sum, i| {
                    sum.wrapping_add((part(a, i, signed[0]) * part(b, i, signed[1])) as u32)
                })
            });
        }
        _ => {}
    }
}

/// Sets the predicates of a `setp` to what its comparison gave.
#[inline(always)]
pub fn set(file: &mut File, mask: u32, op: &Op, bits: u32) {
    let Op::Setp { d, q, with, .. } = *op else { return };
    let joined = |bits: u32, file: &File| match with {
        Some((op, c)) => join(op, bits, file.holds(c)),
        None => bits,
    };
    let (yes, no) = (joined(bits, file), joined(!bits, file));
    file.set_pred(d, yes, mask);
    if let Some(q) = q {
        file.set_pred(q, no, mask);
    }
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn binary<T: Int>(op: IntOp) -> Run {
    macro_rules! two {
        ($f:expr) => {
            runs!(Int { d, a, b } in file, mask => map2(file, mask, [d, a, b], $f))
        };
    }
    match op {
        IntOp::Add => two!(T::add),
        IntOp::Sub => two!(T::sub),
        IntOp::Mul => two!(T::mul),
        IntOp::MulHi => two!(T::mul_hi),
        IntOp::Div => two!(T::div),
        IntOp::Rem => two!(T::rem),
        IntOp::Min => two!(|a: T, b: T| a.min(b)),
        IntOp::Max => two!(|a: T, b: T| a.max(b)),
        IntOp::And => two!(T::and),
        IntOp::Or => two!(T::or),
        IntOp::Xor => two!(T::xor),
        IntOp::Shl => two!(T::shl),
        IntOp::Shr => two!(T::shr),
    }
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn unary<T: Int>(file: &mut File, mask: u32, op: IntOne, d: Reg, a: Reg) {
    match op {
        IntOne::Neg => map(file, mask, d, a, T::neg),
        IntOne::Abs => map(file, mask, d, a, T::abs),
        IntOne::Not => map(file, mask, d, a, |x: T| x.xor(T::of(u64::MAX))),
        IntOne::Cnot => map(file, mask, d, a, |x: T| T::of(u64::from(x.raw() == 0))),
        IntOne::Popc => map(file, mask, d, a, |x: T| x.raw().count_ones()),
        IntOne::Clz => map(file, mask, d, a, |x: T| x.raw().leading_zeros() + T::BITS - 64),
        IntOne::Brev => {
            map(file, mask, d, a, |x: T| T::of(x.raw().reverse_bits() >> (64 - T::BITS)));
        }
        IntOne::Bfind { shift } => map(file, mask, d, a, |x: T| {
            // Of a negative number the highest bit that is not the sign.
            let x = if x < T::default() { T::of(!x.raw()) } else { x };
            let zeros = x.raw().leading_zeros() + T::BITS - 64;
            if zeros == T::BITS {
                u32::MAX
            } else if shift {
                zeros
            } else {
                T::BITS - 1 - zeros
            }
        }),
    }
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn mad<T: Int>(hi: bool) -> Run {
    match hi {
        false => runs!(Mad { d, a, b, c } in file, mask => {
            map3(file, mask, [d, a, b, c], |a: T, b: T, c: T| a.mul(b).add(c))
        }),
        true => runs!(Mad { d, a, b, c } in file, mask => {
            map3(file, mask, [d, a, b, c], |a: T, b: T, c: T| a.mul_hi(b).add(c))
        }),
    }
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn sad<T: Int>(file: &mut File, mask: u32, r: [Reg; 4]) {
    map3(file, mask, r, |a: T, b: T, c: T| c.add(if a < b { b.sub(a) } else { a.sub(b) }));
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn mul_wide(ty: Ty) -> Run {
    macro_rules! of {
        ($narrow:ident, $wide:ident) => {
            runs!(MulWide { d, a, b } in file, mask => {
                map2(file, mask, [d, a, b], |a: $narrow, b: $narrow| $wide::from(a) * $wide::from(b))
            })
        };
    }
    match ty {
        Ty::U16 => of!(u16, u32),
        Ty::S16 => of!(i16, i32),
        Ty::U32 => of!(u32, u64),
        _ => of!(i32, i64),
    }
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn mad_wide(ty: Ty) -> Run {
    macro_rules! of {
        ($narrow:ident, $wide:ident) => {
            runs!(MadWide { d, a, b, c } in file, mask => {
                map3(file, mask, [d, a, b, c], |a: $narrow, b: $narrow, c: $wide| {
                    ($wide::from(a) * $wide::from(b)).wrapping_add(c)
                })
            })
        };
    }
    match ty {
        Ty::U16 => of!(u16, u32),
        Ty::S16 => of!(i16, i32),
        Ty::U32 => of!(u32, u64),
        _ => of!(i32, i64),
    }
}

/// Sums that take and give a carry. Of a difference it is the borrow.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn carry<T: Int>(file: &mut File, mask: u32, op: CarryOp, [takes, gives]: [bool; 2], r: [Reg; 4]) {
    let old = if takes { file.pred(Pred::CARRY) } else { 0 };
    let [d, a, b, c] = r;
    let (a, b, c) = (file.bits(a), file.bits(b), file.bits(c));
    let (mut out, mut new) = ([0; LANES], 0);
    for lane in 0..LANES {
        let (a, b, c) = (u128::from(a[lane]), u128::from(b[lane]), u128::from(c[lane]));
        let carry = u128::from(old >> lane & 1);
        let half = u128::from(u64::MAX >> (64 - T::BITS));
        let sum = match op {
            CarryOp::Add => a + b + carry,
            CarryOp::Sub => a.wrapping_sub(b).wrapping_sub(carry),
            CarryOp::MadLo => ((a * b) & half) + c + carry,
            CarryOp::MadHi => ((a * b) >> T::BITS) + c + carry,
        };
        out[lane] = sum as u64;
        new |= ((sum >> T::BITS & 1) as u32) << lane;
    }
    file.set_bits(d, &out, mask);
    if gives {
        file.set_pred(Pred::CARRY, new, mask);
    }
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn extract<T: Int>(file: &mut File, mask: u32, signed: bool, r: [Reg; 4]) {
    map3(file, mask, r, |a: T, at: u32, length: u32| {
        let (at, length) = (at & 255, length & 255);
        if length == 0 {
            return T::default();
        }
        let bits = if at < T::BITS { a.raw() >> at } else { 0 };
        let length = length.min(64);
        let kept = bits & (u64::MAX >> (64 - length));
        // The sign is the field's highest bit, or the register's where the field goes past it.
        let top = (at + length - 1).min(T::BITS - 1);
        if signed && a.raw() >> top & 1 != 0 {
            let filled = (at + length).min(T::BITS).saturating_sub(at);
            return T::of(if filled < 64 { kept | u64::MAX << filled } else { kept });
        }
        T::of(kept)
    });
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn insert<T: Int>(file: &mut File, mask: u32, [d, a, b, c]: [Reg; 4], length: Reg) {
    let (at, length) = (file.bits(c), file.bits(length));
    let (a, b) = (file.bits(a), file.bits(b));
    let out = std::array::from_fn(|lane| {
        let (at, length) = ((at[lane] & 255) as u32, (length[lane] & 255) as u32);
        if length == 0 || at >= T::BITS {
            return b[lane];
        }
        let field = (u64::MAX >> (64 - length.min(64))) << at;
        b[lane] & !field | a[lane] << at & field
    });
    file.set_bits(d, &out, mask);
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn pack(file: &mut File, mask: u32, d: Reg, parts: &[Reg]) {
    if d.is_wide() && parts.len() == 2 {
        map2(file, mask, [d, parts[0], parts[1]], |a: u32, b: u32| {
            u64::from(b) << 32 | u64::from(a)
        });
        return;
    }
    let size = if d.is_wide() { 64 } else { 32 } / parts.len() as u32;
    let mut out = [0; LANES];
    for (i, &part) in parts.iter().enumerate() {
        let part = file.bits(part);
        for lane in 0..LANES {
            out[lane] |= (part[lane] & (u64::MAX >> (64 - size))) << (size * i as u32);
        }
    }
    file.set_bits(d, &out, mask);
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn unpack(file: &mut File, mask: u32, parts: &[Option<Reg>], a: Reg) {
    let size = if a.is_wide() { 64 } else { 32 } / parts.len() as u32;
    let whole = file.bits(a);
    for (i, part) in parts.iter().enumerate() {
        if let Some(part) = *part {
            let part_bits = whole.map(|bits| bits >> (size * i as u32) & (u64::MAX >> (64 - size)));
            file.set_bits(part, &part_bits, mask);
        }
    }
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn select(file: &mut File, mask: u32, d: Reg, a: Reg, b: Reg, yes: u32) {
    match d.is_wide() {
        true => choose::<u64>(file, mask, [d, a, b], yes),
        false => choose::<u32>(file, mask, [d, a, b], yes),
    }
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn choose<T: Value>(file: &mut File, mask: u32, [d, a, b]: [Reg; 3], yes: u32) {
    let (mut out, a) = (*T::row(file, b), *T::row(file, a));
    super::file::blend(&mut out, &a, yes);
    super::file::blend(T::row_mut(file, d), &out, mask);
}

fn join(op: PredOp, a: u32, b: u32) -> u32 {
    match op {
        PredOp::And => a & b,
        PredOp::Or => a | b,
        PredOp::Xor => a ^ b,
    }
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn compare(file: &File, cmp: Cmp, ty: Ty, ftz: bool, a: Reg, b: Reg) -> u32 {
    match ty {
        Ty::F32 if ftz => float::compare::<f32>(file, cmp, a, b, float::flush),
        Ty::F32 => float::compare::<f32>(file, cmp, a, b, |x| x),
        Ty::F64 => float::compare::<f64>(file, cmp, a, b, |x| x),
        _ => typed!(ty, order(file, cmp, a, b)),
    }
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn order<T: Int>(file: &File, cmp: Cmp, a: Reg, b: Reg) -> u32 {
    match cmp {
        Cmp::Eq => test(file, a, b, |a: T, b: T| a == b),
        Cmp::Ne => test(file, a, b, |a: T, b: T| a != b),
        Cmp::Lt => test(file, a, b, |a: T, b: T| a < b),
        Cmp::Le => test(file, a, b, |a: T, b: T| a <= b),
        Cmp::Gt => test(file, a, b, |a: T, b: T| a > b),
        _ => test(file, a, b, |a: T, b: T| a >= b),
    }
}

/// A `setp` of integers.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn setp<T: Int>(cmp: Cmp) -> Run {
    macro_rules! of {
        ($f:expr) => {
            runs!(Setp { a, b } in file, mask, op => {
                let bits = test(file, a, b, $f);
                set(file, mask, op, bits)
            })
        };
    }
    match cmp {
        Cmp::Eq => of!(|a: T, b: T| a == b),
        Cmp::Ne => of!(|a: T, b: T| a != b),
        Cmp::Lt => of!(|a: T, b: T| a < b),
        Cmp::Le => of!(|a: T, b: T| a <= b),
        Cmp::Gt => of!(|a: T, b: T| a > b),
        _ => of!(|a: T, b: T| a >= b),
    }
}
