//! The CPU device: vectorised for what the processor at hand has, with threads where they pay.

mod arithmetic;
mod attention;
mod conv;
mod convolution;
mod dense;
mod dot;
mod elementwise;
mod embedding;
mod gemm;
mod index;
mod math;
mod memory;
mod mlp;
mod norm;
mod numeric;
mod order;
mod recurrent;
mod reduce;
mod rope;
mod sample;
mod scan;
mod shape;
mod simd;
mod softmax;
mod solve;
mod threads;
mod window;

use std::sync::Arc;

use crate::call::Call;
use crate::device::{Explanation, Weight};
use crate::error::{Error, Result};
use crate::infer::infer;
use crate::infer::product::Windows;
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

    /// The threads that work is shared among, and the instruction set of the kernels.
    pub fn about() -> (usize, &'static str) {
        (threads::available(), simd::level().name())
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

    pub fn workspace(&self, op: &Op, inputs: &[Option<&Spec>]) -> Result<usize> {
        Ok(match (op, inputs) {
            (Op::Dense(_), [Some(x), Some(w), ..]) => dense::workspace(x, w)?,
            (Op::Lstm(_) | Op::Gru(_), _) => recurrent::Plan::new(op, inputs)?.bytes(),
            (Op::Sample(_), [Some(logits), ..]) => sample::workspace(logits),
            (Op::SelectiveScan(_), _) => scan::workspace(inputs),
            (Op::GatedMlp(_), _) => mlp::Plan::new(inputs)?.bytes(),
            (Op::Dot(attrs), [Some(a), Some(b)]) => dot::workspace(attrs, a, b),
            (Op::TriangularSolve(_), [Some(a), Some(b)]) => solve::workspace(a, b),
            (Op::Conv(attrs), [Some(x), Some(kernel)]) => infer(op, inputs)?
                .first()
                .map_or(0, |y| convolution::workspace(attrs, x, kernel, y)),
            _ => 0,
        })
    }

    pub fn weight(&self, op: &Op, inputs: &[Option<&Spec>]) -> Weight {
        match nanoseconds(op, inputs) {
            Ok(ns) if ns < LIGHT_NS => Weight::Light,
            _ => Weight::Heavy,
        }
    }

    pub fn explain(&self, op: &Op, inputs: &[Option<&Spec>]) -> Result<Explanation> {
        let ns = nanoseconds(op, inputs)?;
        let (kernel, reason) = kernel(op, inputs)?;
        let shared = match op {
            Op::Sample(_) => 0.0,
            // Each product is shared, not the steps, which wait for one another.
            Op::Lstm(_) | Op::Gru(_) => recurrent::Plan::new(op, inputs)?.longest(),
            Op::GatedMlp(_) => mlp::Plan::new(inputs)?.longest(),
            _ => ns,
        };
        let who = match threads::count(shared) {
            1 => "on the calling thread".to_string(),
            n => format!("on up to {n} threads"),
        };
        let why = format!("{reason}; about {} µs of work, {who}", (ns / 1e3).ceil());
        Ok(Explanation { variant: kernel, why, launches: 0 })
    }

    /// # Safety
    /// As for [`crate::Device::execute`].
    pub unsafe fn execute(&self, call: &Call) -> Result<()> {
        if call.op.fused_norm().is_some() {
            let name = call.op.name();
            return Err(Error::Internal(format!("{name}: a norm was fused in, on the CPU")));
        }
        // SAFETY: the caller's promise.
        unsafe {
            match call.op {
                Op::Dense(attrs) => dense::execute(call, attrs),
                Op::LayerNorm(attrs) | Op::RmsNorm(attrs) => norm::execute(call, attrs),
                Op::Lstm(attrs) | Op::Gru(attrs) => recurrent::execute(call, attrs),
                Op::FlashAttention(attrs) => attention::execute(call, attrs),
                Op::CausalConv1d(attrs) => conv::execute(call, attrs),
                Op::SelectiveScan(attrs) => scan::execute(call, attrs),
                Op::MambaBlock(_)
                | Op::AttentionBlock(_)
                | Op::RecurrentStack(_)
                | Op::DenseStack(_) => {
                    Err(Error::Internal(format!("{}: fused on the CPU", call.op.name())))
                }
                Op::Rope(attrs) => rope::execute(call, attrs),
                Op::GatedMlp(attrs) => mlp::execute(call, attrs),
                Op::Embedding(_) => embedding::execute(call),
                Op::Softmax(attrs) => softmax::execute(call, attrs),
                Op::Argmax(attrs) => reduce::argmax(call, attrs),
                Op::Sample(attrs) => sample::execute(call, attrs),
                Op::Unary(_) | Op::Binary(_) | Op::Select(_) | Op::Cast(_) => {
                    elementwise::execute(call)
                }
                Op::Reshape(_)
                | Op::Bitcast(_)
                | Op::Pad(_)
                | Op::Reverse(_)
                | Op::Transpose(_)
                | Op::Broadcast(_)
                | Op::Slice(_)
                | Op::PutSlice(_)
                | Op::Concatenate(_) => shape::execute(call),
                Op::Reduce(attrs) => reduce::execute(call, attrs),
                Op::Dot(attrs) => dot::execute(call, attrs),
                Op::TriangularSolve(attrs) => solve::execute(call, attrs),
                Op::Conv(attrs) => convolution::execute(call, attrs),
                Op::Sort(attrs) => order::sort(call, attrs),
                Op::Cumulative(attrs) => order::cumulative(call, attrs),
                Op::WindowReduce(attrs) => window::reduce(call, attrs),
                Op::WindowScatter(attrs) => window::scatter(call, attrs),
                Op::Iota(attrs) => index::iota(call, attrs),
                Op::Gather(attrs) => index::gather(call, attrs),
                Op::IndexedAdd(attrs) | Op::IndexedPut(attrs) => index::indexed(call, attrs),
            }
        }
    }
}

/// A call that takes less may run where nothing else should wait for it.
const LIGHT_NS: f64 = 300_000.0;

/// What an op takes on one thread, roughly.
fn nanoseconds(op: &Op, inputs: &[Option<&Spec>]) -> Result<f64> {
    let outputs = infer(op, inputs)?;
    let elements: usize = outputs.iter().map(Spec::len).sum();
    if let Op::Iota(_) = op {
        return Ok(index::cost(elements));
    }
    let Some(x) = inputs.first().copied().flatten() else {
        return Err(Error::argument(op.name(), "the first input is missing"));
    };
    let size = x.dtype.size();
    Ok(match (op, inputs) {
        (Op::Dense(_), [_, Some(w), ..]) => dense::shape(x, w).ns(size) + elements as f64 * 0.5,
        (Op::Lstm(_) | Op::Gru(_), _) => recurrent::Plan::new(op, inputs)?.ns(),
        (Op::LayerNorm(_) | Op::RmsNorm(_), _) => norm::cost(x.len()),
        (Op::FlashAttention(_), [_, Some(k), ..]) => attention::cost(x, k),
        (Op::CausalConv1d(_), [_, Some(w), ..]) => conv::cost(x, w),
        (Op::SelectiveScan(attrs), [_, _, Some(a), ..]) => scan::cost(attrs, x, a),
        (Op::Rope(attrs), _) => rope::cost(attrs, x),
        (Op::GatedMlp(_), _) => mlp::Plan::new(inputs)?.ns(),
        (Op::Softmax(_), _) => softmax::cost(x.len()),
        (Op::Argmax(_) | Op::Reduce(_), _) => reduce::cost(x.len()),
        (Op::Sample(attrs), _) => sample::cost(x, attrs),
        (Op::Unary(_) | Op::Binary(_) | Op::Select(_) | Op::Cast(_), _) => {
            elementwise::cost(op, x.dtype, elements)
        }
        (Op::Dot(attrs), [_, Some(b)]) => dot::cost(attrs, x, b),
        (Op::TriangularSolve(_), [_, Some(b)]) => solve::cost(x, b),
        (Op::Conv(attrs), [_, Some(kernel)]) => match outputs.first() {
            Some(y) if !y.is_empty() => {
                convolution::cost(&Windows::of(attrs, x, kernel, y), x.dtype)
            }
            _ => 0.0,
        },
        (Op::Gather(_), _) => index::cost(elements),
        (Op::Sort(attrs), _) => order::cost(attrs, x),
        (Op::Cumulative(_), _) => 2.0 * reduce::cost(elements),
        (Op::WindowReduce(attrs), _) => window::cost(elements, &attrs.window),
        (Op::WindowScatter(attrs), [_, Some(source), ..]) => {
            window::cost(source.len(), &attrs.window) + reduce::cost(elements)
        }
        (Op::IndexedAdd(_) | Op::IndexedPut(_), [_, _, Some(updates)]) => {
            index::indexed_cost(x, updates)
        }
        _ => shape::cost(elements, size),
    })
}

/// The kernel's name with its instruction set, and why it is that one.
fn kernel(op: &Op, inputs: &[Option<&Spec>]) -> Result<(&'static str, &'static str)> {
    /// The variant's name by instruction set.
    macro_rules! variant {
        ($name:literal) => {
            match simd::level() {
                #[cfg(target_arch = "x86_64")]
                simd::Level::Avx512 => concat!($name, "-avx512"),
                #[cfg(target_arch = "x86_64")]
                simd::Level::Avx2 => concat!($name, "-avx2"),
                simd::Level::Base => concat!($name, "-base"),
            }
        };
    }
    const FEW: &str = "a few rows: each weight is read once, where it lies";
    const MANY: &str = "many rows: blocked and packed for the caches";
    Ok(match (op, inputs) {
        (Op::Dense(_), [Some(x), Some(w), ..]) => match dense::shape(x, w).is_gemv() {
            true => (variant!("gemv"), FEW),
            false => ("gemm", MANY),
        },
        (Op::Lstm(_) | Op::Gru(_), _) => {
            let plan = recurrent::Plan::new(op, inputs)?;
            match (plan.input.is_gemv(), plan.step.is_gemv()) {
                (true, _) => (variant!("gemv-step"), FEW),
                (_, true) => (
                    variant!("gemm-gemv-steps"),
                    "the inputs of many frames in one product, then a small one for each step",
                ),
                _ => ("gemm-steps", MANY),
            }
        }
        (Op::CausalConv1d(_), _) => {
            (variant!("taps"), "a block of channels adds up its taps in the first-level cache")
        }
        (Op::SelectiveScan(_), _) => {
            (variant!("states"), "frame after frame, the states of a channel side by side")
        }
        (Op::Rope(_), _) => ("turn", "a position's angles serve all of its heads"),
        (Op::GatedMlp(_), _) => match mlp::Plan::new(inputs)?.wide.is_gemv() {
            true => (variant!("gemv"), FEW),
            false => ("gemm", MANY),
        },
        (Op::LayerNorm(_) | Op::RmsNorm(_), _) => {
            (variant!("rows"), "statistics in two passes over each row")
        }
        (Op::FlashAttention(_), _) => {
            (variant!("online-softmax"), "blocks of rows against tiles of keys")
        }
        (Op::Softmax(_) | Op::Argmax(_) | Op::Reduce(_), _) => {
            (variant!("reduce"), "along rows, or across them many columns side by side")
        }
        (Op::Unary(_) | Op::Binary(_) | Op::Select(_) | Op::Cast(_), _) => {
            (variant!("blocks"), "blocks that stay in the first-level cache")
        }
        (Op::Sample(_), _) => ("rows", "row after row"),
        (Op::Dot(_), [Some(a), ..]) if a.dtype.is_float() => {
            ("gemm", "blocked and packed for the caches, where the operands lie")
        }
        (Op::Dot(_), _) => ("rows", "integers, row after row"),
        (Op::TriangularSolve(_), _) => {
            (variant!("blocked"), "a block of rows is solved, and what is above it by products")
        }
        (Op::Conv(_), _) => ("im2col-gemm", "what the windows see, laid out as a matrix"),
        (Op::Embedding(_), _) => ("gather", "rows of the table are copied"),
        (Op::Iota(_), _) => ("count", "written in order"),
        (Op::Sort(_), _) => ("keys", "keys whose bits are in order, each with its place"),
        (Op::Cumulative(_), _) => ("scan", "along rows, or across them many columns side by side"),
        (Op::WindowReduce(_) | Op::WindowScatter(_), _) => {
            ("window", "an element of the window at a time, for a whole row of places")
        }
        (Op::Gather(_), _) => ("gather", "runs of x are copied"),
        (Op::IndexedAdd(_) | Op::IndexedPut(_), _) => {
            ("scatter", "rows sorted by where they go, so that each place is written once")
        }
        _ => ("copy", "one strided copy"),
    })
}
