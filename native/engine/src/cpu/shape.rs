//! The ops that only move elements: all of them are copies between two strided boxes.

use super::threads;
use crate::call::{Call, View};
use crate::error::{Error, Result};
use crate::infer::{distinct_axes, normalize_axis};
use crate::op::{Concatenate, Op, Pad, PutSlice, Reverse, Slice};

/// One side of a copy: the address of its first element, and strides in elements.
#[derive(Debug, Clone)]
struct Side {
    addr: u64,
    strides: Vec<isize>,
}

/// Strides as a side has them: where it is read backwards they are negative.
fn signed(strides: Vec<usize>) -> Vec<isize> {
    // Sizes in bytes fit an isize; beyond it a stride is of an axis that is not walked along.
    strides.into_iter().map(|s| isize::try_from(s).unwrap_or(isize::MAX)).collect()
}

impl Side {
    fn of(view: &View) -> Side {
        Side { addr: view.addr, strides: signed(view.spec.strides()) }
    }

    /// Moved on by `at` elements of `size` bytes.
    fn offset(&self, at: usize, size: usize) -> Side {
        Side { addr: self.addr + (at * size) as u64, strides: self.strides.clone() }
    }
}

/// Strides of a view of `shape` seen as `out`, to which it broadcasts: 0 where it repeats.
pub(super) fn broadcast_strides(strides: &[usize], shape: &[usize], out: &[usize]) -> Vec<usize> {
    let missing = out.len() - shape.len();
    (0..out.len())
        .map(|i| match i.checked_sub(missing) {
            Some(j) if shape[j] == out[i] => strides[j],
            _ => 0,
        })
        .collect()
}

/// # Safety
/// As for [`crate::Device::execute`].
pub(super) unsafe fn execute(call: &Call) -> Result<()> {
    let (Some(x), out) = (call.input(0), call.outputs[0]) else {
        return Err(Error::Internal(format!("{} without its input", call.op.name())));
    };
    let size = out.spec.dtype.size();
    // SAFETY: the caller's promise; `infer` has checked that the boxes lie within the tensors.
    unsafe {
        match call.op {
            Op::Transpose(attrs) => {
                let from = Side::of(&x);
                let strides = attrs.axes.iter().map(|&a| from.strides[a]).collect();
                copy(size, out.spec.shape(), &Side { strides, ..from }, &Side::of(&out));
            }
            Op::Broadcast(_) => {
                let from = Side::of(&x);
                let strides =
                    broadcast_strides(&x.spec.strides(), x.spec.shape(), out.spec.shape());
                let from = Side { strides: signed(strides), ..from };
                copy(size, out.spec.shape(), &from, &Side::of(&out));
            }
            Op::Slice(attrs) => slice(call, attrs, &x, &out)?,
            Op::PutSlice(attrs) => put_slice(call, attrs, &x, &out)?,
            Op::Concatenate(attrs) => concatenate(call, attrs, &out)?,
            Op::Reverse(attrs) => reverse(attrs, &x, &out)?,
            Op::Pad(attrs) => pad(call, attrs, &x, &out)?,
            _ => copy_all(&x, &out),
        }
    }
    Ok(())
}

/// # Safety
/// As for [`copy`].
unsafe fn copy_all(from: &View, to: &View) {
    let flat = |v: &View| Side { addr: v.addr, strides: vec![1] };
    // SAFETY: the caller's promise.
    unsafe { copy(to.spec.dtype.size(), &[to.spec.len()], &flat(from), &flat(to)) }
}

/// # Safety
/// As for [`crate::Device::execute`].
unsafe fn reverse(attrs: &Reverse, x: &View, out: &View) -> Result<()> {
    if out.spec.is_empty() {
        return Ok(());
    }
    let (mut from, size) = (Side::of(x), out.spec.dtype.size());
    for axis in distinct_axes("reverse", &attrs.axes, x.spec.rank())? {
        from = from.offset((x.spec.shape()[axis] - 1) * from.strides[axis] as usize, size);
        from.strides[axis] = -from.strides[axis];
    }
    // SAFETY: the caller's promise; from the last element backwards the box lies within x.
    unsafe { copy(size, out.spec.shape(), &from, &Side::of(out)) };
    Ok(())
}

/// # Safety
/// As for [`crate::Device::execute`].
unsafe fn pad(call: &Call, attrs: &Pad, x: &View, out: &View) -> Result<()> {
    let Some(value) = call.input(1) else { return Ok(()) };
    let (size, mut from, mut to) = (out.spec.dtype.size(), Side::of(x), Side::of(out));
    let everywhere = Side { addr: value.addr, strides: vec![0] };
    // SAFETY: the caller's promise; `infer` has checked that the value is one element.
    unsafe {
        copy(size, &[out.spec.len()], &everywhere, &Side { addr: out.addr, strides: vec![1] });
    }
    // What is left of x along each axis, and where its first element goes.
    let mut dims = x.spec.shape().to_vec();
    for (axis, dim) in dims.iter_mut().enumerate() {
        let (low, step) = (i128::from(attrs.low[axis]), i128::from(attrs.interior[axis]) + 1);
        let end = out.spec.shape()[axis] as i128;
        let first = if low < 0 { (-low + step - 1) / step } else { 0 };
        // The first element that would lie at the end or behind it.
        let behind = if end > low { (end - low + step - 1) / step } else { 0 };
        let behind = behind.min(*dim as i128);
        if behind <= first {
            return Ok(());
        }
        *dim = (behind - first) as usize;
        from = from.offset(first as usize * from.strides[axis] as usize, size);
        to = to.offset((low + first * step) as usize * to.strides[axis] as usize, size);
        to.strides[axis] = to.strides[axis].saturating_mul(step.min(isize::MAX as i128) as isize);
    }
    // SAFETY: the box was cut to what lies within both.
    unsafe { copy(size, &dims, &from, &to) };
    Ok(())
}

/// The start on each axis: the position added on one of them, then moved so that `reach` elements
/// fit, or around the ring.
///
/// # Safety
/// As for [`View::slice`].
unsafe fn starts(
    starts: &[i64],
    position: Option<View>,
    ring: (usize, bool),
    shape: &[usize],
    reach: impl Fn(usize) -> usize,
) -> Vec<usize> {
    let (axis, wrap) = ring;
    // SAFETY: the caller's promise; `infer` has checked that it is one s32.
    let position = position.map_or(0, |p| i128::from(unsafe { p.slice::<i32>() }[0]));
    (0..shape.len())
        .map(|i| {
            // The sum of a start and a position may not fit 64 bits; around a ring that matters.
            let start = i128::from(starts[i]) + if i == axis { position } else { 0 };
            if i == axis && wrap {
                start.rem_euclid(shape[i].max(1) as i128) as usize
            } else {
                start.clamp(0, shape[i].saturating_sub(reach(i)) as i128) as usize
            }
        })
        .collect()
}

/// Cuts `length` steps of `stride` from `start` on, around a ring of `dim`, into runs that do not
/// cross its end: (first step, place, steps).
fn runs(dim: usize, start: usize, stride: usize, length: usize) -> Vec<(usize, usize, usize)> {
    let mut runs = Vec::new();
    let (mut done, mut place) = (0, start);
    while done < length {
        let n = (dim - place).div_ceil(stride).min(length - done);
        runs.push((done, place, n));
        done += n;
        // stride < 2^63 and dim fits an isize: the sum of n strides passes the end by under one.
        place = ((place as u128 + n as u128 * stride as u128) % dim as u128) as usize;
    }
    runs
}

/// # Safety
/// As for [`crate::Device::execute`].
unsafe fn slice(call: &Call, attrs: &Slice, x: &View, out: &View) -> Result<()> {
    let (shape, size) = (x.spec.shape(), out.spec.dtype.size());
    if out.spec.is_empty() {
        return Ok(());
    }
    let axis = normalize_axis("slice", attrs.axis, shape.len())?;
    let reach = |i: usize| (attrs.lengths[i] - 1).saturating_mul(attrs.strides[i]) + 1;
    // SAFETY: the caller's promise.
    let at = unsafe { starts(&attrs.starts, call.input(1), (axis, attrs.wrap), shape, reach) };
    let (from, to) = (Side::of(x), Side::of(out));
    let strides: Vec<_> =
        x.spec.strides().iter().zip(&attrs.strides).map(|(a, b)| a.saturating_mul(*b)).collect();
    let strides = signed(strides);
    for (step, place, n) in runs(shape[axis], at[axis], attrs.strides[axis], attrs.lengths[axis]) {
        let mut lengths = attrs.lengths.clone();
        lengths[axis] = n;
        let mut corner = at.clone();
        corner[axis] = place;
        let first = corner.iter().zip(x.spec.strides()).map(|(a, s)| a * s).sum();
        let from = Side { strides: strides.clone(), ..from.offset(first, size) };
        let to = to.offset(step * to.strides[axis] as usize, size);
        // SAFETY: the box lies within x, since its starts were moved, and its part within out.
        unsafe { copy(size, &lengths, &from, &to) };
    }
    Ok(())
}

/// # Safety
/// As for [`crate::Device::execute`].
unsafe fn put_slice(call: &Call, attrs: &PutSlice, x: &View, out: &View) -> Result<()> {
    if x.addr != out.addr {
        // SAFETY: the caller's promise.
        unsafe { copy_all(x, out) };
    }
    let Some(part) = call.input(1) else { return Ok(()) };
    if part.spec.is_empty() {
        return Ok(());
    }
    let (shape, lengths, size) = (x.spec.shape(), part.spec.shape(), out.spec.dtype.size());
    let axis = normalize_axis("put_slice", attrs.axis, shape.len())?;
    let ring = (axis, attrs.wrap);
    // SAFETY: the caller's promise.
    let at = unsafe { starts(&attrs.starts, call.input(2), ring, shape, |i| lengths[i]) };
    let (from, to) = (Side::of(&part), Side::of(out));
    for (step, place, n) in runs(shape[axis], at[axis], 1, lengths[axis]) {
        let mut lengths = lengths.to_vec();
        lengths[axis] = n;
        let mut corner = at.clone();
        corner[axis] = place;
        let first = corner.iter().zip(out.spec.strides()).map(|(a, s)| a * s).sum();
        let from = from.offset(step * from.strides[axis] as usize, size);
        // SAFETY: the box lies within out, since its starts were moved, and its part within slice.
        unsafe { copy(size, &lengths, &from, &to.offset(first, size)) };
    }
    Ok(())
}

/// # Safety
/// As for [`crate::Device::execute`].
unsafe fn concatenate(call: &Call, attrs: &Concatenate, out: &View) -> Result<()> {
    let axis = normalize_axis("concatenate", attrs.axis, out.spec.rank())?;
    let (size, to) = (out.spec.dtype.size(), Side::of(out));
    let mut at = 0;
    for x in call.inputs.iter().flatten() {
        let to = to.offset(at * to.strides[axis] as usize, size);
        // SAFETY: the caller's promise; the lengths on the axis add up to out's.
        unsafe { copy(size, x.spec.shape(), &Side::of(x), &to) };
        at += x.spec.shape()[axis];
    }
    Ok(())
}

/// A box with the axes of length 1 left out and those that run on in both sides made one.
struct Region {
    dims: Vec<usize>,
    from: Vec<isize>,
    to: Vec<isize>,
}

fn collapse(dims: &[usize], from: &[isize], to: &[isize]) -> Region {
    let mut b = Region { dims: vec![], from: vec![], to: vec![] };
    for i in 0..dims.len() {
        if dims[i] == 1 {
            continue;
        }
        let last = b.dims.len().wrapping_sub(1);
        if last < b.dims.len()
            && b.from[last] == from[i].saturating_mul(dims[i] as isize)
            && b.to[last] == to[i].saturating_mul(dims[i] as isize)
        {
            b.dims[last] *= dims[i];
            (b.from[last], b.to[last]) = (from[i], to[i]);
        } else {
            b.dims.push(dims[i]);
            b.from.push(from[i]);
            b.to.push(to[i]);
        }
    }
    b
}

/// Copies a box of elements of `size` bytes.
///
/// # Safety
/// Both boxes lie in live memory, aligned for their elements, and do not overlap; nobody else uses
/// `to` meanwhile.
unsafe fn copy(size: usize, dims: &[usize], from: &Side, to: &Side) {
    if dims.contains(&0) {
        return;
    }
    let b = collapse(dims, &from.strides, &to.strides);
    // SAFETY: the caller's promise; the type is only a size and an alignment here.
    unsafe {
        match size {
            1 => copy_box(&b, from.addr as *const u8, to.addr as *mut u8),
            2 => copy_box(&b, from.addr as *const u16, to.addr as *mut u16),
            4 => copy_box(&b, from.addr as *const u32, to.addr as *mut u32),
            _ => copy_box(&b, from.addr as *const u64, to.addr as *mut u64),
        }
    }
}

/// An address that threads may share: each writes its own part.
struct Shared<T>(*mut T);
// SAFETY: `copy_box` gives no two threads the same elements.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    fn get(&self) -> *mut T {
        self.0
    }
}

/// # Safety
/// As for [`copy`].
unsafe fn copy_box<T: Copy + Sync>(b: &Region, from: *const T, to: *mut T) {
    let elements: usize = b.dims.iter().product();
    let n = threads::count(cost(elements, size_of::<T>()));
    let Some((&outer, _)) = b.dims.split_first() else {
        // SAFETY: one element.
        return unsafe { to.write(from.read()) };
    };
    if n <= 1 || outer == 1 {
        // SAFETY: the caller's promise.
        return unsafe { copy_part(&b.dims, &b.from, &b.to, from, to) };
    }
    let (from, to) = (Shared(from.cast_mut()), Shared(to));
    let share = outer.div_ceil(n);
    rayon::scope(|s| {
        for first in (0..outer).step_by(share) {
            let (from, to) = (&from, &to);
            s.spawn(move |_| {
                let mut dims = b.dims.clone();
                dims[0] = share.min(outer - first);
                // SAFETY: the caller's promise; the parts of the outermost axis are disjoint.
                unsafe {
                    let from = from.get().offset(first as isize * b.from[0]).cast_const();
                    let to = to.get().offset(first as isize * b.to[0]);
                    copy_part(&dims, &b.from, &b.to, from, to);
                }
            });
        }
    });
}

/// Nanoseconds on one thread, roughly.
pub(super) fn cost(elements: usize, size: usize) -> f64 {
    elements as f64 * (0.1 + size as f64 * 0.1)
}

/// Elements a side of the squares that a transposition is done in: both sides stay in the cache.
const TILE: usize = 16;

/// # Safety
/// As for [`copy`].
unsafe fn copy_part<T: Copy>(
    dims: &[usize],
    from_strides: &[isize],
    to_strides: &[isize],
    from: *const T,
    to: *mut T,
) {
    let rank = dims.len();
    if rank > 2 {
        for i in 0..dims[0] as isize {
            // SAFETY: element i of the outermost axis.
            unsafe {
                let (from, to) = (from.offset(i * from_strides[0]), to.offset(i * to_strides[0]));
                copy_part(&dims[1..], &from_strides[1..], &to_strides[1..], from, to);
            }
        }
        return;
    }
    let (rows, fr, tr) =
        if rank == 2 { (dims[0] as isize, from_strides[0], to_strides[0]) } else { (1, 0, 0) };
    let (n, fs, ts) = (dims[rank - 1] as isize, from_strides[rank - 1], to_strides[rank - 1]);
    // SAFETY: rows and columns stay within the box.
    unsafe {
        if fs == 1 && ts == 1 {
            for r in 0..rows {
                std::ptr::copy_nonoverlapping(from.offset(r * fr), to.offset(r * tr), n as usize);
            }
        } else if rows > 1 && fs.abs() > 1 {
            for r0 in (0..rows).step_by(TILE) {
                for j0 in (0..n).step_by(TILE) {
                    for r in r0..rows.min(r0 + TILE as isize) {
                        for j in j0..n.min(j0 + TILE as isize) {
                            to.offset(r * tr + j * ts).write(from.offset(r * fr + j * fs).read());
                        }
                    }
                }
            }
        } else {
            for r in 0..rows {
                let (from, to) = (from.offset(r * fr), to.offset(r * tr));
                for j in 0..n {
                    to.offset(j * ts).write(from.offset(j * fs).read());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings() {
        assert_eq!(runs(5, 3, 1, 4), [(0, 3, 2), (2, 0, 2)]);
        assert_eq!(runs(5, 4, 2, 5), [(0, 4, 1), (1, 1, 2), (3, 0, 2)]);
        assert_eq!(runs(3, 1, 7, 3), [(0, 1, 1), (1, 2, 1), (2, 0, 1)]);
        assert_eq!(runs(4, 1, 1, 3), [(0, 1, 3)]);
    }
}
