//! Which family serves which op.

use super::{
    Context, Module, Props, attention, conv, dense, elementwise, embedding, mlp, norm, recurrent,
    reduce, rope, sample, scan, shape,
};
use crate::call::Call;
use crate::device::Explanation;
use crate::error::Result;
use crate::op::Op;
use crate::spec::Spec;

type Inputs<'a> = &'a [Option<&'a Spec>];

/// Calls a function of the op's family: `explain`, `modules` and `launch` go by this one table, so
/// that they cannot disagree.
macro_rules! family {
    ($function:ident($first:expr, $op:expr, $last:expr)) => {
        match $op {
            op @ (Op::Unary(_) | Op::Binary(_) | Op::Select(_) | Op::Cast(_)) => {
                elementwise::$function($first, op, $last)
            }
            op @ (Op::Reshape(_) | Op::Transpose(_) | Op::Broadcast(_)) => {
                shape::$function($first, op, $last)
            }
            op @ (Op::Slice(_) | Op::PutSlice(_) | Op::Concatenate(_)) => {
                shape::$function($first, op, $last)
            }
            op @ (Op::Softmax(_) | Op::Argmax(_) | Op::Reduce(_)) => {
                reduce::$function($first, op, $last)
            }
            Op::FlashAttention(op) => attention::$function($first, op, $last),
            Op::Sample(op) => sample::$function($first, op, $last),
            Op::Embedding(op) => embedding::$function($first, op, $last),
            Op::CausalConv1d(op) => conv::$function($first, op, $last),
            Op::SelectiveScan(op) => scan::$function($first, op, $last),
            Op::Rope(op) => rope::$function($first, op, $last),
            Op::GatedMlp(op) => mlp::$function($first, op, $last),
            Op::Dense(op) => dense::$function($first, op, $last),
            op @ (Op::LayerNorm(_) | Op::RmsNorm(_)) => norm::$function($first, op, $last),
            op @ (Op::Lstm(_) | Op::Gru(_)) => recurrent::$function($first, op, $last),
        }
    };
}

/// The variant that a launch would use, and why.
pub fn explain(props: &Props, op: &Op, inputs: Inputs) -> Result<Explanation> {
    family!(explain(props, op, inputs))
}

/// The modules that a launch will need.
pub fn modules(props: &Props, op: &Op, inputs: Inputs) -> Result<Vec<Module>> {
    family!(modules(props, op, inputs))
}

/// Whether the op's kernel does the norm of x that is fused into it.
pub fn fuses(props: &Props, op: &Op, inputs: Inputs) -> bool {
    match op {
        Op::Dense(attrs) => dense::fuses(props, attrs, inputs),
        Op::Lstm(_) | Op::Gru(_) => recurrent::fuses(props, op, inputs),
        _ => false,
    }
}

/// Bytes of scratch that a launch will need; most families need none.
pub fn workspace(props: &Props, op: &Op, inputs: Inputs) -> Result<usize> {
    match op {
        Op::Reduce(_) => reduce::workspace(props, op, inputs),
        Op::FlashAttention(op) => attention::workspace(props, op, inputs),
        Op::Lstm(_) | Op::Gru(_) => recurrent::workspace(props, op, inputs),
        Op::SelectiveScan(op) => scan::workspace(props, op, inputs),
        Op::GatedMlp(op) => mlp::workspace(props, op, inputs),
        _ => Ok(0),
    }
}

/// # Safety
/// As for [`crate::Device::execute`].
pub unsafe fn launch(cx: &Context, call: &Call) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { family!(launch(cx, call.op, call)) }
}

/// Every module of every family.
pub fn all_modules() -> Vec<Module> {
    [
        attention::all_modules(),
        elementwise::all_modules(),
        shape::all_modules(),
        reduce::all_modules(),
        sample::all_modules(),
        embedding::all_modules(),
        conv::all_modules(),
        scan::all_modules(),
        rope::all_modules(),
        mlp::all_modules(),
        dense::all_modules(),
        norm::all_modules(),
        recurrent::all_modules(),
        super::runner::all_modules(),
    ]
    .concat()
}
