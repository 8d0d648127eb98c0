//! The engine's one error type.

use crate::pool::Stats;
use crate::spec::{DType, Spec};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong, in terms of what the caller can do about it.
///
/// `reason` gives the word that Elixir sees; the message names what was expected and what came;
/// `hint` says what to do, where there is something to do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("{op}: {what} must be {expected}, got {got}")]
    Shape { op: &'static str, what: String, expected: String, got: String },

    #[error("{op}: {what} has type {got}, expected {expected}")]
    Type { op: &'static str, what: String, expected: String, got: String },

    #[error("{op}: {message}")]
    Argument { op: &'static str, message: String },

    /// A shape or type that is well formed and that no kernel serves; the message names the limit.
    #[error("{op}: {message}")]
    Unsupported { op: &'static str, message: String },

    #[error("a tensor on {got} was given to work on {expected}")]
    Device { expected: String, got: String },

    #[error("this tensor was deallocated")]
    Deallocated,

    #[error("{device} is not available: {message}")]
    Unavailable { device: String, message: String },

    #[error(
        "out of memory on {device}: {requested} bytes asked for; {in_use} in use, {reserved} reserved, largest free block {largest}{limit}",
        in_use = stats.in_use, reserved = stats.reserved, largest = stats.largest_free,
        limit = stats.limit.map(|l| format!(", limit {l}")).unwrap_or_default()
    )]
    OutOfMemory { device: String, requested: usize, stats: Box<Stats> },

    #[error("{call} failed: {message}")]
    Driver { call: &'static str, message: String },

    /// The context is lost for the life of the process: every later call says so.
    #[error("{device} is poisoned by an earlier error: {message}")]
    Poisoned { device: String, message: String },

    #[error("kernel {kernel} did not compile: {log}")]
    Compile { kernel: String, log: String },

    #[error("{path}: {message}")]
    File { path: String, message: String },

    /// A bug of ours, never the caller's.
    #[error("internal error: {0}")]
    Internal(String),
}

impl Error {
    /// The word for the kind of error, as Elixir's `%Nitrox.Error{reason: …}` carries it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Shape { .. } => "shape",
            Self::Type { .. } => "type",
            Self::Argument { .. } => "argument",
            Self::Unsupported { .. } => "unsupported",
            Self::Device { .. } => "device",
            Self::Deallocated => "deallocated",
            Self::Unavailable { .. } => "unavailable",
            Self::OutOfMemory { .. } => "out_of_memory",
            Self::Driver { .. } => "driver",
            Self::Poisoned { .. } => "poisoned",
            Self::Compile { .. } => "compile",
            Self::File { .. } => "file",
            Self::Internal(_) => "internal",
        }
    }

    /// The op that refused, where one did.
    pub fn op(&self) -> Option<&'static str> {
        match self {
            Self::Shape { op, .. } | Self::Type { op, .. } => Some(op),
            Self::Argument { op, .. } | Self::Unsupported { op, .. } => Some(op),
            _ => None,
        }
    }

    /// What the caller can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Type { .. } => Some("convert with Nitrox.cast/2"),
            Self::Device { .. } => Some("move the tensor with Nitrox.copy/2"),
            Self::Unavailable { .. } => Some(
                "install the NVIDIA driver and CUDA's NVRTC library (libnvrtc), or take the device :cpu; \
                 `mix nitrox.doctor` says what is missing",
            ),
            Self::OutOfMemory { .. } => {
                Some("drop tensors that are not needed, or raise memory_limit")
            }
            Self::Poisoned { .. } => {
                Some("the GPU's context is lost; restart the VM to use this device again")
            }
            _ => None,
        }
    }

    pub fn argument(op: &'static str, message: impl Into<String>) -> Self {
        Self::Argument { op, message: message.into() }
    }

    pub fn unsupported(op: &'static str, message: impl Into<String>) -> Self {
        Self::Unsupported { op, message: message.into() }
    }

    pub fn shape(
        op: &'static str,
        what: impl Into<String>,
        expected: impl Into<String>,
        got: &Spec,
    ) -> Self {
        Self::Shape { op, what: what.into(), expected: expected.into(), got: got.shape_text() }
    }

    pub fn dtype(
        op: &'static str,
        what: impl Into<String>,
        expected: impl std::fmt::Display,
        got: DType,
    ) -> Self {
        Self::Type { op, what: what.into(), expected: expected.to_string(), got: got.to_string() }
    }
}
