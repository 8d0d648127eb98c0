//! Runs a kernel: its blocks, their warps, and the lanes of these.

use std::fmt;

use crate::memory::Memory;
use crate::ptx::Kernel;

/// One launch.
#[derive(Debug, Clone)]
pub struct Launch {
    pub blocks: [u32; 3],
    pub threads: [u32; 3],
    /// Blocks of a cluster; ones where there are no clusters.
    pub cluster: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// All blocks are in progress together.
    pub cooperative: bool,
    /// The parameters, laid out as [`Kernel::params`] says.
    pub params: Vec<u8>,
}

/// What ended a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub kind: FaultKind,
    /// The kernel, the block, the thread, the line of PTX and what happened there.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// An address that is not allocated: CUDA_ERROR_ILLEGAL_ADDRESS.
    Address,
    /// CUDA_ERROR_MISALIGNED_ADDRESS.
    Alignment,
    /// Two threads at one place of shared memory without a barrier between them.
    Race,
    /// No warp can go on: a barrier that not all reach.
    Deadlock,
    /// An instruction that the machine does not know, or that traps.
    Instruction,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Runs a kernel to its end, on the calling thread.
pub fn run(_kernel: &Kernel, _launch: &Launch, _memory: &Memory) -> Result<(), Fault> {
    Err(Fault { kind: FaultKind::Instruction, message: "not yet".into() })
}
