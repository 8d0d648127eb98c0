//! `unary`, `binary`, `select` and `cast`: blocks of elements brought into the type they are
//! computed in, so that one vectorised loop serves every layout of the operands.

use super::arithmetic::{Arithmetic, Unary};
use super::numeric::{BLOCK, Convert, Element, Network, Wide, with_network, with_type};
use super::shape::broadcast_strides;
use super::simd::{Isa, dispatch};
use super::threads;
use crate::call::{Call, View};
use crate::error::{Error, Result};
use crate::op::{BinaryKind, Op, UnaryKind};
use crate::spec::{DType, Spec};

/// An operand of a broadcasting op, read in the order of the output.
struct Operand<'a, T> {
    data: &'a [T],
    /// Axes of the output with the operand's strides, neighbours that run on made one.
    dims: Vec<usize>,
    strides: Vec<usize>,
}

impl<'a, T: Copy> Operand<'a, T> {
    /// # Safety
    /// As for [`View::slice`].
    unsafe fn new(view: &View<'a>, out: &Spec) -> Self {
        let all = broadcast_strides(&view.spec.strides(), view.spec.shape(), out.shape());
        let (mut dims, mut strides) = (Vec::new(), Vec::new());
        for (&dim, &stride) in out.shape().iter().zip(&all) {
            if dim == 1 {
                continue;
            }
            match (dims.last_mut(), strides.last_mut()) {
                (Some(d), Some(s)) if *s == stride * dim => (*d, *s) = (*d * dim, stride),
                _ => {
                    dims.push(dim);
                    strides.push(stride);
                }
            }
        }
        // SAFETY: the caller's promise.
        Operand { data: unsafe { view.slice() }, dims, strides }
    }

    /// The elements at `start..start + n` of the output, in place where they lie together.
    fn block(&self, start: usize, n: usize, buffer: &'a mut [T]) -> &'a [T] {
        let Some((&inner, outer)) = self.dims.split_last() else {
            buffer[..n].fill(self.data[0]);
            return &buffer[..n];
        };
        let stride = self.strides[outer.len()];
        if outer.is_empty() && stride == 1 {
            return &self.data[start..start + n];
        }
        let (mut row, mut column, mut done) = (start / inner, start % inner, 0);
        while done < n {
            let (mut left, mut at) = (row, column * stride);
            for (d, s) in outer.iter().zip(&self.strides).rev() {
                at += left % d * s;
                left /= d;
            }
            let len = (inner - column).min(n - done);
            let to = &mut buffer[done..done + len];
            if stride == 0 {
                to.fill(self.data[at]);
            } else {
                to.copy_from_slice(&self.data[at..at + len]);
            }
            (row, column, done) = (row + 1, 0, done + len);
        }
        &buffer[..n]
    }
}

/// # Safety
/// As for [`crate::Device::execute`].
pub(super) unsafe fn execute(call: &Call) -> Result<()> {
    let (Some(x), out) = (call.input(0), call.outputs[0]) else {
        return Err(Error::Internal(format!("{} without its input", call.op.name())));
    };
    if out.spec.is_empty() {
        return Ok(());
    }
    let ns = cost(call.op, x.spec.dtype, out.spec.len());
    // SAFETY (of all the views below): the caller's promise; `infer` has checked types and shapes.
    match call.op {
        Op::Cast(_) if x.spec.dtype.is_network() && out.spec.dtype.is_network() => {
            with_network!(x.spec.dtype, S => with_network!(out.spec.dtype, D => {
                // SAFETY: as above.
                let (from, to) = unsafe { (x.slice::<S>(), out.slice_mut::<D>()) };
                threads::over_rows(to, 1, ns, |first, to| {
                    dispatch!(I => recast::<I, S, D>(&from[first..first + to.len()], to));
                });
            }));
        }
        Op::Cast(_) => {
            // By way of a block of what holds all values of x's type: one function for each type
            // on either side, not one for each pair.
            let read = with_type!(x.spec.dtype, S => read::<S> as Read);
            with_type!(out.spec.dtype, D => {
                // SAFETY: as above.
                let to = unsafe { out.slice_mut::<D>() };
                threads::over_rows(to, 1, ns, |first, to| {
                    for (i, to) in to.chunks_mut(BLOCK).enumerate() {
                        let mut write = |wide: Wide| dispatch!(I => write::<I, D>(wide, to));
                        // SAFETY: as above.
                        unsafe { read(&x, first + i * BLOCK, &mut write) };
                    }
                });
            });
        }
        Op::Unary(attrs) if attrs.kind.is_predicate() => {
            with_type!(x.spec.dtype, T => {
                // SAFETY: as above.
                let (from, to) = unsafe { (x.slice::<T>(), out.slice_mut::<u8>()) };
                threads::over_rows(to, 1, ns, |first, to| {
                    let from = &from[first..first + to.len()];
                    dispatch!(I => test::<I, T>(attrs.kind, from, to));
                });
            });
        }
        Op::Unary(attrs) => with_type!(x.spec.dtype, T => {
            // SAFETY: as above.
            let (from, to) = unsafe { (x.slice::<T>(), out.slice_mut::<T>()) };
            threads::over_rows(to, 1, ns, |first, to| {
                let from = &from[first..first + to.len()];
                dispatch!(I => unary::<I, T>(attrs.kind, from, to));
            });
        }),
        Op::Binary(attrs) => {
            let Some(b) = call.input(1) else { return Ok(()) };
            with_type!(x.spec.dtype, T => {
                // SAFETY: as above.
                let (a, b) = unsafe {
                    (Operand::<T>::new(&x, out.spec), Operand::<T>::new(&b, out.spec))
                };
                if attrs.kind.is_predicate() {
                    // SAFETY: as above.
                    let to = unsafe { out.slice_mut::<u8>() };
                    threads::over_rows(to, 1, ns, |first, to| {
                        dispatch!(I => predicate::<I, T>(attrs.kind, &a, &b, first, to));
                    });
                } else {
                    // SAFETY: as above.
                    let to = unsafe { out.slice_mut::<T>() };
                    threads::over_rows(to, 1, ns, |first, to| {
                        dispatch!(I => binary::<I, T>(attrs.kind, &a, &b, first, to));
                    });
                }
            });
        }
        _ => {
            let (Some(a), Some(b)) = (call.input(1), call.input(2)) else { return Ok(()) };
            // SAFETY: as above.
            unsafe {
                let p = Operand::<u8>::new(&x, out.spec);
                match out.spec.dtype.size() {
                    1 => select::<u8>(&p, &a, &b, &out, ns),
                    2 => select::<u16>(&p, &a, &b, &out, ns),
                    4 => select::<u32>(&p, &a, &b, &out, ns),
                    _ => select::<u64>(&p, &a, &b, &out, ns),
                }
            }
        }
    }
    Ok(())
}

/// Nanoseconds on one thread, roughly.
pub(super) fn cost(op: &Op, dtype: DType, elements: usize) -> f64 {
    use UnaryKind::*;
    let wide = dtype == DType::F64;
    let each = match op {
        Op::Unary(u) => match u.kind {
            Exp | Tanh | Sigmoid | Silu | Gelu | GeluTanh | Erf if !wide => 1.0,
            Exp | Expm1 | Log | Log1p | Sin | Cos | Tanh | Erf | Sigmoid | Silu | Gelu
            | GeluTanh | Softplus => 6.0,
            Tan | Asin | Acos | Atan | Sinh | Cosh | Asinh | Acosh | Atanh | Cbrt | Erfc => 20.0,
            ErfInv => 60.0,
            _ => 0.3,
        },
        Op::Binary(b) => match b.kind {
            BinaryKind::Pow => 6.0,
            BinaryKind::Atan2 => 20.0,
            BinaryKind::Remainder | BinaryKind::Quotient => 4.0,
            _ => 0.3,
        },
        _ => 0.3,
    };
    // The 16-bit types are converted on the way in and out.
    let conversion = if matches!(dtype, DType::F16 | DType::BF16) { 0.3 } else { 0.0 };
    elements as f64 * (each + conversion)
}

/// Between the types that are computed in f32.
#[inline(always)]
fn recast<I: Isa, S: Network, D: Network>(from: &[S], to: &mut [D]) {
    let mut buffer = [0.0; BLOCK];
    for (from, to) in from.chunks(BLOCK).zip(to.chunks_mut(BLOCK)) {
        D::narrow_to::<I>(S::widened::<I>(from, &mut buffer), to);
    }
}

/// Gives a function the block of a tensor that begins at an element.
type Read = unsafe fn(&View, usize, &mut dyn FnMut(Wide));

/// # Safety
/// As for [`View::slice`].
unsafe fn read<S: Convert>(x: &View, first: usize, f: &mut dyn FnMut(Wide)) {
    // SAFETY: the caller's promise.
    let from = unsafe { x.slice::<S>() };
    let from = &from[first..from.len().min(first + BLOCK)];
    dispatch!(I => S::wide::<I>(from, f));
}

#[inline(always)]
fn write<I: Isa, D: Convert>(wide: Wide, to: &mut [D]) {
    match wide {
        Wide::Float(wide) => {
            for (to, v) in to.iter_mut().zip(wide) {
                *to = D::from_f64(*v);
            }
        }
        Wide::Integer(wide) => {
            for (to, v) in to.iter_mut().zip(wide) {
                *to = D::from_i64(*v);
            }
        }
        Wide::U64(wide) => {
            for (to, v) in to.iter_mut().zip(wide) {
                *to = D::from_u64(*v);
            }
        }
    }
}

#[inline(always)]
fn test<I: Isa, T: Element>(kind: UnaryKind, from: &[T], to: &mut [u8])
where
    T::Compute: Unary,
{
    let mut buffer = [T::Compute::default(); BLOCK];
    for (from, to) in from.chunks(BLOCK).zip(to.chunks_mut(BLOCK)) {
        T::Compute::test::<I>(kind, T::widened::<I>(from, &mut buffer), to);
    }
}

#[inline(always)]
fn unary<I: Isa, T: Element>(kind: UnaryKind, from: &[T], to: &mut [T])
where
    T::Compute: Unary,
{
    let (mut x, mut y) = ([T::Compute::default(); BLOCK], [T::Compute::default(); BLOCK]);
    for (from, to) in from.chunks(BLOCK).zip(to.chunks_mut(BLOCK)) {
        let from = T::widened::<I>(from, &mut x);
        T::produce::<I>(to, &mut y, |to| T::Compute::unary::<I>(kind, from, to));
    }
}

#[inline(always)]
fn binary<I: Isa, T: Element>(
    kind: BinaryKind,
    a: &Operand<T>,
    b: &Operand<T>,
    first: usize,
    to: &mut [T],
) where
    T::Compute: Arithmetic,
{
    let mut y = [T::Compute::default(); BLOCK];
    pairs::<I, T, _>(a, b, first, to, |a, b, to| {
        T::produce::<I>(to, &mut y, |to| T::Compute::binary::<I>(kind, a, b, to));
    });
}

#[inline(always)]
fn predicate<I: Isa, T: Element>(
    kind: BinaryKind,
    a: &Operand<T>,
    b: &Operand<T>,
    first: usize,
    to: &mut [u8],
) where
    T::Compute: Arithmetic,
{
    pairs::<I, T, _>(a, b, first, to, |a, b, to| T::Compute::predicate::<I>(kind, a, b, to));
}

/// Calls `f` with each block of both operands, widened, and of the output.
#[inline(always)]
fn pairs<I: Isa, T: Element, O>(
    a: &Operand<T>,
    b: &Operand<T>,
    first: usize,
    to: &mut [O],
    mut f: impl FnMut(&[T::Compute], &[T::Compute], &mut [O]),
) {
    let (mut x, mut y) = ([a.data[0]; BLOCK], [b.data[0]; BLOCK]);
    let (mut wide_x, mut wide_y) = ([T::Compute::default(); BLOCK], [T::Compute::default(); BLOCK]);
    for (i, to) in to.chunks_mut(BLOCK).enumerate() {
        let at = first + i * BLOCK;
        let x = T::widened::<I>(a.block(at, to.len(), &mut x), &mut wide_x);
        let y = T::widened::<I>(b.block(at, to.len(), &mut y), &mut wide_y);
        f(x, y, to);
    }
}

/// # Safety
/// As for [`View::slice`] and [`View::slice_mut`]; `T` has the size of the elements.
unsafe fn select<T: Copy + Send + Sync>(p: &Operand<u8>, a: &View, b: &View, out: &View, ns: f64) {
    // SAFETY: the caller's promise.
    let (a, b, to) = unsafe {
        (Operand::<T>::new(a, out.spec), Operand::<T>::new(b, out.spec), out.slice_mut::<T>())
    };
    threads::over_rows(to, 1, ns, |first, to| {
        let (mut pb, mut ab, mut bb) = ([0; BLOCK], [a.data[0]; BLOCK], [b.data[0]; BLOCK]);
        for (i, to) in to.chunks_mut(BLOCK).enumerate() {
            let (at, n) = (first + i * BLOCK, to.len());
            let values = a.block(at, n, &mut ab).iter().zip(b.block(at, n, &mut bb));
            for ((to, p), (a, b)) in to.iter_mut().zip(p.block(at, n, &mut pb)).zip(values) {
                *to = if *p != 0 { *a } else { *b };
            }
        }
    });
}
