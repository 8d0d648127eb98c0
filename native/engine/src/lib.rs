//! The engine of Nitrox: ops, programs and devices, with no Erlang in it.

pub mod call;
pub mod cpu;
pub mod cuda;
pub mod device;
pub mod error;
pub mod events;
pub mod foreign;
mod fuse;
pub mod infer;
mod instance;
mod lanes;
pub mod op;
mod plan;
pub mod pool;
pub mod program;
pub mod spec;
pub mod tensor;
pub mod weights;

pub use call::{Call, View};
pub use device::{Device, Explanation, Id, Weight};
pub use error::{Error, Result};
pub use infer::infer;
pub use op::Op;
pub use program::{Feed, Graph, Mode, Output, Pending, Program, Session, Started};
pub use spec::{DType, Spec};
pub use tensor::Tensor;
pub use weights::Weights;
