//! The shape and type rules: whatever comes in they answer, and never panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod answers;
mod refusals;
mod strategies;

use nitrox_engine::op::*;
use nitrox_engine::{DType, Spec};

fn spec(dtype: DType, shape: &[usize]) -> Spec {
    Spec::new(dtype, shape).unwrap()
}

fn rope(dims: Option<usize>) -> Rope {
    Rope { base: 10_000.0, scale: 1.0, dims, interleaved: false }
}

fn scan(norm: Option<NormKind>) -> SelectiveScan {
    SelectiveScan { dt_softplus: true, dt_clamp: Some((0.0, 1.0)), norm, epsilon: 1e-5 }
}
