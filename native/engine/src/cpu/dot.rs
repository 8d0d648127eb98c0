//! `dot`: products of matrices that lie as they may, one for each entry of the batch. Operands
//! whose axes cannot be walked by one stride each are copied first, 16-bit ones widened.

use std::ops::{Div, Mul, Neg, Sub};

use gemm::Parallelism;
use rayon::prelude::*;

use super::numeric::{Network, Scratch, narrow, widen, with_network};
use super::{shape, threads};
use crate::call::{Call, View};
use crate::error::Result;
use crate::infer::product::{Matrices, Operand};
use crate::op::{Dot, Op, Transpose};
use crate::spec::{DType, Spec};

/// Nanoseconds on one thread, roughly.
pub(super) fn cost(attrs: &Dot, a: &Spec, b: &Spec) -> f64 {
    let matrices = Matrices::of(attrs, a, b);
    let each = match a.dtype {
        DType::F64 => 1.0 / 20.0,
        t if t.is_float() => 1.0 / 40.0,
        _ => 1.0 / 2.0,
    };
    let moved = (a.len() + b.len()) as f64 * 0.3;
    matrices.work() * each + moved
}

/// Whether it is computed in f32.
fn narrow_float(dtype: DType) -> bool {
    dtype.is_float() && dtype.size() == 2
}

/// Bytes of the copy of an operand, and of its elements in f32.
fn pieces(operand: &Operand, spec: &Spec) -> [usize; 2] {
    let copied = if operand.order.is_some() { spec.bytes() } else { 0 };
    let widened = if narrow_float(spec.dtype) { spec.len().saturating_mul(4) } else { 0 };
    [copied, widened].map(|bytes| Scratch::bytes(bytes.div_ceil(4)))
}

pub(super) fn workspace(attrs: &Dot, a: &Spec, b: &Spec) -> usize {
    let matrices = Matrices::of(attrs, a, b);
    let sums = match narrow_float(a.dtype) {
        true => Scratch::bytes(matrices.batch * matrices.rows * matrices.columns),
        false => 0,
    };
    let pieces = [pieces(&matrices.a, a), pieces(&matrices.b, b)];
    pieces.as_flattened().iter().fold(sums, |total, bytes| total.saturating_add(*bytes))
}

/// # Safety
/// As for [`crate::Device::execute`].
pub(super) unsafe fn execute(call: &Call, attrs: &Dot) -> Result<()> {
    let (Some(a), Some(b)) = (call.input(0), call.input(1)) else { return Ok(()) };
    let out = call.outputs[0];
    if out.spec.is_empty() {
        return Ok(());
    }
    let matrices = Matrices::of(attrs, a.spec, b.spec);
    let ns = cost(attrs, a.spec, b.spec);
    // SAFETY: `workspace` asked for these pieces, and the views are the caller's promise.
    unsafe {
        let mut scratch = Scratch::new(call.workspace);
        let a = in_order(&matrices.a, a, &mut scratch)?;
        let b = in_order(&matrices.b, b, &mut scratch)?;
        match out.spec.dtype {
            DType::U8 => ints::<u8>(&matrices, a, b, out, ns),
            DType::U16 => ints::<u16>(&matrices, a, b, out, ns),
            DType::U32 => ints::<u32>(&matrices, a, b, out, ns),
            DType::U64 => ints::<u64>(&matrices, a, b, out, ns),
            DType::S8 => ints::<i8>(&matrices, a, b, out, ns),
            DType::S16 => ints::<i16>(&matrices, a, b, out, ns),
            DType::S32 => ints::<i32>(&matrices, a, b, out, ns),
            DType::S64 => ints::<i64>(&matrices, a, b, out, ns),
            DType::F64 => floats(&matrices, a.addr, b.addr, out.slice_mut::<f64>(), ns),
            DType::F32 => floats(&matrices, a.addr, b.addr, out.slice_mut::<f32>(), ns),
            other => with_network!(other, T => {
                let a = widened::<T>(a, &mut scratch);
                let b = widened::<T>(b, &mut scratch);
                let sums = scratch.take::<f32>(out.spec.len());
                floats(&matrices, a.as_ptr() as u64, b.as_ptr() as u64, sums, ns);
                let place = out.slice_mut::<T>();
                threads::over_rows(place, 1, sums.len() as f64 * 0.2, |at, place| {
                    narrow(&sums[at..][..place.len()], place);
                });
            }),
        }
    }
    Ok(())
}

/// The operand with its elements in the order that its strides are for.
///
/// # Safety
/// As for [`crate::Device::execute`]; `scratch` has what [`pieces`] asked for.
unsafe fn in_order<'a>(
    operand: &Operand,
    view: View<'a>,
    scratch: &mut Scratch,
) -> Result<View<'a>> {
    let Some(order) = &operand.order else { return Ok(view) };
    let copy = scratch.take::<u32>(view.spec.bytes().div_ceil(4));
    let lengths: Vec<_> = order.iter().map(|&axis| view.spec.shape()[axis]).collect();
    let spec = view.spec.with_shape(lengths)?;
    let addr = copy.as_mut_ptr() as u64;
    let call = Call {
        op: &Op::Transpose(Transpose { axes: order.clone() }),
        inputs: &[Some(view)],
        outputs: &[View { addr, spec: &spec, constant: false, rows: None }],
        workspace: 0,
    };
    // SAFETY: the copy is ours and as large as the operand.
    unsafe { shape::execute(&call) }?;
    Ok(View { addr, spec: view.spec, constant: false, rows: None })
}

/// # Safety
/// As for [`View::slice`].
pub(super) unsafe fn widened<'a, T: Network>(
    view: View<'a>,
    scratch: &mut Scratch,
) -> &'a mut [f32] {
    // SAFETY: the caller's promise.
    let narrow = unsafe { view.slice::<T>() };
    let wide = scratch.take::<f32>(narrow.len());
    threads::over_rows(wide, 1, narrow.len() as f64 * 0.2, |at, wide| {
        widen(&narrow[at..][..wide.len()], wide);
    });
    wide
}

/// f32 and f64: a matrix at a time on all threads, or where they are small each on one.
///
/// # Safety
/// `a` and `b` are the addresses of the operands of `matrices`.
unsafe fn floats<T: Real>(matrices: &Matrices, a: u64, b: u64, out: &mut [T], ns: f64) {
    let Matrices { batch, rows, inner, columns, .. } = *matrices;
    if inner == 0 {
        out.fill(T::default());
        return;
    }
    let threads = threads::count(ns);
    let each = threads::count(ns / batch as f64);
    let product = |first: usize, out: &mut [T], parallelism: Parallelism| {
        for (i, out) in out.chunks_exact_mut(rows * columns).enumerate() {
            let (a_at, b_at) = ((first + i) * matrices.a.batch, (first + i) * matrices.b.batch);
            // SAFETY: `infer` has checked the shapes, and the strides are those of the operands.
            unsafe {
                gemm::gemm(
                    rows,
                    columns,
                    inner,
                    out.as_mut_ptr(),
                    1,
                    columns as isize,
                    false,
                    (a as *const T).add(a_at),
                    matrices.a.inner as isize,
                    matrices.a.free as isize,
                    (b as *const T).add(b_at),
                    matrices.b.free as isize,
                    matrices.b.inner as isize,
                    T::default(),
                    T::ONE,
                    false,
                    false,
                    false,
                    parallelism,
                );
            }
        }
    };
    if threads <= 1 {
        product(0, out, Parallelism::None);
    } else if each >= threads || batch < threads {
        product(0, out, Parallelism::Rayon(threads));
    } else {
        let share = batch.div_ceil(threads);
        out.par_chunks_mut(share * rows * columns)
            .enumerate()
            .for_each(|(i, out)| product(i * share, out, Parallelism::None));
    }
}

/// What the `gemm` crate multiplies.
pub(super) trait Real:
    Copy
    + Default
    + Send
    + Sync
    + Neg<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + 'static
{
    const ONE: Self;
}

impl Real for f32 {
    const ONE: f32 = 1.0;
}

impl Real for f64 {
    const ONE: f64 = 1.0;
}

/// Integers that wrap.
trait Wrap: Copy + Default + Send + Sync + 'static {
    fn multiply_add(self, b: Self, sum: Self) -> Self;
}

macro_rules! wrap {
    ($($t:ty)*) => {$(
        impl Wrap for $t {
            #[inline(always)]
            fn multiply_add(self, b: $t, sum: $t) -> $t {
                sum.wrapping_add(self.wrapping_mul(b))
            }
        }
    )*};
}

wrap! { u8 u16 u32 u64 i8 i16 i32 i64 }

/// # Safety
/// As for [`View::slice`], and the views are those of `matrices`.
unsafe fn ints<T: Wrap>(matrices: &Matrices, a: View, b: View, out: View, ns: f64) {
    // SAFETY: the caller's promise.
    let (a, b, out) = unsafe { (a.slice::<T>(), b.slice::<T>(), out.slice_mut::<T>()) };
    let Matrices { rows, inner, columns, .. } = *matrices;
    let (left, right) = (&matrices.a, &matrices.b);
    if inner == 0 {
        out.fill(T::default());
        return;
    }
    threads::over_rows(out, columns, ns, |first, out| {
        for (i, out) in out.chunks_exact_mut(columns).enumerate() {
            let (entry, row) = ((first + i) / rows, (first + i) % rows);
            let (a, b) = (&a[entry * left.batch + row * left.free..], &b[entry * right.batch..]);
            out.fill(T::default());
            for k in 0..inner {
                let (x, b) = (a[k * left.inner], &b[k * right.inner..]);
                if right.free == 1 {
                    for (out, b) in out.iter_mut().zip(b) {
                        *out = x.multiply_add(*b, *out);
                    }
                } else {
                    for (out, b) in out.iter_mut().zip(b.iter().step_by(right.free)) {
                        *out = x.multiply_add(*b, *out);
                    }
                }
            }
        }
    });
}
