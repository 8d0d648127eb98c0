//! `triangular_solve`: blocks of rows, from the first down. What is known already is taken off a
//! block by a product; in the block, row after row.

use rayon::prelude::*;

use gemm::Parallelism;

use super::dot::{Real, widened};
use super::numeric::{Scratch, narrow, with_network};
use super::simd::{Isa, dispatch};
use super::threads;
use crate::call::{Call, View};
use crate::error::Result;
use crate::infer::solve::{Layout, Systems};
use crate::op::TriangularSolve;
use crate::spec::{DType, Spec};

/// Rows of a block.
const ROWS: usize = 32;
/// Columns that are solved together. A fixed number: it says in which order sums are taken.
const STRIP: usize = 64;

/// Nanoseconds on one thread, roughly.
pub(super) fn cost(a: &Spec, b: &Spec) -> f64 {
    let each = if a.dtype == DType::F64 { 0.1 } else { 0.05 };
    b.len() as f64 * (a.last() as f64 * each + 2.0) + a.len() as f64 * 0.5
}

/// Both operands in f32, where they are narrower.
pub(super) fn workspace(a: &Spec, b: &Spec) -> usize {
    match a.dtype.size() {
        2 => Scratch::bytes(a.len()).saturating_add(Scratch::bytes(b.len())),
        _ => 0,
    }
}

/// # Safety
/// As for [`crate::Device::execute`].
pub(super) unsafe fn execute(call: &Call, attrs: &TriangularSolve) -> Result<()> {
    let (Some(a), Some(b)) = (call.input(0), call.input(1)) else { return Ok(()) };
    let out = call.outputs[0];
    if out.spec.is_empty() {
        return Ok(());
    }
    let systems = Systems::of(attrs, a.spec, b.spec);
    let ns = cost(a.spec, b.spec);
    // SAFETY: `workspace` asked for the two pieces, and the views are the caller's promise.
    unsafe {
        match a.spec.dtype {
            DType::F64 => in_place::<f64>(&systems, a, b, out, ns),
            DType::F32 => in_place::<f32>(&systems, a, b, out, ns),
            other => with_network!(other, T => {
                let mut scratch = Scratch::new(call.workspace);
                let a = widened::<T>(a, &mut scratch);
                let x = widened::<T>(b, &mut scratch);
                solve::<f32>(&systems, a.as_ptr() as u64, x.as_mut_ptr() as u64, ns);
                let place = out.slice_mut::<T>();
                threads::over_rows(place, 1, x.len() as f64 * 0.2, |at, place| {
                    narrow(&x[at..][..place.len()], place);
                });
            }),
        }
    }
    Ok(())
}

/// # Safety
/// As for [`View::slice`].
unsafe fn in_place<T: Real>(systems: &Systems, a: View, b: View, out: View, ns: f64) {
    // SAFETY: the caller's promise.
    unsafe {
        out.slice_mut::<T>().copy_from_slice(b.slice::<T>());
        solve::<T>(systems, a.addr, out.addr, ns);
    }
}

/// # Safety
/// `a` and `x` are the addresses of the triangles, and of the right sides that the unknowns take
/// the place of.
unsafe fn solve<T: Real>(systems: &Systems, a: u64, x: u64, ns: f64) {
    let strips = systems.columns.div_ceil(STRIP);
    let strip = |i: usize| {
        let (entry, first) = (i / strips, i % strips * STRIP);
        let columns = STRIP.min(systems.columns - first);
        // SAFETY: the caller's promise; `infer` has checked the shapes. Each strip is its own part of x.
        unsafe {
            let a = (a as *const T).add(entry * systems.size * systems.size);
            let x = (x as *mut T).add(entry * systems.size * systems.columns);
            let x = x.offset(systems.x.first + first as isize * systems.x.column);
            solve_strip(systems, a.offset(systems.a.first), x, columns);
        }
    };
    let all = 0..systems.batch * strips;
    match threads::count(ns).min(all.len()) {
        0 | 1 => all.for_each(strip),
        n => all.clone().into_par_iter().with_min_len(all.len().div_ceil(n)).for_each(strip),
    }
}

/// # Safety
/// `a` and `x` are where the first elements lie; nobody else touches these columns of x.
unsafe fn solve_strip<T: Real>(systems: &Systems, a: *const T, x: *mut T, columns: usize) {
    let at = |lies: Layout, r: usize, c: usize| r as isize * lies.row + c as isize * lies.column;
    let (of_a, of_x) = (systems.a, systems.x);
    let mut triangle = [[T::default(); ROWS]; ROWS];
    let mut block = [[T::default(); STRIP]; ROWS];
    for top in (0..systems.size).step_by(ROWS) {
        let rows = ROWS.min(systems.size - top);
        // SAFETY: rows from `top` on, and the columns of the triangle up to their diagonal. The
        // product reads other rows of x than it writes.
        unsafe {
            if top > 0 {
                gemm::gemm(
                    rows,
                    columns,
                    top,
                    x.offset(at(of_x, top, 0)),
                    of_x.column,
                    of_x.row,
                    true,
                    a.offset(at(of_a, top, 0)),
                    of_a.column,
                    of_a.row,
                    x.cast_const(),
                    of_x.column,
                    of_x.row,
                    T::ONE,
                    -T::ONE,
                    false,
                    false,
                    false,
                    Parallelism::None,
                );
            }
            for r in 0..rows {
                for (k, value) in triangle[r][..=r].iter_mut().enumerate() {
                    *value = *a.offset(at(of_a, top + r, top + k));
                }
                for (c, value) in block[r][..columns].iter_mut().enumerate() {
                    *value = *x.offset(at(of_x, top + r, c));
                }
            }
        }
        dispatch!(I => substitute::<I, T>(&triangle[..rows], &mut block, columns));
        for (r, row) in block[..rows].iter().enumerate() {
            for (c, value) in row[..columns].iter().enumerate() {
                // SAFETY: as above.
                unsafe { *x.offset(at(of_x, top + r, c)) = *value };
            }
        }
    }
}

/// The unknowns of a triangle in the place of its right sides, row after row.
#[inline(always)]
fn substitute<I: Isa, T: Real>(
    triangle: &[[T; ROWS]],
    block: &mut [[T; STRIP]; ROWS],
    columns: usize,
) {
    for (r, factors) in triangle.iter().enumerate() {
        let (above, rest) = block.split_at_mut(r);
        let own = &mut rest[0][..columns];
        for (known, factor) in above.iter().zip(factors) {
            for (own, known) in own.iter_mut().zip(known) {
                *own = *own - *factor * *known;
            }
        }
        for own in own {
            *own = *own / factors[r];
        }
    }
}
