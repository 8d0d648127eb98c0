//! Products of a matrix with weights, {rows, in} · {in, out}, in f32 whatever the weights' type.
//!
//! A few rows go through a matrix-vector kernel that reads each weight once, where it lies; more
//! of them through the `gemm` crate, 16-bit weights panel by panel.

use gemm::Parallelism;
use rayon::prelude::*;

use super::numeric::{Network, widen};
use super::simd::{Isa, dispatch};
use super::threads;

/// Rows up to which the matrix-vector kernel is the faster one.
const FEW_ROWS: usize = 2;
/// Weights' rows that one pass of the matrix-vector kernel adds up.
const STRIP: usize = 8;
/// Columns whose sums stay in the first-level cache meanwhile.
const COLUMNS: usize = 2048;
/// Rows of 16-bit weights that are widened at a time.
const PANEL: usize = 256;

/// The shape of a product and the type of its weights.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    pub rows: usize,
    pub inner: usize,
    pub columns: usize,
}

impl Product {
    pub(super) fn is_gemv(self) -> bool {
        self.rows <= FEW_ROWS
    }

    /// Nanoseconds on one thread, roughly.
    pub(super) fn ns(self, weight_bytes: usize) -> f64 {
        let weights = self.inner as f64 * self.columns as f64;
        if self.is_gemv() {
            // Weights come at 40 bytes a nanosecond from the caches, at 15 from memory.
            let bytes = weights * weight_bytes as f64;
            self.rows as f64 * bytes / if bytes > 16e6 { 15.0 } else { 40.0 }
        } else {
            let widening = if weight_bytes < 4 { weights * 0.3 } else { 0.0 };
            2.0 * weights * self.rows as f64 / 80.0 + widening
        }
    }

    /// f32 that [`product`] needs as scratch.
    pub(super) fn scratch<T: Network>(self) -> usize {
        if self.is_gemv() || size_of::<T>() == 4 {
            0
        } else {
            self.inner.min(PANEL).saturating_mul(self.columns)
        }
    }
}

/// y ← x · w, row-major, all dense.
pub(super) fn product<T: Network>(
    p: Product,
    x: &[f32],
    w: &[T],
    y: &mut [f32],
    panel: &mut [f32],
) {
    debug_assert!(x.len() == p.rows * p.inner && w.len() == p.inner * p.columns);
    debug_assert_eq!(y.len(), p.rows * p.columns);
    if y.is_empty() {
        return;
    }
    let threads = threads::count(p.ns(size_of::<T>()));
    if p.inner == 0 {
        y.fill(0.0);
    } else if p.is_gemv() {
        for (x, y) in x.chunks_exact(p.inner).zip(y.chunks_exact_mut(p.columns)) {
            gemv(x, w, y, threads);
        }
    } else {
        gemm(p, x, w, y, panel, threads);
    }
}

/// Columns are cut for the threads, so each sum is the same however many there are.
fn gemv<T: Network>(x: &[f32], w: &[T], y: &mut [f32], threads: usize) {
    let stride = y.len();
    let share = stride.div_ceil(threads).next_multiple_of(64);
    let part = |first: usize, y: &mut [f32]| {
        for (i, y) in y.chunks_mut(COLUMNS).enumerate() {
            let w = &w[first + i * COLUMNS..];
            dispatch!(I => gemv_columns::<I, T>(x, w, stride, y));
        }
    };
    if threads <= 1 {
        part(0, y);
    } else {
        y.par_chunks_mut(share).enumerate().for_each(|(i, y)| part(i * share, y));
    }
}

/// y ← Σ x[i] · w[i·stride ..]: strips of rows are added to y, so that the weights stream through
/// the prefetchers in the order they lie in.
#[inline(always)]
fn gemv_columns<I: Isa, T: Network>(x: &[f32], w: &[T], stride: usize, y: &mut [f32]) {
    y.fill(0.0);
    let n = y.len();
    let mut strips = x.chunks_exact(STRIP);
    let mut row = 0;
    for xs in &mut strips {
        // Checked here once: the last element of the last row of the strip.
        let w = &w[row * stride..(row + STRIP - 1) * stride + n];
        let mut at = 0;
        // SAFETY: `at + LANES <= n`, so each load stays in its row of `w` and in `y`.
        unsafe {
            let xs: [I::V; STRIP] = std::array::from_fn(|r| I::splat(xs[r]));
            while at + I::LANES <= n {
                let mut even = I::load(y.as_ptr().add(at));
                let mut odd = I::splat(0.0);
                for r in (0..STRIP).step_by(2) {
                    even = I::fmadd(xs[r], T::load::<I>(w.as_ptr().add(r * stride + at)), even);
                    let next = T::load::<I>(w.as_ptr().add((r + 1) * stride + at));
                    odd = I::fmadd(xs[r + 1], next, odd);
                }
                I::store(y.as_mut_ptr().add(at), I::fmadd(odd, I::splat(1.0), even));
                at += I::LANES;
            }
        }
        for at in at..n {
            for r in 0..STRIP {
                y[at] = I::fma(xs[r], w[r * stride + at].into(), y[at]);
            }
        }
        row += STRIP;
    }
    for &x in strips.remainder() {
        let w = &w[row * stride..row * stride + n];
        let mut at = 0;
        // SAFETY: as above.
        unsafe {
            let x = I::splat(x);
            while at + I::LANES <= n {
                let y = y.as_mut_ptr().add(at);
                I::store(y, I::fmadd(x, T::load::<I>(w.as_ptr().add(at)), I::load(y)));
                at += I::LANES;
            }
        }
        for at in at..n {
            y[at] = I::fma(x, w[at].into(), y[at]);
        }
        row += 1;
    }
}

fn gemm<T: Network>(
    p: Product,
    x: &[f32],
    w: &[T],
    y: &mut [f32],
    panel: &mut [f32],
    threads: usize,
) {
    // f32 weights are used where they lie.
    if let Some(w) = T::as_f32(w) {
        return gemm_f32(p, x, w, y, false, threads, p.inner);
    }
    for first in (0..p.inner).step_by(PANEL) {
        let depth = PANEL.min(p.inner - first);
        let panel = &mut panel[..depth * p.columns];
        let w = &w[first * p.columns..][..depth * p.columns];
        threads::over_rows(panel, p.columns, w.len() as f64 * 0.3, |row, panel| {
            let w = &w[row * p.columns..][..panel.len()];
            widen(w, panel);
        });
        gemm_f32(Product { inner: depth, ..p }, &x[first..], panel, y, first > 0, threads, p.inner);
    }
}

/// y ← x · w, or y + x · w; rows of x lie `x_stride` apart.
fn gemm_f32(
    p: Product,
    x: &[f32],
    w: &[f32],
    y: &mut [f32],
    add: bool,
    threads: usize,
    x_stride: usize,
) {
    let parallelism = if threads > 1 { Parallelism::Rayon(threads) } else { Parallelism::None };
    debug_assert!(x.len() >= (p.rows - 1) * x_stride + p.inner);
    debug_assert!(w.len() >= p.inner * p.columns && y.len() >= p.rows * p.columns);
    // SAFETY: the slices hold the matrices of these shapes and strides (spec sizes fit an isize).
    unsafe {
        gemm::gemm(
            p.rows,
            p.columns,
            p.inner,
            y.as_mut_ptr(),
            1,
            p.columns as isize,
            add,
            x.as_ptr(),
            1,
            x_stride as isize,
            w.as_ptr(),
            1,
            p.columns as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::cpu::simd::{Base, Level, level};

    /// Every instruction set that this machine has, at sizes around the vectors and the strips.
    fn check<T: Network>(from: fn(f32) -> T) {
        for (inner, columns) in [(1, 1), (7, 15), (8, 16), (9, 17), (19, 100), (64, 129)] {
            let x: Vec<f32> = (0..inner).map(|i| (i as f32 * 0.7).sin()).collect();
            let w: Vec<T> = (0..inner * columns).map(|i| from((i as f32 * 0.3).cos())).collect();
            let run = |kernel: &dyn Fn(&[T], &mut [f32])| {
                let mut y = vec![f32::NAN; columns];
                kernel(&w, &mut y);
                for (j, y) in y.iter().enumerate() {
                    let products = (0..inner).map(|i| {
                        let w: f32 = w[i * columns + j].into();
                        f64::from(x[i]) * f64::from(w)
                    });
                    let want: f64 = products.sum();
                    assert!((f64::from(*y) - want).abs() < 1e-5, "{inner} {columns} {j}");
                }
            };
            run(&|w, y| gemv_columns::<Base, T>(&x, w, columns, y));
            #[cfg(target_arch = "x86_64")]
            {
                use crate::cpu::simd::{Avx2, Avx512, avx2, avx512};
                if level() != Level::Base {
                    // SAFETY: both levels above the base have AVX2, FMA and F16C.
                    run(&|w, y| unsafe { avx2(|| gemv_columns::<Avx2, T>(&x, w, columns, y)) });
                }
                if level() == Level::Avx512 {
                    // SAFETY: `level` found the features.
                    run(&|w, y| unsafe { avx512(|| gemv_columns::<Avx512, T>(&x, w, columns, y)) });
                }
            }
        }
    }

    #[test]
    fn gemv_on_every_instruction_set() {
        check::<f32>(|x| x);
        check::<f16>(f16::from_f32);
        check::<bf16>(bf16::from_f32);
    }
}
