//! `layer_norm` and `rms_norm`, with the residual's sum, in one launch.

use super::launch::{Args, Context, Grid};
use super::modules::Module;
use super::props::Props;
use crate::call::Call;
use crate::device::Explanation;
use crate::error::{Error, Result};
use crate::op::{self, FusedNorm, Op};
use crate::spec::{DType, Spec};

const SOURCE: &str = "norm/norm.cu";
/// What an entry's threads hold in registers.
const WARP_HOLDS: usize = 1024;
const BLOCK_HOLDS: usize = 4096;
const LARGE_HOLDS: usize = 16384;
/// Up to here a warp is as quick as a block, however few the rows.
const SHORT: usize = 256;

/// As in `norm/norm.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Norm {
    x: u64,
    residual: u64,
    gamma: u64,
    beta: u64,
    y: u64,
    sum: u64,
    rows: i64,
    width: i32,
    centred: i32,
    epsilon: f32,
    padding: i32,
}

/// A norm of x in the kernel that reads x, as in `norm/prologue.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Prologue {
    gamma: u64,
    beta: u64,
    epsilon: f32,
    centred: i32,
}

impl Prologue {
    /// That of the call's op; all zeros where it has none.
    pub fn of(call: &Call) -> Self {
        match (call.op.fused_norm(), call.op.fused_gamma()) {
            (Some(norm), Some(at)) => Prologue::at(call, norm, at),
            _ => Prologue::default(),
        }
    }

    /// One whose gamma stands there among the inputs, and beta behind it.
    pub fn at(call: &Call, norm: FusedNorm, at: usize) -> Self {
        let addr = |i| call.input(i).map_or(0, |v| v.addr);
        Prologue {
            gamma: addr(at),
            beta: addr(at + 1),
            epsilon: norm.epsilon as f32,
            centred: i32::from(norm.centred),
        }
    }
}

/// What an explanation says of a fused norm.
pub(super) fn explain_prologue(norm: Option<FusedNorm>) -> &'static str {
    match norm {
        None => "",
        Some(FusedNorm { centred: true, .. }) => ", with the layer norm of x in its prologue",
        Some(FusedNorm { centred: false, .. }) => ", with the RMS norm of x in its prologue",
    }
}

struct Plan {
    module: Module,
    entry: &'static str,
    variant: &'static str,
    why: String,
    grid: Grid,
    rows: usize,
    width: usize,
}

fn plan(props: &Props, inputs: &[Option<&Spec>]) -> Result<Plan> {
    let Some(Some(x)) = inputs.first() else {
        return Err(Error::Internal("a norm without x".into()));
    };
    let (rows, width) = (x.rows(), x.last());
    if width > i32::MAX as usize / 2 {
        return Err(Error::unsupported("norm", "the last axis is at most 2^30 - 1 long"));
    }
    let many = rows >= 4 * props.sms as usize;
    let whole = width * x.dtype.size() % 16 == 0;
    let (variant, entry, threads, blocks, why) = match () {
        // A block of four warps where there are rows enough to fill the card with such blocks.
        () if width <= SHORT || (many && width <= WARP_HOLDS) => {
            let threads = if many { 128 } else { 32 };
            let blocks = rows.div_ceil(threads as usize / 32);
            ("warp", ["norm_warp", "norm_warp_odd"], threads, blocks, "a warp holds a row")
        }
        () if width <= BLOCK_HOLDS => {
            ("block", ["norm_block", "norm_block_odd"], 256, rows, "a block of 256 holds a row")
        }
        () if width <= LARGE_HOLDS => {
            ("large", ["norm_large", "norm_large_odd"], 1024, rows, "a block of 1024 holds a row")
        }
        () => {
            let why = "a row does not fit the registers of a block and is read again";
            ("streamed", ["norm_streamed", "norm_streamed_odd"], 1024, rows, why)
        }
    };
    let mut why = why.to_string();
    if !whole {
        why.push_str(", by elements: it is no whole number of 16-byte packs");
    }
    Ok(Plan {
        module: Module::of(SOURCE, x.dtype),
        entry: entry[usize::from(!whole)],
        variant,
        why,
        grid: Grid::new(if width == 0 { 0 } else { blocks }, threads)?,
        rows,
        width,
    })
}

pub fn explain(props: &Props, _: &Op, inputs: &[Option<&Spec>]) -> Result<Explanation> {
    let Plan { variant, why, grid, .. } = plan(props, inputs)?;
    Ok(Explanation { variant, why, launches: usize::from(grid.blocks[0] > 0) })
}

pub fn modules(props: &Props, _: &Op, inputs: &[Option<&Spec>]) -> Result<Vec<Module>> {
    Ok(vec![plan(props, inputs)?.module])
}

/// # Safety
/// As for [`crate::Device::execute`].
pub unsafe fn launch(cx: &Context, op: &Op, call: &Call) -> Result<()> {
    let (op::Norm { epsilon }, centred) = match op {
        Op::LayerNorm(norm) => (norm, true),
        Op::RmsNorm(norm) => (norm, false),
        other => return Err(Error::Internal(format!("{} is no norm", other.name()))),
    };
    let plan = plan(cx.props(), &[call.input(0).map(|v| v.spec)])?;
    if plan.grid.blocks[0] == 0 {
        return Ok(());
    }
    let addr = |i| call.input(i).map_or(0, |v| v.addr);
    let out = |i: usize| call.outputs.get(i).map_or(0, |v| v.addr);
    let mut args = Args::new();
    args.value(Norm {
        x: addr(0),
        residual: addr(if centred { 3 } else { 2 }),
        gamma: addr(1),
        beta: if centred { addr(2) } else { 0 },
        y: out(0),
        sum: out(1),
        rows: plan.rows as i64,
        width: plan.width as i32,
        centred: i32::from(centred),
        epsilon: *epsilon as f32,
        padding: 0,
    });
    let function = cx.function(&plan.module, plan.entry)?;
    // SAFETY: this is the entry's parameter, and the caller vouches for the addresses.
    unsafe { cx.launch(&function, plan.grid, &mut args) }
}

/// Where the operands of a norm lie that another op does last; no beta is 0.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows {
    pub x: u64,
    pub gamma: u64,
    pub beta: u64,
    pub y: u64,
}

pub(super) fn rows_module(dtype: DType) -> Module {
    Module::of(SOURCE, dtype)
}

/// # Safety
/// The operands are live device memory: x and y of `x`'s shape, gamma and beta of its last axis.
pub(super) unsafe fn launch_rows(
    cx: &Context,
    x: &Spec,
    at: Rows,
    centred: bool,
    epsilon: f64,
) -> Result<()> {
    let plan = plan(cx.props(), &[Some(x)])?;
    if plan.grid.blocks[0] == 0 {
        return Ok(());
    }
    let mut args = Args::new();
    args.value(Norm {
        x: at.x,
        residual: 0,
        gamma: at.gamma,
        beta: at.beta,
        y: at.y,
        sum: 0,
        rows: plan.rows as i64,
        width: plan.width as i32,
        centred: i32::from(centred),
        epsilon: epsilon as f32,
        padding: 0,
    });
    let function = cx.function(&plan.module, plan.entry)?;
    // It touches nothing before what is ahead of it has ended.
    // SAFETY: this is the entry's parameter, and the caller vouches for the addresses.
    unsafe { cx.launch(&function, plan.grid.early(true), &mut args) }
}

pub fn all_modules() -> Vec<Module> {
    [DType::F32, DType::BF16, DType::F16].map(|t| Module::of(SOURCE, t)).to_vec()
}
