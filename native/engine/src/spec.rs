//! Types and shapes.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer};

use crate::error::{Error, Result};

/// The most axes a tensor can have.
pub const MAX_RANK: usize = 8;

/// The type of a tensor's elements, under Nx's names: `{:f, 32}` is `F32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    BF16,
    F32,
    F64,
}

impl DType {
    pub const ALL: [DType; 12] = [
        DType::U8,
        DType::U16,
        DType::U32,
        DType::U64,
        DType::S8,
        DType::S16,
        DType::S32,
        DType::S64,
        DType::F16,
        DType::BF16,
        DType::F32,
        DType::F64,
    ];

    /// Bytes an element takes.
    pub fn size(self) -> usize {
        match self {
            DType::U8 | DType::S8 => 1,
            DType::U16 | DType::S16 | DType::F16 | DType::BF16 => 2,
            DType::U32 | DType::S32 | DType::F32 => 4,
            DType::U64 | DType::S64 | DType::F64 => 8,
        }
    }

    pub fn is_float(self) -> bool {
        matches!(self, DType::F16 | DType::BF16 | DType::F32 | DType::F64)
    }

    /// The three types that networks are stored in: what the fused ops take.
    pub fn is_network(self) -> bool {
        matches!(self, DType::F16 | DType::BF16 | DType::F32)
    }

    /// Nx's pair for this type, such as `("f", 32)`.
    pub fn pair(self) -> (&'static str, u32) {
        match self {
            DType::U8 => ("u", 8),
            DType::U16 => ("u", 16),
            DType::U32 => ("u", 32),
            DType::U64 => ("u", 64),
            DType::S8 => ("s", 8),
            DType::S16 => ("s", 16),
            DType::S32 => ("s", 32),
            DType::S64 => ("s", 64),
            DType::F16 => ("f", 16),
            DType::BF16 => ("bf", 16),
            DType::F32 => ("f", 32),
            DType::F64 => ("f", 64),
        }
    }

    pub fn from_pair(kind: &str, bits: u32) -> Option<DType> {
        DType::ALL.into_iter().find(|t| t.pair() == (kind, bits))
    }

    /// The short name, `"bf16"`, as kernels, caches and benches spell it.
    pub fn name(self) -> &'static str {
        match self {
            DType::U8 => "u8",
            DType::U16 => "u16",
            DType::U32 => "u32",
            DType::U64 => "u64",
            DType::S8 => "s8",
            DType::S16 => "s16",
            DType::S32 => "s32",
            DType::S64 => "s64",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::F32 => "f32",
            DType::F64 => "f64",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, bits) = self.pair();
        write!(f, "{{:{kind}, {bits}}}")
    }
}

impl<'de> Deserialize<'de> for DType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (kind, bits) = <(String, u32)>::deserialize(deserializer)?;
        DType::from_pair(&kind, bits).ok_or_else(|| {
            let known: Vec<_> = DType::ALL.iter().map(|t| t.to_string()).collect();
            de::Error::custom(format!(
                "unknown type {{:{kind}, {bits}}}, expected one of {}",
                known.join(", ")
            ))
        })
    }
}

/// The type and shape of a tensor, dense and row-major.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Spec {
    pub dtype: DType,
    shape: Vec<usize>,
}

impl Spec {
    /// Refuses more than [`MAX_RANK`] axes and sizes whose bytes do not fit an `isize`.
    pub fn new(dtype: DType, shape: impl Into<Vec<usize>>) -> Result<Self> {
        let shape = shape.into();
        let spec = Spec { dtype, shape };
        if spec.shape.len() > MAX_RANK {
            return Err(Error::unsupported(
                "tensor",
                format!("at most {MAX_RANK} axes, got {}", spec.shape.len()),
            ));
        }
        // The product over non-zero axes is what has to fit: with a zero axis any strides are
        // computed from the others.
        let bytes = spec
            .shape
            .iter()
            .filter(|&&d| d != 0)
            .try_fold(dtype.size(), |n, &d| n.checked_mul(d))
            .filter(|&n| n <= isize::MAX as usize / 2);
        match bytes {
            Some(_) => Ok(spec),
            None => Err(Error::argument(
                "tensor",
                format!("the size of {} {} overflows", spec.dtype, spec.shape_text()),
            )),
        }
    }

    pub fn scalar(dtype: DType) -> Self {
        Spec { dtype, shape: Vec::new() }
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes.
    pub fn bytes(&self) -> usize {
        self.len() * self.dtype.size()
    }

    /// Length of the last axis; 1 for a scalar.
    pub fn last(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Product of all axes but the last: the rows of the matrix this tensor is.
    pub fn rows(&self) -> usize {
        match self.shape.split_last() {
            Some((_, rest)) => rest.iter().product(),
            None => 1,
        }
    }

    /// The same elements under another type.
    pub fn with_dtype(&self, dtype: DType) -> Result<Self> {
        Spec::new(dtype, self.shape.clone())
    }

    /// The same type under another shape (of any size).
    pub fn with_shape(&self, shape: impl Into<Vec<usize>>) -> Result<Self> {
        Spec::new(self.dtype, shape)
    }

    /// Row-major strides, in elements.
    pub fn strides(&self) -> Vec<usize> {
        let mut strides = vec![1; self.rank()];
        for i in (1..self.rank()).rev() {
            strides[i - 1] = strides[i] * self.shape[i].max(1);
        }
        strides
    }

    /// The shape as Elixir prints it: `{2, 3}`.
    pub fn shape_text(&self) -> String {
        shape_text(&self.shape)
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype.name(), self.shape_text())
    }
}

/// From Elixir's `{type, shape}`, the shape a list.
impl<'de> Deserialize<'de> for Spec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (dtype, shape) = <(DType, Vec<usize>)>::deserialize(deserializer)?;
        Spec::new(dtype, shape).map_err(de::Error::custom)
    }
}

pub fn shape_text(shape: &[usize]) -> String {
    let axes: Vec<_> = shape.iter().map(usize::to_string).collect();
    format!("{{{}}}", axes.join(", "))
}
