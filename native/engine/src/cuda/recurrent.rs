//! `lstm` and `gru`: a step in one launch, a window in a projection and one launch for all steps.

use super::cluster::{self, Cluster};
use super::dense::{Operands, Product};
use super::grid::{self, Parts};
use super::launch::{Args, Context, Grid};
use super::linear::Linear;
use super::modules::Module;
use super::norm::{Prologue, explain_prologue};
use super::props::Props;
use super::warpgroups::{self, Warpgroups};
use super::window::{self, Window};
use crate::call::Call;
use crate::device::Explanation;
use crate::error::{Error, Result};
use crate::op::{Activation, FusedNorm, Op};
use crate::spec::{DType, Spec};

const STEP: &str = "recurrent/step.cu";
const STEP_CLUSTER: &str = "recurrent/step_cluster.cu";
const STEP_THREADS: u32 = 256;
/// Rows that a block of the step kernel takes at a time.
const STEP_ROWS: usize = 8;
const STEP_BLOCKS: usize = 64;
/// Hidden units of a cluster of the step kernel, and the least of the reduction that is worth a
/// block of it.
const STEP_UNITS: usize = 32;
const STEP_LEAST: usize = 32;
/// Values of x and h that a block of the step kernel holds at a time.
const STEP_SPAN: usize = 4096;
/// Below so many steps a launch for each is quicker than a projection and what it takes to set a
/// window up.
pub(super) const WINDOW_STEPS: usize = 4;
/// The most memory that x · wi may take for a whole window.
pub(super) const PROJECTION_LIMIT: usize = 1 << 30;
/// Rows of x from which the step kernel, which takes eight at a time, is left far behind by tiles.
const PROJECTED_ROWS: usize = 64;

/// A layer's shape and where its operands stand among the inputs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layer {
    pub gates: usize,
    pub dtype: DType,
    pub state: DType,
    pub batch: usize,
    pub steps: usize,
    pub input: usize,
    pub hidden: usize,
    pub reverse: bool,
    /// Of x, in the step kernel.
    pub norm: Option<FusedNorm>,
    /// `c0`, of an LSTM.
    pub c: Option<usize>,
    pub h: usize,
    /// `wi`; `wh`, `b` and the mask follow.
    pub wi: usize,
}

impl Layer {
    pub fn of(op: &Op, inputs: &[Option<&Spec>]) -> Result<Self> {
        let (gates, c, h, wi, attrs) = match op {
            Op::Lstm(attrs) => (4, Some(1), 2, 3, attrs),
            Op::Gru(attrs) => (3, None, 1, 2, attrs),
            other => return Err(Error::Internal(format!("{} is no recurrent op", other.name()))),
        };
        let input = |i: usize| inputs.get(i).copied().flatten();
        let (Some(x), Some(wh)) = (input(0), input(wi + 1)) else {
            return Err(Error::Internal(format!("{} without its inputs", op.name())));
        };
        let [batch, steps, features] = *x.shape() else {
            return Err(Error::Internal(format!("{}: x of another rank", op.name())));
        };
        let hidden = wh.rows();
        let longest = i32::MAX as usize / 8;
        if hidden > longest || features > longest || steps > longest {
            return Err(Error::unsupported(op.name(), format!("axes are at most {longest} long")));
        }
        if batch > STEP_ROWS * 65_535 {
            let most = STEP_ROWS * 65_535;
            return Err(Error::unsupported(op.name(), format!("a batch is at most {most}")));
        }
        // c and h have one type. `infer` gives a state that is missing the type of x.
        let state = input(h).or(c.and_then(input)).map_or(x.dtype, |s| s.dtype);
        Ok(Layer {
            gates,
            dtype: x.dtype,
            state,
            batch,
            steps,
            input: features,
            hidden,
            reverse: attrs.reverse,
            norm: attrs.norm,
            c,
            h,
            wi,
        })
    }

    /// x · wi for all frames.
    pub fn projection(&self) -> Product {
        Product {
            rows: self.batch * self.steps,
            inner: self.input,
            columns: self.gates * self.hidden,
            dtype: self.dtype,
            to_f32: true,
            gated: false,
            norm: false,
        }
    }

    /// The projection with its bias.
    pub fn linear(&self, bias: bool) -> Linear {
        let (product, activation) = (self.projection(), Activation::None);
        Linear { product, bias, residual: false, activation }
    }

    /// Bytes of [`Layer::projection`].
    pub fn projection_bytes(&self) -> usize {
        let elements = self.batch.saturating_mul(self.steps).saturating_mul(self.hidden);
        elements.saturating_mul(self.gates * 4).saturating_add(255) / 256 * 256
    }

    /// Whether a block of the step kernel holds all of x, of all rows.
    fn holds_x(&self) -> bool {
        let rows = if self.batch == 1 { 1 } else { STEP_ROWS };
        self.batch <= rows && self.input > 0 && self.input + self.hidden <= STEP_SPAN / rows
    }

    fn state_bytes(&self) -> usize {
        (self.batch * self.hidden * 4).next_multiple_of(256)
    }

    /// Buffers of f32 state between steps: two of h, and for an LSTM two of c.
    fn states(&self) -> usize {
        match self.steps {
            0..=1 => 0,
            _ if self.c.is_some() => 4,
            _ => 2,
        }
    }
}

/// Which of the step kernels, and how it is shared out.
struct StepForm {
    module: Module,
    entry: &'static str,
    blocks: [usize; 3],
    /// Blocks that share a reduction.
    cluster: usize,
    /// Threads along the units of a gate.
    lanes: usize,
}

impl StepForm {
    fn of(props: &Props, layer: &Layer) -> Self {
        let Layer { batch, input, hidden, .. } = *layer;
        let module = |source| step_module(source, layer.dtype, layer.gates, layer.norm.is_some());
        let pack = 16 / layer.dtype.size();
        let whole = hidden.is_multiple_of(pack);
        let groups = hidden.div_ceil(STEP_UNITS);
        // Blocks for every multiprocessor, each with a share worth a block of threads.
        let cluster = |&blocks: &usize| {
            groups * blocks <= props.sms as usize && (input + hidden) / blocks >= STEP_LEAST
        };
        let cluster = [8, 4, 2].into_iter().find(cluster);
        if let (true, 1, Some(cluster)) = (props.clusters > 0 && whole, batch, cluster)
            && input + hidden <= STEP_SPAN
        {
            let (module, entry) = (module(STEP_CLUSTER).since(9), "step_cluster");
            return StepForm { module, entry, blocks: [groups * cluster, 1, 1], cluster, lanes: 0 };
        }
        // Two lanes read whole 32-byte sectors of a gate's row; one leaves more blocks, which on
        // few units is quicker (measured: 4.5 against 5.0 µs for f32 at 256, 7.7 against 7.0 at
        // 512).
        let (width, lanes) = match whole {
            true if hidden.div_ceil(2 * pack) >= STEP_BLOCKS => (pack, 2),
            true => (pack, 1),
            false => (1, 8),
        };
        let (entry, rows) = match (whole, batch) {
            (true, 1) => ("step_1", 1),
            (true, _) => ("step_8", STEP_ROWS),
            (false, 1) => ("step_odd_1", 1),
            (false, _) => ("step_odd_8", STEP_ROWS),
        };
        let blocks = [hidden.div_ceil(lanes * width), batch.div_ceil(rows), 1];
        StepForm { module: module(STEP), entry, blocks, cluster: 1, lanes }
    }
}

fn step_module(source: &'static str, dtype: DType, gates: usize, norm: bool) -> Module {
    let module = Module::of(source, dtype).define("GATES", gates);
    if norm { module.define("NORM", 1) } else { module }
}

enum Plan {
    /// No frames or no units: the state goes through.
    Nothing,
    Cluster(Cluster),
    Grid(Parts),
    Warpgroups(Warpgroups),
    Window(Window),
    /// A launch a step, with or without a projection before.
    Steps {
        projected: bool,
        why: String,
    },
}

/// Whether one launch does the norm of x as well.
pub fn fuses(props: &Props, op: &Op, inputs: &[Option<&Spec>]) -> bool {
    Layer::of(op, inputs).is_ok_and(|layer| {
        let plan = plan(props, &layer);
        layer.steps == 1 && layer.holds_x() && matches!(plan, Plan::Steps { projected: false, .. })
    })
}

fn plan(props: &Props, layer: &Layer) -> Plan {
    let Layer { batch, steps, hidden, .. } = *layer;
    if batch == 0 || steps == 0 || hidden == 0 {
        return Plan::Nothing;
    }
    let fits = layer.projection_bytes() <= PROJECTION_LIMIT;
    let projected = fits && batch * steps > PROJECTED_ROWS;
    let steps_because = |why: String| Plan::Steps { projected, why };
    if steps < WINDOW_STEPS {
        return steps_because(format!("{steps} step(s)"));
    }
    if !fits {
        return steps_because(format!("x · wi for {steps} steps would take over 1 GiB"));
    }
    if let Some(warpgroups) = warpgroups::choose(props, layer) {
        return Plan::Warpgroups(warpgroups);
    }
    if let Some(cluster) = cluster::choose(props, layer) {
        return Plan::Cluster(cluster);
    }
    if !props.cooperative {
        return steps_because("this GPU has no cooperative launch".into());
    }
    if let Some(parts) = grid::choose(props, layer) {
        return Plan::Grid(parts);
    }
    match window::choose(props, layer) {
        Some(window) => Plan::Window(window),
        None => steps_because(format!(
            "wh of {hidden} units does not fit the shared memory of {} multiprocessors",
            props.sms
        )),
    }
}

pub fn explain(props: &Props, op: &Op, inputs: &[Option<&Spec>]) -> Result<Explanation> {
    let layer = Layer::of(op, inputs)?;
    Ok(match plan(props, &layer) {
        Plan::Nothing => {
            Explanation { variant: "copy", why: "nothing to compute".into(), launches: 0 }
        }
        Plan::Cluster(cluster) => {
            let (product, _, launches) = layer.linear(bias(&layer, inputs)).explain(props)?;
            let why = format!("{}; x · wi by {product}", cluster.why(&layer));
            Explanation { variant: "cluster", why, launches: 1 + launches }
        }
        Plan::Grid(parts) => {
            let (product, _, launches) = layer.linear(bias(&layer, inputs)).explain(props)?;
            let why = format!("{}; x · wi by {product}", parts.why(&layer));
            Explanation { variant: "grid", why, launches: 1 + launches }
        }
        Plan::Warpgroups(groups) => {
            let (product, _, launches) = layer.linear(bias(&layer, inputs)).explain(props)?;
            let why = format!("{}; x · wi by {product}", groups.why(&layer));
            Explanation { variant: "warpgroups", why, launches: groups.launches() + launches }
        }
        Plan::Window(window) => {
            let (product, _, launches) = layer.linear(bias(&layer, inputs)).explain(props)?;
            let why = format!("{}; x · wi by {product}", window.why(&layer));
            Explanation { variant: "window", why, launches: 1 + launches }
        }
        Plan::Steps { projected, why } => {
            let variant = if layer.steps == 1 { "step" } else { "steps" };
            let why = match projected {
                true => format!("{why}: a launch a step, after x · wi for all of them"),
                false => format!("{why}: a launch a step, x · wi in it"),
            };
            let by = match StepForm::of(props, &layer).cluster {
                1 => String::new(),
                blocks => format!(", by clusters of {blocks} blocks"),
            };
            let why = why + &by + explain_prologue(layer.norm);
            let launches = match projected {
                true => layer.linear(bias(&layer, inputs)).explain(props)?.2,
                false => 0,
            };
            Explanation { variant, why, launches: layer.steps + launches }
        }
    })
}

/// Why the steps of a window take a launch each.
pub fn fallback(props: &Props, op: &Op, inputs: &[Option<&Spec>]) -> Option<String> {
    let layer = Layer::of(op, inputs).ok()?;
    match plan(props, &layer) {
        Plan::Steps { why, .. } if layer.steps >= WINDOW_STEPS => Some(why),
        _ => None,
    }
}

pub fn modules(props: &Props, op: &Op, inputs: &[Option<&Spec>]) -> Result<Vec<Module>> {
    let layer = Layer::of(op, inputs)?;
    let (mut all, projected) = match plan(props, &layer) {
        Plan::Nothing => return Ok(Vec::new()),
        Plan::Cluster(cluster) => (vec![cluster.module(&layer)], true),
        Plan::Grid(parts) => (vec![parts.module(&layer)], true),
        Plan::Warpgroups(groups) => (vec![groups.module(&layer)], true),
        Plan::Window(window) => (vec![window.module(&layer)], true),
        Plan::Steps { projected, .. } => (vec![StepForm::of(props, &layer).module], projected),
    };
    if projected {
        all.extend(layer.linear(bias(&layer, inputs)).modules(props)?);
    }
    Ok(all)
}

pub fn workspace(props: &Props, op: &Op, inputs: &[Option<&Spec>]) -> Result<usize> {
    let layer = Layer::of(op, inputs)?;
    // Scratch of the projection's lies where the steps begin once it is done.
    let projection = || {
        let scratch = layer.linear(bias(&layer, inputs)).workspace(props);
        (layer.projection_bytes(), scratch)
    };
    Ok(match plan(props, &layer) {
        Plan::Nothing => 0,
        Plan::Cluster(_) => {
            let (bytes, scratch) = projection();
            bytes + scratch
        }
        Plan::Grid(parts) => {
            let (bytes, scratch) = projection();
            bytes + parts.exchange_bytes().max(scratch)
        }
        Plan::Warpgroups(groups) => {
            let (bytes, scratch) = projection();
            bytes + groups.exchange_bytes().max(scratch)
        }
        Plan::Window(window) => {
            let (bytes, scratch) = projection();
            bytes + window.exchange_bytes(&layer).max(scratch)
        }
        Plan::Steps { projected, .. } => {
            let (bytes, scratch) = if projected { projection() } else { (0, 0) };
            bytes + (layer.states() * layer.state_bytes()).max(scratch)
        }
    })
}

/// Whether there is a bias.
pub(super) fn bias(layer: &Layer, inputs: &[Option<&Spec>]) -> bool {
    inputs.get(layer.wi + 2).is_some_and(Option::is_some)
}

/// Whether a launch has nothing of cuBLASLt's to open or load.
pub fn is_warm(props: &Props, op: &Op, inputs: &[Option<&Spec>]) -> Result<bool> {
    let layer = Layer::of(op, inputs)?;
    let projected = match plan(props, &layer) {
        Plan::Nothing => false,
        Plan::Cluster(_) | Plan::Grid(_) | Plan::Warpgroups(_) | Plan::Window(_) => true,
        Plan::Steps { projected, .. } => projected,
    };
    Ok(!projected || layer.linear(bias(&layer, inputs)).is_warm(props))
}

/// # Safety
/// As for [`crate::Device::execute`].
pub unsafe fn launch(cx: &Context, op: &Op, call: &Call) -> Result<()> {
    let specs: Vec<_> = call.inputs.iter().map(|v| v.as_ref().map(|v| v.spec)).collect();
    let layer = Layer::of(op, &specs)?;
    if layer.norm.is_some() && !fuses(cx.props(), op, &specs) {
        return Err(Error::Internal(format!("{}: a fused norm of rows not held", op.name())));
    }
    let plan = plan(cx.props(), &layer);
    // SAFETY: the caller's promise covers the call's views and the workspace.
    unsafe {
        match plan {
            Plan::Nothing => pass_state(cx, &layer, call),
            Plan::Cluster(cluster) => {
                project(cx, &layer, call)?;
                cluster.launch(cx, &layer, call)
            }
            Plan::Grid(parts) => {
                project(cx, &layer, call)?;
                parts.launch(cx, &layer, call)
            }
            Plan::Warpgroups(groups) => {
                project(cx, &layer, call)?;
                groups.launch(cx, &layer, call)
            }
            Plan::Window(window) => {
                project(cx, &layer, call)?;
                window.launch(cx, &layer, call)
            }
            Plan::Steps { projected, .. } => {
                if projected {
                    project(cx, &layer, call)?;
                }
                launch_steps(cx, &layer, projected, call)
            }
        }
    }
}

/// The final state is the first, or zeros.
unsafe fn pass_state(cx: &Context, layer: &Layer, call: &Call) -> Result<()> {
    let from = layer.c.into_iter().chain([layer.h]);
    for (i, out) in from.zip(call.outputs.iter().skip(1)) {
        // SAFETY: `infer` gave the output the shape and type of the state; the caller vouches for
        // both.
        unsafe {
            match call.input(i) {
                Some(state) => cx.copy(out.addr, state.addr, out.spec.bytes()),
                None => cx.memset_zero(out.addr, out.spec.bytes()),
            }
        }?;
    }
    Ok(())
}

/// x · wi + b to the start of the workspace. A GRU's bias is longer than the product is wide: its
/// last quarter belongs to the recurrent part.
pub(super) unsafe fn project(cx: &Context, layer: &Layer, call: &Call) -> Result<()> {
    let addr = |i| call.input(i).map_or(0, |v| v.addr);
    let (x, w, bias) = (addr(0), addr(layer.wi), addr(layer.wi + 2));
    let norm = Prologue::default();
    let constant = call.constant([layer.wi]);
    let at = Operands { x, w, up: 0, bias, residual: 0, y: call.workspace, norm, constant };
    let scratch = call.workspace + layer.projection_bytes() as u64;
    // SAFETY: the caller vouches for the views and the workspace.
    unsafe { layer.linear(bias != 0).launch(cx, at, scratch) }
}

/// As in `recurrent/step.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Step {
    x: u64,
    wi: u64,
    wh: u64,
    b: u64,
    projected: u64,
    c: u64,
    h: u64,
    mask: u64,
    seq: u64,
    c_out: u64,
    h_out: u64,
    x_stride: i64,
    projected_stride: i64,
    mask_stride: i64,
    seq_stride: i64,
    rows: i32,
    input: i32,
    hidden: i32,
    in_f32: i32,
    out_f32: i32,
    lanes: i32,
    norm: Prologue,
}

unsafe fn launch_steps(cx: &Context, layer: &Layer, projected: bool, call: &Call) -> Result<()> {
    let Layer { batch, steps, input, hidden, .. } = *layer;
    let size = layer.dtype.size();
    let weights = (layer.wi..layer.wi + 3).chain(layer.wi + 4..layer.wi + 6);
    let early = call.constant(weights);
    let StepForm { module, entry, blocks, cluster, lanes } = StepForm::of(cx.props(), layer);
    let grid = Grid::new_3d(blocks, STEP_THREADS)?.clusters(cluster as u32).early(early);
    let function = cx.function(&module, entry)?;

    let addr = |i: usize| call.input(i).map_or(0, |v| v.addr);
    let out = |i: usize| call.outputs.get(i).map_or(0, |v| v.addr);
    let offset = |base: u64, elements: usize, size: usize| match base {
        0 => 0,
        base => base + (elements * size) as u64,
    };
    let projection = if projected { call.workspace } else { 0 };
    let buffers = call.workspace + if projected { layer.projection_bytes() as u64 } else { 0 };
    let buffer = |i: usize| buffers + (i * layer.state_bytes()) as u64;
    let state_f32 = i32::from(layer.state == DType::F32);
    let columns = layer.gates * hidden;
    let h_out = out(if layer.c.is_some() { 2 } else { 1 });

    for step in 0..steps {
        let t = if layer.reverse { steps - 1 - step } else { step };
        let (first, last) = (step == 0, step + 1 == steps);
        let before = |given: u64, i: usize| if first { given } else { buffer(i + (step - 1) % 2) };
        let after = |given: u64, i: usize| if last { given } else { buffer(i + step % 2) };
        let (c, c_out) = match layer.c {
            Some(c) => (before(addr(c), 2), after(out(1), 2)),
            None => (0, 0),
        };
        let mut args = Args::new();
        args.value(Step {
            x: offset(addr(0), t * input, size),
            wi: addr(layer.wi),
            wh: addr(layer.wi + 1),
            b: addr(layer.wi + 2),
            projected: offset(projection, t * columns, 4),
            c,
            h: before(addr(layer.h), 0),
            mask: offset(addr(layer.wi + 3), t, 1),
            seq: offset(out(0), t * hidden, size),
            c_out,
            h_out: after(h_out, 0),
            x_stride: (steps * input) as i64,
            projected_stride: (steps * columns) as i64,
            mask_stride: steps as i64,
            seq_stride: (steps * hidden) as i64,
            rows: batch as i32,
            input: if projected { 0 } else { input as i32 },
            hidden: hidden as i32,
            in_f32: if first { state_f32 } else { 1 },
            out_f32: if last { state_f32 } else { 1 },
            lanes: lanes as i32,
            norm: Prologue::of(call),
        });
        // SAFETY: this is the entry's parameter, and the caller vouches for the addresses.
        unsafe { cx.launch(&function, grid, &mut args) }?;
    }
    Ok(())
}

/// As `Layer` in `recurrent/layer.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Parameters {
    pub wh: u64,
    b: u64,
    projected: u64,
    c: u64,
    h: u64,
    mask: u64,
    seq: u64,
    c_out: u64,
    h_out: u64,
    batch: i32,
    steps: i32,
    hidden: i32,
    state_f32: i32,
    reverse: i32,
    share: i32,
    low: i32,
    first: i32,
    exchange: u64,
}

impl Parameters {
    /// The projection is what the workspace starts with.
    pub fn of(layer: &Layer, call: &Call, share: usize, low: usize, exchange: u64) -> Self {
        let addr = |i: usize| call.input(i).map_or(0, |v| v.addr);
        let out = |i: usize| call.outputs.get(i).map_or(0, |v| v.addr);
        let (c, c_out) = layer.c.map_or((0, 0), |c| (addr(c), out(1)));
        Parameters {
            wh: addr(layer.wi + 1),
            b: addr(layer.wi + 2),
            projected: call.workspace,
            c,
            h: addr(layer.h),
            mask: addr(layer.wi + 3),
            seq: out(0),
            c_out,
            h_out: out(if layer.c.is_some() { 2 } else { 1 }),
            batch: layer.batch as i32,
            steps: layer.steps as i32,
            hidden: layer.hidden as i32,
            state_f32: i32::from(layer.state == DType::F32),
            reverse: i32::from(layer.reverse),
            share: share as i32,
            low: low as i32,
            first: 0,
            exchange,
        }
    }

    /// Of a launch that begins with this row.
    pub fn since_row(self, first: usize) -> Self {
        Parameters { first: first as i32, ..self }
    }
}

pub fn all_modules() -> Vec<Module> {
    let mut all = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for gates in [4, 3] {
            for norm in [false, true] {
                all.push(step_module(STEP, dtype, gates, norm));
                all.push(step_module(STEP_CLUSTER, dtype, gates, norm).since(9));
            }
            all.extend(cluster::all_modules(dtype, gates));
            all.extend(grid::all_modules(dtype, gates));
            all.extend(warpgroups::all_modules(dtype, gates));
            all.extend(window::all_modules(dtype, gates));
        }
    }
    all
}
