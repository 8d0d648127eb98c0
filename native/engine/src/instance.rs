//! One instance of a program: an arena with fixed slots and, on CUDA, its captured graphs.

use std::ops::Range;
use std::slice;
use std::time::Duration;

use crate::call::{Call, View};
use crate::cpu::Cpu;
use crate::cuda::runner::Runner;
use crate::device::Device;
use crate::error::Result;
use crate::plan::{Place, Plan};
use crate::pool::Block;
use crate::program::{Feed, Output, Program};
use crate::tensor::Tensor;

/// The bytes from which on a tensor is no longer copied into its slot, or out of it, on the CPU.
const WINDOW: usize = 4096;

/// Whether a run's results are there.
#[derive(Debug)]
pub(crate) enum Outcome {
    Done(Vec<Output>),
    Running,
}

#[derive(Debug)]
pub(crate) struct Instance {
    device: Device,
    /// On CUDA; the CPU needs nothing but the slots. Goes before them: it may have to see a run off.
    runner: Option<Box<Runner>>,
    slots: Slots,
    /// Which slot of each state the next run reads.
    parity: usize,
    results: Option<Vec<Output>>,
}

/// Where a program's values lie in one instance.
#[derive(Debug)]
pub(crate) struct Slots {
    arena: Block,
    params: Vec<u64>,
}

/// A part of the arena that a graph finds somewhere else: in memory of the host that the device
/// reads and writes over the bus.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    pub range: Range<usize>,
    pub addr: u64,
}

impl Slots {
    pub fn base(&self) -> u64 {
        self.arena.addr()
    }

    pub fn addr(&self, place: Place, parity: usize, windows: &[Window]) -> u64 {
        match place {
            Place::Param(i) => self.params[i],
            Place::Arena(offsets) => {
                let offset = offsets[parity];
                match windows.iter().find(|w| w.range.contains(&offset)) {
                    Some(window) => window.addr + (offset - window.range.start) as u64,
                    None => self.base() + offset as u64,
                }
            }
        }
    }

    /// Gives each step's call to `execute`, in order.
    pub fn calls(
        &self,
        plan: &Plan,
        parity: usize,
        windows: &[Window],
        mut execute: impl FnMut(&Call) -> Result<()>,
    ) -> Result<()> {
        let (mut inputs, mut outputs) = (Vec::with_capacity(16), Vec::with_capacity(4));
        for step in &plan.steps {
            let view = |place, spec, rows| {
                let constant = matches!(place, Place::Param(_));
                View { addr: self.addr(place, parity, windows), spec, constant, rows }
            };
            inputs.clear();
            outputs.clear();
            for input in &step.inputs {
                inputs.push(input.as_ref().map(|i| view(i.place, &i.spec, i.rows)));
            }
            outputs.extend(step.outputs.iter().map(|(place, spec)| view(*place, spec, None)));
            execute(&Call {
                op: &step.op,
                inputs: &inputs,
                outputs: &outputs,
                workspace: step.workspace.map_or(0, |offset| self.base() + offset as u64),
            })?;
        }
        Ok(())
    }
}

impl Instance {
    /// An instance in the program's initial state.
    pub fn new(program: &Program) -> Result<Self> {
        let device = program.device.clone();
        let slots = Slots {
            arena: device.pool().allocate(program.plan.arena)?,
            params: program.params.iter().map(Tensor::addr).collect(),
        };
        let runner = match &device {
            Device::Cpu(_) => None,
            Device::Cuda(cuda) => Some(Box::new(Runner::new(cuda, program, &slots)?)),
        };
        let mut instance = Instance { device, slots, parity: 0, runner, results: None };
        instance.restore(program, &program.initial)?;
        Ok(instance)
    }

    /// Kernels and copies in a captured graph.
    pub fn graph_nodes(&self) -> (usize, usize) {
        self.runner.as_ref().map_or((0, 0), |r| r.graph_nodes())
    }

    /// Whether a run on these feeds can start without blocking.
    pub fn ready(&mut self, feeds: &[Feed]) -> Result<bool> {
        match &mut self.runner {
            Some(runner) => runner.ready(feeds, self.parity),
            None => Ok(true),
        }
    }

    /// On CUDA: queues the next run, to begin when its inputs are there.
    /// False where that would take long and `hurry` forbids it.
    pub fn arm(&mut self, program: &Program, hurry: bool) -> Result<bool> {
        match &mut self.runner {
            Some(runner) => runner.arm(program, &self.slots, self.parity, hurry),
            None => Ok(true),
        }
    }

    /// Starts a run (on the CPU: makes it). Where it is a rehearsal the next run reads the same
    /// states: what this one leaves is nobody's.
    pub fn start(&mut self, program: &Program, feeds: &[Feed], rehearsal: bool) -> Result<()> {
        let results = match (&mut self.runner, &self.device) {
            (Some(runner), _) => runner.start(program, &self.slots, self.parity, feeds)?,
            (None, Device::Cpu(cpu)) => {
                Some(run_on_cpu(cpu, program, &self.slots, self.parity, feeds)?)
            }
            (None, Device::Cuda(_)) => None,
        };
        // Only now: a run that failed leaves the states that have two slots as they were.
        if program.plan.alternates && !rehearsal {
            self.parity ^= 1;
        }
        self.results = results;
        Ok(())
    }

    /// The results, if they are there within `spin`; `None` waits for as long as it takes.
    pub fn poll(&mut self, spin: Option<Duration>) -> Result<Outcome> {
        match (self.results.take(), &mut self.runner) {
            (Some(results), _) => Ok(Outcome::Done(results)),
            (None, Some(runner)) => runner.poll(spin),
            (None, None) => Ok(Outcome::Done(Vec::new())),
        }
    }

    /// Waits for the results of a run that was started.
    pub fn finish(&mut self) -> Result<Vec<Output>> {
        match self.poll(None)? {
            Outcome::Done(outputs) => Ok(outputs),
            Outcome::Running => Ok(Vec::new()),
        }
    }

    fn state_slot(&self, program: &Program, i: usize) -> u64 {
        self.slots.base() + program.plan.states[i].0[self.parity] as u64
    }

    /// Copies of the states.
    pub fn snapshot(&mut self, program: &Program) -> Result<Vec<Tensor>> {
        self.join()?;
        (0..program.plan.states.len())
            .map(|i| {
                let spec = program.plan.states[i].1.clone();
                let copy = Tensor::uninit(&self.device, spec)?;
                let bytes = copy.spec().bytes();
                self.device.copy(copy.addr(), self.state_slot(program, i), bytes)?;
                Ok(copy)
            })
            .collect()
    }

    /// Sets the states, which the caller has checked.
    pub fn restore(&mut self, program: &Program, state: &[Tensor]) -> Result<()> {
        self.join()?;
        for (i, tensor) in state.iter().enumerate() {
            let bytes = tensor.spec().bytes();
            self.device.copy(self.state_slot(program, i), tensor.addr(), bytes)?;
        }
        Ok(())
    }

    /// Orders the device's own copies after the latest run and before the next.
    fn join(&mut self) -> Result<()> {
        self.runner.as_mut().map_or(Ok(()), |r| r.join())
    }
}

fn run_on_cpu(
    cpu: &Cpu,
    program: &Program,
    slots: &Slots,
    parity: usize,
    feeds: &[Feed],
) -> Result<Vec<Output>> {
    let plan = &program.plan;
    // First, so that where memory is short nothing has happened.
    let tensors = program.output_tensors()?;
    // Tensors are read and written where they lie, small ones but for the time that finding them takes.
    let mut windows: Vec<Window> = Vec::new();
    for (feed, (offset, spec)) in feeds.iter().zip(&plan.inputs) {
        let slot = slots.base() + *offset as u64;
        match feed {
            Feed::Bytes(bytes) => cpu.write(slot, bytes)?,
            Feed::Tensor(tensor) if spec.bytes() < WINDOW => {
                cpu.copy(slot, tensor.addr(), spec.bytes())?;
            }
            Feed::Tensor(tensor) => {
                windows.push(Window { range: *offset..offset + spec.bytes(), addr: tensor.addr() });
            }
        }
    }
    for (tensor, (place, spec)) in tensors.iter().flatten().zip(&plan.outputs) {
        if let Some(offset) = plan.own_output(*place)
            && spec.bytes() >= WINDOW
            && !windows.iter().any(|w| w.range.contains(&offset))
        {
            windows.push(Window { range: offset..offset + spec.bytes(), addr: tensor.addr() });
        }
    }
    // SAFETY: the plan keeps live values apart and sized the workspace; arena and parameters live
    // as long as the instance, and tensors as long as the call.
    slots.calls(plan, parity, &windows, |call| unsafe { cpu.execute(call) })?;
    let mut tensors = tensors.into_iter().flatten();
    let outputs = plan.outputs.iter().map(|(place, spec)| {
        let addr = slots.addr(*place, parity, &windows);
        Ok(match tensors.next() {
            Some(tensor) => {
                if tensor.addr() != addr {
                    cpu.copy(tensor.addr(), addr, spec.bytes())?;
                }
                Output::Tensor(tensor)
            }
            None => {
                // SAFETY: the value's place in the arena, which the run has written.
                let bytes = unsafe { slice::from_raw_parts(addr as *const u8, spec.bytes()) };
                Output::Bytes(bytes.to_vec())
            }
        })
    });
    outputs.collect()
}
