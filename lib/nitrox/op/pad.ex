defmodule Nitrox.Op.Pad do
  @moduledoc """
  A tensor with a value around its elements and between them.

  | input | shape |
  |---|---|
  | `x` | `{…}` |
  | `value` | `{}`, of the type of `x` |
  | output | `length + (length - 1) · interior + low + high` along each axis |

  `low`, `high` and `interior` have a number for each axis. First `interior` values go between
  neighbours, then `low` before the first and `high` behind the last; a negative one of those takes
  that many away instead, values from between neighbours included.
  """

  @type t :: %__MODULE__{low: [integer()], high: [integer()], interior: [non_neg_integer()]}
  @enforce_keys [:low, :high, :interior]
  defstruct [:low, :high, :interior]
end
