//! `recurrent_stack`: a window of layers one upon the other in one launch after the first one's
//! projection, each layer a few frames behind the one below: `kernels/recurrent/stack.cuh`.

use super::cluster::{self, Kernel};
use super::launch::{Args, Context, Grid};
use super::modules::Module;
use super::norm::Prologue;
use super::props::Props;
use super::recurrent::{self, Layer, PROJECTION_LIMIT, Parameters, WINDOW_STEPS};
use super::walk::stray;
use crate::call::{Call, View};
use crate::device::Explanation;
use crate::error::{Error, Result};
use crate::op::RecurrentStack;
use crate::spec::{DType, Spec};

const SOURCES: [&str; 2] = ["recurrent/stack_mma.cu", "recurrent/stack_f32.cu"];
/// As in `stack.cuh`.
const LAYERS: usize = 4;
const STAGES: usize = 2 * LAYERS - 1;
/// Bytes of a pack, and those that hold the tickets.
const PACK: usize = 16;
/// A cluster's at most.
const ROWS: usize = 8;
const TICKETS: usize = 256;

type Inputs<'a> = &'a [Option<&'a Spec>];

/// How the layers are shared out: clusters of `blocks` blocks, one for each stage and `share` rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stack {
    kernel: Kernel,
    blocks: usize,
    share: usize,
    /// Clusters of a stage.
    clusters: usize,
    stages: usize,
    exact: bool,
}

/// None where the layers are of different kinds, or do not all fit at once.
fn choose(props: &Props, op: &RecurrentStack, inputs: Inputs) -> Option<(Stack, Layer)> {
    let layers = layers(op, inputs).ok()?;
    let (first, rest) = layers.split_first()?;
    let alike = |l: &Layer| {
        (l.hidden, l.dtype, l.state) == (first.hidden, first.dtype, first.state)
            && l.input == first.hidden
    };
    let sizes = (2..=LAYERS).contains(&layers.len()) && rest.iter().all(alike);
    if !sizes {
        return None;
    }
    if first.batch == 0 || first.hidden == 0 || first.steps < WINDOW_STEPS {
        return None;
    }
    let stages = 2 * layers.len() - 1;
    let (blocks, at_once) = cluster::clusters(props, first.hidden)?;
    let exact = cluster::is_exact(first);
    let most = at_once / stages;
    let fits = |k: &Kernel| {
        let bytes = shared(k, first.gates, blocks) + cluster::DECLARED;
        is_for_few(k) && bytes <= props.shared_optin as usize
    };
    let stacks = cluster::kernels(first.dtype, first.hidden).filter(fits).filter_map(|kernel| {
        let share = first.batch.div_ceil(most.max(1)).min(kernel.most_rows(exact));
        let clusters = first.batch.div_ceil(share);
        let stack = Stack { kernel, blocks, share, clusters, stages, exact };
        let bytes = stack.exchange_bytes(first.steps).max(first.projection_bytes());
        (clusters <= most && bytes <= PROJECTION_LIMIT).then_some(stack)
    });
    Some((stacks.min_by_key(|s| s.kernel.clocks(s.share))?, *first))
}

/// Those for more rows would leave each layer too few clusters to be worth it.
fn is_for_few(kernel: &Kernel) -> bool {
    matches!(kernel, Kernel::F32 { rows: ..=5, .. } | Kernel::Mma { columns: 1, .. })
}

fn layers(op: &RecurrentStack, inputs: Inputs) -> Result<Vec<Layer>> {
    let Some(&Some(x)) = inputs.first() else { return stray("recurrent_stack") };
    let mut x = x.clone();
    let mut layers = Vec::with_capacity(op.norms.len());
    for n in 0..op.norms.len() {
        let layer = Layer::of(&op.layer(n), &op.inputs_of(n, Some(&x), inputs))?;
        layers.push(layer);
        x = x.with_shape([layer.batch, layer.steps, layer.hidden])?;
    }
    Ok(layers)
}

/// Bytes of shared memory of a block: behind what cells have gamma and beta of all units, and the shift
/// and the scale of each row.
fn shared(kernel: &Kernel, gates: usize, blocks: usize) -> usize {
    kernel.shared(gates) + 2 * blocks * cluster::UNITS * 4 + 8 * ROWS
}

impl Stack {
    /// Packs of a frame: h of a layer, and what the blocks of the next one's input make of it.
    fn packs(&self) -> [usize; 2] {
        let Stack { kernel, blocks, share, .. } = *self;
        match kernel {
            Kernel::F32 { rows, .. } => {
                let values = blocks * cluster::UNITS * rows;
                [values / 4, values]
            }
            Kernel::Mma { .. } => [blocks * share * 4, blocks * share * cluster::UNITS],
        }
    }

    /// The tickets, and the packs of all frames between the stages.
    fn exchange_bytes(&self, steps: usize) -> usize {
        let frames = self.clusters.saturating_mul(steps).saturating_mul(self.stages / 2);
        let [h, sums] = self.packs();
        frames.saturating_mul((h + sums) * PACK).saturating_add(TICKETS)
    }

    fn module(&self, layer: &Layer) -> Module {
        self.kernel.module_of(SOURCES, layer.dtype, layer.gates)
    }
}

fn chosen(props: &Props, op: &RecurrentStack, inputs: Inputs) -> Result<(Stack, Layer)> {
    choose(props, op, inputs)
        .ok_or_else(|| Error::Internal("recurrent_stack: fused where it does not fit".into()))
}

/// Whether one launch does all layers.
pub fn fuses(props: &Props, op: &RecurrentStack, inputs: Inputs) -> bool {
    choose(props, op, inputs).is_some()
}

pub fn explain(props: &Props, op: &RecurrentStack, inputs: Inputs) -> Result<Explanation> {
    let (stack, layer) = chosen(props, op, inputs)?;
    let (product, _, launches) = layer.linear(has_bias(op, &layer, inputs)).explain(props)?;
    let Stack { blocks, share, clusters, stages, .. } = stack;
    let why = format!(
        "{} layers of {} steps in one launch, each some frames behind the one below: {stages} \
         clusters of {blocks} blocks for each {share} row(s), {clusters} time(s); x · wi of the \
         first by {product}",
        op.norms.len(),
        layer.steps,
    );
    Ok(Explanation { variant: "stack", why, launches: 1 + launches })
}

pub fn modules(props: &Props, op: &RecurrentStack, inputs: Inputs) -> Result<Vec<Module>> {
    let (stack, layer) = chosen(props, op, inputs)?;
    let mut all = vec![stack.module(&layer)];
    all.extend(layer.linear(has_bias(op, &layer, inputs)).modules(props)?);
    Ok(all)
}

pub fn workspace(props: &Props, op: &RecurrentStack, inputs: Inputs) -> Result<usize> {
    let (stack, layer) = chosen(props, op, inputs)?;
    let scratch = layer.linear(has_bias(op, &layer, inputs)).workspace(props);
    Ok(layer.projection_bytes() + stack.exchange_bytes(layer.steps).max(scratch))
}

pub fn is_warm(props: &Props, op: &RecurrentStack, inputs: Inputs) -> Result<bool> {
    let (_, layer) = chosen(props, op, inputs)?;
    Ok(layer.linear(has_bias(op, &layer, inputs)).is_warm(props))
}

/// Whether the first layer has one.
fn has_bias(op: &RecurrentStack, layer: &Layer, inputs: Inputs) -> bool {
    let x = inputs.first().copied().flatten();
    recurrent::bias(layer, &op.inputs_of(0, x, inputs))
}

/// As `Stage` in `stack.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Stage {
    layer: Parameters,
    from: u64,
    to: u64,
    norm: Prologue,
    taken: i32,
    given: i32,
}

/// As in `stack.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Launch {
    stage: [Stage; STAGES],
    tickets: u64,
    stages: i32,
    padding: i32,
}

/// # Safety
/// As for [`crate::Device::execute`].
pub unsafe fn launch(cx: &Context, op: &RecurrentStack, call: &Call) -> Result<()> {
    let specs: Vec<_> = call.inputs.iter().map(|v| v.map(|v| v.spec)).collect();
    let (stack, first) = chosen(cx.props(), op, &specs)?;
    let Some((&seq, states)) = call.outputs.split_first() else { return stray("recurrent_stack") };
    let tickets = call.workspace + first.projection_bytes() as u64;
    // What stage n has for the next one lies behind what the one before it has.
    let packs = stack.packs();
    let mut next = tickets + TICKETS as u64;
    let mut places = [0; STAGES];
    for (n, place) in places.iter_mut().enumerate().take(stack.stages - 1) {
        *place = next;
        next += (stack.clusters * first.steps * packs[n % 2] * PACK) as u64;
    }
    let mut stage = [Stage::default(); STAGES];
    for (n, layer) in layers(op, &specs)?.iter().enumerate() {
        let own = op.layer(n);
        let inputs = op.inputs_of(n, call.input(0), call.inputs);
        // Only the last one's seq is anybody's.
        let addr = if n + 1 == op.norms.len() { seq.addr } else { 0 };
        let count = op.states();
        let outputs: Vec<_> = std::iter::once(View { addr, ..seq })
            .chain(states[n * count..(n + 1) * count].iter().copied())
            .collect();
        let own = Call { op: &own, inputs: &inputs, outputs: &outputs, workspace: call.workspace };
        let low = stack.kernel.low(stack.exact);
        let layer_of = Parameters::of(layer, &own, stack.share, low, 0);
        let cells = Stage {
            layer: layer_of,
            to: places[2 * n],
            given: packs[0] as i32,
            ..Stage::default()
        };
        if n == 0 {
            // SAFETY: the caller vouches for the views and the workspace.
            unsafe { recurrent::project(cx, layer, &own) }?;
            stage[0] = cells;
            continue;
        }
        let mut input_of = layer_of;
        input_of.wh = own.input(layer.wi).map_or(0, |v| v.addr);
        let (below, input) = (places[2 * n - 2], places[2 * n - 1]);
        stage[2 * n - 1] = Stage {
            layer: input_of,
            from: below,
            to: input,
            norm: Prologue::of(&own),
            taken: packs[0] as i32,
            given: packs[1] as i32,
        };
        stage[2 * n] = Stage { from: input, taken: packs[1] as i32, ..cells };
    }
    let function = cx.function(&stack.module(&first), "stack")?;
    let grid = Grid::new(stack.stages * stack.clusters * stack.blocks, cluster::THREADS)?
        .shared(shared(&stack.kernel, first.gates, stack.blocks) as u32)
        .clusters(stack.blocks as u32);
    let launch = Launch { stage, tickets, stages: stack.stages as i32, padding: 0 };
    // SAFETY: the workspace holds the exchange; this is the entry's parameter, and the caller vouches
    // for the addresses.
    unsafe {
        cx.memset_zero(tickets, stack.exchange_bytes(first.steps))?;
        cx.launch(&function, grid, Args::new().value(launch))
    }
}

pub fn all_modules() -> Vec<Module> {
    let mut all = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for (gates, hidden) in [3, 4].into_iter().flat_map(|g| [128, 256, 512].map(|h| (g, h))) {
            let few = cluster::kernels(dtype, hidden).filter(is_for_few);
            all.extend(few.map(|k| k.module_of(SOURCES, dtype, gates)));
        }
    }
    all
}
