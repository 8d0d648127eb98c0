//! The attributes of the ops that networks are made of.

use serde::Deserialize;

use super::Op;

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

/// Dense layers one upon the other: x of each but the first is what the one before gives, and the last alone
/// has a residual. The engine makes it of the layers' nodes; nobody else can.
#[derive(Debug, Clone, PartialEq)]
pub struct DenseStack {
    pub layers: Vec<Dense>,
}

impl DenseStack {
    /// Inputs of a layer: w, b, the residual, gamma and beta.
    pub(crate) const EACH: usize = 5;

    /// Where they stand.
    pub(crate) fn places(layer: usize) -> [usize; Self::EACH] {
        std::array::from_fn(|k| 1 + layer * Self::EACH + k)
    }
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

/// A Mamba block: norm, projection to v and the gate, convolution with SiLU, projections to dt, b and
/// c, scan with the softplus of dt, gate, projection back.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MambaBlock {
    pub norm: FusedNorm,
}

/// A layer of attention over a ring of keys and values: norm, projection to q, k and v, which are turned
/// each by its place, k and v into the ring, attention to what the ring has up to this frame, projection
/// back; then norm, a dense layer and one back. Either half is added to what came in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionBlock {
    pub norm: FusedNorm,
    /// Before the second half.
    pub ffn_norm: FusedNorm,
    /// Of the inner layer.
    pub activation: Activation,
    pub rope: Rope,
    /// Of the scores.
    pub scale: f32,
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

/// LSTM or GRU layers one upon the other: x of each but the first is the seq of the one before, or a
/// norm of it. The engine makes it of the layers' nodes; nobody else can.
#[derive(Debug, Clone, PartialEq)]
pub struct RecurrentStack {
    pub lstm: bool,
    pub reverse: bool,
    /// Of each layer's x; the first has none.
    pub norms: Vec<Option<FusedNorm>>,
}

impl RecurrentStack {
    /// Inputs of a layer: c0, h0, wi, wh, b, the mask, gamma and beta. A GRU has no c0.
    pub(crate) const EACH: usize = 8;

    /// A layer as an op of its own.
    pub(crate) fn layer(&self, layer: usize) -> Op {
        let norm = self.norms.get(layer).copied().flatten();
        let attrs = Recurrent { reverse: self.reverse, norm };
        if self.lstm { Op::Lstm(attrs) } else { Op::Gru(attrs) }
    }

    /// The inputs of [`RecurrentStack::layer`], of which `x` is the first.
    pub(crate) fn inputs_of<V: Copy>(
        &self,
        layer: usize,
        x: Option<V>,
        all: &[Option<V>],
    ) -> Vec<Option<V>> {
        let skipped = usize::from(!self.lstm);
        let at = 1 + layer * Self::EACH;
        let own = (at + skipped..at + Self::EACH).map(|i| all.get(i).copied().flatten());
        let mut inputs: Vec<_> = std::iter::once(x).chain(own).collect();
        if self.norms.get(layer).is_none_or(Option::is_none) {
            inputs.truncate(inputs.len() - 2);
        }
        inputs
    }

    /// Final states of a layer.
    pub(crate) fn states(&self) -> usize {
        if self.lstm { 2 } else { 1 }
    }
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
    /// The least element instead of the greatest.
    pub min: bool,
    /// The last of equals instead of the first.
    pub last: bool,
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
