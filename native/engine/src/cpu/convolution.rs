//! `conv`: what the windows see becomes the columns of a matrix, block by block, and the kernel is
//! multiplied with it.

use gemm::Parallelism;

use super::numeric::{Network, Scratch, narrow, widen, with_network};
use super::threads;
use crate::call::Call;
use crate::error::Result;
use crate::infer::product::Windows;
use crate::op::Conv;
use crate::spec::{DType, Spec};

/// Elements of the columns that are laid out at a time.
const COLUMNS: usize = 1 << 18;

/// Nanoseconds on one thread, roughly.
pub(super) fn cost(windows: &Windows, dtype: DType) -> f64 {
    let each = if dtype == DType::F64 { 1.0 / 20.0 } else { 1.0 / 40.0 };
    let columns = windows.batch as f64
        * windows.groups as f64
        * windows.positions() as f64
        * windows.inner() as f64;
    windows.work() * each + columns
}

/// Positions of the output whose columns are laid out at a time.
fn block(windows: &Windows) -> usize {
    (COLUMNS / windows.inner().max(1)).max(64).min(windows.positions())
}

/// Elements, of the type that is computed in, of the columns; and f32 of the widened kernel and
/// of the sums, where the storage type is not the one that is computed in.
fn pieces(windows: &Windows, kernel: &Spec) -> [usize; 3] {
    let block = block(windows);
    let words = if kernel.dtype == DType::F64 { 2 } else { 1 };
    let columns = windows.inner().saturating_mul(block).saturating_mul(words);
    match kernel.dtype.size() {
        2 => [columns, kernel.len(), windows.outputs.saturating_mul(block)],
        _ => [columns, 0, 0],
    }
}

pub(super) fn workspace(attrs: &Conv, input: &Spec, kernel: &Spec, out: &Spec) -> usize {
    if out.is_empty() {
        return 0;
    }
    let windows = Windows::of(attrs, input, kernel, out);
    pieces(&windows, kernel).into_iter().map(Scratch::bytes).fold(0, usize::saturating_add)
}

/// # Safety
/// As for [`crate::Device::execute`].
pub(super) unsafe fn execute(call: &Call, attrs: &Conv) -> Result<()> {
    let (Some(input), Some(kernel)) = (call.input(0), call.input(1)) else { return Ok(()) };
    let out = call.outputs[0];
    if out.spec.is_empty() {
        return Ok(());
    }
    let windows = Windows::of(attrs, input.spec, kernel.spec, out.spec);
    let threads = threads::count(cost(&windows, out.spec.dtype));
    let [columns, wide, sums] = pieces(&windows, kernel.spec);
    // SAFETY: `workspace` asked for these pieces, and the views are the caller's promise.
    unsafe {
        let mut scratch = Scratch::new(call.workspace);
        let columns = scratch.take::<f32>(columns);
        let (wide, sums) = (scratch.take::<f32>(wide), scratch.take::<f32>(sums));
        match out.spec.dtype {
            DType::F64 => {
                // SAFETY: cache lines of twice as many f32, and any bytes are an f64.
                let columns =
                    std::slice::from_raw_parts_mut(columns.as_mut_ptr().cast(), columns.len() / 2);
                let kernel = kernel.slice::<f64>();
                direct(&windows, input.slice(), kernel, out.slice_mut(), columns, threads);
            }
            DType::F32 => {
                let kernel = kernel.slice::<f32>();
                direct(&windows, input.slice(), kernel, out.slice_mut(), columns, threads);
            }
            other => with_network!(other, T => {
                widen(kernel.slice::<T>(), wide);
                let (input, out) = (input.slice::<T>(), out.slice_mut::<T>());
                by_way_of(&windows, input, wide, out, columns, sums, threads);
            }),
        }
    }
    Ok(())
}

/// f32 and f64: sums go where they belong.
fn direct<T: Value<T> + Default>(
    windows: &Windows,
    input: &[T],
    kernel: &[T],
    out: &mut [T],
    columns: &mut [T],
    threads: usize,
) {
    let positions = windows.positions();
    blocks(windows, input, kernel, out, columns, |kernel, columns, first, n, out| {
        product(windows, kernel, columns, n, &mut out[first..], positions, threads);
    });
}

/// 16-bit types: sums in f32 are narrowed row by row.
fn by_way_of<T: Network + Value<f32>>(
    windows: &Windows,
    input: &[T],
    kernel: &[f32],
    out: &mut [T],
    columns: &mut [f32],
    sums: &mut [f32],
    threads: usize,
) {
    let positions = windows.positions();
    blocks(windows, input, kernel, out, columns, |kernel, columns, first, n, out| {
        product(windows, kernel, columns, n, sums, n, threads);
        for (sums, out) in sums.chunks_exact(n).zip(out.chunks_exact_mut(positions)) {
            narrow(sums, &mut out[first..first + n]);
        }
    });
}

/// Lays out the columns of each entry and group, block after block of `n` positions from `first` on,
/// and gives them to `multiply` with the group's part of the kernel and of the output.
fn blocks<T: Value<C>, C: Copy + Send>(
    windows: &Windows,
    input: &[T],
    kernel: &[C],
    out: &mut [T],
    columns: &mut [C],
    mut multiply: impl FnMut(&[C], &[C], usize, usize, &mut [T]),
) {
    let (positions, part) = (windows.positions(), windows.outputs * windows.inner());
    for (entry, group, out) in parts(windows, out) {
        let input = &input[entry * windows.batch_stride + group * windows.group_stride..];
        let kernel = &kernel[group * part..][..part];
        for first in (0..positions).step_by(block(windows)) {
            let n = block(windows).min(positions - first);
            lay_out(windows, input, first, n, columns);
            multiply(kernel, columns, first, n, out);
        }
    }
}

/// The entries of the batch and the groups, with the part of the output that is theirs.
fn parts<'a, T>(
    windows: &Windows,
    out: &'a mut [T],
) -> impl Iterator<Item = (usize, usize, &'a mut [T])> {
    let (groups, size) = (windows.groups, windows.outputs * windows.positions());
    out.chunks_exact_mut(size).enumerate().map(move |(i, out)| (i / groups, i % groups, out))
}

/// An element, and how it is computed with.
trait Value<C>: Copy + Send + Sync + 'static {
    const ZERO: C;
    const ONE: C;
    fn value(self) -> C;
}

macro_rules! value {
    ($($t:ty, $c:ty;)*) => {$(
        impl Value<$c> for $t {
            const ZERO: $c = 0.0;
            const ONE: $c = 1.0;

            #[inline(always)]
            fn value(self) -> $c {
                self.into()
            }
        }
    )*};
}

value! { f32, f32; f64, f64; half::f16, f32; half::bf16, f32; }

/// Row after row what each tap sees of each channel at `n` positions from `first` on.
fn lay_out<T: Value<C>, C: Copy + Send>(
    windows: &Windows,
    input: &[T],
    first: usize,
    n: usize,
    columns: &mut [C],
) {
    let (taps, channel) = (windows.taps(), windows.channel());
    let rank = windows.axes.len();
    let (last, last_out) = (windows.axes[rank - 1], windows.spatial[rank - 1]);
    let columns = &mut columns[..windows.inner() * n];
    let ns = columns.len() as f64;
    threads::over_rows(columns, n, ns, |row, columns| {
        for (i, columns) in columns.chunks_exact_mut(n).enumerate() {
            let (channel_at, mut tap) = ((row + i) / taps * channel, (row + i) % taps);
            let mut taps = vec![0; rank];
            for (axis, tap_at) in taps.iter_mut().enumerate().rev() {
                (*tap_at, tap) = (tap % windows.axes[axis].taps, tap / windows.axes[axis].taps);
            }
            let mut at = 0;
            while at < n {
                // A line of the last axis, from wherever the block begins.
                let (mut line, begin) = ((first + at) / last_out, (first + at) % last_out);
                let length = (last_out - begin).min(n - at);
                let mut start = Some(0);
                let mut stride = last.length;
                for axis in (0..rank - 1).rev() {
                    let window = windows.axes[axis];
                    let position = line % windows.spatial[axis];
                    line /= windows.spatial[axis];
                    start = start
                        .zip(window.place(position, taps[axis]))
                        .map(|(start, place)| start + place * stride);
                    stride *= window.length;
                }
                let columns = &mut columns[at..at + length];
                match start {
                    None => columns.fill(T::ZERO),
                    Some(start) => {
                        let line = &input[channel_at + start..][..last.length];
                        for (j, column) in columns.iter_mut().enumerate() {
                            *column = match last.place(begin + j, taps[rank - 1]) {
                                Some(place) => line[place].value(),
                                None => T::ZERO,
                            };
                        }
                    }
                }
                at += length;
            }
        }
    });
}

/// `out {outputs, n} ← kernel {outputs, inner} · columns {inner, n}`, rows of `out` `stride` apart.
fn product<C: Value<C>>(
    windows: &Windows,
    kernel: &[C],
    columns: &[C],
    n: usize,
    out: &mut [C],
    stride: usize,
    threads: usize,
) {
    let (outputs, inner) = (windows.outputs, windows.inner());
    debug_assert!(kernel.len() >= outputs * inner && columns.len() >= inner * n);
    debug_assert!(out.len() >= (outputs - 1) * stride + n);
    if inner == 0 {
        for row in out.chunks_mut(stride).take(outputs) {
            row[..n].fill(C::ZERO);
        }
        return;
    }
    let parallelism = if threads > 1 { Parallelism::Rayon(threads) } else { Parallelism::None };
    // SAFETY: the slices hold the matrices of these shapes and strides.
    unsafe {
        gemm::gemm(
            outputs,
            n,
            inner,
            out.as_mut_ptr(),
            1,
            stride as isize,
            false,
            kernel.as_ptr(),
            1,
            inner as isize,
            columns.as_ptr(),
            1,
            n as isize,
            C::ZERO,
            C::ONE,
            false,
            false,
            false,
            parallelism,
        );
    }
}
