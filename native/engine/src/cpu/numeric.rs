//! The types: how an element is widened to what is computed with, narrowed back, and converted.

use half::{bf16, f16};

use super::simd::{Isa, dispatch};
use crate::call::View;
use crate::spec::DType;

/// Elements handled together where a kernel works through a buffer on the stack.
pub(super) const BLOCK: usize = 256;

/// `with_type!(dtype, T => body)` with `T` the Rust type of `dtype`'s elements.
macro_rules! with_type {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            $crate::spec::DType::F64 => {
                type $t = f64;
                $body
            }
            other if other.is_float() => {
                $crate::cpu::numeric::with_network!(other, $t => $body)
            }
            other => $crate::cpu::numeric::with_integer!(other, $t => $body),
        }
    };
}
pub(super) use with_type;

/// As [`with_type!`] for the ops that take integers only.
macro_rules! with_integer {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            $crate::spec::DType::U8 => {
                type $t = u8;
                $body
            }
            $crate::spec::DType::U16 => {
                type $t = u16;
                $body
            }
            $crate::spec::DType::U32 => {
                type $t = u32;
                $body
            }
            $crate::spec::DType::U64 => {
                type $t = u64;
                $body
            }
            $crate::spec::DType::S8 => {
                type $t = i8;
                $body
            }
            $crate::spec::DType::S16 => {
                type $t = i16;
                $body
            }
            $crate::spec::DType::S32 => {
                type $t = i32;
                $body
            }
            $crate::spec::DType::S64 => {
                type $t = i64;
                $body
            }
            other => return Err($crate::error::Error::Internal(format!("{other} as an integer"))),
        }
    };
}
pub(super) use with_integer;

/// As [`with_type!`] for the ops that take f16, bf16 and f32 only.
macro_rules! with_network {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            $crate::spec::DType::F16 => {
                type $t = half::f16;
                $body
            }
            $crate::spec::DType::BF16 => {
                type $t = half::bf16;
                $body
            }
            $crate::spec::DType::F32 => {
                type $t = f32;
                $body
            }
            other => return Err($crate::error::Error::Internal(format!("{other} in a network op"))),
        }
    };
}
pub(super) use with_network;

/// A storage type and the type it is computed in: its own, or f32 for the 16-bit floats.
pub(super) trait Element: Copy + Send + Sync + Into<Self::Compute> + 'static {
    type Compute: Compute;

    fn narrow(v: Self::Compute) -> Self;

    /// `src` as compute values: itself, or widened into `buffer`, which is no shorter.
    fn widened<'a, I: Isa>(src: &'a [Self], buffer: &'a mut [Self::Compute])
    -> &'a [Self::Compute];

    /// Has `f` write compute values for `out`, directly or by way of `buffer`.
    fn produce<I: Isa>(
        out: &mut [Self],
        buffer: &mut [Self::Compute],
        f: impl FnOnce(&mut [Self::Compute]),
    );
}

/// A type that is computed with.
pub(super) trait Compute: Copy + Default + PartialOrd + Send + Sync + 'static {
    fn is_nan(self) -> bool;
}

/// Conversion from the types that hold every value of all others, as Rust's `as` does it: integers
/// wrap, floats to integers truncate and saturate.
pub(super) trait Convert: Element {
    fn from_i64(v: i64) -> Self;
    fn from_u64(v: u64) -> Self;
    fn from_f64(v: f64) -> Self;

    /// Gives `f` at most [`BLOCK`] elements in what holds every value of their type.
    fn wide<I: Isa>(from: &[Self], f: &mut dyn FnMut(Wide));
}

/// Elements of any type, in a type that holds all of its values.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wide<'a> {
    Float(&'a [f64]),
    Integer(&'a [i64]),
    U64(&'a [u64]),
}

/// A block converted one by one.
#[inline(always)]
fn block<S: Copy, W: Copy + Default>(from: &[S], f: impl Fn(S) -> W) -> [W; BLOCK] {
    let mut block = [W::default(); BLOCK];
    for (to, v) in block.iter_mut().zip(from) {
        *to = f(*v);
    }
    block
}

/// A storage type of networks: f16, bf16 or f32.
pub(super) trait Network: Element<Compute = f32> {
    /// The vector at `from`, widened.
    ///
    /// # Safety
    /// `I::LANES` elements at `from`, and what [`Isa`] asks.
    unsafe fn load<I: Isa>(from: *const Self) -> I::V;

    /// The elements where they lie, if they are f32.
    fn as_f32(src: &[Self]) -> Option<&[f32]>;
    fn as_f32_mut(dst: &mut [Self]) -> Option<&mut [f32]>;

    fn widen<I: Isa>(src: &[Self], dst: &mut [f32]);
    fn narrow_to<I: Isa>(src: &[f32], dst: &mut [Self]);
}

macro_rules! direct {
    ($($t:ty: $nan:expr;)*) => {$(
        impl Element for $t {
            type Compute = $t;

            #[inline(always)]
            fn narrow(v: $t) -> $t {
                v
            }

            #[inline(always)]
            fn widened<'a, I: Isa>(src: &'a [$t], _buffer: &'a mut [$t]) -> &'a [$t] {
                src
            }

            #[inline(always)]
            fn produce<I: Isa>(out: &mut [$t], _buffer: &mut [$t], f: impl FnOnce(&mut [$t])) {
                f(out)
            }
        }

        impl Compute for $t {
            #[inline(always)]
            fn is_nan(self) -> bool {
                let is_nan: fn($t) -> bool = $nan;
                is_nan(self)
            }
        }
    )*};
}

direct! {
    u8: |_| false;
    u16: |_| false;
    u32: |_| false;
    u64: |_| false;
    i8: |_| false;
    i16: |_| false;
    i32: |_| false;
    i64: |_| false;
    f32: f32::is_nan;
    f64: f64::is_nan;
}

macro_rules! sixteen_bit {
    ($($t:ty),*) => {$(
        impl Element for $t {
            type Compute = f32;

            #[inline(always)]
            fn narrow(v: f32) -> $t {
                <$t>::from_f32(v)
            }

            #[inline(always)]
            fn widened<'a, I: Isa>(src: &'a [$t], buffer: &'a mut [f32]) -> &'a [f32] {
                let buffer = &mut buffer[..src.len()];
                Self::widen::<I>(src, buffer);
                buffer
            }

            #[inline(always)]
            fn produce<I: Isa>(out: &mut [$t], buffer: &mut [f32], f: impl FnOnce(&mut [f32])) {
                let buffer = &mut buffer[..out.len()];
                f(buffer);
                Self::narrow_to::<I>(buffer, out);
            }
        }

        impl Convert for $t {
            #[inline(always)]
            fn from_i64(v: i64) -> $t {
                // Not half's own `from_f64`, which looks at the first 20 bits of the fraction only.
                <Self as Convert>::from_f64(v as f64)
            }

            #[inline(always)]
            fn from_u64(v: u64) -> $t {
                <Self as Convert>::from_f64(v as f64)
            }

            #[inline(always)]
            fn from_f64(v: f64) -> $t {
                <$t>::from_f32(round_to_odd(v))
            }

            #[inline(always)]
            fn wide<I: Isa>(from: &[$t], f: &mut dyn FnMut(Wide)) {
                f(Wide::Float(&block(from, |v| f64::from(v.to_f32()))[..from.len()]));
            }
        }
    )*};
}

sixteen_bit!(f16, bf16);

/// f64 to f32 such that a second rounding, to fewer bits, gives what one rounding would have:
/// where the value lies between two f32, the one whose last bit is set.
#[inline(always)]
fn round_to_odd(v: f64) -> f32 {
    let near = v as f32;
    let back = f64::from(near);
    let bits = near.to_bits();
    if back == v || near.is_nan() || near.is_infinite() || bits & 1 == 1 {
        return near;
    }
    // One step toward `v`; in the bits of a float, away from zero is up.
    let away = (v.abs() > back.abs()) as u32;
    f32::from_bits(if away == 1 { bits + 1 } else { bits.wrapping_sub(1) })
}

macro_rules! convert {
    ($($t:ty: $kind:ident $wide:ty;)*) => {$(
        impl Convert for $t {
            #[inline(always)]
            fn from_i64(v: i64) -> $t {
                v as $t
            }

            #[inline(always)]
            fn from_u64(v: u64) -> $t {
                v as $t
            }

            #[inline(always)]
            fn from_f64(v: f64) -> $t {
                v as $t
            }

            #[inline(always)]
            fn wide<I: Isa>(from: &[$t], f: &mut dyn FnMut(Wide)) {
                f(Wide::$kind(&block(from, |v| v as $wide)[..from.len()]));
            }
        }
    )*};
}

convert! {
    u8: Integer i64;
    u16: Integer i64;
    u32: Integer i64;
    u64: U64 u64;
    i8: Integer i64;
    i16: Integer i64;
    i32: Integer i64;
    i64: Integer i64;
    f32: Float f64;
    f64: Float f64;
}

impl Network for f32 {
    #[inline(always)]
    unsafe fn load<I: Isa>(from: *const f32) -> I::V {
        // SAFETY: the caller's promise.
        unsafe { I::load(from) }
    }

    fn as_f32(src: &[f32]) -> Option<&[f32]> {
        Some(src)
    }

    fn as_f32_mut(dst: &mut [f32]) -> Option<&mut [f32]> {
        Some(dst)
    }

    #[inline(always)]
    fn widen<I: Isa>(src: &[f32], dst: &mut [f32]) {
        dst.copy_from_slice(src);
    }

    #[inline(always)]
    fn narrow_to<I: Isa>(src: &[f32], dst: &mut [f32]) {
        dst.copy_from_slice(src);
    }
}

impl Network for f16 {
    #[inline(always)]
    unsafe fn load<I: Isa>(from: *const f16) -> I::V {
        // SAFETY: the caller's promise.
        unsafe { I::load_f16(from) }
    }

    fn as_f32(_src: &[f16]) -> Option<&[f32]> {
        None
    }

    fn as_f32_mut(_dst: &mut [f16]) -> Option<&mut [f32]> {
        None
    }

    #[inline(always)]
    fn widen<I: Isa>(src: &[f16], dst: &mut [f32]) {
        let n = src.len().min(dst.len());
        let whole = n - n % I::LANES;
        for at in (0..whole).step_by(I::LANES) {
            // SAFETY: a whole vector fits both from `at` on.
            unsafe { I::store(dst.as_mut_ptr().add(at), I::load_f16(src.as_ptr().add(at))) };
        }
        for (d, s) in dst[whole..n].iter_mut().zip(&src[whole..n]) {
            *d = s.to_f32();
        }
    }

    #[inline(always)]
    fn narrow_to<I: Isa>(src: &[f32], dst: &mut [f16]) {
        let n = src.len().min(dst.len());
        let whole = n - n % I::LANES;
        for at in (0..whole).step_by(I::LANES) {
            // SAFETY: a whole vector fits both from `at` on.
            unsafe { I::store_f16(dst.as_mut_ptr().add(at), I::load(src.as_ptr().add(at))) };
        }
        for (d, s) in dst[whole..n].iter_mut().zip(&src[whole..n]) {
            *d = f16::from_f32(*s);
        }
    }
}

impl Network for bf16 {
    #[inline(always)]
    unsafe fn load<I: Isa>(from: *const bf16) -> I::V {
        // SAFETY: the caller's promise.
        unsafe { I::load_bf16(from) }
    }

    fn as_f32(_src: &[bf16]) -> Option<&[f32]> {
        None
    }

    fn as_f32_mut(_dst: &mut [bf16]) -> Option<&mut [f32]> {
        None
    }

    #[inline(always)]
    fn widen<I: Isa>(src: &[bf16], dst: &mut [f32]) {
        for (d, s) in dst.iter_mut().zip(src) {
            *d = f32::from_bits(u32::from(s.to_bits()) << 16);
        }
    }

    #[inline(always)]
    fn narrow_to<I: Isa>(src: &[f32], dst: &mut [bf16]) {
        for (d, s) in dst.iter_mut().zip(src) {
            let bits = s.to_bits();
            let even = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
            let quiet = bits >> 16 | 0x40;
            *d = bf16::from_bits(if s.is_nan() { quiet } else { even } as u16);
        }
    }
}

pub(super) fn widen<T: Network>(src: &[T], dst: &mut [f32]) {
    dispatch!(I => T::widen::<I>(src, dst));
}

pub(super) fn narrow<T: Network>(src: &[f32], dst: &mut [T]) {
    dispatch!(I => T::narrow_to::<I>(src, dst));
}

/// Widens a network tensor.
///
/// # Safety
/// As for [`View::slice`].
pub(super) unsafe fn read_f32(view: &View, dst: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        match view.spec.dtype {
            DType::F16 => widen(view.slice::<f16>(), dst),
            DType::BF16 => widen(view.slice::<bf16>(), dst),
            _ => dst.copy_from_slice(view.slice::<f32>()),
        }
    }
}

/// Narrows into a network tensor from element `start` on.
///
/// # Safety
/// As for [`View::slice_mut`].
pub(super) unsafe fn write_f32(view: &View, start: usize, src: &[f32]) {
    let place = start..start + src.len();
    // SAFETY: the caller's promise.
    unsafe {
        match view.spec.dtype {
            DType::F16 => narrow(src, &mut view.slice_mut::<f16>()[place]),
            DType::BF16 => narrow(src, &mut view.slice_mut::<bf16>()[place]),
            _ => view.slice_mut::<f32>()[place].copy_from_slice(src),
        }
    }
}

/// What workspace is handed out as: four bytes of which any are valid.
pub(super) trait Word: Copy {}
impl Word for f32 {}
impl Word for u32 {}

/// Workspace handed out piece by piece.
pub(super) struct Scratch {
    addr: u64,
}

impl Scratch {
    /// Bytes that a piece of `n` f32 takes: whole cache lines.
    pub(super) fn bytes(n: usize) -> usize {
        n.saturating_mul(4).saturating_add(63) & !63
    }

    /// # Safety
    /// The pieces taken must fit the workspace at `addr`, which nobody else uses meanwhile.
    pub(super) unsafe fn new(addr: u64) -> Self {
        Scratch { addr }
    }

    /// The next `n` elements of four bytes, with whatever they hold.
    pub(super) fn take<'a, T: Word>(&mut self, n: usize) -> &'a mut [T] {
        if n == 0 {
            return &mut [];
        }
        let at = self.addr as *mut T;
        self.addr += Self::bytes(n) as u64;
        // SAFETY: `new`'s promise; the pieces do not overlap, and any bytes are valid.
        unsafe { std::slice::from_raw_parts_mut(at, n) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_rounding_from_f64() {
        // Just above the tie between two bf16: rounding to f32 first would make it a tie.
        let x = 1.0 + 2f64.powi(-8) + 2f64.powi(-40);
        assert_eq!(<bf16 as Convert>::from_f64(x).to_f64(), 1.0 + 2f64.powi(-7));
        let tie = 1.0 + 2f64.powi(-8);
        assert_eq!(<bf16 as Convert>::from_f64(tie).to_f64(), 1.0);
        assert_eq!(<bf16 as Convert>::from_f64(-x).to_f64(), -1.0 - 2f64.powi(-7));
        assert_eq!(<f16 as Convert>::from_f64(1e300).to_f64(), f64::INFINITY);
        assert!(<f16 as Convert>::from_f64(f64::NAN).is_nan());
        assert_eq!(<f16 as Convert>::from_f64(1e-300).to_f64(), 0.0);
    }

    #[test]
    fn bf16_narrows_like_half() {
        let odd = [0x3f80_8000u32, 0x3f81_8000, 0x3f80_7fff, 0x7f7f_ffff, 0x7fff_ffff, 0xff80_0001];
        for bits in odd.into_iter().chain((0..200_000).map(|i: u32| i.wrapping_mul(0x9E37_79B9))) {
            let x = f32::from_bits(bits);
            let mut y = [bf16::ZERO];
            narrow(&[x], &mut y);
            let want = bf16::from_f32(x);
            assert!(y[0].to_bits() == want.to_bits() || (x.is_nan() && y[0].is_nan()), "{bits:x}");
        }
    }
}
