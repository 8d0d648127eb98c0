defmodule Nitrox.Op.Sample do
  @moduledoc """
  Draws an index from each row of logits, on the device.

  | input | shape |
  |---|---|
  | `logits` | `{…, V}`, `{:f, 32}`, `{:bf, 16}` or `{:f, 16}` |
  | `counter` | `{}`, `{:s, 32}` |
  | outputs | `ids {…}`, `{:s, 32}`, and `counter + 1` |

  The logits are divided by `temperature` (0 takes the most likely and draws nothing). `top_k` then
  keeps the k greatest; `top_p` (nucleus sampling: Holtzman et al., 2019) of those the fewest, from
  the most likely down, whose probabilities sum to at least p. Among what is kept the index is drawn
  by the Gumbel-max trick: the greatest of `z + g`, `g = −ln(−ln u)`.

  The u come from Philox4x32-10 (Salmon, Moraes, Dror and Shaw, 2011), a generator without a state:
  the draw is a function of `seed`, `counter`, the row and the column. The same seed and counter give
  the same ids on every device; feeding the second output back as the counter gives the next ones.
  """

  @type t :: %__MODULE__{
          temperature: float(),
          top_k: pos_integer() | nil,
          top_p: float() | nil,
          seed: non_neg_integer()
        }
  defstruct temperature: 1.0, top_k: nil, top_p: nil, seed: 0
end
