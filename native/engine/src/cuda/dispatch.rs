//! Which family serves which op.

use super::{
    Context, Module, Props, attention, attention_block, block, conv, convolution, dense,
    dense_stack, dot, elementwise, embedding, index, mlp, norm, order, pad, pooling, recurrent,
    reduce, rope, sample, scan, shape, solve, stack,
};
use crate::call::{Call, Rows};
use crate::device::{Explanation, Id};
use crate::error::Result;
use crate::events::{self, Event};
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
            op @ (Op::Reshape(_) | Op::Bitcast(_) | Op::Transpose(_) | Op::Broadcast(_)) => {
                shape::$function($first, op, $last)
            }
            op @ (Op::Reverse(_) | Op::Slice(_) | Op::PutSlice(_) | Op::Concatenate(_)) => {
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
            Op::MambaBlock(op) => block::$function($first, op, $last),
            Op::AttentionBlock(op) => attention_block::$function($first, op, $last),
            Op::RecurrentStack(op) => stack::$function($first, op, $last),
            Op::DenseStack(op) => dense_stack::$function($first, op, $last),
            Op::Rope(op) => rope::$function($first, op, $last),
            Op::GatedMlp(op) => mlp::$function($first, op, $last),
            Op::Dense(op) => dense::$function($first, op, $last),
            Op::Dot(op) => dot::$function($first, op, $last),
            Op::TriangularSolve(op) => solve::$function($first, op, $last),
            Op::Conv(op) => convolution::$function($first, op, $last),
            op @ (Op::LayerNorm(_) | Op::RmsNorm(_)) => norm::$function($first, op, $last),
            op @ (Op::Lstm(_) | Op::Gru(_)) => recurrent::$function($first, op, $last),
            op @ (Op::Sort(_) | Op::Cumulative(_)) => order::$function($first, op, $last),
            op @ (Op::WindowReduce(_) | Op::WindowScatter(_)) => {
                pooling::$function($first, op, $last)
            }
            Op::Pad(op) => pad::$function($first, op, $last),
            op @ (Op::Iota(_) | Op::Gather(_) | Op::IndexedAdd(_) | Op::IndexedPut(_)) => {
                index::$function($first, op, $last)
            }
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

/// Whether one launch does an op that was made of several.
pub fn fuses(props: &Props, op: &Op, inputs: Inputs) -> bool {
    match op {
        Op::Dense(attrs) => dense::fuses(props, attrs, inputs),
        Op::Lstm(_) | Op::Gru(_) => recurrent::fuses(props, op, inputs),
        Op::MambaBlock(attrs) => block::fuses(props, attrs, inputs),
        Op::AttentionBlock(attrs) => attention_block::fuses(props, attrs, inputs),
        Op::RecurrentStack(attrs) => stack::fuses(props, attrs, inputs),
        Op::DenseStack(attrs) => dense_stack::fuses(props, attrs, inputs),
        _ => false,
    }
}

/// Whether the op's kernel reads its input `i` where it is a part of each row of another tensor.
pub(crate) fn reads_rows(op: &Op, inputs: Inputs, i: usize, rows: Rows) -> bool {
    // The rows of a reshaped part are other ones.
    let whole = inputs.get(i).copied().flatten().is_some_and(|spec| spec.last() == rows.length);
    whole
        && match op {
            Op::CausalConv1d(_) => conv::reads_rows(i),
            Op::SelectiveScan(_) => scan::reads_rows(i, rows),
            _ => false,
        }
}

/// Whether a launch has nothing of a library's to open or load; opens nothing itself.
pub fn is_warm(props: &Props, op: &Op, inputs: Inputs) -> Result<bool> {
    match op {
        Op::Dot(op) => dot::is_warm(props, op, inputs),
        Op::Conv(op) => convolution::is_warm(props, op, inputs),
        Op::TriangularSolve(op) => solve::is_warm(props, op, inputs),
        Op::Dense(op) => dense::is_warm(props, op, inputs),
        Op::GatedMlp(op) => mlp::is_warm(props, op, inputs),
        Op::Lstm(_) | Op::Gru(_) => recurrent::is_warm(props, op, inputs),
        Op::RecurrentStack(op) => stack::is_warm(props, op, inputs),
        _ => Ok(true),
    }
}

/// Bytes of scratch that a launch will need; most families need none.
pub fn workspace(props: &Props, op: &Op, inputs: Inputs) -> Result<usize> {
    match op {
        Op::Reduce(_) => reduce::workspace(props, op, inputs),
        Op::FlashAttention(op) => attention::workspace(props, op, inputs),
        Op::Lstm(_) | Op::Gru(_) => recurrent::workspace(props, op, inputs),
        Op::RecurrentStack(op) => stack::workspace(props, op, inputs),
        Op::SelectiveScan(op) => scan::workspace(props, op, inputs),
        Op::GatedMlp(op) => mlp::workspace(props, op, inputs),
        Op::Dot(op) => dot::workspace(props, op, inputs),
        Op::TriangularSolve(op) => solve::workspace(props, op, inputs),
        Op::Conv(op) => convolution::workspace(props, op, inputs),
        Op::Dense(op) => dense::workspace(props, op, inputs),
        Op::Sort(_) | Op::Cumulative(_) => order::workspace(props, op, inputs),
        Op::IndexedAdd(_) | Op::IndexedPut(_) => index::workspace(props, op, inputs),
        Op::WindowScatter(_) => pooling::workspace(props, op, inputs),
        _ => Ok(0),
    }
}

/// Why the op goes a longer way than its best variant, where it does.
fn fallback(props: &Props, op: &Op, inputs: Inputs) -> Option<String> {
    match op {
        Op::Lstm(_) | Op::Gru(_) => recurrent::fallback(props, op, inputs),
        Op::SelectiveScan(attrs) => scan::fallback(props, attrs, inputs),
        Op::LayerNorm(_) | Op::RmsNorm(_) => {
            let explanation = norm::explain(props, op, inputs).ok()?;
            (explanation.variant == "streamed").then_some(explanation.why)
        }
        _ => None,
    }
}

/// # Safety
/// As for [`crate::Device::execute`].
pub unsafe fn launch(cx: &Context, call: &Call) -> Result<()> {
    events::tell_some(|| {
        let specs: Vec<_> = call.inputs.iter().map(|v| v.map(|v| v.spec)).collect();
        let why = fallback(cx.props(), call.op, &specs)?;
        Some(Event::Fallback { op: call.op.name(), device: Id::Cuda(cx.ordinal()), why })
    });
    // SAFETY: the caller's promise.
    unsafe { family!(launch(cx, call.op, call)) }
}

/// Every module of every family.
pub fn all_modules() -> Vec<Module> {
    [
        attention::all_modules(),
        attention_block::all_modules(),
        elementwise::all_modules(),
        shape::all_modules(),
        reduce::all_modules(),
        sample::all_modules(),
        embedding::all_modules(),
        index::all_modules(),
        order::all_modules(),
        pooling::all_modules(),
        pad::all_modules(),
        conv::all_modules(),
        convolution::all_modules(),
        scan::all_modules(),
        block::all_modules(),
        rope::all_modules(),
        mlp::all_modules(),
        dense::all_modules(),
        dense_stack::all_modules(),
        dot::all_modules(),
        solve::all_modules(),
        norm::all_modules(),
        recurrent::all_modules(),
        stack::all_modules(),
        super::runner::all_modules(),
    ]
    .concat()
}
