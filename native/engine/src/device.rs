//! The devices: `:cpu`, and `{:cuda, n}` for each GPU the driver shows.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::call::{Call, Rows};
use crate::cpu::Cpu;
use crate::cuda::{self, Cuda};
use crate::error::{Error, Result};
use crate::infer::infer;
use crate::op::Op;
use crate::pool::{Pool, Stats};
use crate::spec::Spec;
use crate::tensor::Tensor;

/// Which device; `{:cuda, 0}` is the first GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Id {
    Cpu,
    Cuda(u32),
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Id::Cpu => f.write_str(":cpu"),
            Id::Cuda(n) => write!(f, "{{:cuda, {n}}}"),
        }
    }
}

/// What [`fmt::Display`] writes.
impl FromStr for Id {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        let cuda = || text.strip_prefix("{:cuda, ")?.strip_suffix('}')?.parse().ok();
        if text == ":cpu" { Ok(Id::Cpu) } else { cuda().map(Id::Cuda).ok_or(()) }
    }
}

/// An open device. Cloning it shares the device.
#[derive(Debug, Clone)]
pub enum Device {
    Cpu(Arc<Cpu>),
    Cuda(Arc<Cuda>),
}

/// The kernel variant that an op would use, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    pub variant: &'static str,
    pub why: String,
    /// Kernel launches; 0 on the CPU and for what costs nothing.
    pub launches: usize,
}

/// How long a call may take, as far as it matters to the caller's scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// Well under a millisecond.
    Light,
    /// Perhaps longer: a kernel to compile, or much to compute on the CPU.
    Heavy,
}

impl Device {
    /// A device with a pool of its own.
    pub fn open(id: Id, memory_limit: Option<usize>) -> Result<Self> {
        match id {
            Id::Cpu => Ok(Device::Cpu(Arc::new(Cpu::new(memory_limit)))),
            Id::Cuda(n) => Ok(Device::Cuda(Cuda::open(n, memory_limit)?)),
        }
    }

    pub fn id(&self) -> Id {
        match self {
            Device::Cpu(_) => Id::Cpu,
            Device::Cuda(cuda) => Id::Cuda(cuda.ordinal()),
        }
    }

    pub fn is_cpu(&self) -> bool {
        matches!(self, Device::Cpu(_))
    }

    pub fn same(&self, other: &Device) -> bool {
        Arc::ptr_eq(self.pool(), other.pool())
    }

    pub fn pool(&self) -> &Arc<Pool> {
        match self {
            Device::Cpu(cpu) => cpu.pool(),
            Device::Cuda(cuda) => cuda.pool(),
        }
    }

    pub fn stats(&self) -> Stats {
        self.pool().stats()
    }

    /// Gives segments with nothing in them back to the system, and scalars that were only kept.
    pub fn trim(&self) {
        if let Device::Cuda(cuda) = self {
            cuda.scalars().forget();
        }
        self.pool().trim();
    }

    /// Copies host bytes to the device, ordered with the device's own work.
    pub fn write(&self, addr: u64, bytes: &[u8]) -> Result<()> {
        match self {
            Device::Cpu(cpu) => cpu.write(addr, bytes),
            Device::Cuda(cuda) => cuda.write(addr, bytes),
        }
    }

    /// Copies device bytes to the host once the work queued so far is done.
    pub fn read(&self, addr: u64, into: &mut [u8]) -> Result<()> {
        match self {
            Device::Cpu(cpu) => cpu.read(addr, into),
            Device::Cuda(cuda) => cuda.read(addr, into),
        }
    }

    /// Copies within the device, ordered with its own work.
    pub fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        match self {
            Device::Cpu(cpu) => cpu.copy(to, from, bytes),
            Device::Cuda(cuda) => cuda.copy(to, from, bytes),
        }
    }

    /// Waits for all work queued so far.
    pub fn synchronize(&self) -> Result<()> {
        match self {
            Device::Cpu(_) => Ok(()),
            Device::Cuda(cuda) => cuda.synchronize(),
        }
    }

    /// Bytes of scratch that `op` needs on inputs of these specs, which `infer` has passed.
    pub fn workspace(&self, op: &Op, inputs: &[Option<&Spec>]) -> Result<usize> {
        match self {
            Device::Cpu(cpu) => cpu.workspace(op, inputs),
            Device::Cuda(cuda) => cuda.workspace(op, inputs),
        }
    }

    /// Whether `op` reads its input `i` by rows, so that it may be a part of each row of another tensor.
    pub(crate) fn reads_rows(
        &self,
        op: &Op,
        inputs: &[Option<&Spec>],
        i: usize,
        rows: Rows,
    ) -> bool {
        match self {
            Device::Cpu(_) => false,
            Device::Cuda(_) => cuda::reads_rows(op, inputs, i, rows),
        }
    }

    pub fn explain(&self, op: &Op, inputs: &[Option<&Spec>]) -> Result<Explanation> {
        infer(op, inputs)?;
        if op.is_alias() {
            let why = "the same buffer under another shape or type".into();
            return Ok(Explanation { variant: "alias", why, launches: 0 });
        }
        match self {
            Device::Cpu(cpu) => cpu.explain(op, inputs),
            Device::Cuda(cuda) => cuda.explain(op, inputs),
        }
    }

    pub fn weight(&self, op: &Op, inputs: &[Option<&Spec>]) -> Result<Weight> {
        match self {
            Device::Cpu(cpu) => Ok(cpu.weight(op, inputs)),
            Device::Cuda(cuda) => cuda.weight(op, inputs),
        }
    }

    /// Runs one op at once, into new tensors.
    pub fn run(&self, op: &Op, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
        for tensor in inputs.iter().flatten() {
            if !tensor.device().same(self) {
                return Err(Error::Device {
                    expected: self.id().to_string(),
                    got: tensor.device().id().to_string(),
                });
            }
        }
        let specs: Vec<_> = inputs.iter().map(|t| t.map(Tensor::spec)).collect();
        let mut outputs = infer(op, &specs)?;
        if let (true, [Some(x)]) = (op.is_alias(), inputs) {
            return outputs.drain(..).map(|spec| x.alias(spec)).collect();
        }
        let outputs: Vec<_> =
            outputs.into_iter().map(|s| Tensor::uninit(self, s)).collect::<Result<_>>()?;
        let scratch = match self.workspace(op, &specs)? {
            0 => None,
            bytes => Some(self.pool().allocate(bytes)?),
        };
        let call = Call {
            op,
            inputs: &inputs.iter().map(|t| t.map(Tensor::view)).collect::<Vec<_>>(),
            outputs: &outputs.iter().map(Tensor::view).collect::<Vec<_>>(),
            workspace: scratch.as_ref().map_or(0, |b| b.addr()),
        };
        // SAFETY: the views are of live tensors that `infer` has passed, the outputs are new, and
        // device memory is reused only in the order of the device's stream.
        unsafe { self.execute(&call) }?;
        Ok(outputs)
    }

    /// Queues one op (on the CPU: runs it).
    ///
    /// # Safety
    /// The call's views lie in this device's memory, stay alive until the work is done, and
    /// follow the rules of [`Call`]; the workspace is as large as [`Device::workspace`] said.
    pub unsafe fn execute(&self, call: &Call) -> Result<()> {
        match self {
            // SAFETY: the caller's promise.
            Device::Cpu(cpu) => unsafe { cpu.execute(call) },
            // SAFETY: the caller's promise.
            Device::Cuda(cuda) => unsafe { cuda.execute(call) },
        }
    }
}
