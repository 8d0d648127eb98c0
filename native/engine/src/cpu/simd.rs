//! The instruction sets, and how a kernel is compiled for each of them.
//!
//! A kernel is an `#[inline(always)]` function generic over an [`Isa`]. [`dispatch!`] calls it from
//! inside a function that has the features of the set found at run time, so the compiler vectorises
//! its loops for that set. What the compiler would not find by itself (the products) uses the
//! vectors of [`Isa`].

use std::sync::OnceLock;

use half::{bf16, f16};

/// The best instruction set of this processor that the kernels know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// What the target always has: SSE2 on x86-64, NEON on aarch64.
    Base,
}

impl Level {
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "AVX-512",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "AVX2",
            Level::Base => "base",
        }
    }
}

pub(super) fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(detect)
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    let avx2 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (avx2, avx512) {
        (true, true) => Level::Avx512,
        (true, false) => Level::Avx2,
        _ => Level::Base,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Base
}

/// Vectors of f32 of one instruction set.
///
/// # Safety
/// Its functions may only run where the processor has the set: inside [`dispatch!`].
pub(super) unsafe trait Isa: Copy + 'static {
    type V: Copy;
    const LANES: usize;

    /// `a * b + c`, rounded once where the set can.
    fn fma(a: f32, b: f32, c: f32) -> f32;
    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn load_f16(from: *const f16) -> Self::V;
    unsafe fn load_bf16(from: *const bf16) -> Self::V;
    unsafe fn store(to: *mut f32, v: Self::V);
    unsafe fn store_f16(to: *mut f16, v: Self::V);
    unsafe fn fmadd(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Base;

// SAFETY: needs nothing beyond the target's own features.
unsafe impl Isa for Base {
    type V = [f32; 4];
    const LANES: usize = 4;

    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        // Without the instruction `mul_add` is a call into the C library.
        if cfg!(target_arch = "aarch64") { a.mul_add(b, c) } else { a * b + c }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; 4] {
        [x; 4]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> [f32; 4] {
        // SAFETY: the caller has four elements there.
        unsafe { from.cast::<[f32; 4]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> [f32; 4] {
        // SAFETY: the caller has four elements there.
        unsafe { from.cast::<[f16; 4]>().read_unaligned() }.map(f16::to_f32)
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> [f32; 4] {
        // SAFETY: the caller has four elements there.
        unsafe { from.cast::<[u16; 4]>().read_unaligned() }
            .map(|b| f32::from_bits(u32::from(b) << 16))
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, v: [f32; 4]) {
        // SAFETY: the caller has room for four elements there.
        unsafe { to.cast::<[f32; 4]>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn store_f16(to: *mut f16, v: [f32; 4]) {
        // SAFETY: the caller has room for four elements there.
        unsafe { to.cast::<[f16; 4]>().write_unaligned(v.map(f16::from_f32)) }
    }

    #[inline(always)]
    unsafe fn fmadd(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| Self::fma(a[i], b[i], c[i]))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use half::{bf16, f16};

    use super::Isa;

    #[derive(Debug, Clone, Copy)]
    pub(in crate::cpu) struct Avx2;

    // SAFETY: runs only inside `avx2`.
    unsafe impl Isa for Avx2 {
        type V = __m256;
        const LANES: usize = 8;

        #[inline(always)]
        fn fma(a: f32, b: f32, c: f32) -> f32 {
            a.mul_add(b, c)
        }

        #[inline(always)]
        unsafe fn splat(x: f32) -> __m256 {
            // SAFETY: the trait's promise.
            unsafe { _mm256_set1_ps(x) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> __m256 {
            // SAFETY: the trait's promise, and eight elements at `from`.
            unsafe { _mm256_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn load_f16(from: *const f16) -> __m256 {
            // SAFETY: as in `load`.
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
        }

        #[inline(always)]
        unsafe fn load_bf16(from: *const bf16) -> __m256 {
            // SAFETY: as in `load`.
            unsafe {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            }
        }

        #[inline(always)]
        unsafe fn store(to: *mut f32, v: __m256) {
            // SAFETY: as in `load`.
            unsafe { _mm256_storeu_ps(to, v) }
        }

        #[inline(always)]
        unsafe fn store_f16(to: *mut f16, v: __m256) {
            // SAFETY: as in `load`.
            unsafe {
                let half = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v);
                _mm_storeu_si128(to.cast(), half);
            }
        }

        #[inline(always)]
        unsafe fn fmadd(a: __m256, b: __m256, c: __m256) -> __m256 {
            // SAFETY: the trait's promise.
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
    }

    #[derive(Debug, Clone, Copy)]
    pub(in crate::cpu) struct Avx512;

    // SAFETY: runs only inside `avx512`.
    unsafe impl Isa for Avx512 {
        type V = __m512;
        const LANES: usize = 16;

        #[inline(always)]
        fn fma(a: f32, b: f32, c: f32) -> f32 {
            a.mul_add(b, c)
        }

        #[inline(always)]
        unsafe fn splat(x: f32) -> __m512 {
            // SAFETY: the trait's promise.
            unsafe { _mm512_set1_ps(x) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> __m512 {
            // SAFETY: the trait's promise, and sixteen elements at `from`.
            unsafe { _mm512_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn load_f16(from: *const f16) -> __m512 {
            // SAFETY: as in `load`.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
        }

        #[inline(always)]
        unsafe fn load_bf16(from: *const bf16) -> __m512 {
            // SAFETY: as in `load`.
            unsafe {
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
            }
        }

        #[inline(always)]
        unsafe fn store(to: *mut f32, v: __m512) {
            // SAFETY: as in `load`.
            unsafe { _mm512_storeu_ps(to, v) }
        }

        #[inline(always)]
        unsafe fn store_f16(to: *mut f16, v: __m512) {
            // SAFETY: as in `load`.
            unsafe {
                let half = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v);
                _mm256_storeu_si256(to.cast(), half);
            }
        }

        #[inline(always)]
        unsafe fn fmadd(a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: the trait's promise.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
    }

    /// Runs `f` compiled for AVX2, FMA and F16C.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in crate::cpu) fn avx2<R>(f: impl FnOnce() -> R) -> R {
        f()
    }

    /// Runs `f` compiled for AVX-512 F, BW, DQ and VL.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub(in crate::cpu) fn avx512<R>(f: impl FnOnce() -> R) -> R {
        f()
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512, avx2, avx512};

/// `dispatch!(I => kernel::<I>(…))` calls the kernel compiled for this processor's set.
macro_rules! dispatch {
    ($isa:ident => $call:expr) => {
        match $crate::cpu::simd::level() {
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::simd::Level::Avx512 => {
                type $isa = $crate::cpu::simd::Avx512;
                // SAFETY: `level` found the features.
                unsafe {
                    $crate::cpu::simd::avx512(
                        #[inline(always)]
                        || $call,
                    )
                }
            }
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::simd::Level::Avx2 => {
                type $isa = $crate::cpu::simd::Avx2;
                // SAFETY: `level` found the features.
                unsafe {
                    $crate::cpu::simd::avx2(
                        #[inline(always)]
                        || $call,
                    )
                }
            }
            $crate::cpu::simd::Level::Base => {
                type $isa = $crate::cpu::simd::Base;
                $call
            }
        }
    };
}
pub(super) use dispatch;
