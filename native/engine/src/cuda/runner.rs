//! A program's instance on CUDA: a stream of its own, pinned staging, and the whole list of ops
//! captured into a graph, once for each parity of the states.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::Cuda;
use super::gate::{self, Gate};
use super::graph::Graph;
use super::launch::{Args, Context, Grid};
use super::memory::Pinned;
use super::modules::Module;
use super::stream::{Event, Stream};
use crate::device::Device;
use crate::error::Result;
use crate::instance::{Outcome, Slots, Window};
use crate::plan::{Place, Plan};
use crate::pool::{ALIGNMENT, round_up};
use crate::program::{Feed, Output, Program};
use crate::spec::{DType, Spec};
use crate::tensor::Tensor;

#[derive(Debug)]
pub(crate) struct Runner {
    cuda: Arc<Cuda>,
    stream: Stream,
    /// Where other streams wait for a run.
    done: Event,
    /// The point of the device's main stream that a run waits for.
    entry: Event,
    /// Whether the main stream has done something that the next run must come after.
    after_main: bool,
    /// Whether the latest run may still be under way.
    running: bool,
    /// Host bytes of the inputs, laid out as the arena's inputs.
    inputs: Option<Pinned>,
    readback: Option<Readback>,
    /// By [`Variant::index`]: a step that finds its graph so reads no more code than it must.
    graphs: [Option<Graph>; Variant::COUNT],
    gate: Option<Gate>,
    /// Whether a run is queued behind the gate.
    armed: bool,
}

/// Inputs of up to so many bytes together are read by the kernels from pinned memory of the host,
/// and so are outputs written to it, each in place of a copy node. The nodes cost more: of a frame
/// of five kernels they took 8 µs back to back and 18 µs at 60 Hz (`benches/launch.rs`, H200).
const MAPPED: usize = 16 << 10;

/// How long the end of an armed run is waited for on the host where its instance goes. Only a device
/// that is lost, or one that others keep busy, takes so long.
const DRAIN: Duration = Duration::from_millis(2);

/// What a graph was captured for.
#[derive(Debug, Clone, Copy)]
struct Variant {
    parity: usize,
    /// Whether it takes the inputs from the staging memory; else they are in their slots.
    staged: bool,
    /// Whether it begins with the gate.
    gated: bool,
}

impl Variant {
    const COUNT: usize = 8;

    fn index(self) -> usize {
        self.parity & 1 | usize::from(self.staged) << 1 | usize::from(self.gated) << 2
    }

    fn staged(parity: usize) -> Self {
        Variant { parity, staged: true, gated: false }
    }
}

/// Host memory for the outputs of a program that reads them back.
#[derive(Debug)]
struct Readback {
    host: Pinned,
    /// Each output's offset and bytes.
    outputs: Vec<(usize, usize)>,
    /// Copies: the place they begin at, the offset in `host`, and the bytes.
    copies: Vec<(Place, usize, usize)>,
    /// The outputs that the kernels write to `host` themselves.
    window: Option<Window>,
    signal: Signal,
}

/// How the host sees the end of a run without asking the driver: the last kernel of the graph
/// counts the runs in a word of pinned memory. Against an event this saved 2 µs back to back and
/// 4 µs at 60 Hz, when the driver's code is not in the caches (`benches/launch.rs`, H200).
#[derive(Debug)]
struct Signal {
    host: Pinned,
    /// The count on the device.
    runs: Tensor,
    /// Runs launched.
    launched: u32,
}

impl Runner {
    /// Captures the graphs of a program whose inputs come from the host.
    pub fn new(cuda: &Arc<Cuda>, program: &Program, slots: &Slots) -> Result<Self> {
        let plan = &program.plan;
        let pinned = |bytes| if bytes == 0 { Ok(None) } else { cuda.pinned(bytes).map(Some) };
        let mut runner = Runner {
            stream: cuda.stream()?,
            done: cuda.event()?,
            entry: cuda.event()?,
            after_main: true,
            running: false,
            inputs: pinned(plan.input_bytes)?,
            readback: None,
            graphs: Default::default(),
            gate: None,
            armed: false,
            cuda: Arc::clone(cuda),
        };
        if program.options.readback {
            runner.readback = Readback::new(cuda, plan)?;
        }
        for parity in 0..=usize::from(plan.alternates) {
            runner.capture(program, slots, Variant::staged(parity))?;
        }
        Ok(runner)
    }

    pub fn graph_nodes(&self) -> (usize, usize) {
        let graph = &self.graphs[Variant::staged(0).index()];
        graph.as_ref().map_or((0, 0), |g| (g.nodes().kernels, g.nodes().copies))
    }

    pub fn ready(&mut self, feeds: &[Feed], parity: usize) -> Result<bool> {
        if self.running && self.has_ended()? {
            self.running = false;
        }
        let staged = from_host(feeds);
        let variant = Variant { staged, ..Variant::staged(parity) };
        Ok(!self.running && self.has(variant))
    }

    fn has(&self, variant: Variant) -> bool {
        self.graphs[variant.index()].is_some()
    }

    fn capture(&mut self, program: &Program, slots: &Slots, variant: Variant) -> Result<()> {
        let plan = &program.plan;
        let (inputs, readback) = (&self.inputs, &self.readback);
        let mut windows: Vec<Window> = readback.iter().filter_map(|r| r.window.clone()).collect();
        let mut copied = inputs.as_ref().filter(|_| variant.staged);
        // An input that is an output too is read back from its slot.
        let gate = self.gate.as_ref().filter(|_| variant.gated);
        if plan.input_bytes <= MAPPED && !plan.echoes {
            let range = 0..plan.input_bytes;
            let host = copied.take().filter(|_| !gate.is_some_and(Gate::has_mail));
            windows.extend(host.map(|host| Window { range, addr: host.device() }));
        }
        // Kernels are compiled and loaded now: nothing may block inside a capture.
        slots.calls(plan, variant.parity, &windows, |call| {
            let specs: Vec<_> = call.inputs.iter().map(|i| i.map(|view| view.spec)).collect();
            self.cuda.prepare(call.op, &specs)
        })?;
        let graph = self.cuda.capture(&self.stream, |cx| {
            if let Some(gate) = gate {
                gate.capture(cx, slots.base())?;
            }
            if let Some(staging) = copied {
                // SAFETY: the slots and the staging memory live as long as this runner's
                // instance, which runs one graph at a time.
                unsafe { cx.upload(slots.base(), staging.host(), plan.input_bytes) }?;
            }
            slots.calls(plan, variant.parity, &windows, |call| {
                // SAFETY: the plan keeps live values apart and sized the workspace; arena and
                // parameters live as long as the instance.
                unsafe { self.cuda.execute_on(&self.stream, call) }
            })?;
            if let Some(readback) = readback {
                for &(place, offset, bytes) in &readback.copies {
                    let host = readback.host.host().wrapping_add(offset);
                    let from = slots.addr(place, variant.parity, &windows);
                    // SAFETY: as for the inputs; the pinned memory has `bytes` from `offset`.
                    unsafe { cx.download(host, from, bytes) }?;
                }
                readback.signal.capture(cx, readback.copies.is_empty())?;
            }
            Ok(())
        })?;
        self.graphs[variant.index()] = Some(graph);
        Ok(())
    }

    /// Queues a run. Gives the outputs where they are tensors: those are ordered by streams, and
    /// nobody has to wait.
    pub fn start(
        &mut self,
        program: &Program,
        slots: &Slots,
        parity: usize,
        feeds: &[Feed],
    ) -> Result<Option<Vec<Output>>> {
        if self.running {
            // The staging memory is still being read.
            self.stream.synchronize()?;
            self.running = false;
        }
        let staged = from_host(feeds);
        if staged && self.armed {
            self.stage(&program.plan, feeds);
            if self.open() {
                self.running = true;
                return Ok(None);
            }
        }
        self.disarm()?;
        let variant = Variant { staged, ..Variant::staged(parity) };
        if !self.has(variant) {
            self.capture(program, slots, variant)?;
        }
        let plan = &program.plan;
        // Before anything is queued: where memory is short nothing has happened.
        let tensors = program.output_tensors()?;
        // Pool memory belongs to the main stream's order: what comes from it or goes to it ties
        // the two streams together. A frame from and to the host needs neither.
        let pooled = !staged || !program.options.readback;
        if pooled || self.after_main {
            self.entry.record(self.cuda.main())?;
            self.stream.wait(&self.entry)?;
            self.after_main = false;
        }
        self.stage(plan, feeds);
        self.running = true;
        let cx = self.cuda.context(&self.stream);
        if !staged {
            for (feed, (offset, spec)) in feeds.iter().zip(&plan.inputs) {
                let slot = slots.base() + *offset as u64;
                match (feed, &self.inputs) {
                    // SAFETY: as in `capture`; the slot holds `spec`.
                    (Feed::Tensor(t), _) => unsafe { cx.copy(slot, t.addr(), spec.bytes()) }?,
                    (Feed::Bytes(_), Some(staging)) => {
                        let from = staging.host().wrapping_add(*offset);
                        // SAFETY: as above.
                        unsafe { cx.upload(slot, from, spec.bytes()) }?;
                    }
                    (Feed::Bytes(_), None) => {}
                }
            }
        }
        if let Some(graph) = &mut self.graphs[variant.index()] {
            // SAFETY: the arena and the parameters live as long as the instance, and whoever
            // reuses the arena's memory is ordered after this run (see `poll`).
            unsafe { graph.launch(&self.stream) }?;
            if let Some(readback) = &mut self.readback {
                readback.signal.launched();
            }
        }
        for (tensor, (place, spec)) in tensors.iter().flatten().zip(&plan.outputs) {
            let from = slots.addr(*place, parity, &[]);
            // SAFETY: a new tensor of the value's spec.
            unsafe { cx.copy(tensor.addr(), from, spec.bytes()) }?;
        }
        if pooled {
            self.hold_main()?;
        }
        Ok(tensors.map(|tensors| tensors.into_iter().map(Output::Tensor).collect()))
    }

    /// Puts the inputs that come from the host where the graphs find them.
    fn stage(&self, plan: &Plan, feeds: &[Feed]) {
        let Some(staging) = &self.inputs else { return };
        for (feed, (offset, _)) in feeds.iter().zip(&plan.inputs) {
            if let Feed::Bytes(bytes) = feed {
                let slot = staging.host().wrapping_add(*offset);
                // SAFETY: the staging memory is laid out as the inputs, whose sizes the caller has
                // checked, and no run whose results count reads it now.
                unsafe { slot.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
            }
        }
    }

    /// Queues the next run behind the gate, if it can be one that is not waited for.
    /// False, and nothing is done, where that takes long and `hurry` forbids it.
    pub fn arm(
        &mut self,
        program: &Program,
        slots: &Slots,
        parity: usize,
        hurry: bool,
    ) -> Result<bool> {
        let able = self.readback.is_some() && program.plan.repeatable;
        if !able || self.armed || !self.ready(&[], parity)? {
            return Ok(true);
        }
        let variant = Variant { gated: true, ..Variant::staged(parity) };
        if hurry && !self.has(variant) {
            return Ok(false);
        }
        if self.gate.is_none() {
            let plan = &program.plan;
            let mailed = plan.input_bytes <= gate::MAIL && !plan.echoes;
            let bytes = if mailed { plan.input_bytes } else { 0 };
            self.gate = Some(Gate::new(&self.cuda, bytes)?);
            // The main stream writes its count, which a gate that came first would have counted from
            // something else, and then let pass what it should not.
            self.after_main = true;
        }
        // Both parities, for the next frame is of the other one.
        for parity in 0..=usize::from(program.plan.alternates) {
            let variant = Variant { parity, ..variant };
            if !self.has(variant) {
                self.capture(program, slots, variant)?;
            }
        }
        let (Some(gate), Some(readback), Some(graph)) =
            (&mut self.gate, &mut self.readback, &mut self.graphs[variant.index()])
        else {
            return Ok(true);
        };
        if self.after_main {
            self.entry.record(self.cuda.main())?;
            self.stream.wait(&self.entry)?;
            self.after_main = false;
        }
        // SAFETY: as in `start`; `Drop` sees to a run that nobody opened the gate for.
        unsafe { graph.launch(&self.stream) }?;
        gate.launched();
        readback.signal.launched();
        self.armed = true;
        Ok(true)
    }

    /// Lets the armed run pass, if it still waits.
    fn open(&mut self) -> bool {
        let inputs = self.inputs.as_ref();
        self.armed && self.gate.as_ref().is_some_and(|gate| gate.open(inputs)) && {
            self.armed = false;
            true
        }
    }

    /// Sees the armed run off. Its results are nobody's.
    fn disarm(&mut self) -> Result<()> {
        if self.armed {
            self.gate.iter().for_each(Gate::close);
            self.stream.synchronize()?;
            self.armed = false;
        }
        Ok(())
    }

    /// Looks for the end of a run for as long as `spin`, or waits for it.
    pub fn poll(&mut self, spin: Option<Duration>) -> Result<Outcome> {
        match (spin, &self.readback) {
            (Some(spin), Some(readback)) => {
                let began = Instant::now();
                while !readback.signal.is_seen() {
                    if began.elapsed() >= spin {
                        // The caller may go away and with it the instance: its memory is the
                        // main stream's to reuse only after this run.
                        self.hold_main()?;
                        return Ok(Outcome::Running);
                    }
                    std::hint::spin_loop();
                }
            }
            // Also where a kernel failed, and the word never changes.
            _ => self.stream.synchronize()?,
        }
        self.running = false;
        let Some(readback) = &self.readback else { return Ok(Outcome::Done(Vec::new())) };
        let read = |&(at, bytes): &(usize, usize)| {
            let from = readback.host.host().wrapping_add(at);
            // SAFETY: `bytes` from there are the output's, and the copy to them is done.
            Output::Bytes(unsafe { std::slice::from_raw_parts(from, bytes) }.to_vec())
        };
        Ok(Outcome::Done(readback.outputs.iter().map(read).collect()))
    }

    /// Whether the latest run is over.
    fn has_ended(&self) -> Result<bool> {
        match &self.readback {
            Some(readback) => Ok(readback.signal.is_seen()),
            None => self.stream.query(),
        }
    }

    /// Has the main stream wait for the latest run.
    fn hold_main(&self) -> Result<()> {
        self.done.record(&self.stream)?;
        self.cuda.main().wait(&self.done)
    }

    /// Orders work of the main stream after the latest run and before the next.
    pub fn join(&mut self) -> Result<()> {
        self.disarm()?;
        self.hold_main()?;
        self.after_main = true;
        Ok(())
    }
}

pub(super) fn module() -> Module {
    Module::new("graph/done.cu")
}

pub fn all_modules() -> Vec<Module> {
    vec![module(), gate::module()]
}

impl Drop for Runner {
    /// The arena goes back to the pool after this: an armed run has to be over. Such runs are short
    /// (see `Session::prepare`), and waiting for one takes no call to the driver. Where the device is
    /// busy with others, the main stream waits, and so does whoever is given the memory.
    fn drop(&mut self) {
        let (true, Some(readback)) = (self.armed, &self.readback) else { return };
        self.gate.iter().for_each(Gate::close);
        let began = Instant::now();
        while !readback.signal.is_seen() {
            if began.elapsed() >= DRAIN {
                // A device that is lost has nothing to wait for.
                let _ = self.hold_main();
                return;
            }
            std::hint::spin_loop();
        }
    }
}

impl Signal {
    fn new(cuda: &Arc<Cuda>) -> Result<Self> {
        let device = Device::Cuda(Arc::clone(cuda));
        let runs = Tensor::from_bytes(&device, Spec::scalar(DType::U32), &0u32.to_ne_bytes())?;
        // Compiled and loaded before the capture.
        cuda.context(cuda.main()).function(&module(), "done")?;
        Ok(Signal { host: cuda.pinned(size_of::<u32>())?, runs, launched: 0 })
    }

    /// Queues the last kernel of a graph. Where a kernel is ahead of it and no copy, it begins early: it
    /// is there, and only waits, when that one ends.
    fn capture(&self, cx: &Context, early: bool) -> Result<()> {
        let done = cx.function(&module(), "done")?;
        let mut args = Args::new();
        args.ptr(self.host.device()).ptr(self.runs.addr());
        // SAFETY: the kernel's two pointers, to memory that lives as long as the runner.
        unsafe { cx.launch(&done, Grid::new(1, 1)?.early(early), &mut args) }
    }

    /// Counts a launch.
    fn launched(&mut self) {
        self.launched = self.launched.wrapping_add(1);
    }

    /// Whether all the runs that were launched are over, and what they wrote is to be seen.
    fn is_seen(&self) -> bool {
        // SAFETY: pinned memory of a word, aligned, that only the GPU writes.
        let word = unsafe { AtomicU32::from_ptr(self.host.host().cast()) };
        word.load(Ordering::Acquire) == self.launched
    }
}

/// Whether every input comes as host bytes.
fn from_host(feeds: &[Feed]) -> bool {
    feeds.iter().all(|feed| matches!(feed, Feed::Bytes(_)))
}

impl Readback {
    /// One copy for outputs that lie behind one another, none for those that the kernels write to
    /// the host themselves.
    fn new(cuda: &Arc<Cuda>, plan: &Plan) -> Result<Option<Self>> {
        let mapped = Some(plan.exported.clone()).filter(|r| !r.is_empty() && r.len() <= MAPPED);
        // The host's memory begins with the mapped part of the arena.
        let mut size = mapped.as_ref().map_or(0, Range::len);
        let mut outputs = Vec::new();
        let mut copies: Vec<(Place, usize, usize)> = Vec::new();
        let mut next = None;
        for (place, spec) in &plan.outputs {
            let bytes = spec.bytes();
            if let (Place::Arena([offset, _]), Some(range)) = (place, &mapped)
                && range.contains(offset)
            {
                outputs.push((offset - range.start, bytes));
                continue;
            }
            outputs.push((size, bytes));
            match copies.last_mut() {
                Some((_, from, length)) if next == Some(*place) => *length = size + bytes - *from,
                _ => copies.push((*place, size, bytes)),
            }
            let step = round_up(bytes.max(1), ALIGNMENT).unwrap_or(bytes);
            next = match place {
                Place::Arena(offsets) => Some(Place::Arena(offsets.map(|o| o + step))),
                Place::Param(_) => None,
            };
            size += step;
        }
        if size == 0 {
            return Ok(None);
        }
        let (host, signal) = (cuda.pinned(size)?, Signal::new(cuda)?);
        let window = mapped.map(|range| Window { range, addr: host.device() });
        Ok(Some(Readback { host, outputs, copies, window, signal }))
    }
}
