//! Programs: a list of ops with every shape inferred and every value in its place, run with one
//! call. Sessions: a program with a state that stays on the device.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::device::{Device, Explanation};
use crate::error::{Error, Result};
use crate::fuse::fuse;
use crate::instance::{Instance, Outcome};
use crate::lanes::{Held, Lanes};
use crate::op::Op;
use crate::plan::{Plan, Step, plan};
use crate::pool::lock;
use crate::spec::Spec;
use crate::tensor::Tensor;

/// How long a call may spin for the GPU on the caller's thread.
const SPIN: Duration = Duration::from_micros(100);

/// The longest run that is made on the caller's thread on the CPU device: half of the millisecond
/// that a scheduler of the VM may be held.
const INLINE: Duration = Duration::from_micros(500);

/// A value of a program: `Node(n, k)` is output `k` of node `n`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ref {
    Param(usize),
    Input(usize),
    State(usize),
    Node(usize, usize),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    pub op: Op,
    /// Earlier values only; `None` for an optional input that is not there.
    pub inputs: Vec<Option<Ref>>,
}

/// A traced function, in an order in which it can be run.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Graph {
    pub nodes: Vec<Node>,
    pub inputs: Vec<Spec>,
    pub outputs: Vec<Ref>,
    /// The value each state has after a run.
    pub next_state: Vec<Ref>,
}

#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Outputs come back as host bytes, read in the same graph, instead of as tensors.
    pub readback: bool,
    /// How many runs may be under way at once; a session is always one.
    pub instances: usize,
}

/// What a program costs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Info {
    /// Ops after reshapes are gone.
    pub steps: usize,
    /// Kernels in the CUDA graph; 0 on the CPU.
    pub kernel_nodes: usize,
    /// Copies in the CUDA graph; 0 on the CPU.
    pub copy_nodes: usize,
    /// Bytes of one instance.
    pub arena_bytes: usize,
    pub parameter_bytes: usize,
    pub instances: usize,
}

/// An input of a run.
#[derive(Debug, Clone, Copy)]
pub enum Feed<'a> {
    /// Host bytes, native-endian, of exactly the input's size.
    Bytes(&'a [u8]),
    Tensor(&'a Tensor),
}

/// An output of a run. A later run never changes it.
#[derive(Debug, Clone)]
pub enum Output {
    Tensor(Tensor),
    Bytes(Vec<u8>),
}

/// Whether a call may block its thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Returns within a fraction of a millisecond, if need be with `Busy` or `Pending`.
    Try,
    Block,
}

/// How far a run has come.
#[derive(Debug)]
pub enum Started {
    Done(Vec<Output>),
    /// Nothing was started: every instance is in use, or the run would take too long for this
    /// thread. Call again with [`Mode::Block`].
    Busy,
    /// Under way on the GPU.
    Pending(Pending),
}

/// A run under way. Dropping it gives the instance back without its results.
#[derive(Debug)]
pub struct Pending {
    held: Held,
    began: Instant,
    /// Of a rehearsal: what is to be armed after it.
    rehearsed: Option<Arc<Program>>,
}

impl Pending {
    /// Blocks until the results are there.
    pub fn wait(mut self) -> Result<Vec<Output>> {
        let outputs = self.held.finish()?;
        self.held.lanes().note_run(self.began.elapsed());
        if let Some(program) = self.rehearsed {
            self.held.arm(&program, false)?;
        }
        Ok(outputs)
    }
}

#[derive(Debug)]
pub struct Program {
    pub(crate) device: Device,
    pub(crate) plan: Plan,
    pub(crate) params: Vec<Tensor>,
    pub(crate) initial: Vec<Tensor>,
    pub(crate) options: Options,
    outputs: Vec<Spec>,
    info: Info,
    /// The instances of a program without state.
    lanes: Option<Arc<Lanes>>,
    /// With state: the instance that compiling made, for the first session.
    spare: Mutex<Option<Instance>>,
}

impl Program {
    /// Plans a graph for a device and, on CUDA, captures it. `state` is what its sessions start
    /// from. Blocks: kernels may have to be compiled.
    pub fn compile(
        device: &Device,
        graph: Graph,
        params: Vec<Tensor>,
        state: Vec<Tensor>,
        options: Options,
    ) -> Result<Arc<Program>> {
        if options.instances == 0 || options.instances > 1024 {
            return Err(Error::argument("program", "instances must be 1 to 1024"));
        }
        for tensor in params.iter().chain(&state) {
            expect_device(device, tensor)?;
        }
        let specs =
            |tensors: &[Tensor]| tensors.iter().map(|t| t.spec().clone()).collect::<Vec<_>>();
        let (param_specs, state_specs) = (specs(&params), specs(&state));
        let graph = match device {
            Device::Cpu(_) => graph,
            Device::Cuda(cuda) => {
                fuse(graph, &param_specs, &state_specs, |op, inputs| cuda.fuses(op, inputs))?
            }
        };
        let plan = plan(
            &graph,
            &param_specs,
            &state_specs,
            |op, inputs| device.workspace(op, inputs),
            |op, inputs, i, rows| device.reads_rows(op, inputs, i, rows),
        )?;
        let stateful = !state.is_empty();
        let mut program = Program {
            device: device.clone(),
            outputs: plan.outputs.iter().map(|(_, spec)| spec.clone()).collect(),
            plan,
            params,
            initial: state,
            options,
            info: Info::default(),
            lanes: None,
            spare: Mutex::default(),
        };
        let count = if stateful { 1 } else { options.instances };
        let mut instances =
            (0..count).map(|_| Instance::new(&program)).collect::<Result<Vec<_>>>()?;
        let (kernel_nodes, copy_nodes) = instances[0].graph_nodes();
        program.info = Info {
            steps: program.plan.steps.len(),
            kernel_nodes,
            copy_nodes,
            arena_bytes: program.plan.arena,
            parameter_bytes: program.params.iter().map(|p| p.spec().bytes()).sum(),
            instances: count,
        };
        if stateful {
            program.spare = Mutex::new(instances.pop());
        } else {
            program.lanes = Some(Lanes::new(instances));
        }
        Ok(Arc::new(program))
    }

    pub fn outputs(&self) -> &[Spec] {
        &self.outputs
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    pub fn info(&self) -> &Info {
        &self.info
    }

    /// Each step, after fusing: its op, and the kernel that it uses and why.
    pub fn explain(&self) -> Result<Vec<(&'static str, Explanation)>> {
        let explain = |step: &Step| {
            let inputs = step.inputs.iter().map(|input| input.as_ref().map(|i| &i.spec));
            let inputs: Vec<_> = inputs.collect();
            Ok((step.op.name(), self.device.explain(&step.op, &inputs)?))
        };
        self.plan.steps.iter().map(explain).collect()
    }

    pub fn run(self: &Arc<Self>, feeds: &[Feed], mode: Mode) -> Result<Started> {
        match &self.lanes {
            Some(lanes) => {
                let run = run(self, lanes, feeds, mode, Purpose::Results)?;
                Ok(run.unwrap_or(Started::Busy))
            }
            None => {
                Err(Error::argument("program", "it has a state: run it with Nitrox.Session.step/2"))
            }
        }
    }

    /// New tensors for the outputs of a run, where they come back as such.
    pub(crate) fn output_tensors(&self) -> Result<Option<Vec<Tensor>>> {
        if self.options.readback {
            return Ok(None);
        }
        let outputs = self.outputs.iter();
        outputs
            .map(|spec| Tensor::uninit(&self.device, spec.clone()))
            .collect::<Result<_>>()
            .map(Some)
    }

    /// Whether a run can be made for nobody, and somebody sees its end.
    fn can_rehearse(&self) -> bool {
        self.plan.repeatable && (self.options.readback || self.device.is_cpu())
    }

    fn check_feeds(&self, feeds: &[Feed]) -> Result<()> {
        let inputs = &self.plan.inputs;
        if feeds.len() != inputs.len() {
            return Err(Error::argument(
                "program",
                format!("takes {} inputs, got {}", inputs.len(), feeds.len()),
            ));
        }
        for (i, (feed, (_, spec))) in feeds.iter().zip(inputs).enumerate() {
            match feed {
                Feed::Bytes(bytes) if bytes.len() != spec.bytes() => {
                    return Err(Error::argument(
                        "program",
                        format!(
                            "input {i} is {} {}, {} bytes, got {}",
                            spec.dtype,
                            spec.shape_text(),
                            spec.bytes(),
                            bytes.len()
                        ),
                    ));
                }
                Feed::Tensor(tensor) => {
                    expect_device(&self.device, tensor)?;
                    if tensor.spec() != spec {
                        return Err(Error::argument(
                            "program",
                            format!("input {i} is {spec}, got {}", tensor.spec()),
                        ));
                    }
                }
                Feed::Bytes(_) => {}
            }
        }
        Ok(())
    }
}

fn expect_device(device: &Device, tensor: &Tensor) -> Result<()> {
    if tensor.device().same(device) {
        return Ok(());
    }
    Err(Error::Device { expected: device.id().to_string(), got: tensor.device().id().to_string() })
}

/// Whether a run counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Results,
    /// The states stay, and where it is over the next run is armed. `Busy` says that it needs the
    /// time of [`Mode::Block`], which does not queue for it.
    Rehearsal,
}

/// One function for both, so that a rehearsal leaves the very code of a run in the caches. `None` is
/// a rehearsal that is not made.
fn run(
    program: &Arc<Program>,
    lanes: &Arc<Lanes>,
    feeds: &[Feed],
    mode: Mode,
    purpose: Purpose,
) -> Result<Option<Started>> {
    let (rehearsal, hurry) = (purpose == Purpose::Rehearsal, mode == Mode::Try);
    program.check_feeds(feeds)?;
    // On the CPU the run happens on this very thread.
    let long = (rehearsal || hurry && program.device.is_cpu()) && lanes.last_run() > INLINE;
    let held = match mode {
        _ if long || rehearsal && !program.can_rehearse() => None,
        Mode::Block if !rehearsal => Some(lanes.take()),
        _ => lanes.try_take(),
    };
    let Some(mut held) = held else { return Ok((!rehearsal).then_some(Started::Busy)) };
    if (hurry || rehearsal) && !held.ready(feeds)? {
        return Ok((!rehearsal).then_some(Started::Busy));
    }
    // A rehearsal begins as the run will. The first time another graph is captured.
    if rehearsal && !held.arm(program, hurry)? {
        return Ok(Some(Started::Busy));
    }
    let began = Instant::now();
    held.start(program, feeds, rehearsal)?;
    let outcome = held.poll(hurry.then_some(SPIN))?;
    held.lanes().note_run(began.elapsed());
    Ok(Some(match outcome {
        Outcome::Done(outputs) => {
            if rehearsal {
                held.arm(program, hurry)?;
            }
            Started::Done(outputs)
        }
        Outcome::Running => {
            let rehearsed = rehearsal.then(|| Arc::clone(program));
            Started::Pending(Pending { held, began, rehearsed })
        }
    }))
}

/// A program with a state of its own, an instance of its own.
#[derive(Debug)]
pub struct Session {
    program: Arc<Program>,
    lanes: Arc<Lanes>,
}

impl Session {
    /// A session that starts from the program's initial state.
    pub fn new(program: &Arc<Program>) -> Result<Self> {
        if program.initial.is_empty() {
            return Err(Error::argument("session", "the program was compiled without a state"));
        }
        let spare = lock(&program.spare).take();
        let instance = match spare {
            Some(instance) => instance,
            None => Instance::new(program)?,
        };
        Ok(Session { program: Arc::clone(program), lanes: Lanes::new(vec![instance]) })
    }

    pub fn program(&self) -> &Arc<Program> {
        &self.program
    }

    /// One run: reads the state, leaves the next one. Where a run fails the state is as before,
    /// but for states that are written in place; where it fails for want of memory it has not begun.
    pub fn step(&self, feeds: &[Feed], mode: Mode) -> Result<Started> {
        Ok(self.run(feeds, mode, false)?.unwrap_or(Started::Busy))
    }

    /// [`Session::step`], or [`Session::prepare`] for a `rehearsal`: for who calls both from one place. What a
    /// step went through and its rehearsal did not, 13 lines of code in these two functions and their caller,
    /// was cold when the step came, and took 1.2 µs (`bench/results/frames.md`).
    pub fn run(&self, feeds: &[Feed], mode: Mode, rehearsal: bool) -> Result<Option<Started>> {
        let purpose = if rehearsal { Purpose::Rehearsal } else { Purpose::Results };
        run(&self.program, &self.lanes, feeds, mode, purpose)
    }

    /// Makes a step on these feeds for nobody: the states stay as they are, and the results are only
    /// there so that the caller may do with them what it does with a step's. Then, on CUDA, the next
    /// step waits on the device for its inputs, for some milliseconds, so that it begins without a
    /// call to the driver.
    ///
    /// Nothing happens, and the answer is `None`, where a step is under way, where steps are long or
    /// there was none yet, where a step can't be thrown away, and on CUDA where its outputs are
    /// tensors, whose end nobody waits for.
    pub fn prepare(&self, feeds: &[Feed], mode: Mode) -> Result<Option<Started>> {
        self.run(feeds, mode, true)
    }

    /// Copies of the states.
    pub fn snapshot(&self) -> Result<Vec<Tensor>> {
        self.lanes.take().snapshot(&self.program)
    }

    /// Sets the states, which must be as the program's.
    pub fn restore(&self, state: &[Tensor]) -> Result<()> {
        let states = &self.program.plan.states;
        if state.len() != states.len() {
            return Err(Error::argument(
                "restore",
                format!("{} states expected, got {}", states.len(), state.len()),
            ));
        }
        for (i, (tensor, (_, spec))) in state.iter().zip(states).enumerate() {
            expect_device(&self.program.device, tensor)?;
            if tensor.spec() != spec {
                return Err(Error::argument(
                    "restore",
                    format!("state {i} is {spec}, got {}", tensor.spec()),
                ));
            }
        }
        self.lanes.take().restore(&self.program, state)
    }

    /// A second session that goes on from this one's state and leaves it alone.
    pub fn fork(&self) -> Result<Session> {
        let state = self.snapshot()?;
        let mut instance = Instance::new(&self.program)?;
        instance.restore(&self.program, &state)?;
        Ok(Session { program: Arc::clone(&self.program), lanes: Lanes::new(vec![instance]) })
    }
}
