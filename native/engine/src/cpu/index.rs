//! The ops that make and address elements by their place: `iota`, `gather`, `indexed_add` and
//! `indexed_put`.

use rayon::prelude::*;

use super::arithmetic::Arithmetic;
use super::numeric::{Convert, Element, with_integer, with_type};
use super::reduce::Reducible;
use super::threads;
use crate::call::{Call, View};
use crate::error::{Error, Result};
use crate::infer::index::Address;
use crate::infer::normalize_axis;
use crate::op::{Indexed, Iota, Op};
use crate::spec::Spec;

/// Nanoseconds on one thread, roughly.
pub(super) fn cost(elements: usize) -> f64 {
    elements as f64
}

/// As [`cost`], with the sort of the rows and the copy of x.
pub(super) fn indexed_cost(x: &Spec, updates: &Spec) -> f64 {
    let rows = updates.shape().first().copied().unwrap_or(1);
    super::shape::cost(x.len(), x.dtype.size()) + 30.0 * rows as f64 + cost(updates.len())
}

/// # Safety
/// As for [`crate::Device::execute`].
pub(super) unsafe fn iota(call: &Call, attrs: &Iota) -> Result<()> {
    let out = call.outputs[0];
    let axis = attrs.axis.map(|a| normalize_axis("iota", a, out.spec.rank())).transpose()?;
    // An axis of that length, whose places are `inner` elements apart.
    let (length, inner) = match axis {
        Some(a) => (out.spec.shape()[a], out.spec.shape()[a + 1..].iter().product()),
        None => (out.spec.len(), 1),
    };
    with_type!(out.spec.dtype, T => {
        // SAFETY: the caller's promise.
        let y = unsafe { out.slice_mut::<T>() };
        threads::over_rows(y, inner, cost(out.spec.len()), |first, y| {
            for (i, y) in y.chunks_exact_mut(inner).enumerate() {
                y.fill(T::from_i64(((first + i) % length) as i64));
            }
        });
    });
    Ok(())
}

/// The numbers of all indices, row after row; what does not fit an i64 is out of range anyway.
///
/// # Safety
/// As for [`View::slice`].
unsafe fn numbers(indices: &View) -> Result<Vec<i64>> {
    with_integer!(indices.spec.dtype, T => {
        // SAFETY: the caller's promise; `infer` has checked that it is an integer type.
        let numbers = unsafe { indices.slice::<T>() };
        Ok(numbers.iter().map(|&n| i64::try_from(i128::from(n)).unwrap_or(i64::MAX)).collect())
    })
}

/// Calls `f` with the offset of each run of elements that lie together in both x and a row of what
/// is moved, and where it begins in the row.
fn runs(whole: &[(usize, usize)], mut f: impl FnMut(usize, usize)) -> usize {
    // Axes at the end that are as they are in x make one run.
    let (mut run, mut outer) = (1, whole.len());
    while outer > 0 && whole[outer - 1].1 == run {
        run *= whole[outer - 1].0;
        outer -= 1;
    }
    let pieces: usize = whole[..outer].iter().map(|a| a.0).product();
    for piece in 0..pieces {
        let (mut left, mut at) = (piece, 0);
        for &(length, stride) in whole[..outer].iter().rev() {
            at += left % length * stride;
            left /= length;
        }
        f(at, piece * run);
    }
    run
}

/// # Safety
/// As for [`crate::Device::execute`].
pub(super) unsafe fn gather(call: &Call, attrs: &Indexed) -> Result<()> {
    let (Some(x), Some(indices), out) = (call.input(0), call.input(1), call.outputs[0]) else {
        return Err(Error::Internal("gather without its inputs".into()));
    };
    if out.spec.is_empty() {
        return Ok(());
    }
    let address = Address::new("gather", attrs, x.spec)?;
    // SAFETY: the caller's promise; the type is only a size and an alignment in `rows`.
    unsafe {
        let numbers = numbers(&indices)?;
        match out.spec.dtype.size() {
            1 => rows::<u8>(&address, &numbers, x.slice(), out.slice_mut()),
            2 => rows::<u16>(&address, &numbers, x.slice(), out.slice_mut()),
            4 => rows::<u32>(&address, &numbers, x.slice(), out.slice_mut()),
            _ => rows::<u64>(&address, &numbers, x.slice(), out.slice_mut()),
        }
    }
    Ok(())
}

fn rows<T: Copy + Send + Sync>(address: &Address, numbers: &[i64], x: &[T], y: &mut [T]) {
    let (row, n) = (address.row(), address.indexed.len());
    let mut pieces = Vec::new();
    let run = runs(&address.whole, |from, to| pieces.push((from, to)));
    threads::over_rows(y, row, cost(y.len()), |first, y| {
        for (i, y) in y.chunks_exact_mut(row).enumerate() {
            let index = &numbers[(first + i) * n..][..n];
            let corner: usize = index
                .iter()
                .zip(&address.indexed)
                .map(|(&i, &(length, stride))| i.clamp(0, length as i64 - 1) as usize * stride)
                .sum();
            for &(from, to) in &pieces {
                y[to..to + run].copy_from_slice(&x[corner + from..][..run]);
            }
        }
    });
}

/// An address that threads may share: each writes its own places.
struct Shared<T>(*mut T);
// SAFETY: no two threads are given the same places.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    fn at(&self, i: usize) -> *mut T {
        self.0.wrapping_add(i)
    }
}

/// # Safety
/// As for [`crate::Device::execute`].
pub(super) unsafe fn indexed(call: &Call, attrs: &Indexed) -> Result<()> {
    let (Some(x), Some(indices), Some(updates)) = (call.input(0), call.input(1), call.input(2))
    else {
        return Err(Error::Internal(format!("{} without its inputs", call.op.name())));
    };
    let out = call.outputs[0];
    let address = Address::new(call.op.name(), attrs, x.spec)?;
    // SAFETY: the caller's promise.
    let targets = targets(&address, indices.spec.rows(), &unsafe { numbers(&indices) }?);
    let ns = cost(updates.spec.len());
    let adds = matches!(call.op, Op::IndexedAdd(_));
    with_type!(out.spec.dtype, T => {
        // SAFETY: the caller's promise; `infer` has checked types and shapes.
        let (x, updates, y) =
            unsafe { (x.slice::<T>(), updates.slice::<T>(), out.slice_mut::<T>()) };
        y.copy_from_slice(x);
        if adds {
            scatter(&address, &targets, updates, y, ns, add::<T>);
        } else {
            scatter(&address, &targets, updates, y, ns, put::<T>);
        }
    });
    Ok(())
}

/// Where each row goes, and which row it is, sorted by place; rows for one place in their order.
/// A row with a number out of range is left out.
fn targets(address: &Address, rows: usize, numbers: &[i64]) -> Vec<(usize, usize)> {
    let n = address.indexed.len();
    let place = |index: &[i64]| {
        index.iter().zip(&address.indexed).try_fold(0, |at, (&i, &(length, stride))| {
            let i = usize::try_from(i).ok().filter(|&i| i < length)?;
            Some(at + i * stride)
        })
    };
    let mut targets: Vec<_> =
        (0..rows).filter_map(|row| Some((place(&numbers[row * n..][..n])?, row))).collect();
    targets.sort_unstable();
    targets
}

/// Has `f` bring each place up to date with all the rows that go there.
fn scatter<T: Copy + Send + Sync>(
    address: &Address,
    targets: &[(usize, usize)],
    updates: &[T],
    y: &mut [T],
    ns: f64,
    f: impl Fn(&mut T, &mut dyn Iterator<Item = T>) + Sync,
) {
    let row = address.row();
    let mut pieces = Vec::new();
    let run = runs(&address.whole, |to, from| pieces.push((from, to)));
    let y = Shared(y.as_mut_ptr());
    let group = |rows: &[(usize, usize)]| {
        for &(from, to) in &pieces {
            for i in 0..run {
                // SAFETY: places are below the length of y, as their numbers were checked against
                // the axes, and each group of rows goes to places of its own.
                let place = unsafe { &mut *y.at(rows[0].0 + to + i) };
                f(place, &mut rows.iter().map(|&(_, r)| updates[r * row + from + i]));
            }
        }
    };
    let groups = targets.chunk_by(|a, b| a.0 == b.0);
    if threads::count(ns) > 1 {
        groups.collect::<Vec<_>>().into_par_iter().for_each(group);
    } else {
        groups.for_each(group);
    }
}

fn add<T: Element>(place: &mut T, updates: &mut dyn Iterator<Item = T>)
where
    T::Compute: Reducible,
{
    let wide = |v: T| Into::<T::Compute>::into(v).wide();
    let sum = updates
        .fold(Default::default(), |sum: <T::Compute as Reducible>::Wide, v| sum.add(wide(v)));
    *place = T::narrow(T::Compute::back(wide(*place).add(sum)));
}

fn put<T: Copy>(place: &mut T, updates: &mut dyn Iterator<Item = T>) {
    if let Some(last) = updates.last() {
        *place = last;
    }
}
