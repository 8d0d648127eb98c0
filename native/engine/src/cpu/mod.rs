//! The CPU device: vectorised for what the processor at hand has, with threads where they pay.

mod memory;

use std::sync::Arc;

use crate::call::Call;
use crate::device::{Explanation, Weight};
use crate::error::{Error, Result};
use crate::op::Op;
use crate::pool::{self, Pool};
use crate::spec::Spec;

#[derive(Debug)]
pub struct Cpu {
    pool: Arc<Pool>,
}

impl Cpu {
    pub fn new(memory_limit: Option<usize>) -> Self {
        let options = pool::Options { limit: memory_limit, segment: 8 << 20 };
        Cpu { pool: Pool::new(":cpu", Box::new(memory::Heap), options) }
    }

    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    pub fn write(&self, addr: u64, bytes: &[u8]) -> Result<()> {
        // SAFETY: `addr` starts a block of this pool of at least that many bytes, and the borrow
        // of `bytes` cannot overlap pool memory that is being written.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), addr as *mut u8, bytes.len()) };
        Ok(())
    }

    pub fn read(&self, addr: u64, into: &mut [u8]) -> Result<()> {
        // SAFETY: as in `write`.
        unsafe { std::ptr::copy_nonoverlapping(addr as *const u8, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    pub fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        // SAFETY: both are blocks of this pool of at least that many bytes; `copy` allows overlap.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    pub fn workspace(&self, _op: &Op, _inputs: &[Option<&Spec>]) -> Result<usize> {
        Ok(0)
    }

    pub fn weight(&self, _op: &Op, _inputs: &[Option<&Spec>]) -> Weight {
        Weight::Heavy
    }

    pub fn explain(&self, op: &Op, _inputs: &[Option<&Spec>]) -> Result<Explanation> {
        Err(Error::unsupported(op.name(), "not yet on the CPU"))
    }

    /// # Safety
    /// As for [`crate::Device::execute`].
    pub unsafe fn execute(&self, call: &Call) -> Result<()> {
        Err(Error::unsupported(call.op.name(), "not yet on the CPU"))
    }
}
