//! `sort` and `cumulative`: along an axis, every element after those before it.

use half::{bf16, f16};
use rayon::prelude::*;

use super::numeric::{Element, with_type};
use super::reduce::{COLUMNS, Reducible, Split, join, start};
use super::threads;
use crate::call::Call;
use crate::error::{Error, Result};
use crate::infer::normalize_axis;
use crate::op::{Cumulative, ReduceKind, Sort};
use crate::spec::Spec;

/// Nanoseconds on one thread, roughly.
pub(super) fn cost(attrs: &Sort, x: &Spec) -> f64 {
    let length = normalize_axis("sort", attrs.axis, x.rank()).map_or(1, |a| x.shape()[a]);
    x.len() as f64 * 4.0 * (2.0 + (length.max(1) as f64).log2())
}

/// A number whose order among others is that of the element's value: of floats NaN is the largest,
/// whatever its bits, and the two zeros are one.
trait Key: Copy {
    fn key(self) -> u64;
}

macro_rules! integer_key {
    ($($t:ty as $wide:ty, $flip:expr;)*) => {$(
        impl Key for $t {
            #[inline(always)]
            fn key(self) -> u64 {
                (<$wide>::from(self) as u64) ^ $flip
            }
        }
    )*};
}

/// The sign's bit, turned so that numbers below zero come first.
const SIGN: u64 = 1 << 63;

integer_key! {
    u8 as u64, 0;
    u16 as u64, 0;
    u32 as u64, 0;
    u64 as u64, 0;
    i8 as i64, SIGN;
    i16 as i64, SIGN;
    i32 as i64, SIGN;
    i64 as i64, SIGN;
}

impl Key for f64 {
    #[inline(always)]
    fn key(self) -> u64 {
        if self.is_nan() {
            return u64::MAX;
        }
        // Adding zero makes the negative one positive.
        let bits = (self + 0.0).to_bits();
        if bits & SIGN == 0 { bits | SIGN } else { !bits }
    }
}

macro_rules! float_key {
    ($($t:ty),*) => {$(
        impl Key for $t {
            #[inline(always)]
            fn key(self) -> u64 {
                f64::from(self).key()
            }
        }
    )*};
}

float_key!(f32, f16, bf16);

/// Rows from which one is worth a sort by several threads.
const LONG: usize = 1 << 16;

/// # Safety
/// As for [`crate::Device::execute`].
pub(super) unsafe fn sort(call: &Call, attrs: &Sort) -> Result<()> {
    let (Some(x), out) = (call.input(0), call.outputs[0]) else {
        return Err(Error::Internal("sort without its input".into()));
    };
    if out.spec.is_empty() {
        return Ok(());
    }
    let split = Split::at(x.spec, normalize_axis("sort", attrs.axis, x.spec.rank())?);
    let ns = cost(attrs, x.spec);
    with_type!(x.spec.dtype, T => {
        // SAFETY: the caller's promise.
        let x = unsafe { x.slice::<T>() };
        if attrs.indices {
            // SAFETY: as above; `infer` makes them s32.
            let y = unsafe { out.slice_mut::<i32>() };
            rows(attrs, split, x, y, ns, |_, at| at as i32);
        } else {
            // SAFETY: as above.
            let y = unsafe { out.slice_mut::<T>() };
            rows(attrs, split, x, y, ns, |row, at| row[at as usize]);
        }
    });
    Ok(())
}

/// Sorts each row, and has `f` say what to write for the element that stood at a place of it.
fn rows<T: Key + Send + Sync, O: Send>(
    attrs: &Sort,
    split: Split,
    x: &[T],
    y: &mut [O],
    ns: f64,
    f: impl Fn(&[T], u32) -> O + Sync,
) {
    let flip = if attrs.descending { u64::MAX } else { 0 };
    threads::over_rows(y, split.slab(), ns, |first, y| {
        let mut row: Vec<T> = Vec::with_capacity(split.length);
        let mut keys = Vec::with_capacity(split.length);
        for (i, y) in y.chunks_exact_mut(split.slab()).enumerate() {
            let x = &x[(first + i) * split.slab()..][..split.slab()];
            for column in 0..split.inner {
                row.clear();
                row.extend(x[column..].iter().step_by(split.inner));
                keys.clear();
                keys.extend(row.iter().zip(0u32..).map(|(v, at)| (v.key() ^ flip, at)));
                order(&mut keys);
                let places = y[column..].iter_mut().step_by(split.inner);
                for (to, &(_, at)) in places.zip(&keys) {
                    *to = f(&row, at);
                }
            }
        }
    });
}

/// By key, equals by place: what a stable sort by key gives. Not generic, as a sort is much code.
fn order(keys: &mut [(u64, u32)]) {
    if keys.len() >= LONG { keys.par_sort_unstable() } else { keys.sort_unstable() }
}

/// # Safety
/// As for [`crate::Device::execute`].
pub(super) unsafe fn cumulative(call: &Call, attrs: &Cumulative) -> Result<()> {
    let (Some(x), out) = (call.input(0), call.outputs[0]) else {
        return Err(Error::Internal("cumulative without its input".into()));
    };
    if out.spec.is_empty() {
        return Ok(());
    }
    let split = Split::at(x.spec, normalize_axis("cumulative", attrs.axis, x.spec.rank())?);
    let ns = 2.0 * super::reduce::cost(x.spec.len());
    let kind = attrs.kind.reduce();
    with_type!(x.spec.dtype, T => {
        // SAFETY: the caller's promise; `infer` has checked types and shapes.
        let (x, y) = unsafe { (x.slice::<T>(), out.slice_mut::<T>()) };
        threads::over_rows(y, split.slab(), ns, |first, y| {
            let x = &x[first * split.slab()..][..y.len()];
            let slabs = y.chunks_exact_mut(split.slab()).zip(x.chunks_exact(split.slab()));
            for (y, x) in slabs {
                scan::<T>(kind, attrs.reverse, split, x, y);
            }
        });
    });
    Ok(())
}

/// Across a slab, a strip of columns at a time; of a single row that strip is one column.
fn scan<T: Element>(kind: ReduceKind, reverse: bool, split: Split, x: &[T], y: &mut [T])
where
    T::Compute: Reducible,
{
    for from in (0..split.inner).step_by(COLUMNS) {
        let mut totals = [start::<T::Compute>(kind); COLUMNS];
        let width = COLUMNS.min(split.inner - from);
        for i in 0..split.length {
            let i = if reverse { split.length - 1 - i } else { i };
            let at = i * split.inner + from;
            let both = y[at..at + width].iter_mut().zip(&x[at..at + width]);
            for ((y, &x), total) in both.zip(&mut totals) {
                let wide = Into::<T::Compute>::into(x).wide();
                *total = join(kind, *total, wide);
                *y = T::narrow(T::Compute::back(*total));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_in_the_order_of_values() {
        let inf = f64::INFINITY;
        let values = [-inf, f64::MIN, -1.5, -1e-310, 0.0, 1e-310, 2.0, f64::MAX, inf, f64::NAN];
        assert!(values.windows(2).all(|w| w[0].key() < w[1].key()));
        assert_eq!((0.0f64.key(), (-f64::NAN).key()), ((-0.0f64).key(), f64::NAN.key()));
        assert!([i64::MIN, -1, 0, 1, i64::MAX].windows(2).all(|w| w[0].key() < w[1].key()));
        assert!((-1i8).key() < 0i8.key() && 254u8.key() < 255u8.key());
    }
}
