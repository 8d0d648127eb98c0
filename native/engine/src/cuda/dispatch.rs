//! Which family serves which op.

use super::{Context, Module, Props};
use crate::call::Call;
use crate::device::Explanation;
use crate::error::{Error, Result};
use crate::op::Op;
use crate::spec::Spec;

type Inputs<'a> = &'a [Option<&'a Spec>];

fn none<T>(op: &Op) -> Result<T> {
    Err(Error::unsupported(op.name(), "no CUDA kernel yet"))
}

/// The variant that a launch would use, and why.
pub fn explain(_props: &Props, op: &Op, _inputs: Inputs) -> Result<Explanation> {
    none(op)
}

/// The modules that a launch will need.
pub fn modules(_props: &Props, op: &Op, _inputs: Inputs) -> Result<Vec<Module>> {
    none(op)
}

/// Bytes of scratch that a launch will need.
pub fn workspace(_props: &Props, op: &Op, _inputs: Inputs) -> Result<usize> {
    none(op)
}

/// # Safety
/// As for [`crate::Device::execute`].
pub unsafe fn launch(_cx: &Context, call: &Call) -> Result<()> {
    none(call.op)
}

/// Every module of every family.
pub fn all_modules() -> Vec<Module> {
    Vec::new()
}
