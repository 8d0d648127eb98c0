defmodule Nitrox.Op.Slice do
  @moduledoc """
  A part of a tensor: `lengths[i]` elements of each axis, from `starts[i]` on, every `strides[i]`-th.

  | input | shape |
  |---|---|
  | `x` | `{…}` |
  | `position`, may be nil | `{}`, `{:s, 32}` |
  | output | `lengths` |

  `position`, which lies on the device, is added to the start on `axis`, so that a captured program
  may read at another place in each run. A start from which the slice would run over the end is then
  moved back until it fits, as Nx does; with `wrap` the axis is a ring instead, and the slice goes on
  at its beginning.
  """

  @type t :: %__MODULE__{
          starts: [integer()],
          lengths: [non_neg_integer()],
          strides: [pos_integer()],
          axis: integer(),
          wrap: boolean()
        }
  @enforce_keys [:starts, :lengths, :strides]
  defstruct [:starts, :lengths, :strides, axis: 0, wrap: false]
end
