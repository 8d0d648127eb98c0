//! `rope`: one launch for up to 256 pairs of a head, which is all of them up to 512 features.

use super::launch::{Args, Context, Grid};
use super::modules::Module;
use super::props::Props;
use super::walk::{Divisor, stray};
use crate::call::Call;
use crate::device::Explanation;
use crate::error::{Error, Result};
use crate::op;
use crate::spec::{DType, Spec};

const SOURCE: &str = "rope/rope.cu";
/// As in `rope/rope.cu`, and the blocks of packs that a multiprocessor holds at once.
const THREADS: usize = 128;
const RESIDENT: usize = 8;
/// Pairs whose turns a launch takes by value.
const PAIRS: usize = 256;

/// As in `rope/rope.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Rope {
    x: u64,
    positions: u64,
    y: u64,
    items: u64,
    length: u64,
    heads: i64,
    features: i64,
    slots: Divisor,
    splits: Divisor,
    frames: Divisor,
    first: i32,
    pairs: i32,
    dims: i32,
    interleaved: i32,
    rank: i32,
    padding: i32,
    turn: [u64; PAIRS],
}

struct Plan {
    module: Module,
    entry: &'static str,
    /// Features that lie in one access, and pairs of a thread.
    pack: usize,
    frames: usize,
    length: usize,
    heads: usize,
    features: usize,
    dims: usize,
    /// Threads that share the heads of a pair.
    splits: usize,
    launches: usize,
}

fn plan(props: &Props, op: &op::Rope, inputs: &[Option<&Spec>]) -> Result<Plan> {
    let Some(Some(x)) = inputs.first() else { return stray("rope") };
    let &[batch, length, heads, features] = x.shape() else { return stray("rope") };
    if features > i32::MAX as usize {
        return Err(Error::unsupported("rope", "at most 2^31 - 1 features"));
    }
    let dims = op.dims.unwrap_or(features);
    let frames = batch * length;
    let wide = 16 / x.dtype.size();
    let whole = features.is_multiple_of(wide) && (dims / 2).is_multiple_of(wide);
    // By packs a thread finds the sines of many pairs before it writes, which is worth it where there are
    // threads enough.
    let slots = |pack: usize| (features - dims / 2) / pack;
    let busy = THREADS * props.sms as usize;
    let packs = whole && frames.saturating_mul(slots(wide)).saturating_mul(heads) >= 4 * busy;
    let (pack, entry, wanted) = match (packs, op.interleaved) {
        (false, _) => (1, "rope", 16 * busy),
        (true, false) => (wide, "rope_halves", RESIDENT * busy),
        (true, true) => (wide, "rope_neighbours", RESIDENT * busy),
    };
    // A sine and a cosine serve as many heads as the card can spare threads for.
    let lanes = frames.saturating_mul(slots(pack)).max(1);
    let splits = wanted.div_ceil(lanes).clamp(1, heads.max(1));
    let launches = if x.is_empty() { 0 } else { (dims / 2).div_ceil(PAIRS).max(1) };
    let module = Module::of(SOURCE, x.dtype);
    Ok(Plan { module, entry, pack, frames, length, heads, features, dims, splits, launches })
}

pub fn explain(props: &Props, op: &op::Rope, inputs: &[Option<&Spec>]) -> Result<Explanation> {
    let plan = plan(props, op, inputs)?;
    let each = plan.heads.div_ceil(plan.splits.max(1));
    let why = format!(
        "angles as 64-bit fractions of a turn; {} pair(s) a thread, a sine and a cosine serve {each} \
         head(s), a launch up to {PAIRS} pairs",
        plan.pack
    );
    let variant = if plan.pack > 1 { "packs" } else { "turn" };
    Ok(Explanation { variant, why, launches: plan.launches })
}

pub fn modules(props: &Props, op: &op::Rope, inputs: &[Option<&Spec>]) -> Result<Vec<Module>> {
    Ok(vec![plan(props, op, inputs)?.module])
}

/// # Safety
/// As for [`crate::Device::execute`].
pub unsafe fn launch(cx: &Context, op: &op::Rope, call: &Call) -> Result<()> {
    let (Some(x), Some(positions), [y]) = (call.input(0), call.input(1), call.outputs) else {
        return stray("rope");
    };
    let plan = plan(cx.props(), op, &[Some(x.spec)])?;
    if plan.launches == 0 {
        return Ok(());
    }
    let turns: Vec<u64> = op.turns(plan.dims).collect();
    let function = cx.function(&plan.module, plan.entry)?;
    for i in 0..plan.launches {
        let first = i * PAIRS;
        let part = &turns[first..turns.len().min(first + PAIRS)];
        let mut turn = [0; PAIRS];
        turn[..part.len()].copy_from_slice(part);
        // The first launch moves what does not turn.
        let slots = (part.len() + if i == 0 { plan.features - plan.dims } else { 0 }) / plan.pack;
        let items = plan.frames * plan.splits * slots;
        let mut args = Args::new();
        args.value(Rope {
            x: x.addr,
            positions: positions.addr,
            y: y.addr,
            items: items as u64,
            length: plan.length as u64,
            heads: plan.heads as i64,
            features: plan.features as i64,
            slots: Divisor::new(slots),
            splits: Divisor::new(plan.splits),
            frames: Divisor::new(plan.length),
            first: first as i32,
            pairs: part.len() as i32,
            dims: plan.dims as i32,
            interleaved: i32::from(op.interleaved),
            rank: positions.spec.rank() as i32,
            padding: 0,
            turn,
        });
        let grid = Grid::new(items.div_ceil(THREADS), THREADS as u32)?;
        // SAFETY: this is the entry's parameter, and the caller vouches for the addresses.
        unsafe { cx.launch(&function, grid, &mut args) }?;
    }
    Ok(())
}

pub fn all_modules() -> Vec<Module> {
    [DType::F32, DType::BF16, DType::F16].map(|t| Module::of(SOURCE, t)).to_vec()
}
