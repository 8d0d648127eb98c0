defmodule Nitrox.Op.FlashAttention do
  @moduledoc """
  Attention whose scores never leave the chip: the softmax is taken online, tile by tile, so that
  memory grows with the length and not with its square (Dao, Fu, Ermon, Rudra and Ré, 2022; in the
  order of FlashAttention-2, Dao, 2023).

      score(i, j) = scale · q_i · k_j
      score ← softcap · tanh(score / softcap)      where there is a soft cap
      score ← score + bias(i, j)                   where there is a bias
      score ← −∞                                   where a mask hides key j from query i
      out_i = Σ_j softmax_j(score(i, ·)) · v_j

  | input | shape |
  |---|---|
  | `q` | `{B, Sq, Hq, D}`, D at most 256 |
  | `k`, `v` | `{B, Sk, Hkv, D}`; Hq is a multiple of Hkv, and head h reads key head h · Hkv / Hq |
  | `bias`, may be nil | any shape that broadcasts to `{B, Hq, Sq, Sk}`; of q's type or `{:f, 32}` |
  | `key_mask`, may be nil | `{B, Sk}`, `{:u, 8}`: 0 hides the key |
  | `kv_len`, may be nil | `{B}`, `{:s, 32}`: keys from there on are hidden |
  | `offset`, may be nil | `{}` or `{B}`, `{:s, 32}` |
  | outputs | `out {B, Sq, Hq, D}`; with `lse` also `{B, Hq, Sq}`, `{:f, 32}`: the logarithm of Σ exp(score) |

  Query i stands at key i + `offset`, by default Sk − Sq, so that the last query stands at the last
  key. `causal` hides the keys after that place; `left` and `right` hide those further from it than
  so many keys. A row with nothing to attend to is zeros, and its lse −∞.

  Types are `{:f, 32}`, `{:bf, 16}` or `{:f, 16}`, one for q, k and v. Scores, softmax and sums are
  f32; on CUDA the weights of the values are rounded to a 16-bit type where the values have one.
  """

  @type t :: %__MODULE__{
          scale: float() | nil,
          causal: boolean(),
          left: non_neg_integer() | nil,
          right: non_neg_integer() | nil,
          softcap: float() | nil,
          offset: integer() | nil,
          lse: boolean()
        }
  defstruct scale: nil,
            causal: false,
            left: nil,
            right: nil,
            softcap: nil,
            offset: nil,
            lse: false
end
