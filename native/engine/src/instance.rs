//! One instance of a program: an arena with fixed slots and, on CUDA, its captured graphs.

use std::sync::Arc;
use std::time::Duration;

use crate::call::{Call, View};
use crate::device::Device;
use crate::error::Result;
use crate::plan::Place;
use crate::pool::Block;
use crate::program::{Feed, Output, Program};
use crate::tensor::Tensor;

/// Whether a run's results are there.
#[derive(Debug)]
pub(crate) enum Outcome {
    Done(Vec<Output>),
    Running,
}

#[derive(Debug)]
pub(crate) struct Instance {
    device: Device,
    arena: Arc<Block>,
    params: Vec<u64>,
    /// Which slot of each state the next run reads.
    parity: usize,
    results: Option<Vec<Output>>,
}

impl Instance {
    pub fn new(program: &Program) -> Result<Self> {
        let device = program.device.clone();
        let arena = Arc::new(device.pool().allocate(program.plan.arena)?);
        let params = program.params.iter().map(Tensor::addr).collect();
        let mut instance = Instance { device, arena, params, parity: 0, results: None };
        instance.restore(program, &program.initial)?;
        Ok(instance)
    }

    /// Kernels and copies in the captured graph.
    pub fn graph_nodes(&self) -> (usize, usize) {
        (0, 0)
    }

    /// Whether a run on these feeds can start at once.
    pub fn ready(&mut self, _feeds: &[Feed]) -> Result<bool> {
        Ok(true)
    }

    /// Starts a run (on the CPU: makes it).
    pub fn start(&mut self, program: &Program, feeds: &[Feed]) -> Result<()> {
        let base = self.arena.addr();
        for (feed, (offset, spec)) in feeds.iter().zip(&program.plan.inputs) {
            let slot = base + *offset as u64;
            match feed {
                Feed::Bytes(bytes) => self.device.write(slot, bytes)?,
                Feed::Tensor(tensor) => self.device.copy(slot, tensor.addr(), spec.bytes())?,
            }
        }
        for step in &program.plan.steps {
            let at = |place: Place| place.addr(self.parity, base, &self.params);
            let inputs: Vec<_> = step
                .inputs
                .iter()
                .map(|i| i.as_ref().map(|(place, spec)| View { addr: at(*place), spec }))
                .collect();
            let outputs: Vec<_> =
                step.outputs.iter().map(|(place, spec)| View { addr: at(*place), spec }).collect();
            let call = Call {
                op: &step.op,
                inputs: &inputs,
                outputs: &outputs,
                workspace: step.workspace.map_or(0, |offset| base + offset as u64),
            };
            // SAFETY: the plan keeps live values apart and sized the workspace; arena and
            // parameters live as long as the instance.
            unsafe { self.device.execute(&call) }?;
        }
        let mut results = Vec::with_capacity(program.plan.outputs.len());
        for (place, spec) in &program.plan.outputs {
            let addr = place.addr(self.parity, base, &self.params);
            results.push(if program.options.readback {
                let mut bytes = vec![0; spec.bytes()];
                self.device.read(addr, &mut bytes)?;
                Output::Bytes(bytes)
            } else {
                let tensor = Tensor::uninit(&self.device, spec.clone())?;
                self.device.copy(tensor.addr(), addr, spec.bytes())?;
                Output::Tensor(tensor)
            });
        }
        // Only now: a run that failed leaves the states that have two slots as they were.
        if program.plan.alternates {
            self.parity ^= 1;
        }
        self.results = Some(results);
        Ok(())
    }

    /// The results, if they are there within `spin`; `None` waits for as long as it takes.
    pub fn poll(&mut self, _spin: Option<Duration>) -> Result<Outcome> {
        Ok(Outcome::Done(self.results.take().unwrap_or_default()))
    }

    /// Waits for the results of a run that was started.
    pub fn finish(&mut self) -> Result<Vec<Output>> {
        match self.poll(None)? {
            Outcome::Done(outputs) => Ok(outputs),
            Outcome::Running => Ok(Vec::new()),
        }
    }

    fn state_slot(&self, program: &Program, i: usize) -> u64 {
        self.arena.addr() + program.plan.states[i].0[self.parity] as u64
    }

    pub fn snapshot(&mut self, program: &Program) -> Result<Vec<Tensor>> {
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

    pub fn restore(&mut self, program: &Program, state: &[Tensor]) -> Result<()> {
        for (i, tensor) in state.iter().enumerate() {
            let bytes = tensor.spec().bytes();
            self.device.copy(self.state_slot(program, i), tensor.addr(), bytes)?;
        }
        Ok(())
    }
}
