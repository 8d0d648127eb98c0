//! `causal_conv1d`: activation and new state in the same launch.

use super::launch::{Args, Context, Grid};
use super::modules::Module;
use super::props::Props;
use super::walk::{Divisor, stray};
use crate::call::Call;
use crate::device::Explanation;
use crate::error::{Error, Result};
use crate::op::CausalConv1d;
use crate::spec::{DType, Spec};

const SOURCE: &str = "conv/conv.cu";
/// These three as in `conv/conv.cu`.
const THREADS: usize = 128;
/// Blocks that a multiprocessor holds at once.
const RESIDENT: usize = 6;
/// Channels of a pack where the last frames stay in registers.
const WINDOW: usize = 4;
/// Frames that a thread takes where there are threads enough: the first K − 1 are read by its
/// neighbour too.
const LONGEST_RUN: usize = 32;

/// As in `conv/conv.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Conv {
    x: u64,
    w: u64,
    b: u64,
    state: u64,
    y: u64,
    last: u64,
    pitch: i64,
    items: u64,
    length: i64,
    run: i64,
    runs: i64,
    channels: i32,
    taps: i32,
    activation: i32,
    padding: i32,
    packs: Divisor,
    per_row: Divisor,
}

struct Plan {
    module: Module,
    entry: &'static str,
    grid: Grid,
    length: usize,
    channels: usize,
    taps: usize,
    packs: usize,
    run: usize,
    runs: usize,
    items: usize,
}

fn plan(props: &Props, inputs: &[Option<&Spec>]) -> Result<Plan> {
    let [Some(x), Some(w), ..] = inputs else { return stray("causal_conv1d") };
    let &[batch, length, channels] = x.shape() else { return stray("causal_conv1d") };
    if channels > i32::MAX as usize {
        return Err(Error::unsupported("causal_conv1d", "at most 2^31 - 1 channels"));
    }
    let taps = w.rows();
    let wide = 16 / x.dtype.size();
    let (pack, entry) = match taps {
        2 if channels % WINDOW == 0 => (WINDOW, "conv_2"),
        3 if channels % WINDOW == 0 => (WINDOW, "conv_3"),
        4 if channels % WINDOW == 0 => (WINDOW, "conv_4"),
        _ if channels % wide == 0 => (wide, "conv_any"),
        _ => (1, "conv_odd"),
    };
    let packs = channels / pack;
    // As long as may be, but so that the card is full: in as few rounds as there must be, and none of
    // them for a few blocks alone.
    let lanes = batch.saturating_mul(packs).max(1);
    let round = RESIDENT * THREADS * props.sms as usize;
    let rounds = length.saturating_mul(lanes).div_ceil(round * LONGEST_RUN).max(1);
    let run = length.div_ceil((rounds * round / lanes).max(1)).clamp(1, LONGEST_RUN);
    let runs = length.div_ceil(run).max(1);
    let items = batch * packs * runs;
    Ok(Plan {
        module: Module::of(SOURCE, x.dtype),
        entry,
        grid: Grid::new(items.div_ceil(THREADS), THREADS as u32)?,
        length,
        channels,
        taps,
        packs,
        run,
        runs,
        items,
    })
}

pub fn explain(props: &Props, _: &CausalConv1d, inputs: &[Option<&Spec>]) -> Result<Explanation> {
    let plan = plan(props, inputs)?;
    let (variant, how) = match plan.entry {
        "conv_odd" => ("elements", "rows of channels are no whole number of packs"),
        "conv_any" => ("packs", "16 bytes a load, frames read again from the cache"),
        _ => ("window", "four channels a load, the last frames' sums in registers"),
    };
    let why = format!("{how}; {} run(s) of {} frame(s) a channel", plan.runs, plan.run);
    Ok(Explanation { variant, why, launches: usize::from(plan.items > 0) })
}

/// Whether input `i`, which is x, may be a part of each row of another tensor.
pub fn reads_rows(i: usize) -> bool {
    i == 0
}

pub fn modules(props: &Props, _: &CausalConv1d, inputs: &[Option<&Spec>]) -> Result<Vec<Module>> {
    Ok(vec![plan(props, inputs)?.module])
}

/// # Safety
/// As for [`crate::Device::execute`].
pub unsafe fn launch(cx: &Context, op: &CausalConv1d, call: &Call) -> Result<()> {
    let (Some(x), Some(w), [y, last]) = (call.input(0), call.input(1), call.outputs) else {
        return stray("causal_conv1d");
    };
    let plan = plan(cx.props(), &[Some(x.spec), Some(w.spec)])?;
    if plan.items == 0 {
        return Ok(());
    }
    let addr = |i: usize| call.input(i).map_or(0, |v| v.addr);
    let mut args = Args::new();
    args.value(Conv {
        x: x.addr,
        w: w.addr,
        b: addr(2),
        state: addr(3),
        y: y.addr,
        last: last.addr,
        pitch: x.pitch() as i64,
        items: plan.items as u64,
        length: plan.length as i64,
        run: plan.run as i64,
        runs: plan.runs as i64,
        channels: plan.channels as i32,
        taps: plan.taps as i32,
        activation: op.activation as i32,
        padding: 0,
        packs: Divisor::new(plan.packs),
        per_row: Divisor::new(plan.packs * plan.runs),
    });
    let function = cx.function(&plan.module, plan.entry)?;
    // SAFETY: this is the entry's parameter, and the caller vouches for the addresses.
    unsafe { cx.launch(&function, plan.grid.early(true), &mut args) }
}

pub fn all_modules() -> Vec<Module> {
    [DType::F32, DType::BF16, DType::F16].map(|t| Module::of(SOURCE, t)).to_vec()
}
