//! `conv`: what the windows see becomes the columns of a matrix, a part at a time that stays in the
//! caches, and the kernel is multiplied with it by [`super::gemm`]; or a thread a few elements, where
//! groups leave little to multiply.

use super::gemm::{Gemm, Strides};
use super::launch::{Args, Context, Grid};
use super::modules::Module;
use super::props::Props;
use super::walk::{Divisor, stray};
use crate::call::Call;
use crate::device::Explanation;
use crate::error::{Error, Result};
use crate::infer::infer;
use crate::infer::product::Windows;
use crate::op::{Conv, Op};
use crate::pool::{ALIGNMENT, round_up};
use crate::spec::{DType, Spec};

const COLUMNS: &str = "convolution/columns.cu";
const DIRECT: &str = "convolution/direct.cu";
const THREADS: u32 = 256;
/// Neighbours that a thread of the direct kernel computes.
const EACH: usize = 4;
/// Rows of the columns that a thread lays out.
const ROWS: usize = 8;
/// Outputs of a group from which a product pays.
const FEW_OUTPUTS: usize = 16;
/// Multiplications up to which one launch is the quickest.
const LITTLE_WORK: f64 = 1_048_576.0;
/// Bytes of the columns that are laid out at a time where what is multiplied is 4 or 8 bytes: then
/// the products are what takes the time, and they are quicker on many positions together. Of 16-bit
/// types it is half of the second-level cache, so that the columns come out of it again.
const PART: usize = 128 << 20;
/// Images in a batch of products.
const MOST_IMAGES: usize = 65_535;
/// The kernels count along an axis, and the elements of a channel, in 32 bits with room for steps
/// beyond either end.
const LONGEST: i64 = 1 << 29;

/// How it is computed.
enum Kernel {
    /// No elements to compute.
    Nothing,
    /// Nothing to sum up.
    Zeros,
    Direct,
    Products(Products),
}

/// A conv as products: of the kernel {outputs, depth} by columns {depth, positions}.
#[derive(Debug, Clone, Copy)]
struct Products {
    /// What is summed, in whole packs.
    depth: usize,
    /// How the positions are cut, and where the columns come from.
    cut: Cut,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Cut {
    /// The input is the columns itself: windows of one element, side by side.
    Pointwise,
    /// Image by image: sums go where they belong.
    Images,
    /// By so many positions, whichever images they are of: sums are spread afterwards.
    Positions(usize),
}

struct Plan {
    windows: Windows,
    dtype: DType,
    kernel: Kernel,
}

fn plan(props: &Props, op: &Conv, inputs: &[Option<&Spec>]) -> Result<Plan> {
    let [Some(input), Some(kernel), ..] = inputs else { return stray("conv") };
    let outputs = infer(&Op::Conv(op.clone()), inputs)?;
    let Some(out) = outputs.first() else { return stray("conv") };
    let windows = Windows::of(op, input, kernel, out);
    let dtype = input.dtype;
    if out.is_empty() {
        return Ok(Plan { windows, dtype, kernel: Kernel::Nothing });
    }
    if windows.inner() == 0 {
        return Ok(Plan { windows, dtype, kernel: Kernel::Zeros });
    }
    let padded = windows.axes.iter().zip(&windows.spatial).all(|(axis, &out)| {
        let reach = (out * axis.stride + axis.taps * axis.kernel_dilation) as i64;
        reach.saturating_add(axis.low.abs()) < LONGEST && (axis.length as i64) < LONGEST
    });
    let counts = [windows.positions(), windows.outputs * windows.groups];
    let deep = windows.inner().div_ceil(ROWS) > 65_000;
    if !padded || counts.iter().any(|&n| n as i64 >= LONGEST) {
        let message = format!("axes, channels, taps and positions are below {LONGEST} on a GPU");
        return Err(Error::unsupported("conv", message));
    }
    let kernel = match windows.groups > 1 && windows.outputs < FEW_OUTPUTS
        || windows.work() <= LITTLE_WORK
        || deep
    {
        true => Kernel::Direct,
        false => Kernel::Products(products(props, &windows, dtype)),
    };
    Ok(Plan { windows, dtype, kernel })
}

fn products(props: &Props, windows: &Windows, dtype: DType) -> Products {
    let (size, inner, positions) = (dtype.size(), windows.inner(), windows.positions());
    let pack = 16 / size;
    let alone = windows.axes.iter().all(|axis| {
        (axis.taps, axis.stride, axis.input_dilation, axis.low, axis.high) == (1, 1, 1, 0, 0)
    });
    let whole = positions.is_multiple_of(pack);
    if alone && whole {
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
        Cut::Positions(all.div_ceil(parts).next_multiple_of(128).min(all.next_multiple_of(pack)))
    };
    Products { depth, cut }
}

/// A product on a part of the positions.
#[derive(Debug, Clone, Copy)]
struct Part {
    /// The first image, or the first position.
    first: usize,
    /// Positions, and those that a row of the columns has room for.
    positions: usize,
    gemm: Gemm,
}

impl Products {
    fn parts(&self, windows: &Windows, dtype: DType) -> impl Iterator<Item = Part> {
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
    fn pieces(&self, windows: &Windows, dtype: DType) -> [usize; 3] {
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
    fn gemms(&self, windows: &Windows, dtype: DType) -> Vec<Gemm> {
        let mut all: Vec<_> = self.parts(windows, dtype).map(|part| part.gemm).collect();
        all.dedup();
        all
    }
}

/// As in `convolution/windows.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Axis {
    out: Divisor,
    taps: Divisor,
    input_dilation: Divisor,
    pitch: i64,
    length: i32,
    stride: i32,
    low: i32,
    dilation: i32,
}

/// As in `convolution/direct.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Shape {
    packs: Divisor,
    lines: Divisor,
    outputs: Divisor,
    group_outputs: Divisor,
    batch_stride: i64,
    group_stride: i64,
    channel_stride: i64,
    n: u64,
    channels: u32,
    taps: u32,
}

/// Axes that a kernel is compiled for.
fn rank(windows: &Windows) -> usize {
    if windows.axes.len() <= 3 { 3 } else { 6 }
}

/// Axes that are not there are 1 long and come first.
fn axes<const RANK: usize>(windows: &Windows) -> [Axis; RANK] {
    let one = Divisor::new(1);
    let none =
        Axis { out: one, taps: one, input_dilation: one, length: 1, stride: 1, ..Axis::default() };
    let mut axes = [none; RANK];
    let mut pitch = 1;
    let of = windows.axes.iter().zip(&windows.spatial).rev();
    for (axis, (window, &out)) in axes.iter_mut().rev().zip(of) {
        *axis = Axis {
            out: Divisor::new(out),
            taps: Divisor::new(window.taps),
            input_dilation: Divisor::new(window.input_dilation),
            pitch,
            length: window.length as i32,
            stride: window.stride as i32,
            low: window.low as i32,
            dilation: window.kernel_dilation as i32,
        };
        pitch *= window.length as i64;
    }
    axes
}

fn windows_arg(args: &mut Args, windows: &Windows) {
    match rank(windows) {
        3 => args.value(axes::<3>(windows)),
        _ => args.value(axes::<6>(windows)),
    };
}

/// Whether there are zeros between the elements of the input.
fn dilated(windows: &Windows) -> bool {
    windows.axes.iter().any(|axis| axis.input_dilation != 1)
}

fn columns_module(size: usize, rank: usize) -> Module {
    Module::new(COLUMNS).define("BYTES", size).define("RANK", rank)
}

fn direct_module(dtype: DType, rank: usize) -> Module {
    Module::of(DIRECT, dtype).define("RANK", rank)
}

pub fn explain(props: &Props, op: &Conv, inputs: &[Option<&Spec>]) -> Result<Explanation> {
    let Plan { windows, dtype, kernel } = plan(props, op, inputs)?;
    let none = |variant, why: &str| Ok(Explanation { variant, why: why.into(), launches: 0 });
    let products = match kernel {
        Kernel::Nothing => return none("nothing", "no elements"),
        Kernel::Zeros => return none("zeros", "nothing is summed"),
        Kernel::Direct => {
            let why = format!(
                "a thread a few elements: {} output(s) a group, each of {} products",
                windows.outputs,
                windows.inner()
            );
            return Ok(Explanation { variant: "direct", why, launches: 1 });
        }
        Kernel::Products(products) => products,
    };
    let parts = products.parts(&windows, dtype).count();
    let first = products.gemms(&windows, dtype).first().map(|gemm| gemm.explain(props));
    let (_, product) = first.unwrap_or_default();
    let (variant, how, each) = match products.cut {
        Cut::Pointwise => ("pointwise", "the input is the columns", 1),
        Cut::Images => ("columns", "columns laid out image by image", 2),
        Cut::Positions(_) => ("columns_spread", "columns laid out in whole packs, sums spread", 3),
    };
    let groups = windows.groups;
    let why = format!("{how}, {parts} part(s) of {groups} group(s): {product}");
    let widened = usize::from(products.depth != windows.inner());
    Ok(Explanation { variant, why, launches: widened + groups * parts * each })
}

pub fn modules(props: &Props, op: &Conv, inputs: &[Option<&Spec>]) -> Result<Vec<Module>> {
    let Plan { windows, dtype, kernel } = plan(props, op, inputs)?;
    Ok(match kernel {
        Kernel::Nothing | Kernel::Zeros => Vec::new(),
        Kernel::Direct => vec![direct_module(dtype, rank(&windows))],
        Kernel::Products(products) => {
            let gemms = products.gemms(&windows, dtype);
            let mut all: Vec<_> = gemms.iter().flat_map(|gemm| gemm.modules(props)).collect();
            if products.cut != Cut::Pointwise {
                all.push(columns_module(dtype.size(), rank(&windows)));
            }
            all
        }
    })
}

/// Whether a launch has nothing of the library's to open or load.
pub fn is_warm(props: &Props, op: &Conv, inputs: &[Option<&Spec>]) -> Result<bool> {
    let Plan { windows, dtype, kernel } = plan(props, op, inputs)?;
    Ok(match kernel {
        Kernel::Products(products) => {
            products.gemms(&windows, dtype).iter().all(|gemm| gemm.is_warm(props))
        }
        _ => true,
    })
}

/// The pieces, then what the product needs.
pub fn workspace(props: &Props, op: &Conv, inputs: &[Option<&Spec>]) -> Result<usize> {
    let Plan { windows, dtype, kernel } = plan(props, op, inputs)?;
    let Kernel::Products(products) = kernel else { return Ok(0) };
    let gemms = products.gemms(&windows, dtype);
    let product = gemms.iter().map(|gemm| gemm.workspace(props)).max().unwrap_or(0);
    let pieces = products.pieces(&windows, dtype);
    Ok(pieces.iter().fold(product, |sum, bytes| sum.saturating_add(*bytes)))
}

/// # Safety
/// As for [`crate::Device::execute`].
pub unsafe fn launch(cx: &Context, op: &Conv, call: &Call) -> Result<()> {
    let (Some(x), Some(kernel), Some(y)) = (call.input(0), call.input(1), call.outputs.first())
    else {
        return stray("conv");
    };
    let plan = plan(cx.props(), op, &[Some(x.spec), Some(kernel.spec)])?;
    let at = [x.addr, kernel.addr, y.addr];
    // SAFETY: the caller vouches for the views, which `infer` has passed, and for the workspace.
    unsafe {
        match plan.kernel {
            Kernel::Nothing => Ok(()),
            Kernel::Zeros => cx.memset_zero(y.addr, y.spec.bytes()),
            Kernel::Direct => launch_direct(cx, &plan, at),
            Kernel::Products(products) => launch_products(cx, &plan, &products, at, call.workspace),
        }
    }
}

/// # Safety
/// The addresses are those of the input, the kernel and the output of `plan`.
unsafe fn launch_direct(cx: &Context, plan: &Plan, [x, kernel, y]: [u64; 3]) -> Result<()> {
    let windows = &plan.windows;
    let all_outputs = windows.groups * windows.outputs;
    let width = windows.spatial.last().copied().unwrap_or(1);
    let (packs, lines) = (width.div_ceil(EACH), windows.positions() / width);
    let slides = windows.axes.last().is_some_and(|a| (a.stride, a.kernel_dilation) == (1, 1));
    let four = windows.outputs.is_multiple_of(4);
    let (entry, outs) = match (dilated(windows), slides, four) {
        (true, ..) => ("dilated_1", 1),
        (false, true, true) => ("slide_4", 4),
        (false, true, false) => ("slide_1", 1),
        (false, false, true) => ("plain_4", 4),
        (false, false, false) => ("plain_1", 1),
    };
    let n = windows.batch * all_outputs / outs * lines * packs;
    let mut args = Args::new();
    args.ptr(x).ptr(kernel).ptr(y);
    windows_arg(&mut args, windows);
    args.value(Shape {
        packs: Divisor::new(packs),
        lines: Divisor::new(lines),
        outputs: Divisor::new(all_outputs / outs),
        group_outputs: Divisor::new(windows.outputs / outs),
        batch_stride: windows.batch_stride as i64,
        group_stride: windows.group_stride as i64,
        channel_stride: windows.channel() as i64,
        n: n as u64,
        channels: windows.channels as u32,
        taps: windows.taps() as u32,
    });
    let function = cx.function(&direct_module(plan.dtype, rank(windows)), entry)?;
    let grid = Grid::new(n.div_ceil(THREADS as usize), THREADS)?;
    // SAFETY: these are the entry's parameters, and the caller vouches for the addresses.
    unsafe { cx.launch(&function, grid, &mut args) }
}

/// # Safety
/// As for [`launch_direct`], and the workspace is as large as [`workspace`] said.
unsafe fn launch_products(
    cx: &Context,
    plan: &Plan,
    products: &Products,
    [x, kernel, y]: [u64; 3],
    workspace: u64,
) -> Result<()> {
    let (windows, dtype) = (&plan.windows, plan.dtype);
    let size = dtype.size();
    let module = columns_module(size, rank(windows));
    let [widened, columns, sums] = products.pieces(windows, dtype).map(|bytes| bytes as u64);
    let columns_at = workspace + widened;
    let sums_at = columns_at + columns;
    let scratch = sums_at + sums;
    let away = |base: u64, elements: usize| base + (elements * size) as u64;
    let (positions, depth) = (windows.positions(), products.depth);
    let all_outputs = windows.groups * windows.outputs;

    let kernel = if widened > 0 {
        let mut args = Args::new();
        args.ptr(kernel).ptr(workspace).u64(all_outputs as u64);
        args.value(Divisor::new(depth)).u64(windows.inner() as u64);
        let grid = Grid::new((all_outputs * depth).div_ceil(THREADS as usize), THREADS)?;
        let function = cx.function(&module, "widen_rows")?;
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
        for part in products.parts(windows, dtype) {
            let Part { first, gemm, .. } = part;
            let image_y = away(y, first * all_outputs * positions);
            // SAFETY: the caller's promise; the parts lie within the operands.
            unsafe {
                match products.cut {
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
    let module = columns_module(plan.dtype.size(), rank(windows));
    let entry = if dilated(windows) { "columns_dilated" } else { "columns_plain" };
    let function = cx.function(&module, entry)?;
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
    let module = columns_module(plan.dtype.size(), rank(windows));
    let function = cx.function(&module, "spread")?;
    // SAFETY: these are the entry's parameters, and the caller vouches for the addresses.
    unsafe { cx.launch(&function, Grid::new_3d(blocks, THREADS)?, &mut args) }
}

pub fn all_modules() -> Vec<Module> {
    let mut all = Vec::new();
    for rank in [3, 6] {
        all.extend([2, 4, 8].map(|size| columns_module(size, rank)));
        let floats = DType::ALL.into_iter().filter(|dtype| dtype.is_float());
        all.extend(floats.map(|dtype| direct_module(dtype, rank)));
    }
    all
}
