defmodule Nitrox.Op.Rope do
  @moduledoc """
  Rotary positions (Su et al., 2021): pairs of features are turned by an angle that grows with the
  position, so that the product of two vectors depends on how far apart they are.

      angle = position · scale · base^(−2i / dims)
      [x_j, x_k] ← [x_j · cos − x_k · sin, x_j · sin + x_k · cos]

  Pair i is made of the features i and i + dims / 2, as in GPT-NeoX and Llama; with `interleaved` of
  2i and 2i + 1, as in GPT-J. `dims` is how many of the first features turn (nil for all); the others
  stay as they are.

  | input | shape |
  |---|---|
  | `x` | `{B, S, H, D}` |
  | `positions` | `{B, S}`, `{S}`, or `{}`: the position of the first frame, from which it counts on |
  | output | `{B, S, H, D}` |

  `x` is `{:f, 32}`, `{:bf, 16}` or `{:f, 16}`; positions are `{:s, 32}` and lie on the device, so that
  a captured program may turn by others in each run. The angle is kept as a fraction of a turn in 64
  bits: a position far away is as exact as the first.
  """

  @type t :: %__MODULE__{
          base: float(),
          scale: float(),
          dims: non_neg_integer() | nil,
          interleaved: boolean()
        }
  defstruct base: 10_000.0, scale: 1.0, dims: nil, interleaved: false
end
