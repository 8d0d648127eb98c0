//! The ops: one variant each, with its attributes. What an op reads and writes is in `infer.rs`.
//!
//! An optional input keeps its position and is `None` where it was not given, so that an op's
//! inputs are always found at the same index.

mod array;
mod network;

use serde::Deserialize;

pub use array::*;
pub use network::*;

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
    /// `x {B, 1, W}, in {W, 2E}, conv {K, E}, conv_b? {E}, x_proj {E, R + 2N}, dt_proj {R, E},
    /// dt_bias? {E}, a {E, N}, d? {E}, out {E, W}, residual? {B, 1, W}, frames? {B, K−1, E},
    /// state? f32 {B, E, N}, gamma {W}, beta? {W}` → `y {B, 1, W}, frames {B, K−1, E},
    /// h f32 {B, E, N}`: a frame of a whole Mamba block, which the engine makes of its ops
    #[serde(skip)]
    MambaBlock(MambaBlock),
    /// `x {B, 1, W}, qkv {W, 3W}, out {W, W}, up {W, F}, up_b? {F}, down {F, W}, down_b? {W},
    /// ring {2, B, C, H, D}, places s32 {3}, number s32 {}, gamma {W}, beta? {W}, ffn_gamma {W},
    /// ffn_beta? {W}` → `y {B, 1, W}, ring`, which is written where it lies: a frame of a whole layer
    /// of attention, which the engine makes of its ops
    #[serde(skip)]
    AttentionBlock(AttentionBlock),
    /// `x {B, T, I}`, and of each layer `c0? {B, H}, h0? {B, H}, wi, wh, b?, mask?, gamma? {H},
    /// beta? {H}` → `seq {B, T, H}` of the last layer, and of each `c {B, H}, h {B, H}`, a GRU's c
    /// left out: recurrent layers, which the engine makes of their ops
    #[serde(skip)]
    RecurrentStack(RecurrentStack),
    /// `x {…, D}` and for each layer `w, b?, residual?, gamma?, beta?` → `{…, F}` of the last: dense layers,
    /// which the engine makes of their ops
    #[serde(skip)]
    DenseStack(DenseStack),
    /// `x {B, S, H, D}, positions s32 {B, S}, {S} or {}` → `x`'s shape
    Rope(Rope),
    /// `x {…, D}, gate {D, F}, up {D, F}, down {F, D}, residual? {…, D}` → `{…, D}`
    GatedMlp(GatedMlp),
    /// `table {V, E}, ids {…}` → `{…, E}`; an id out of range gives a row of NaN
    Embedding(Embedding),
    /// `x` → `x`'s shape
    Softmax(Softmax),
    /// `x` → s32, the axis left out; a NaN beats any number
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
    /// `x` → the axes left out, or kept with length 1; `all` and `any` give u8
    Reduce(Reduce),
    /// `a, b` of one type → the batch axes, then a's other axes, then b's, those contracted left out
    Dot(Dot),
    /// `a {batch…, m, m}, b` of one float type → the x of `a·x = b`, b `{batch…, m}` or
    /// `{batch…, m, n}`, or of `x·a = b`, b `{batch…, m}` or `{batch…, n, m}`. Of a only the triangle
    /// is read; a zero on its diagonal gives ∞ or NaN
    TriangularSolve(TriangularSolve),
    /// `input {N, C, spatial…}, kernel {O, C / feature groups, spatial…}` of one float type
    /// → `{N / batch groups, O, spatial…}`
    Conv(Conv),
    /// no inputs → the place of each element along the axis, or among all of them
    Iota(Iota),
    /// `x, value {}` → `x` with the value around its elements and between them
    Pad(Pad),
    /// `x` → the elements of the axes named in the opposite order
    Reverse(Reverse),
    /// `x`, integer `indices {…, n}` → the leading axes of `indices`, then the axes of `x` that are
    /// not named; an index out of range is moved to the nearest end
    Gather(Indexed),
    /// `x`, integer `indices {k, n}, updates {k, …}` → `x` with each row of the updates added where
    /// its indices say, in the order of the rows; a row with an index out of range is left out
    IndexedAdd(Indexed),
    /// As `IndexedAdd`, but that the rows take the place of what was there; the last one wins
    IndexedPut(Indexed),
    /// `x` → the same elements under another type of the same size; costs nothing
    Bitcast(Cast),
    /// `x` → `x`'s shape in order along the axis, or s32: where in `x` each element comes from.
    /// Stable; a NaN counts as larger than any number
    Sort(Sort),
    /// `x` → `x`'s shape: what the elements up to each come to
    Cumulative(Cumulative),
    /// `x` → one element for each place of the window
    WindowReduce(WindowReduce),
    /// `x, source` (of the shape that a `WindowReduce` of `x` has)`, init {}` → `x`'s shape: `init`,
    /// plus each element of the source where its window has its greatest element, the last of
    /// equals; what lies around x counts as `init`
    WindowScatter(WindowScatter),
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
            Op::MambaBlock(_) => "mamba_block",
            Op::AttentionBlock(_) => "attention_block",
            Op::RecurrentStack(_) => "recurrent_stack",
            Op::DenseStack(_) => "dense_stack",
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
            Op::Dot(_) => "dot",
            Op::TriangularSolve(_) => "triangular_solve",
            Op::Conv(_) => "conv",
            Op::Iota(_) => "iota",
            Op::Pad(_) => "pad",
            Op::Reverse(_) => "reverse",
            Op::Gather(_) => "gather",
            Op::IndexedAdd(_) => "indexed_add",
            Op::IndexedPut(_) => "indexed_put",
            Op::Bitcast(_) => "bitcast",
            Op::Sort(_) => "sort",
            Op::Cumulative(_) => "cumulative",
            Op::WindowReduce(_) => "window_reduce",
            Op::WindowScatter(_) => "window_scatter",
        }
    }

    /// Whether the result is the input's buffer under another spec.
    pub fn is_alias(&self) -> bool {
        matches!(self, Op::Reshape(_) | Op::Bitcast(_))
    }

    /// The norm of x that the op does itself.
    pub fn fused_norm(&self) -> Option<FusedNorm> {
        match self {
            Op::Dense(attrs) => attrs.norm,
            Op::Lstm(attrs) | Op::Gru(attrs) => attrs.norm,
            Op::MambaBlock(attrs) => Some(attrs.norm),
            Op::AttentionBlock(attrs) => Some(attrs.norm),
            _ => None,
        }
    }

    /// Where the gamma of such a norm stands among the inputs; none where the op can do no norm.
    pub(crate) fn fused_gamma(&self) -> Option<usize> {
        match self {
            Op::Dense(_) => Some(4),
            Op::Lstm(_) => Some(7),
            Op::Gru(_) => Some(6),
            Op::MambaBlock(_) => Some(13),
            Op::AttentionBlock(_) => Some(10),
            _ => None,
        }
    }

    /// The part of an input that the op writes anew, where that is all it does to it.
    pub(crate) fn update(&self) -> Option<Update> {
        match self {
            Op::PutSlice(_) => Some(Update { input: 0, output: 0, place: 2 }),
            Op::AttentionBlock(_) => Some(Update { input: 7, output: 1, place: 9 }),
            _ => None,
        }
    }
}

/// Which input a part of is written anew, which output that is, and which input says where the part
/// lies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Update {
    pub input: usize,
    pub output: usize,
    pub place: usize,
}
