//! A convolution by products: what the windows see becomes the columns of a matrix, a part at a time
//! that stays in the caches, and the kernel is multiplied with it by [`super::gemm`].

use super::convolution::{Plan, dilated, rank, windows_arg};
use super::gemm::{Gemm, Strides};
use super::launch::{Args, Context, Grid};
use super::modules::Module;
use super::props::Props;
use super::walk::Divisor;
use crate::error::Result;
use crate::infer::product::Windows;
use crate::pool::{ALIGNMENT, round_up};
use crate::spec::DType;

const SOURCE: &str = "convolution/columns.cu";
/// Rows of the columns that a thread lays out.
pub(super) const ROWS: usize = 8;
/// Bytes of the columns that are laid out at a time where what is multiplied is 4 or 8 bytes: then
/// the products are what takes the time, and they are quicker on many positions together. Of 16-bit
/// types it is half of the second-level cache, so that the columns come out of it again.
const PART: usize = 128 << 20;
/// Images in a batch of products.
const MOST_IMAGES: usize = 65_535;
const THREADS: u32 = 256;

/// Windows of one element, side by side.
pub(super) fn alone(windows: &Windows) -> bool {
    windows.axes.iter().all(|axis| {
        (axis.taps, axis.stride, axis.input_dilation, axis.low, axis.high) == (1, 1, 1, 0, 0)
    })
}

/// A conv as products: of the kernel {outputs, depth} by columns {depth, positions}.
#[derive(Debug, Clone, Copy)]
pub(super) struct Products {
    /// What is summed, in whole packs.
    pub depth: usize,
    /// How the positions are cut, and where the columns come from.
    pub cut: Cut,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Cut {
    /// The input is the columns itself: windows of one element, side by side.
    Pointwise,
    /// Image by image: sums go where they belong.
    Images,
    /// By so many positions, whichever images they are of: sums are spread afterwards.
    Positions(usize),
}

/// A product on a part of the positions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    /// The first image, or the first position.
    first: usize,
    /// Positions, and those that a row of the columns has room for.
    positions: usize,
    pub gemm: Gemm,
}

impl Products {
    pub fn of(props: &Props, windows: &Windows, dtype: DType) -> Self {
        let (size, inner, positions) = (dtype.size(), windows.inner(), windows.positions());
        let pack = 16 / size;
        let whole = positions.is_multiple_of(pack);
        if alone(windows) && whole {
            return Products { depth: inner, cut: Cut::Pointwise };
        }
        let most = match size {
            2 => (props.l2 / 2).clamp(8 << 20, 64 << 20),
            _ => PART,
        };
        let depth = inner.next_multiple_of(pack);
        let image = depth.saturating_mul(positions).saturating_mul(size);
        let cut = if whole && image <= 2 * most && (windows.batch == 1 || image >= most / 2) {
            Cut::Images
        } else {
            let all = windows.batch * positions;
            let parts = all.div_ceil((most / (depth * size)).max(1024));
            Cut::Positions(
                all.div_ceil(parts).next_multiple_of(128).min(all.next_multiple_of(pack)),
            )
        };
        Products { depth, cut }
    }

    pub fn parts(&self, windows: &Windows, dtype: DType) -> impl Iterator<Item = Part> {
        let Products { depth, cut } = *self;
        let positions = windows.positions();
        let (step, all) = match cut {
            Cut::Pointwise => (windows.batch.min(MOST_IMAGES), windows.batch),
            Cut::Images => (1, windows.batch),
            Cut::Positions(part) => (part, windows.batch * positions),
        };
        let pack = 16 / dtype.size();
        let outputs = windows.outputs;
        let (channel, batch_stride) = (windows.channel(), windows.batch_stride);
        let y_batch = windows.groups * outputs * positions;
        // What a group's operands and an image's are away from the first: the least common power
        // of two of their bytes.
        let group = [outputs * depth, outputs * positions, windows.group_stride];
        let image = [y_batch, batch_stride, positions];
        let apart = group
            .iter()
            .filter(|_| windows.groups > 1)
            .chain(image.iter().filter(|_| matches!(cut, Cut::Pointwise | Cut::Images)));
        let bits = apart.fold(ALIGNMENT, |bits, elements| bits | (elements * dtype.size()));
        let alignment = 1u32 << bits.trailing_zeros();
        (0..all).step_by(step.max(1)).map(move |first| {
            let count = step.min(all - first);
            let (batch, columns, b) = match cut {
                Cut::Pointwise => (
                    count,
                    positions,
                    Strides { batch: batch_stride as i64, free: 1, inner: channel as i64 },
                ),
                Cut::Images => {
                    let pitch = positions as i64;
                    (count, positions, Strides { batch: positions as i64, free: 1, inner: pitch })
                }
                Cut::Positions(_) => {
                    let pitch = count.next_multiple_of(pack);
                    (1, pitch, Strides { batch: 0, free: 1, inner: pitch as i64 })
                }
            };
            Part {
                first,
                positions: if matches!(cut, Cut::Positions(_)) { count } else { count * positions },
                gemm: Gemm {
                    batch,
                    rows: outputs,
                    inner: depth,
                    columns,
                    a: Strides { batch: 0, free: depth as i64, inner: 1 },
                    b,
                    y_batch: if batch == 1 { outputs * columns } else { y_batch },
                    dtype,
                    alignment,
                },
            }
        })
    }

    /// Bytes of the kernel with rows of `depth`, of the columns, and of the sums to be spread.
    pub fn pieces(&self, windows: &Windows, dtype: DType) -> [usize; 3] {
        let size = dtype.size();
        let widened = match self.depth == windows.inner() {
            true => 0,
            false => windows.groups * windows.outputs * self.depth,
        };
        let pack = 16 / size;
        let [columns, sums] = match self.cut {
            Cut::Pointwise => [0, 0],
            Cut::Images => [windows.positions() * self.depth, 0],
            Cut::Positions(part) => {
                let pitch = part.next_multiple_of(pack);
                [pitch.saturating_mul(self.depth), pitch * windows.outputs]
            }
        };
        [widened, columns, sums].map(|elements| {
            let bytes = elements.saturating_mul(size);
            round_up(bytes, ALIGNMENT).unwrap_or(usize::MAX)
        })
    }

    /// The different products among the parts: all but the last are the same.
    pub fn gemms(&self, windows: &Windows, dtype: DType) -> Vec<Gemm> {
        let mut all: Vec<_> = self.parts(windows, dtype).map(|part| part.gemm).collect();
        all.dedup();
        all
    }

    /// # Safety
    /// The addresses are those of the input, the kernel and the output of `plan`, and the workspace has
    /// room for the pieces and then for what the products need.
    pub unsafe fn launch(
        &self,
        cx: &Context,
        plan: &Plan,
        [x, kernel, y]: [u64; 3],
        workspace: u64,
    ) -> Result<()> {
        let (windows, dtype) = (&plan.windows, plan.dtype);
        let size = dtype.size();
        let kernels = module(size, rank(windows));
        let [widened, columns, sums] = self.pieces(windows, dtype).map(|bytes| bytes as u64);
        let columns_at = workspace + widened;
        let sums_at = columns_at + columns;
        let scratch = sums_at + sums;
        let away = |base: u64, elements: usize| base + (elements * size) as u64;
        let (positions, depth) = (windows.positions(), self.depth);
        let all_outputs = windows.groups * windows.outputs;

        let kernel = if widened > 0 {
            let mut args = Args::new();
            args.ptr(kernel).ptr(workspace).u64(all_outputs as u64);
            args.value(Divisor::new(depth)).u64(windows.inner() as u64);
            let grid = Grid::new((all_outputs * depth).div_ceil(THREADS as usize), THREADS)?;
            let function = cx.function(&kernels, "widen_rows")?;
            // SAFETY: these are the entry's parameters, and the caller vouches for the addresses.
            unsafe { cx.launch(&function, grid, &mut args) }?;
            workspace
        } else {
            kernel
        };
        for group in 0..windows.groups {
            let x = away(x, group * windows.group_stride);
            let kernel = away(kernel, group * windows.outputs * depth);
            let y = away(y, group * windows.outputs * positions);
            for part in self.parts(windows, dtype) {
                let Part { first, gemm, .. } = part;
                let image_y = away(y, first * all_outputs * positions);
                // SAFETY: the caller's promise; the parts lie within the operands.
                unsafe {
                    match self.cut {
                        Cut::Pointwise => {
                            let image = away(x, first * windows.batch_stride);
                            gemm.launch(cx, [kernel, image, image_y], scratch)?;
                        }
                        Cut::Images => {
                            lay_out(cx, plan, &part, first * positions, depth, [x, columns_at])?;
                            gemm.launch(cx, [kernel, columns_at, image_y], scratch)?;
                        }
                        Cut::Positions(_) => {
                            lay_out(cx, plan, &part, first, depth, [x, columns_at])?;
                            gemm.launch(cx, [kernel, columns_at, sums_at], scratch)?;
                            spread(cx, plan, &part, [sums_at, y])?;
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

pub(super) fn module(size: usize, rank: usize) -> Module {
    Module::new(SOURCE).define("BYTES", size).define("RANK", rank)
}

/// # Safety
/// The addresses are those of a group's input, and of room for the columns of the part.
unsafe fn lay_out(
    cx: &Context,
    plan: &Plan,
    part: &Part,
    first: usize,
    depth: usize,
    [x, to]: [u64; 2],
) -> Result<()> {
    let windows = &plan.windows;
    let pack = 16 / plan.dtype.size();
    let pitch = part.gemm.b.inner as usize;
    let mut args = Args::new();
    args.ptr(x).ptr(to);
    windows_arg(&mut args, windows);
    args.value(Divisor::new(windows.positions())).value(Divisor::new(windows.taps()));
    args.i64(windows.batch_stride as i64).i64(windows.channel() as i64);
    args.u64(first as u64).u64((first + part.positions) as u64).u64(pitch as u64);
    args.u32(depth as u32).u32(windows.inner() as u32);
    let blocks = [pitch.div_ceil(pack * THREADS as usize), depth.div_ceil(ROWS), 1];
    let kernels = module(plan.dtype.size(), rank(windows));
    let entry = if dilated(windows) { "columns_dilated" } else { "columns_plain" };
    let function = cx.function(&kernels, entry)?;
    // SAFETY: these are the entry's parameters, and the caller vouches for the addresses.
    unsafe { cx.launch(&function, Grid::new_3d(blocks, THREADS)?, &mut args) }
}

/// # Safety
/// The addresses are those of the sums of the part, and of a group's output.
unsafe fn spread(cx: &Context, plan: &Plan, part: &Part, [sums, y]: [u64; 2]) -> Result<()> {
    let windows = &plan.windows;
    let mut args = Args::new();
    args.ptr(sums).ptr(y).value(Divisor::new(windows.positions()));
    args.u64(part.first as u64).u64(part.positions as u64).u64(part.gemm.columns as u64);
    args.u32(windows.outputs as u32).u64((windows.groups * windows.outputs) as u64);
    let across = part.positions.div_ceil(THREADS as usize);
    let blocks = [across, windows.outputs.min(65_535), 1];
    let kernels = module(plan.dtype.size(), rank(windows));
    let function = cx.function(&kernels, "spread")?;
    // SAFETY: these are the entry's parameters, and the caller vouches for the addresses.
    unsafe { cx.launch(&function, Grid::new_3d(blocks, THREADS)?, &mut args) }
}
