//! The CUDA device. Every library is opened at run time: a machine without them loads Nitrox all
//! the same and is told what was looked for.

use std::sync::Arc;

use crate::call::Call;
use crate::device::{Explanation, Id, Weight};
use crate::error::{Error, Result};
use crate::op::Op;
use crate::pool::Pool;
use crate::spec::Spec;

#[derive(Debug)]
pub struct Cuda {
    ordinal: u32,
    pool: Arc<Pool>,
}

impl Cuda {
    pub fn open(ordinal: u32, _memory_limit: Option<usize>) -> Result<Arc<Self>> {
        Err(Error::Unavailable { device: Id::Cuda(ordinal).to_string(), message: "not yet".into() })
    }

    pub fn ordinal(&self) -> u32 {
        self.ordinal
    }

    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    pub fn write(&self, _addr: u64, _bytes: &[u8]) -> Result<()> {
        Err(Error::Internal("not yet".into()))
    }

    pub fn read(&self, _addr: u64, _into: &mut [u8]) -> Result<()> {
        Err(Error::Internal("not yet".into()))
    }

    pub fn copy(&self, _to: u64, _from: u64, _bytes: usize) -> Result<()> {
        Err(Error::Internal("not yet".into()))
    }

    pub fn synchronize(&self) -> Result<()> {
        Err(Error::Internal("not yet".into()))
    }

    pub fn workspace(&self, _op: &Op, _inputs: &[Option<&Spec>]) -> Result<usize> {
        Ok(0)
    }

    pub fn weight(&self, _op: &Op, _inputs: &[Option<&Spec>]) -> Result<Weight> {
        Ok(Weight::Light)
    }

    pub fn explain(&self, op: &Op, _inputs: &[Option<&Spec>]) -> Result<Explanation> {
        Err(Error::unsupported(op.name(), "not yet on CUDA"))
    }

    /// # Safety
    /// As for [`crate::Device::execute`].
    pub unsafe fn execute(&self, call: &Call) -> Result<()> {
        Err(Error::unsupported(call.op.name(), "not yet on CUDA"))
    }
}
