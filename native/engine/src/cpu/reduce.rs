//! `reduce` over any axes, and `argmax`. Floats are summed in f64, so that no length loses f32
//! accuracy; integers wrap in their own type. The order of a sum depends on shapes alone.

use rayon::prelude::*;

use super::arithmetic::Arithmetic;
use super::numeric::{BLOCK, Compute, Element, with_type};
use super::simd::{Isa, dispatch};
use super::threads;
use crate::call::Call;
use crate::error::{Error, Result};
use crate::infer::{normalize_axis, reduced_axes};
use crate::op::{Argmax, Reduce, ReduceKind};
use crate::spec::Spec;

/// Columns that a reduction across them keeps side by side.
pub(super) const COLUMNS: usize = 256;
/// Elements of a long run that are reduced to one partial result, whoever does it.
const RUN: usize = 1 << 16;

/// A shape seen from one axis: `outer` slabs of `length` rows of `inner` elements.
#[derive(Debug, Clone, Copy)]
pub(super) struct Split {
    pub length: usize,
    pub inner: usize,
}

impl Split {
    pub(super) fn at(spec: &Spec, axis: usize) -> Split {
        Split { length: spec.shape()[axis], inner: spec.shape()[axis + 1..].iter().product() }
    }

    pub(super) fn slab(self) -> usize {
        self.length * self.inner
    }
}

/// Sums that run side by side, so that the additions do not wait for one another.
const LANES: usize = 32;

#[inline(always)]
pub(super) fn sum_f64(x: &[f32]) -> f64 {
    fold(x, 0.0, |a, b| a + b, f64::from)
}

#[inline(always)]
pub(super) fn fold<T: Copy, W: Copy>(
    x: &[T],
    start: W,
    join: impl Fn(W, W) -> W,
    widen: impl Fn(T) -> W,
) -> W {
    let mut lanes = [start; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = join(lanes[i], widen(chunk[i]));
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = join(*lane, widen(x));
    }
    // Halves onto halves: fewer roundings than one after the other.
    let mut n = LANES / 2;
    while n > 0 {
        for i in 0..n {
            lanes[i] = join(lanes[i], lanes[i + n]);
        }
        n /= 2;
    }
    lanes[0]
}

/// A type as reductions compute it: f64 for floats, itself for integers.
pub(super) trait Reducible: Compute {
    type Wide: Arithmetic;
    const LEAST: Self::Wide;
    const MOST: Self::Wide;
    const ONE: Self::Wide;

    fn wide(self) -> Self::Wide;
    fn back(v: Self::Wide) -> Self;
    fn mean(sum: Self::Wide, n: usize) -> Self::Wide;

    /// 1 unless it is zero.
    #[inline(always)]
    fn truth(self) -> Self::Wide {
        if self != Self::default() { Self::ONE } else { Self::Wide::default() }
    }
}

macro_rules! reducible {
    ($($t:ty => $w:ty, $least:expr, $most:expr, $mean:expr;)*) => {$(
        impl Reducible for $t {
            type Wide = $w;
            const LEAST: $w = $least;
            const MOST: $w = $most;
            const ONE: $w = 1 as $w;

            #[inline(always)]
            fn wide(self) -> $w {
                self as $w
            }

            #[inline(always)]
            fn back(v: $w) -> $t {
                v as $t
            }

            #[inline(always)]
            fn mean(sum: $w, n: usize) -> $w {
                let mean: fn($w, usize) -> $w = $mean;
                mean(sum, n)
            }
        }
    )*};
}

reducible! {
    u8 => u8, u8::MIN, u8::MAX, |s, _| s;
    u16 => u16, u16::MIN, u16::MAX, |s, _| s;
    u32 => u32, u32::MIN, u32::MAX, |s, _| s;
    u64 => u64, u64::MIN, u64::MAX, |s, _| s;
    i8 => i8, i8::MIN, i8::MAX, |s, _| s;
    i16 => i16, i16::MIN, i16::MAX, |s, _| s;
    i32 => i32, i32::MIN, i32::MAX, |s, _| s;
    i64 => i64, i64::MIN, i64::MAX, |s, _| s;
    f32 => f64, f64::NEG_INFINITY, f64::INFINITY, |s, n| s / n as f64;
    f64 => f64, f64::NEG_INFINITY, f64::INFINITY, |s, n| s / n as f64;
}

pub(super) fn start<C: Reducible>(kind: ReduceKind) -> C::Wide {
    match kind {
        ReduceKind::Sum | ReduceKind::Mean | ReduceKind::Any => C::Wide::default(),
        ReduceKind::Product | ReduceKind::All => C::ONE,
        ReduceKind::Max => C::LEAST,
        ReduceKind::Min => C::MOST,
    }
}

#[inline(always)]
pub(super) fn join<W: Arithmetic>(kind: ReduceKind, a: W, b: W) -> W {
    match kind {
        ReduceKind::Sum | ReduceKind::Mean => a.add(b),
        ReduceKind::Product => a.multiply(b),
        ReduceKind::Max | ReduceKind::Any => a.max(b),
        ReduceKind::Min | ReduceKind::All => a.min(b),
    }
}

/// One contiguous piece.
#[inline(always)]
fn run<I: Isa, T: Element>(kind: ReduceKind, x: &[T]) -> Wide<T>
where
    T::Compute: Reducible,
{
    let mut wide = [T::Compute::default(); BLOCK];
    let first = start::<T::Compute>(kind);
    let mut total = first;
    // A loop and not `Iterator::fold`, which would be compiled on its own, for the base set.
    for x in x.chunks(BLOCK) {
        let x = T::widened::<I>(x, &mut wide);
        // A match outside the loop over the elements.
        let part = match kind {
            ReduceKind::Sum | ReduceKind::Mean => fold(x, first, |a, b| a.add(b), Reducible::wide),
            ReduceKind::Product => fold(x, first, |a, b| a.multiply(b), Reducible::wide),
            ReduceKind::Max => fold(x, first, |a, b| a.max(b), Reducible::wide),
            ReduceKind::Min => fold(x, first, |a, b| a.min(b), Reducible::wide),
            ReduceKind::All => fold(x, first, |a, b| a.min(b), Reducible::truth),
            ReduceKind::Any => fold(x, first, |a, b| a.max(b), Reducible::truth),
        };
        total = join(kind, total, part);
    }
    total
}

/// Adds a row to the results of its columns.
#[inline(always)]
fn columns<I: Isa, T: Element>(kind: ReduceKind, x: &[T], totals: &mut [Wide<T>])
where
    T::Compute: Reducible,
{
    let mut wide = [T::Compute::default(); COLUMNS];
    let x = T::widened::<I>(x, &mut wide);
    let both = totals.iter_mut().zip(x);
    match kind {
        ReduceKind::Sum | ReduceKind::Mean => both.for_each(|(t, x)| *t = t.add(x.wide())),
        ReduceKind::Product => both.for_each(|(t, x)| *t = t.multiply(x.wide())),
        ReduceKind::Max => both.for_each(|(t, x)| *t = t.max(x.wide())),
        ReduceKind::Min => both.for_each(|(t, x)| *t = t.min(x.wide())),
        ReduceKind::All => both.for_each(|(t, x)| *t = t.min(Reducible::truth(*x))),
        ReduceKind::Any => both.for_each(|(t, x)| *t = t.max(Reducible::truth(*x))),
    }
}

/// Axes, outermost first, with their strides.
#[derive(Default)]
struct Axes(Vec<(usize, usize)>);

impl Axes {
    fn len(&self) -> usize {
        self.0.iter().map(|a| a.0).product()
    }

    /// Where the `i`th combination of places lies.
    fn offset(&self, mut i: usize) -> usize {
        let mut at = 0;
        for &(dim, stride) in self.0.iter().rev() {
            at += i % dim * stride;
            i /= dim;
        }
        at
    }
}

/// The axes of a reduction: neighbours of one kind made one, and the innermost on its own.
struct Plan {
    kept: Axes,
    reduced: Axes,
    inner: usize,
    inner_is_reduced: bool,
}

impl Plan {
    fn new(x: &Spec, axes: &[usize]) -> Plan {
        let mut merged: Vec<(usize, bool)> = Vec::new();
        for (i, &dim) in x.shape().iter().enumerate().filter(|(_, d)| **d != 1) {
            let reduced = axes.contains(&i);
            match merged.last_mut() {
                Some((d, r)) if *r == reduced => *d *= dim,
                _ => merged.push((dim, reduced)),
            }
        }
        let (inner, inner_is_reduced) = merged.pop().unwrap_or((1, true));
        let mut stride = inner;
        let (mut kept, mut reduced) = (Axes::default(), Axes::default());
        for (dim, r) in merged.into_iter().rev() {
            if r { &mut reduced } else { &mut kept }.0.insert(0, (dim, stride));
            stride *= dim;
        }
        Plan { kept, reduced, inner, inner_is_reduced }
    }
}

/// Nanoseconds on one thread, roughly.
pub(super) fn cost(elements: usize) -> f64 {
    elements as f64 * 0.4
}

/// # Safety
/// As for [`crate::Device::execute`].
pub(super) unsafe fn execute(call: &Call, attrs: &Reduce) -> Result<()> {
    let Some(x) = call.input(0) else {
        return Err(Error::Internal("reduce without its input".into()));
    };
    let axes = reduced_axes(attrs, x.spec.rank())?;
    let plan = Plan::new(x.spec, &axes);
    let count = axes.iter().map(|&a| x.spec.shape()[a]).product();
    let ns = cost(x.spec.len());
    let kind = attrs.kind;
    with_type!(x.spec.dtype, T => {
        // SAFETY: the caller's promise; `infer` has checked types and shapes.
        unsafe {
            let x = x.slice::<T>();
            if kind.is_predicate() {
                let y = call.outputs[0].slice_mut::<u8>();
                let truth = |total| u8::from(Arithmetic::truth(total));
                reduce::<T, u8>(kind, &plan, x, y, truth, ns);
            } else {
                let y = call.outputs[0].slice_mut::<T>();
                let done = |total| <T as Element>::narrow(finish(kind, total, count));
                reduce::<T, T>(kind, &plan, x, y, done, ns);
            }
        }
    });
    Ok(())
}

fn finish<C: Reducible>(kind: ReduceKind, total: C::Wide, n: usize) -> C {
    C::back(if kind == ReduceKind::Mean { C::mean(total, n) } else { total })
}

/// What `T` is reduced in.
type Wide<T> = <<T as Element>::Compute as Reducible>::Wide;

fn reduce<T: Element, O: Copy + Send>(
    kind: ReduceKind,
    p: &Plan,
    x: &[T],
    y: &mut [O],
    done: impl Fn(Wide<T>) -> O + Sync,
    ns: f64,
) where
    T::Compute: Reducible,
{
    let first = start::<T::Compute>(kind);
    if x.is_empty() {
        return y.fill(done(first));
    }
    if p.inner_is_reduced && y.len() == 1 {
        // One result: the threads share the run itself.
        let runs = x.par_chunks(RUN);
        let part = |x: &[T]| dispatch!(I => run::<I, T>(kind, x));
        let parts: Vec<_> = if threads::count(ns) > 1 {
            runs.map(part).collect()
        } else {
            x.chunks(RUN).map(part).collect()
        };
        y[0] = done(parts.into_iter().fold(first, |a, b| join(kind, a, b)));
    } else if p.inner_is_reduced {
        threads::over_rows(y, 1, ns, |at, y| {
            for (i, y) in y.iter_mut().enumerate() {
                let corner = p.kept.offset(at + i);
                let pieces = (0..p.reduced.len()).map(|r| corner + p.reduced.offset(r));
                *y = done(pieces.fold(first, |total, from| {
                    let x = &x[from..from + p.inner];
                    join(kind, total, dispatch!(I => run::<I, T>(kind, x)))
                }));
            }
        });
    } else {
        let strips = p.inner.div_ceil(COLUMNS);
        threads::over_rows(y, p.inner, ns, |at, y| {
            for (i, y) in y.chunks_exact_mut(p.inner).enumerate() {
                let corner = p.kept.offset(at + i);
                for (strip, y) in y.chunks_mut(COLUMNS).enumerate().take(strips) {
                    let mut totals = [first; COLUMNS];
                    let totals = &mut totals[..y.len()];
                    for r in 0..p.reduced.len() {
                        let from = corner + p.reduced.offset(r) + strip * COLUMNS;
                        let x = &x[from..from + y.len()];
                        dispatch!(I => columns::<I, T>(kind, x, totals));
                    }
                    for (y, total) in y.iter_mut().zip(totals) {
                        *y = done(*total);
                    }
                }
            }
        });
    }
}

/// # Safety
/// As for [`crate::Device::execute`].
pub(super) unsafe fn argmax(call: &Call, attrs: &Argmax) -> Result<()> {
    let Some(x) = call.input(0) else {
        return Err(Error::Internal("argmax without its input".into()));
    };
    let axis = normalize_axis("argmax", attrs.axis, x.spec.rank())?;
    let split = Split::at(x.spec, axis);
    let ns = cost(x.spec.len());
    with_type!(x.spec.dtype, T => {
        // SAFETY: the caller's promise; `infer` has checked types and shapes.
        let (x, y) = unsafe { (x.slice::<T>(), call.outputs[0].slice_mut::<i32>()) };
        threads::over_rows(y, split.inner, ns, |first, y| {
            let slabs = x[first * split.slab()..].chunks_exact(split.slab().max(1));
            for (y, x) in y.chunks_exact_mut(split.inner).zip(slabs) {
                if split.inner == 1 {
                    y[0] = dispatch!(I => best::<I, T>(attrs, x)) as i32;
                } else {
                    dispatch!(I => best_across::<I, T>(attrs, x, split, y));
                }
            }
        });
    });
    Ok(())
}

/// The index of the first of the largest; a NaN beats any number.
#[inline(always)]
pub(super) fn largest<I: Isa, T: Element>(x: &[T]) -> usize
where
    T::Compute: Reducible + Arithmetic,
{
    best::<I, T>(&Argmax { axis: 0, keep_axis: false, min: false, last: false }, x)
}

/// The index of what an argmax looks for.
#[inline(always)]
fn best<I: Isa, T: Element>(attrs: &Argmax, x: &[T]) -> usize
where
    T::Compute: Reducible + Arithmetic,
{
    let mut wide = [T::Compute::default(); BLOCK];
    let (mut best, mut place) = (None, 0);
    for (i, block) in x.chunks(BLOCK).enumerate() {
        let block = T::widened::<I>(block, &mut wide);
        let found = if attrs.min {
            fold(block, block[0], |a: T::Compute, b| a.min(b), |x| x)
        } else {
            fold(block, block[0], |a: T::Compute, b| a.max(b), |x| x)
        };
        let wins = best.is_none_or(|best| beats(attrs, found, best));
        if wins {
            (best, place) = (Some(found), i);
        }
        if found.is_nan() && !attrs.last {
            break;
        }
    }
    let at = place * BLOCK;
    let block = T::widened::<I>(&x[at..x.len().min(at + BLOCK)], &mut wide);
    let same = |x: &T::Compute| match best {
        Some(best) if best.is_nan() => x.is_nan(),
        _ => Some(*x) == best,
    };
    let within =
        if attrs.last { block.iter().rposition(same) } else { block.iter().position(same) };
    at + within.unwrap_or(0)
}

/// Whether `x`, which comes later, takes the place of `best`.
#[inline(always)]
fn beats<C: Compute>(attrs: &Argmax, x: C, best: C) -> bool {
    let more = if attrs.min { x < best } else { x > best };
    let same = attrs.last & (x == best);
    (!best.is_nan() & (more | same)) | (x.is_nan() & (attrs.last | !best.is_nan()))
}

#[inline(always)]
fn best_across<I: Isa, T: Element>(attrs: &Argmax, x: &[T], split: Split, y: &mut [i32]) {
    let mut wide = [T::Compute::default(); COLUMNS];
    for (strip, y) in y.chunks_mut(COLUMNS).enumerate() {
        let mut best = [T::Compute::default(); COLUMNS];
        for i in 0..split.length {
            let at = i * split.inner + strip * COLUMNS;
            let row = T::widened::<I>(&x[at..at + y.len()], &mut wide);
            for ((y, b), &x) in y.iter_mut().zip(&mut best).zip(row) {
                if i == 0 || beats(attrs, x, *b) {
                    (*y, *b) = (i as i32, x);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_sums_keep_their_accuracy() {
        let x = vec![0.1f32; 10_000_000];
        let sum = x.chunks(RUN).map(|x| dispatch!(I => run::<I, f32>(ReduceKind::Sum, x)));
        let sum: f64 = sum.sum();
        assert!((sum / (f64::from(0.1f32) * 1e7) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn the_first_of_equals_and_nan() {
        let mut x = vec![1.0f32; 3000];
        let at = |x: &[f32]| dispatch!(I => largest::<I, f32>(x));
        assert_eq!(at(&x), 0);
        (x[1500], x[2500]) = (2.0, 2.0);
        assert_eq!(at(&x), 1500);
        x[2999] = f32::NAN;
        assert_eq!(at(&x), 2999);
        assert_eq!(at(&[f32::NEG_INFINITY; 40]), 0);
    }
}
