//! `conv`: by products of the kernel with what the windows see ([`super::columns`]), or a thread a few
//! elements, where groups leave little to multiply; or by cuDNN ([`super::dnn`]), where it is there and
//! was measured to be quicker.

use std::sync::Arc;

use super::columns::{self, Cut, Products, ROWS, alone};
use super::correlation::Convolution;
use super::dnn;
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
use crate::spec::{DType, Spec};

const DIRECT: &str = "convolution/direct.cu";
const THREADS: u32 = 256;
/// Neighbours that a thread of the direct kernel computes.
const EACH: usize = 4;
/// Outputs of a group from which a product pays.
const FEW_OUTPUTS: usize = 16;
/// Multiplications up to which one launch is the quickest.
const LITTLE_WORK: f64 = 1_048_576.0;
/// Positions of a batch from which cuDNN is the quicker in f32, and in 16-bit types also by steps.
const MANY_POSITIONS: usize = 4096;
/// Positions from which it is for a single image, and what is summed from which it no longer is, in f32.
const LARGE_IMAGE: usize = 16_384;
const MANY_SUMMED: usize = 2048;
/// Channels that it multiplies at once in 16-bit types.
const CHANNELS: usize = 8;
/// The kernels count along an axis, and the elements of a channel, in 32 bits with room for steps
/// beyond either end.
const LONGEST: i64 = 1 << 29;

/// How it is computed.
enum Kernel {
    Library(Arc<dnn::Plan>),
    /// No elements to compute.
    Nothing,
    /// Nothing to sum up.
    Zeros,
    Direct,
    Products(Products),
}

pub(super) struct Plan {
    pub windows: Windows,
    pub dtype: DType,
    kernel: Kernel,
    /// Why it is not cuDNN's, where that would be quicker.
    refused: Option<String>,
}

impl Plan {
    /// What cuDNN is asked for, where it takes such and is quicker than what we would do ourselves: by
    /// the times of both in `bench/results/products.md`.
    fn for_library(&self) -> Option<Convolution> {
        let (windows, dtype) = (&self.windows, self.dtype);
        let positions = windows.batch * windows.positions();
        let half = matches!(dtype, DType::F16 | DType::BF16);
        let packs = half && windows.channels.is_multiple_of(CHANNELS);
        let quicker = match &self.kernel {
            Kernel::Library(_) | Kernel::Nothing | Kernel::Zeros => false,
            Kernel::Direct if windows.work() <= LITTLE_WORK || windows.groups == 1 => false,
            Kernel::Direct => {
                // For a channel each it has kernels of their own in f16 alone.
                let single = (windows.channels, windows.outputs) == (1, 1);
                packs || single && dtype == DType::F16 && positions >= MANY_POSITIONS
            }
            Kernel::Products(_) if alone(windows) => false,
            // The columns of a small single image are soon laid out, and the sums are where they belong.
            Kernel::Products(Products { cut: Cut::Images, .. })
                if windows.batch == 1 && positions < LARGE_IMAGE =>
            {
                false
            }
            Kernel::Products(_) if half => {
                let slides = windows.axes.iter().all(|axis| axis.stride == 1);
                packs && windows.taps() > 1 && (slides || positions >= MANY_POSITIONS)
            }
            // Where much is summed, a product hides that its columns were laid out.
            Kernel::Products(_) => {
                dtype == DType::F32 && positions >= MANY_POSITIONS && windows.inner() < MANY_SUMMED
            }
        };
        if quicker { Convolution::of(windows, dtype) } else { None }
    }
}

fn plan(props: &Props, op: &Conv, inputs: &[Option<&Spec>]) -> Result<Plan> {
    let mut plan = own(props, op, inputs)?;
    if let Some(convolution) = plan.for_library() {
        match props.dnn.plan(&convolution) {
            Ok(library) => plan.kernel = Kernel::Library(library),
            Err(why) => plan.refused = Some(why),
        }
    }
    Ok(plan)
}

/// By our own kernels, and without a look at cuDNN.
fn own(props: &Props, op: &Conv, inputs: &[Option<&Spec>]) -> Result<Plan> {
    let [Some(input), Some(kernel), ..] = inputs else { return stray("conv") };
    let outputs = infer(&Op::Conv(op.clone()), inputs)?;
    let Some(out) = outputs.first() else { return stray("conv") };
    let windows = Windows::of(op, input, kernel, out);
    let dtype = input.dtype;
    if out.is_empty() {
        return Ok(Plan { windows, dtype, kernel: Kernel::Nothing, refused: None });
    }
    if windows.inner() == 0 {
        return Ok(Plan { windows, dtype, kernel: Kernel::Zeros, refused: None });
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
        false => Kernel::Products(Products::of(props, &windows, dtype)),
    };
    Ok(Plan { windows, dtype, kernel, refused: None })
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
pub(super) fn rank(windows: &Windows) -> usize {
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

pub(super) fn windows_arg(args: &mut Args, windows: &Windows) {
    match rank(windows) {
        3 => args.value(axes::<3>(windows)),
        _ => args.value(axes::<6>(windows)),
    };
}

/// Whether there are zeros between the elements of the input.
pub(super) fn dilated(windows: &Windows) -> bool {
    windows.axes.iter().any(|axis| axis.input_dilation != 1)
}

fn direct_module(dtype: DType, rank: usize) -> Module {
    Module::of(DIRECT, dtype).define("RANK", rank)
}

pub fn explain(props: &Props, op: &Conv, inputs: &[Option<&Spec>]) -> Result<Explanation> {
    let Plan { windows, dtype, kernel, refused } = plan(props, op, inputs)?;
    let none = |variant, why: &str| Ok(Explanation { variant, why: why.into(), launches: 0 });
    let refused = refused.map_or(String::new(), |why| format!("; not by cuDNN: {why}"));
    let products = match kernel {
        Kernel::Library(library) => {
            let why = format!("by cuDNN, its {}", library.algorithm());
            return Ok(Explanation { variant: "cudnn", why, launches: 1 });
        }
        Kernel::Nothing => return none("nothing", "no elements"),
        Kernel::Zeros => return none("zeros", "nothing is summed"),
        Kernel::Direct => {
            let why = format!(
                "a thread a few elements: {} output(s) a group, each of {} products{refused}",
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
    let why = format!("{how}, {parts} part(s) of {groups} group(s): {product}{refused}");
    let widened = usize::from(products.depth != windows.inner());
    Ok(Explanation { variant, why, launches: widened + groups * parts * each })
}

pub fn modules(props: &Props, op: &Conv, inputs: &[Option<&Spec>]) -> Result<Vec<Module>> {
    let Plan { windows, dtype, kernel, .. } = plan(props, op, inputs)?;
    Ok(match kernel {
        Kernel::Nothing | Kernel::Zeros | Kernel::Library(_) => Vec::new(),
        Kernel::Direct => vec![direct_module(dtype, rank(&windows))],
        Kernel::Products(products) => {
            let gemms = products.gemms(&windows, dtype);
            let mut all: Vec<_> = gemms.iter().flat_map(|gemm| gemm.modules(props)).collect();
            if products.cut != Cut::Pointwise {
                all.push(columns::module(dtype.size(), rank(&windows)));
            }
            all
        }
    })
}

/// Whether a launch has nothing of the libraries' to open or load.
pub fn is_warm(props: &Props, op: &Conv, inputs: &[Option<&Spec>]) -> Result<bool> {
    let plan = own(props, op, inputs)?;
    if let Some(warm) = plan.for_library().and_then(|c| props.dnn.is_warm(&c)) {
        return Ok(warm);
    }
    let Plan { windows, dtype, kernel, .. } = plan;
    Ok(match kernel {
        Kernel::Products(products) => {
            products.gemms(&windows, dtype).iter().all(|gemm| gemm.is_warm(props))
        }
        _ => true,
    })
}

/// The pieces, then what the product needs.
pub fn workspace(props: &Props, op: &Conv, inputs: &[Option<&Spec>]) -> Result<usize> {
    let Plan { windows, dtype, kernel, .. } = plan(props, op, inputs)?;
    let products = match kernel {
        Kernel::Products(products) => products,
        Kernel::Library(library) => return Ok(library.workspace),
        _ => return Ok(0),
    };
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
            Kernel::Products(products) => products.launch(cx, &plan, at, call.workspace),
            Kernel::Library(ref library) => {
                let [x, kernel, y] = at;
                let at = dnn::Addresses { x, kernel, y, workspace: call.workspace };
                cx.props().dnn.launch(cx.stream().raw(), library, at)
            }
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

pub fn all_modules() -> Vec<Module> {
    let mut all = Vec::new();
    for rank in [3, 6] {
        all.extend([2, 4, 8].map(|size| columns::module(size, rank)));
        let floats = DType::ALL.into_iter().filter(|dtype| dtype.is_float());
        all.extend(floats.map(|dtype| direct_module(dtype, rank)));
    }
    all
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::window::tests::props;
    use super::*;

    /// Whether it would be asked of cuDNN: a square image and kernel, as in the benchmark.
    fn asked(
        dtype: DType,
        input: [usize; 3],
        kernel: [usize; 3],
        [stride, pad, groups]: [usize; 3],
    ) -> bool {
        let h200 = Props { l2: 60 << 20, ..props(132, 232_448) };
        let [batch, channels, length] = input;
        let [outputs, each, taps] = kernel;
        let spec = |shape: [usize; 4]| Spec::new(dtype, shape).unwrap();
        let (x, w) = (spec([batch, channels, length, length]), spec([outputs, each, taps, taps]));
        let op = Conv {
            strides: vec![stride; 2],
            padding: vec![vec![pad as i64; 2]; 2],
            input_dilation: vec![1; 2],
            kernel_dilation: vec![1; 2],
            feature_groups: groups,
            batch_groups: 1,
        };
        own(&h200, &op, &[Some(&x), Some(&w)]).unwrap().for_library().is_some()
    }

    #[test]
    fn cudnn_is_asked_where_it_was_quicker() {
        use DType::{BF16, F16, F32, F64};
        for (dtypes, input, kernel, options) in [
            (&[][..], [1, 4, 84], [32, 4, 8], [4, 0, 1]),
            (&[F32], [32, 4, 84], [32, 4, 8], [4, 0, 1]),
            (&[], [32, 32, 20], [64, 32, 4], [2, 0, 1]),
            (&[BF16, F16], [32, 64, 9], [64, 64, 3], [1, 0, 1]),
            (&[F32], [32, 3, 224], [64, 3, 7], [2, 3, 1]),
            (&[F32, BF16, F16], [32, 64, 56], [64, 64, 3], [1, 1, 1]),
            (&[], [32, 256, 56], [64, 256, 1], [1, 0, 1]),
            (&[F32, BF16, F16], [32, 128, 28], [128, 128, 3], [1, 1, 1]),
            (&[BF16, F16], [32, 256, 14], [256, 256, 3], [1, 1, 1]),
            (&[BF16, F16], [32, 512, 7], [512, 512, 3], [1, 1, 1]),
            (&[F16], [32, 256, 56], [256, 1, 3], [1, 1, 256]),
            (&[BF16, F16], [32, 256, 28], [256, 8, 3], [1, 1, 32]),
            (&[], [1, 256, 56], [256, 256, 3], [1, 1, 1]),
            (&[F32, BF16, F16], [1, 64, 256], [64, 64, 3], [1, 1, 1]),
            (&[F32, BF16, F16], [32, 128, 56], [128, 128, 3], [2, 1, 1]),
            (&[F32], [32, 256, 56], [512, 256, 1], [2, 0, 1]),
            (&[F32, BF16, F16], [32, 256, 28], [256, 32, 3], [1, 1, 8]),
            // Too little to sum for a second thought.
            (&[], [2, 8, 9], [8, 8, 3], [1, 1, 1]),
        ] {
            for dtype in [F32, BF16, F16, F64] {
                let got = asked(dtype, input, kernel, options);
                assert_eq!(got, dtypes.contains(&dtype), "{dtype:?} {input:?} {kernel:?}");
            }
        }
    }
}
