//! `selective_scan`: one launch, in which frames are shared out too where channels are too few to
//! fill the card; two where frames are many and channels are few; and one more for a norm over rows
//! that do not fit a block.

use super::launch::{Args, Context, Grid};
use super::modules::Module;
use super::norm;
use super::props::Props;
use super::walk::stray;
use crate::call::Call;
use crate::device::Explanation;
use crate::error::{Error, Result};
use crate::op::{NormKind, SelectiveScan};
use crate::spec::{DType, Spec};

const SOURCE: &str = "scan/scan.cu";
const THREADS: usize = 256;
const WARP: usize = 32;
/// What a block of whole rows may have.
const ROW_THREADS: usize = 1024;
const ROW_SHARED: usize = 96 << 10;
const SHARED: usize = 40 << 10;
/// Frames of a tile that a thread goes through.
const STEPS: usize = 32;
/// Warps a multiprocessor that keep it busy.
const WARPS: usize = 12;
/// Sets of warps among which a block shares out its frames.
const SPLITS: usize = 8;
/// Up to so many frames they are shared out within a block, in one launch.
const ONE_LAUNCH: usize = 256;
/// The least that a block takes of a window that is cut into chunks, and the most chunks, since
/// each block goes through those before it.
const CHUNK: usize = 64;
const CHUNKS: usize = 64;
/// A row a block leaves most of the card idle where rows are few; up to so many frames that is
/// quicker than one more launch.
const ROW_FRAMES: usize = 4;

/// As in `scan/scan.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Scan {
    x: u64,
    dt: u64,
    a: u64,
    b: u64,
    c: u64,
    d: u64,
    z: u64,
    bias: u64,
    state: u64,
    residual: u64,
    gamma: u64,
    beta: u64,
    y: u64,
    normed: u64,
    h: u64,
    carry: u64,
    elapsed: u64,
    length: i64,
    chunk: i64,
    channels: i32,
    states: i32,
    tiles: i32,
    chunks: i32,
    wide: i32,
    groups: i32,
    splits: i32,
    steps: i32,
    a_f32: i32,
    d_f32: i32,
    bias_f32: i32,
    softplus: i32,
    clamp: i32,
    centred: i32,
    low: f32,
    high: f32,
    epsilon: f32,
    padding: i32,
}

/// A module of the source: states of a lane, lanes of a channel (0 where the launch says), the most
/// threads of a block, how many such blocks a multiprocessor is to hold, and the frames of a tile
/// that a thread has registers to bring in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kernel {
    states: usize,
    groups: usize,
    most: usize,
    blocks: usize,
    ahead: usize,
}

const KERNELS: [Kernel; 6] = [
    Kernel { states: 4, groups: 4, most: THREADS, blocks: 2, ahead: 8 },
    Kernel { states: 4, groups: 0, most: THREADS, blocks: 2, ahead: 8 },
    Kernel { states: 8, groups: 0, most: THREADS, blocks: 2, ahead: 8 },
    Kernel { states: 4, groups: 0, most: ROW_THREADS, blocks: 1, ahead: 4 },
    Kernel { states: 8, groups: 0, most: ROW_THREADS, blocks: 1, ahead: 4 },
    Kernel { states: 16, groups: 0, most: ROW_THREADS, blocks: 1, ahead: 4 },
];

impl Kernel {
    fn module(self, dtype: DType) -> Module {
        Module::of(SOURCE, dtype)
            .define("STATES", self.states)
            .define("GROUPS", self.groups)
            .define("MOST", self.most)
            .define("BLOCKS", self.blocks)
            .define("AHEAD", self.ahead)
    }

    /// Lanes of a channel that has so many states.
    fn lanes(self, states: usize) -> usize {
        states.max(1).div_ceil(self.states).next_power_of_two()
    }
}

/// How lanes, warps and blocks share the work.
#[derive(Debug, Clone, Copy)]
struct Layout {
    kernel: Kernel,
    /// Lanes of a channel.
    groups: usize,
    /// Channels of a block.
    wide: usize,
    splits: usize,
    steps: usize,
    chunks: usize,
}

impl Layout {
    /// Bytes of shared memory.
    fn shared(&self) -> usize {
        let frames = self.splits * self.steps;
        let padded = self.groups * self.kernel.states;
        let planes = 3 * (frames * self.wide).next_multiple_of(4) + 2 * frames * padded;
        4 * (planes + self.splits * self.wide * (padded + 1))
    }

    fn threads(&self) -> usize {
        self.splits * self.wide * self.groups
    }

    /// With as many frames a tile as there are, or as fit.
    fn fitting(mut self, frames: usize, limit: usize) -> Option<Self> {
        let most = STEPS.min(self.kernel.ahead * self.groups);
        let all = frames.div_ceil(self.splits).clamp(1, most);
        self.steps = if all > 4 { all.next_multiple_of(4).min(most) } else { all };
        while self.shared() > limit && self.steps > 1 {
            self.steps /= 2;
        }
        (self.shared() <= limit).then_some(self)
    }
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    dtype: DType,
    batch: usize,
    length: usize,
    channels: usize,
    states: usize,
}

impl Shape {
    fn of(inputs: &[Option<&Spec>]) -> Result<Self> {
        let [Some(x), Some(_), Some(a), ..] = inputs else { return stray("selective_scan") };
        let &[batch, length, channels] = x.shape() else { return stray("selective_scan") };
        if channels > i32::MAX as usize / 2 {
            return Err(Error::unsupported("selective_scan", "at most 2^30 - 1 channels"));
        }
        Ok(Shape { dtype: x.dtype, batch, length, channels, states: a.last() })
    }
}

struct Plan {
    shape: Shape,
    layout: Layout,
    /// Frames of a chunk.
    chunk: usize,
    tiles: usize,
    /// The norm is done in the same launch, or in one more.
    norm_inside: bool,
    norm_after: bool,
    why: String,
}

/// A block that has whole rows, for the norm.
fn row_layout(shape: &Shape) -> Option<Layout> {
    KERNELS.into_iter().filter(|k| k.most == ROW_THREADS).find_map(|kernel| {
        let groups = kernel.lanes(shape.states);
        if groups > WARP {
            return None;
        }
        let wide = shape.channels.next_multiple_of(WARP / groups);
        let layout = Layout { kernel, groups, wide, splits: 1, steps: 1, chunks: 1 };
        if wide > ROW_THREADS || layout.threads() > ROW_THREADS {
            return None;
        }
        layout.fitting(shape.length, ROW_SHARED)
    })
}

fn scan_layout(props: &Props, shape: &Shape) -> Layout {
    let kernel = match shape.states {
        16 => KERNELS[0],
        0..=128 => KERNELS[1],
        _ => KERNELS[2],
    };
    let groups = kernel.lanes(shape.states);
    let per_warp = WARP / groups;
    let sms = props.sms as usize;
    let warps = shape.batch.saturating_mul(shape.channels.div_ceil(per_warp)).max(1);
    let wanted = (WARPS * sms).div_ceil(warps);
    let (mut splits, mut chunks) = (1, 1);
    if wanted > 1 && shape.length > ONE_LAUNCH {
        chunks = wanted.min(shape.length / CHUNK).min(CHUNKS);
    } else if wanted > 1 {
        let most = wanted.min(shape.length / 4).min(kernel.most / WARP).clamp(1, SPLITS);
        splits = 1 << most.ilog2();
    }
    let mut wide = (kernel.most / splits / groups).max(per_warp);
    let blocks = |wide: usize| {
        shape.channels.div_ceil(wide).saturating_mul(shape.batch).saturating_mul(chunks)
    };
    while wide > per_warp && (blocks(wide) < sms || wide / 2 >= shape.channels) {
        wide /= 2;
    }
    let layout = Layout { kernel, groups, wide, splits, steps: 1, chunks };
    layout.fitting(shape.length.div_ceil(chunks), SHARED).unwrap_or(layout)
}

fn plan(props: &Props, op: &SelectiveScan, inputs: &[Option<&Spec>]) -> Result<Plan> {
    let shape = Shape::of(inputs)?;
    let has_norm = op.norm.is_some() && shape.batch * shape.length * shape.channels > 0;
    let worth = shape.length <= ROW_FRAMES || 2 * shape.batch >= props.sms as usize;
    let row = if has_norm && worth { row_layout(&shape) } else { None };
    let layout = row.unwrap_or_else(|| scan_layout(props, &shape));
    let mut why = format!(
        "{} state(s) a lane, {} channel(s) a block, frames among {} set(s) of warps",
        layout.kernel.states, layout.wide, layout.splits
    );
    if layout.chunks > 1 {
        why.push_str(&format!(
            " and {} chunks: a launch for what each makes of a state of zero, and one from there",
            layout.chunks
        ));
    }
    match (has_norm, row.is_some(), worth) {
        (false, ..) => {}
        (_, true, _) => why.push_str("; the norm in the same launch, as a row fits a block"),
        (_, _, true) => {
            why.push_str("; the norm in one more launch, as a row does not fit a block")
        }
        _ => {
            why.push_str("; the norm in one more launch, as rows are too few to have a block each")
        }
    }
    Ok(Plan {
        shape,
        layout,
        chunk: shape.length.div_ceil(layout.chunks),
        tiles: shape.channels.div_ceil(layout.wide),
        norm_inside: row.is_some(),
        norm_after: has_norm && row.is_none(),
        why,
    })
}

impl Plan {
    fn blocks(&self) -> usize {
        // Without states there is nothing to scan, but y has to be written all the same.
        self.tiles.saturating_mul(self.layout.chunks).saturating_mul(self.shape.batch)
    }

    fn variant(&self) -> &'static str {
        match self.layout {
            _ if self.norm_inside => "rows",
            Layout { chunks: 2.., .. } => "chunks",
            Layout { splits: 2.., .. } => "splits",
            _ => "channels",
        }
    }

    /// Bytes of what chunks hand on, and of their times.
    fn carries(&self) -> [usize; 2] {
        if self.layout.chunks == 1 {
            return [0; 2];
        }
        let Shape { batch, channels, states, .. } = self.shape;
        let cells = batch.saturating_mul(self.layout.chunks).saturating_mul(channels);
        [cells.saturating_mul(states.saturating_mul(4)), cells.saturating_mul(4)]
            .map(|bytes| bytes.saturating_add(255) & !255)
    }
}

pub fn explain(props: &Props, op: &SelectiveScan, inputs: &[Option<&Spec>]) -> Result<Explanation> {
    let plan = plan(props, op, inputs)?;
    let launches = match plan.blocks() {
        0 => 0,
        _ => 1 + usize::from(plan.layout.chunks > 1) + usize::from(plan.norm_after),
    };
    Ok(Explanation { variant: plan.variant(), why: plan.why, launches })
}

pub fn modules(props: &Props, op: &SelectiveScan, inputs: &[Option<&Spec>]) -> Result<Vec<Module>> {
    let plan = plan(props, op, inputs)?;
    let mut modules = vec![plan.layout.kernel.module(plan.shape.dtype)];
    if plan.norm_after {
        modules.push(norm::rows_module(plan.shape.dtype));
    }
    Ok(modules)
}

pub fn workspace(props: &Props, op: &SelectiveScan, inputs: &[Option<&Spec>]) -> Result<usize> {
    Ok(plan(props, op, inputs)?.carries().into_iter().fold(0, usize::saturating_add))
}

/// # Safety
/// As for [`crate::Device::execute`].
pub unsafe fn launch(cx: &Context, op: &SelectiveScan, call: &Call) -> Result<()> {
    let specs: Vec<_> = call.inputs.iter().map(|v| v.map(|v| v.spec)).collect();
    let plan = plan(cx.props(), op, &specs)?;
    if plan.blocks() == 0 {
        return Ok(());
    }
    let (y, normed, h) = match (op.norm, call.outputs) {
        (None, [y, h]) => (y, 0, h),
        (Some(_), [normed, sum, h]) => (sum, normed.addr, h),
        _ => return stray("selective_scan"),
    };
    let Plan { shape, layout, .. } = plan;
    let addr = |i: usize| call.input(i).map_or(0, |v| v.addr);
    let is_f32 = |i: usize| i32::from(call.input(i).is_some_and(|v| v.spec.dtype == DType::F32));
    let (low, high) = op.dt_clamp.unwrap_or((0.0, 0.0));
    let centred = op.norm == Some(NormKind::LayerNorm);
    let scan = Scan {
        x: addr(0),
        dt: addr(1),
        a: addr(2),
        b: addr(3),
        c: addr(4),
        d: addr(5),
        z: addr(6),
        bias: addr(7),
        state: addr(8),
        residual: addr(9),
        gamma: addr(10),
        beta: addr(11),
        y: y.addr,
        normed: if plan.norm_inside { normed } else { 0 },
        h: h.addr,
        carry: call.workspace,
        elapsed: call.workspace + plan.carries()[0] as u64,
        length: shape.length as i64,
        chunk: plan.chunk as i64,
        channels: shape.channels as i32,
        states: shape.states as i32,
        tiles: plan.tiles as i32,
        chunks: layout.chunks as i32,
        wide: layout.wide as i32,
        groups: layout.groups as i32,
        splits: layout.splits as i32,
        steps: layout.steps as i32,
        a_f32: is_f32(2),
        d_f32: is_f32(5),
        bias_f32: is_f32(7),
        softplus: i32::from(op.dt_softplus),
        clamp: i32::from(op.dt_clamp.is_some()),
        centred: i32::from(centred),
        low: low as f32,
        high: high as f32,
        epsilon: op.epsilon as f32,
        padding: 0,
    };
    let module = layout.kernel.module(shape.dtype);
    let grid = Grid::new(plan.blocks(), layout.threads() as u32)?.shared(layout.shared() as u32);
    let entries = if layout.chunks > 1 { &["scan_carry", "scan_y"][..] } else { &["scan_y"][..] };
    for &entry in entries {
        let function = cx.function(&module, entry)?;
        // SAFETY: this is the entry's parameter, and the caller vouches for the addresses.
        unsafe { cx.launch(&function, grid, Args::new().value(scan)) }?;
    }
    if plan.norm_after {
        let at = norm::Rows { x: y.addr, gamma: addr(10), beta: addr(11), y: normed };
        // SAFETY: the caller vouches for the addresses.
        unsafe { norm::launch_rows(cx, y.spec, at, centred, op.epsilon) }?;
    }
    Ok(())
}

pub fn all_modules() -> Vec<Module> {
    let types = [DType::F32, DType::BF16, DType::F16];
    types.iter().flat_map(|&t| KERNELS.map(|k| k.module(t))).collect()
}
