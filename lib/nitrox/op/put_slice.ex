defmodule Nitrox.Op.PutSlice do
  @moduledoc """
  `x` with a part of it written over by `slice`, from `starts` on.

  | input | shape |
  |---|---|
  | `x` | `{…}` |
  | `slice` | as many axes, none longer than that of `x`; the type of `x` |
  | `position`, may be nil | `{}`, `{:s, 32}` |
  | output | the shape of `x` |

  `position`, `axis` and `wrap` are those of `Nitrox.Op.Slice`. In a program that gives the result
  back as the state that `x` was, only the part is written.
  """

  @type t :: %__MODULE__{starts: [integer()], axis: integer(), wrap: boolean()}
  @enforce_keys [:starts]
  defstruct [:starts, axis: 0, wrap: false]
end
