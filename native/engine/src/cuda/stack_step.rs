//! `recurrent_stack` of one step: a frame of all layers in one launch, by one cluster
//! (`kernels/recurrent/stack_step.cu`).

use super::launch::{Args, Context, Grid};
use super::modules::Module;
use super::norm::Prologue;
use super::props::Props;
use super::recurrent::Layer;
use super::walk::stray;
use crate::call::Call;
use crate::device::Explanation;
use crate::error::Result;
use crate::op::RecurrentStack;
use crate::spec::DType;

const SOURCE: &str = "recurrent/stack_step.cu";
/// As in the kernel.
const THREADS: usize = 512;
const WARPS: usize = THREADS / 32;
const LAYERS: usize = 4;
const SLOTS: usize = 4;
/// Blocks of the cluster, and the multiprocessors of a card that has room for one: as for a Mamba block.
const CLUSTER: usize = 16;
const WHOLE_CARD: u32 = 100;

/// How a frame is laid out in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    dtype: DType,
    gates: usize,
    input: usize,
    hidden: usize,
    layers: usize,
}

impl Frame {
    /// Of layers that are alike but for the first one's input. None where the cluster does not hold all
    /// weights at once, or a thread's packs do not divide its units evenly.
    pub fn of(props: &Props, layers: &[Layer]) -> Option<Self> {
        if std::env::var_os("NITROX_AB").is_some() {
            return None;
        }
        let first = layers.first()?;
        let Layer { batch, steps, input, hidden, dtype, gates, .. } = *first;
        let frame = Frame { dtype, gates, input, hidden, layers: layers.len() };
        let card = props.major >= 9 && props.sms >= WHOLE_CARD;
        let even = hidden > 0 && hidden.is_multiple_of(CLUSTER * frame.pack());
        let sizes = (batch, steps) == (1, 1) && input > 0 && layers.len() <= LAYERS;
        // A thread normalises one value.
        let fits = card && even && sizes && hidden <= THREADS;
        (fits && frame.shared()? <= props.shared_optin as usize).then_some(frame)
    }

    /// Values of a 16-byte load.
    fn pack(&self) -> usize {
        16 / self.dtype.size()
    }

    /// Packs of each matrix of the first layer that a thread has in registers.
    fn depth(&self) -> usize {
        if self.pack() == 4 { 9 } else { 5 }
    }

    /// Bytes of shared memory of a block, as the kernel lays it out.
    fn shared(&self) -> Option<usize> {
        let Frame { gates, input, hidden, layers, .. } = *self;
        let units = hidden / CLUSTER;
        let at_once = THREADS / (gates * units / self.pack());
        let packs = |rows: usize, held: usize| rows.div_ceil(at_once).saturating_sub(held);
        let depth = self.depth();
        let first = packs(input, depth) + packs(hidden, depth);
        let held = first + 2 * (layers - 1) * packs(hidden, 0);
        let part = (at_once * (SLOTS * units + 4)).max(3 * WARPS);
        let all = layers * hidden;
        let values = input.next_multiple_of(4) + all - hidden // x
            + all + layers * units // the state
            + SLOTS * layers * units + 2 * all // biases, gamma and beta
            + part;
        held.checked_mul(THREADS * 16)?.checked_add(4 * values)
    }

    fn module(&self) -> Module {
        module(self.dtype, self.gates)
    }

    pub fn modules(&self) -> Vec<Module> {
        vec![self.module()]
    }

    pub fn explain(&self) -> Explanation {
        let why = format!(
            "one frame of {} layers in one launch: a cluster of {CLUSTER} blocks, each with {} units \
             of every layer",
            self.layers,
            self.hidden / CLUSTER
        );
        Explanation { variant: "stack_step", why, launches: 1 }
    }

    /// # Safety
    /// As for [`crate::Device::execute`].
    pub unsafe fn launch(
        &self,
        cx: &Context,
        op: &RecurrentStack,
        layers: &[Layer],
        call: &Call,
    ) -> Result<()> {
        let Some((&y, states)) = call.outputs.split_first() else {
            return stray("recurrent_stack");
        };
        let count = op.states();
        let mut level = [Level::default(); LAYERS];
        for (n, (to, layer)) in level.iter_mut().zip(layers).enumerate() {
            let inputs = op.inputs_of(n, call.input(0), call.inputs);
            let own = Call { op: &op.layer(n), inputs: &inputs, outputs: &[], workspace: 0 };
            let addr = |i: usize| own.input(i).map_or(0, |v| v.addr);
            let out = |i: usize| states.get(n * count + i).map_or(0, |v| v.addr);
            *to = Level {
                wi: addr(layer.wi),
                wh: addr(layer.wi + 1),
                b: addr(layer.wi + 2),
                c: layer.c.map_or(0, addr),
                h: addr(layer.h),
                mask: addr(layer.wi + 3),
                c_out: if layer.c.is_some() { out(0) } else { 0 },
                h_out: out(count - 1),
                norm: Prologue::of(&own),
            };
        }
        let frame = Launch {
            level,
            x: call.input(0).map_or(0, |v| v.addr),
            y: y.addr,
            layers: self.layers as i32,
            input: self.input as i32,
            hidden: self.hidden as i32,
            state_f32: i32::from(layers.first().is_some_and(|l| l.state == DType::F32)),
        };
        // Weights, biases and norms are asked for before the frame is there.
        let constant = |n: usize| {
            let at = 1 + n * RecurrentStack::EACH;
            (at + 2..at + 5).chain(at + 6..at + 8)
        };
        let early = call.constant((0..self.layers).flat_map(constant));
        let shared = self.shared().unwrap_or_default();
        let grid = Grid::new(CLUSTER, THREADS as u32)?
            .shared(shared as u32)
            .clusters(CLUSTER as u32)
            .early(early);
        let function = cx.function(&self.module(), "frame")?;
        // SAFETY: this is the entry's parameter, and the caller vouches for the addresses.
        unsafe { cx.launch(&function, grid, Args::new().value(frame)) }
    }
}

fn module(dtype: DType, gates: usize) -> Module {
    Module::of(SOURCE, dtype).since(9).define("GATES", gates).define("CLUSTER", CLUSTER)
}

pub fn all_modules() -> Vec<Module> {
    let all = [DType::F32, DType::BF16, DType::F16].map(|t| [3, 4].map(|gates| module(t, gates)));
    all.into_iter().flatten().collect()
}

/// As in the kernel.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Level {
    wi: u64,
    wh: u64,
    b: u64,
    c: u64,
    h: u64,
    mask: u64,
    c_out: u64,
    h_out: u64,
    norm: Prologue,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Launch {
    level: [Level; LAYERS],
    x: u64,
    y: u64,
    layers: i32,
    input: i32,
    hidden: i32,
    state_f32: i32,
}

#[cfg(test)]
mod tests {
    use super::super::window::tests::{layer, props};
    use super::*;

    #[test]
    fn layers_that_one_cluster_holds() {
        let h200 = Props { major: 9, ..props(132, 232_448) };
        let fits = |dtype, batch, hidden, count, card: &Props| {
            let one = |input| Layer { steps: 1, input, ..layer(dtype, batch, hidden) };
            let layers: Vec<_> =
                (0..count).map(|n| one(if n == 0 { 288 } else { hidden })).collect();
            Frame::of(card, &layers).is_some()
        };
        assert!(fits(DType::F32, 1, 256, 2, &h200));
        assert!(!fits(DType::F32, 1, 256, 3, &h200), "2 MiB a layer");
        assert!(fits(DType::BF16, 1, 256, 4, &h200));
        assert!(!fits(DType::F32, 2, 256, 2, &h200));
        assert!(!fits(DType::F32, 1, 250, 2, &h200));
        assert!(!fits(DType::F32, 1, 1024, 2, &h200));
        assert!(!fits(DType::F32, 1, 256, 2, &Props { sms: 66, ..h200.clone() }));
        assert!(!fits(DType::F32, 1, 256, 2, &Props { major: 8, ..h200 }));
    }
}
