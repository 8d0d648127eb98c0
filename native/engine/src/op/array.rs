//! The attributes of the ops on any array: of elements, of shape, of order and of products.

use serde::Deserialize;
use serde::de::{self, Deserializer};

use crate::spec::DType;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnaryKind {
    Negate,
    Abs,
    Sign,
    Exp,
    Expm1,
    Log,
    Log1p,
    Sqrt,
    Rsqrt,
    Reciprocal,
    Sin,
    Cos,
    Tanh,
    Erf,
    Floor,
    Ceil,
    /// Halves away from zero, as Nx's.
    Round,
    Sigmoid,
    Relu,
    Silu,
    Gelu,
    GeluTanh,
    Softplus,
    Tan,
    Asin,
    Acos,
    Atan,
    Sinh,
    Cosh,
    Asinh,
    Acosh,
    Atanh,
    Cbrt,
    Erfc,
    /// The number whose `erf` is the element; ±∞ at ±1, NaN beyond.
    ErfInv,
    /// Integers only, as the two that follow it.
    BitwiseNot,
    PopulationCount,
    CountLeadingZeros,
    /// 1 where zero, u8.
    LogicalNot,
    /// u8; never for integers.
    IsNan,
    IsInfinity,
}

impl UnaryKind {
    /// Whether the result is a u8 predicate.
    pub fn is_predicate(self) -> bool {
        matches!(self, UnaryKind::LogicalNot | UnaryKind::IsNan | UnaryKind::IsInfinity)
    }

    /// Whether it takes integers alone.
    pub fn is_bitwise(self) -> bool {
        use UnaryKind::*;
        matches!(self, BitwiseNot | PopulationCount | CountLeadingZeros)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unary {
    pub kind: UnaryKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BinaryKind {
    Add,
    Subtract,
    Multiply,
    /// Floats only.
    Divide,
    /// Integers only, truncating; by zero gives zero.
    Quotient,
    /// The sign of the first, as Nx's; an integer by zero gives zero.
    Remainder,
    Max,
    Min,
    Pow,
    /// The angle of the point (b, a), floats only.
    Atan2,
    /// Integers only, as the four that follow it.
    BitwiseAnd,
    BitwiseOr,
    BitwiseXor,
    /// A count that is negative, or not below the bits of the type, shifts everything out.
    LeftShift,
    /// Arithmetic where the type has a sign.
    RightShift,
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    LogicalAnd,
    LogicalOr,
    LogicalXor,
}

impl BinaryKind {
    /// Whether the result is a u8 predicate.
    pub fn is_predicate(self) -> bool {
        use BinaryKind::*;
        matches!(
            self,
            Equal
                | NotEqual
                | Less
                | LessEqual
                | Greater
                | GreaterEqual
                | LogicalAnd
                | LogicalOr
                | LogicalXor
        )
    }

    /// Whether it takes integers alone, bit by bit.
    pub fn is_bitwise(self) -> bool {
        use BinaryKind::*;
        matches!(self, BitwiseAnd | BitwiseOr | BitwiseXor | LeftShift | RightShift)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Binary {
    pub kind: BinaryKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Select {}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cast {
    pub r#type: DType,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reshape {
    pub shape: Vec<usize>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transpose {
    pub axes: Vec<usize>,
}

/// `position`, where given, is added to the start on `axis`. Then a start that would run over the
/// end is moved back so that the slice fits, as Nx does; with `wrap` the axis is a ring instead.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slice {
    pub starts: Vec<i64>,
    /// The shape of the result.
    pub lengths: Vec<usize>,
    pub strides: Vec<usize>,
    pub axis: i64,
    pub wrap: bool,
}

/// The start on `axis` is found as in [`Slice`].
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PutSlice {
    pub starts: Vec<i64>,
    pub axis: i64,
    pub wrap: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Concatenate {
    pub axis: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReduceKind {
    Sum,
    /// Floats only.
    Mean,
    Product,
    /// A NaN anywhere gives NaN.
    Max,
    Min,
    /// u8: whether none is zero.
    All,
    /// u8: whether one is not zero.
    Any,
}

impl ReduceKind {
    /// Whether the result is a u8 predicate.
    pub fn is_predicate(self) -> bool {
        matches!(self, ReduceKind::All | ReduceKind::Any)
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reduce {
    pub kind: ReduceKind,
    /// Empty for all of them.
    pub axes: Vec<i64>,
    pub keep_axes: bool,
}

/// Sums over the contracted axes, which stand in pairs: the first of `contract_a` with the first
/// of `contract_b`. Integers wrap; f16 and bf16 are summed in f32.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dot {
    pub contract_a: Vec<usize>,
    /// The first axes, in order, or none.
    pub batch_a: Vec<usize>,
    pub contract_b: Vec<usize>,
    pub batch_b: Vec<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TriangularSolve {
    /// a's lower triangle, else its upper one.
    pub lower: bool,
    /// `a·x = b`, else `x·a = b`.
    pub left_side: bool,
    /// a transposed takes a's place.
    pub transpose: bool,
}

/// A cross-correlation. The lists have one entry for each spatial axis. The input is dilated with
/// zeros, then padded, where a negative padding crops, and the kernel is dilated.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conv {
    pub strides: Vec<usize>,
    /// `[low, high]` of each axis.
    pub padding: Vec<Vec<i64>>,
    pub input_dilation: Vec<usize>,
    pub kernel_dilation: Vec<usize>,
    /// The channels, and the kernel's outputs, fall into so many groups that do not see each other.
    pub feature_groups: usize,
    /// As for the channels, but it is the batch that is cut: each group of outputs sees its own
    /// part. One of the two is 1.
    pub batch_groups: usize,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Iota {
    pub r#type: DType,
    pub shape: Vec<usize>,
    /// The axis that is counted along; all elements in their order where it is `None`.
    pub axis: Option<i64>,
}

/// One number for each axis. First `interior` values go between neighbours, then `low` before the
/// first and `high` behind the last; a negative one of those takes so many elements away.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pad {
    pub low: Vec<i64>,
    pub high: Vec<i64>,
    pub interior: Vec<i64>,
}

impl Pad {
    /// Of an axis: its length once the interior is in, and the length of the result; `None` where
    /// they do not fit or are negative.
    pub fn lengths(&self, axis: usize, length: usize) -> Option<(usize, usize)> {
        let between = usize::try_from(self.interior[axis]).ok()?;
        let spread = length.saturating_sub(1).checked_mul(between)?.checked_add(length)?;
        let out = spread as i128 + i128::from(self.low[axis]) + i128::from(self.high[axis]);
        Some((spread, usize::try_from(out).ok()?))
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reverse {
    pub axes: Vec<i64>,
}

/// The `i`th number of an index counts along `axes[i]` of x.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Indexed {
    pub axes: Vec<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sort {
    pub axis: i64,
    /// The largest first, and before them NaN.
    pub descending: bool,
    /// The places along the axis instead of the elements.
    pub indices: bool,
}

/// What `cumulative` and `window_reduce` do with elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FoldKind {
    Sum,
    Product,
    /// A NaN stays.
    Max,
    Min,
}

impl FoldKind {
    /// The same for a whole axis.
    pub fn reduce(self) -> ReduceKind {
        match self {
            FoldKind::Sum => ReduceKind::Sum,
            FoldKind::Product => ReduceKind::Product,
            FoldKind::Max => ReduceKind::Max,
            FoldKind::Min => ReduceKind::Min,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cumulative {
    pub kind: FoldKind,
    pub axis: i64,
    /// From the last element to the first.
    pub reverse: bool,
}

/// One number, or pair of them, for each axis. Padding is what lies before and behind the elements
/// and takes no part; where it is negative, so many elements take none.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowReduce {
    pub kind: FoldKind,
    pub window: Vec<usize>,
    pub strides: Vec<usize>,
    #[serde(deserialize_with = "pairs")]
    pub padding: Vec<(i64, i64)>,
    /// Steps from one element of the window to the next.
    pub dilations: Vec<usize>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowScatter {
    /// The least element instead of the greatest.
    pub min: bool,
    pub window: Vec<usize>,
    pub strides: Vec<usize>,
    #[serde(deserialize_with = "pairs")]
    pub padding: Vec<(i64, i64)>,
}

/// Lists of two numbers each.
fn pairs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(i64, i64)>, D::Error> {
    let lists = Vec::<Vec<i64>>::deserialize(deserializer)?;
    let pair = |list: Vec<i64>| match list[..] {
        [low, high] => Ok((low, high)),
        _ => Err(de::Error::custom(format!("padding has two numbers an axis, got {list:?}"))),
    };
    lists.into_iter().map(pair).collect()
}
