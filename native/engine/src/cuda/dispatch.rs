//! Which family serves which op.

use super::{Context, Module, Props, elementwise, embedding, reduce, sample, shape};
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
pub fn explain(props: &Props, op: &Op, inputs: Inputs) -> Result<Explanation> {
    match op {
        Op::Unary(_) | Op::Binary(_) | Op::Select(_) | Op::Cast(_) => {
            elementwise::explain(props, op, inputs)
        }
        Op::Reshape(_)
        | Op::Transpose(_)
        | Op::Broadcast(_)
        | Op::Slice(_)
        | Op::PutSlice(_)
        | Op::Concatenate(_) => shape::explain(props, op, inputs),
        Op::Softmax(_) | Op::Argmax(_) | Op::Reduce(_) => reduce::explain(props, op, inputs),
        Op::Sample(a) => sample::explain(props, a, inputs),
        Op::Embedding(a) => embedding::explain(props, a, inputs),
        _ => none(op),
    }
}

/// The modules that a launch will need.
pub fn modules(props: &Props, op: &Op, inputs: Inputs) -> Result<Vec<Module>> {
    match op {
        Op::Unary(_) | Op::Binary(_) | Op::Select(_) | Op::Cast(_) => {
            elementwise::modules(props, op, inputs)
        }
        Op::Reshape(_)
        | Op::Transpose(_)
        | Op::Broadcast(_)
        | Op::Slice(_)
        | Op::PutSlice(_)
        | Op::Concatenate(_) => shape::modules(props, op, inputs),
        Op::Softmax(_) | Op::Argmax(_) | Op::Reduce(_) => reduce::modules(props, op, inputs),
        Op::Sample(a) => sample::modules(props, a, inputs),
        Op::Embedding(a) => embedding::modules(props, a, inputs),
        _ => none(op),
    }
}

/// Bytes of scratch that a launch will need.
pub fn workspace(props: &Props, op: &Op, inputs: Inputs) -> Result<usize> {
    match op {
        Op::Reduce(_) => reduce::workspace(props, op, inputs),
        _ => Ok(0),
    }
}

/// # Safety
/// As for [`crate::Device::execute`].
pub unsafe fn launch(cx: &Context, call: &Call) -> Result<()> {
    let op = call.op;
    // SAFETY: the caller's promise, in each of them.
    unsafe {
        match op {
            Op::Unary(_) | Op::Binary(_) | Op::Select(_) | Op::Cast(_) => {
                elementwise::launch(cx, op, call)
            }
            Op::Reshape(_)
            | Op::Transpose(_)
            | Op::Broadcast(_)
            | Op::Slice(_)
            | Op::PutSlice(_)
            | Op::Concatenate(_) => shape::launch(cx, op, call),
            Op::Softmax(_) | Op::Argmax(_) | Op::Reduce(_) => reduce::launch(cx, op, call),
            Op::Sample(a) => sample::launch(cx, a, call),
            Op::Embedding(a) => embedding::launch(cx, a, call),
            _ => none(op),
        }
    }
}

/// Every module of every family.
pub fn all_modules() -> Vec<Module> {
    [
        elementwise::all_modules(),
        shape::all_modules(),
        reduce::all_modules(),
        sample::all_modules(),
        embedding::all_modules(),
    ]
    .concat()
}
