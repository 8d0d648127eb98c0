//! What every op should give, as plain loops in f64 written from the ops' definitions. Slow and
//! obvious on purpose: it shares no code with any device.

mod array;
mod attention;
mod elementwise;
mod index;
mod network;
mod order;
mod product;
mod recurrent;
mod reduce;
pub mod sample;
mod sequence;
mod shape;
mod solve;
pub mod special;
mod window;

pub use array::{Array, extremes, round_to};

use nitrox_engine::{DType, Op, Spec};

/// What an output should be.
#[derive(Debug)]
pub enum Expected {
    /// Exactly these elements.
    Bits(Array),
    /// These numbers, not yet rounded to the output's type.
    Real(Real),
    /// For each row the id that wins, and those that rounding in f32 might prefer.
    Choices(Vec<sample::Choice>),
}

#[derive(Debug)]
pub struct Real {
    pub spec: Spec,
    pub values: Vec<f64>,
    /// The root mean square that the output has where terms do not cancel by chance. An error is
    /// measured against the larger of this and the output's own, or an output of one element that
    /// happens to be near zero would be held to a bound that no accumulation in f32 can keep. On
    /// outputs of more than a few elements the two agree.
    pub scale: f64,
    /// Elementwise ops: how far each element may be off. Takes the place of the norm of the whole,
    /// which one huge element would own.
    pub slack: Option<Vec<f64>>,
}

impl Real {
    fn whole(spec: Spec, values: Vec<f64>, scale: f64) -> Expected {
        Expected::Real(Real { spec, values, scale, slack: None })
    }

    /// Numbers that have to come out to the bit, but for the payload of a NaN.
    fn exact(spec: Spec, values: Vec<f64>) -> Expected {
        let slack = values.iter().map(|&v| rounding(spec.dtype, v)).collect();
        Expected::Real(Real { spec, values, scale: 0.0, slack: Some(slack) })
    }
}

/// How far the nearest number of a type is from `v`.
fn rounding(dtype: DType, v: f64) -> f64 {
    let off = (round_to(dtype, v) - v).abs();
    if off.is_finite() { off } else { 0.0 }
}

/// The relative L2 error that a type allows.
pub fn bound(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2e-3,
        DType::BF16 => 1e-2,
        DType::F32 => 1e-5,
        _ => 1e-12,
    }
}

/// The outputs of `op` on inputs that `infer` passes.
pub fn evaluate(op: &Op, inputs: &[Option<&Array>]) -> Vec<Expected> {
    let at = |i: usize| inputs.get(i).copied().flatten();
    let need = |i: usize| at(i).unwrap_or_else(|| panic!("input {i} of {} is missing", op.name()));
    match op {
        Op::Dense(a) => vec![network::dense(a, need(0), need(1), at(2), at(3))],
        Op::LayerNorm(a) => network::norm(a, need(0), need(1), Some(need(2)), at(3)),
        Op::RmsNorm(a) => network::norm(a, need(0), need(1), None, at(2)),
        Op::Lstm(a) => recurrent::lstm(a, need(0), [at(1), at(2)], need(3), need(4), at(5), at(6)),
        Op::Gru(a) => recurrent::gru(a, need(0), at(1), need(2), need(3), at(4), at(5)),
        Op::FlashAttention(a) => attention::flash(a, std::array::from_fn(at)),
        Op::CausalConv1d(a) => sequence::causal_conv1d(a, need(0), need(1), at(2), at(3)),
        Op::SelectiveScan(a) => sequence::selective_scan(a, inputs),
        Op::MambaBlock(_) | Op::AttentionBlock(_) | Op::RecurrentStack(_) | Op::DenseStack(_) => {
            panic!("compared with the ops that it is made of")
        }
        Op::Rope(a) => vec![sequence::rope(a, need(0), need(1))],
        Op::GatedMlp(a) => {
            vec![sequence::gated_mlp(a, need(0), [need(1), need(2), need(3)], at(4))]
        }
        Op::Embedding(_) => vec![network::embedding(need(0), need(1))],
        Op::Softmax(a) => vec![network::softmax(a, need(0))],
        Op::Argmax(a) => vec![reduce::argmax(a, need(0))],
        Op::Sample(a) => sample::sample(a, need(0), need(1)),
        Op::Unary(a) => vec![elementwise::unary(a.kind, need(0))],
        Op::Binary(a) => vec![elementwise::binary(a.kind, need(0), need(1))],
        Op::Select(_) => vec![elementwise::select(need(0), need(1), need(2))],
        Op::Cast(a) => vec![elementwise::cast(a.r#type, need(0))],
        Op::Reshape(a) => vec![shape::reshape(need(0), &a.shape)],
        Op::Transpose(a) => vec![shape::transpose(need(0), &a.axes)],
        Op::Broadcast(a) => vec![shape::broadcast(need(0), &a.shape)],
        Op::Slice(a) => vec![shape::slice(a, need(0), at(1))],
        Op::PutSlice(a) => vec![shape::put_slice(a, need(0), need(1), at(2))],
        Op::Concatenate(a) => {
            let all: Vec<_> = (0..inputs.len()).map(need).collect();
            vec![shape::concatenate(a.axis, &all)]
        }
        Op::Reduce(a) => vec![reduce::reduce(a, need(0))],
        Op::Dot(a) => vec![product::dot(a, need(0), need(1))],
        Op::TriangularSolve(a) => vec![solve::triangular(a, need(0), need(1))],
        Op::Conv(a) => vec![product::conv(a, need(0), need(1))],
        Op::Iota(a) => vec![index::iota(a)],
        Op::Pad(a) => vec![index::pad(a, need(0), need(1))],
        Op::Reverse(a) => vec![index::reverse(&a.axes, need(0))],
        Op::Gather(a) => vec![index::gather(a, need(0), need(1))],
        Op::IndexedAdd(a) => vec![index::indexed(a, true, need(0), need(1), need(2))],
        Op::IndexedPut(a) => vec![index::indexed(a, false, need(0), need(1), need(2))],
        Op::Bitcast(a) => vec![index::bitcast(a.r#type, need(0))],
        Op::Sort(a) => vec![order::sort(a, need(0))],
        Op::Cumulative(a) => vec![order::cumulative(a, need(0))],
        Op::WindowReduce(a) => vec![window::reduce(a, need(0))],
        Op::WindowScatter(a) => vec![window::scatter(a, need(0), need(1), need(2))],
    }
}
