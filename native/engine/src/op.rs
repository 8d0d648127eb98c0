//! The ops: one variant each, with its attributes. What an op reads and writes is in `infer.rs`.
//!
//! An optional input keeps its position and is `None` where it was not given, so that an op's
//! inputs are always found at the same index.

use serde::Deserialize;

use crate::spec::DType;

/// One operation on tensors.
///
/// Decoded from Elixir's `{:layer_norm, %{epsilon: 1.0e-5}}` by way of serde.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// `x {…, in}, w {in, out}, b? {out}, residual? {…, out}` → `{…, out}`
    Dense(Dense),
    /// `x {…, D}, gamma {D}, beta {D}, residual? {…, D}` → `y`, and `x + residual` where there is one
    LayerNorm(Norm),
    /// `x {…, D}, gamma {D}, residual? {…, D}` → `y`, and `x + residual` where there is one
    RmsNorm(Norm),
    /// `x {B, T, I}, c0? {B, H}, h0? {B, H}, wi {I, 4H}, wh {H, 4H}, b? {4H}, mask? {B, T}`
    /// → `seq {B, T, H}, c {B, H}, h {B, H}`; gates in the order i f g o
    Lstm(Recurrent),
    /// `x {B, T, I}, h0? {B, H}, wi {I, 3H}, wh {H, 3H}, b? {4H}, mask? {B, T}`
    /// → `seq {B, T, H}, h {B, H}`; gates in the order r z n, bias r z n and the recurrent n
    Gru(Recurrent),
    /// `q {B, Sq, Hq, D}, k {B, Sk, Hkv, D}, v {B, Sk, Hkv, D}, bias? (broadcast to {B, Hq, Sq, Sk}),
    /// key_mask? u8 {B, Sk}, kv_len? s32 {B}, offset? s32 {} or {B}` → `out {B, Sq, Hq, D}`, and
    /// `lse f32 {B, Hq, Sq}` where it is asked for
    FlashAttention(FlashAttention),
    /// `x {B, L, D}, w {K, D}, b? {D}, state? {B, K−1, D}` → `y {B, L, D}, state {B, K−1, D}`
    CausalConv1d(CausalConv1d),
    /// `x {B, L, D}, dt {B, L, D}, a {D, N}, b {B, L, N}, c {B, L, N}, d? {D}, z? {B, L, D},
    /// dt_bias? {D}, state? f32 {B, D, N}, residual? {B, L, D}, gamma? {D}, beta? {D}`
    /// → `y {B, L, D}, h f32 {B, D, N}`, or with a norm `normed, sum, h`
    SelectiveScan(SelectiveScan),
    /// `x {B, S, H, D}, positions s32 {B, S}, {S} or {}` → `x`'s shape
    Rope(Rope),
    /// `x {…, D}, gate {D, F}, up {D, F}, down {F, D}, residual? {…, D}` → `{…, D}`
    GatedMlp(GatedMlp),
    /// `table {V, E}, ids {…}` → `{…, E}`; an id out of range gives a row of NaN
    Embedding(Embedding),
    /// `x` → `x`'s shape
    Softmax(Softmax),
    /// `x` → s32, the axis left out; the first of equals wins, and a NaN beats any number
    Argmax(Argmax),
    /// `logits {…, V}, counter s32 {}` → `ids s32 {…}, counter + 1`
    Sample(Sample),
    /// `x` → `x`'s shape
    Unary(Unary),
    /// `a, b` of one type, broadcast → their type; a comparison gives u8
    Binary(Binary),
    /// `predicate u8, a, b`, broadcast → `a`'s type
    Select(Select),
    /// `x` → the same shape in another type; float to integer truncates and saturates
    Cast(Cast),
    /// `x` → the same elements under another shape; costs nothing
    Reshape(Reshape),
    /// `x` → axes in the order given
    Transpose(Transpose),
    /// `x` → the shape given, by the rules of binary ops
    Broadcast(Reshape),
    /// `x, position? s32 {}` → `lengths`
    Slice(Slice),
    /// `x, slice, position? s32 {}` → `x` with `slice` written over it
    PutSlice(PutSlice),
    /// any number of tensors of one type that agree on every other axis
    Concatenate(Concatenate),
    /// `x` → the axes left out, or kept with length 1
    Reduce(Reduce),
}

impl Op {
    /// The op's name, as Elixir spells it.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Dense(_) => "dense",
            Op::LayerNorm(_) => "layer_norm",
            Op::RmsNorm(_) => "rms_norm",
            Op::Lstm(_) => "lstm",
            Op::Gru(_) => "gru",
            Op::FlashAttention(_) => "flash_attention",
            Op::CausalConv1d(_) => "causal_conv1d",
            Op::SelectiveScan(_) => "selective_scan",
            Op::Rope(_) => "rope",
            Op::GatedMlp(_) => "gated_mlp",
            Op::Embedding(_) => "embedding",
            Op::Softmax(_) => "softmax",
            Op::Argmax(_) => "argmax",
            Op::Sample(_) => "sample",
            Op::Unary(_) => "unary",
            Op::Binary(_) => "binary",
            Op::Select(_) => "select",
            Op::Cast(_) => "cast",
            Op::Reshape(_) => "reshape",
            Op::Transpose(_) => "transpose",
            Op::Broadcast(_) => "broadcast",
            Op::Slice(_) => "slice",
            Op::PutSlice(_) => "put_slice",
            Op::Concatenate(_) => "concatenate",
            Op::Reduce(_) => "reduce",
        }
    }

    /// The norm of x that the op does itself.
    pub fn fused_norm(&self) -> Option<FusedNorm> {
        match self {
            Op::Dense(attrs) => attrs.norm,
            Op::Lstm(attrs) | Op::Gru(attrs) => attrs.norm,
            _ => None,
        }
    }

    /// Where the gamma of such a norm stands among the inputs; none where the op can do no norm.
    pub(crate) fn fused_gamma(&self) -> Option<usize> {
        match self {
            Op::Dense(_) => Some(4),
            Op::Lstm(_) => Some(7),
            Op::Gru(_) => Some(6),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    None,
    Relu,
    Silu,
    /// By the error function, exact.
    Gelu,
    /// By tanh, as GPT-2 has it.
    GeluTanh,
    Tanh,
    Sigmoid,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dense {
    /// Applied after the bias and before the residual.
    pub activation: Activation,
    /// Of x, from [`FusedNorm`]; gamma and beta are then inputs 4 and 5.
    #[serde(skip)]
    pub norm: Option<FusedNorm>,
}

/// A norm of its x that an op does itself, on the device alone that asked for it. The engine makes
/// it of a norm's node and its reader's; nobody else can. Its gamma {D} and beta {D}, `None` for
/// an RMS norm, follow the op's other inputs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FusedNorm {
    /// A layer norm, not an RMS norm.
    pub centred: bool,
    pub epsilon: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Norm {
    pub epsilon: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recurrent {
    /// From the last frame to the first; `seq` keeps the order of `x`.
    pub reverse: bool,
    /// Of x, from [`FusedNorm`]; gamma and beta follow the mask.
    #[serde(skip)]
    pub norm: Option<FusedNorm>,
}

/// Scores are `scale · q·k`, then the soft cap, then the bias, then the masks. Query i stands at
/// the key i + offset; `causal`, `left` and `right` count from there. A row with nothing to attend
/// to is zeros, its lse −∞.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlashAttention {
    /// 1/√D where not given.
    pub scale: Option<f64>,
    /// No keys after the query's own place.
    pub causal: bool,
    /// At most so many keys before the query's own place.
    pub left: Option<usize>,
    /// At most so many keys after it.
    pub right: Option<usize>,
    /// `cap · tanh(score / cap)`.
    pub softcap: Option<f64>,
    /// Sk − Sq where neither this nor the input of that name is given.
    pub offset: Option<i64>,
    /// Whether the logarithm of the sum of the exponentials is an output as well.
    pub lse: bool,
}

impl FlashAttention {
    /// The scale of the scores of heads of this size.
    pub fn scale(&self, head: usize) -> f32 {
        self.scale.unwrap_or_else(|| 1.0 / (head as f64).sqrt()) as f32
    }

    /// `(low, high)`: query i sees the keys from i + low up to, and without, i + high. Where the
    /// offset is an input it is still to be added to both. Far beyond any length they are cut off.
    pub fn reach(&self, queries: usize, keys: usize, offset_is_input: bool) -> (i64, i64) {
        const FAR: i128 = 1 << 40;
        let offset = match self.offset {
            _ if offset_is_input => 0,
            Some(offset) => i128::from(offset),
            None => keys as i128 - queries as i128,
        };
        let right = if self.causal { Some(0) } else { self.right };
        let low = self.left.map_or(-FAR, |left| offset - left as i128);
        let high = right.map_or(FAR, |right| offset + right as i128 + 1);
        (low.clamp(-FAR, FAR) as i64, high.clamp(-FAR, FAR) as i64)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CausalConv1d {
    /// Applied after the bias.
    pub activation: Activation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    LayerNorm,
    RmsNorm,
}

/// dt takes the bias, then the softplus, then the clamp.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelectiveScan {
    pub dt_softplus: bool,
    pub dt_clamp: Option<(f64, f64)>,
    /// Over D, of what comes out once the residual is added.
    pub norm: Option<NormKind>,
    pub epsilon: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rope {
    /// Pair `i` turns by `position · scale · base^(−2i / dims)`.
    pub base: f64,
    pub scale: f64,
    /// How many of the first features turn; all of them where it is `None`.
    pub dims: Option<usize>,
    /// Pairs are neighbours, and else `i` and `i + dims / 2`.
    pub interleaved: bool,
}

impl Rope {
    /// How far each pair turns from a position to the next, as a fraction of a whole turn times
    /// 2^64. Multiplied with a position in wrapping 64-bit arithmetic that is the angle, with
    /// nothing lost however large the position is.
    pub fn turns(&self, dims: usize) -> impl Iterator<Item = u64> {
        let Rope { base, scale, .. } = *self;
        (0..dims / 2).map(move |i| {
            let angle = scale * base.powf(-2.0 * i as f64 / dims as f64);
            let turn = angle / std::f64::consts::TAU;
            ((turn - turn.floor()) * 18_446_744_073_709_551_616.0) as u64
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatedMlp {
    /// Of `x · gate`, before it is multiplied with `x · up`.
    pub activation: Activation,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Embedding {}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Softmax {
    /// Negative counts from the last axis.
    pub axis: i64,
    /// The logarithm of the softmax instead.
    pub log: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Argmax {
    pub axis: i64,
    pub keep_axis: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// 0 takes the most likely.
    pub temperature: f64,
    /// Only the `k` most likely.
    pub top_k: Option<usize>,
    /// Only the fewest, from the most likely down, whose probabilities sum to at least `p`.
    pub top_p: Option<f64>,
    pub seed: u64,
}

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
    /// 1 where zero, u8.
    LogicalNot,
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
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reduce {
    pub kind: ReduceKind,
    /// Empty for all of them.
    pub axes: Vec<i64>,
    pub keep_axes: bool,
}
