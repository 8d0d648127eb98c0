defmodule Nitrox.Op.Argmax do
  @moduledoc """
  The index of the greatest element along an axis, `{:s, 32}`, or with `min` of the least. The first
  of equals wins, with `last` the last; a NaN beats any number.

  `x {…}` of any type → the axis left out, or of length 1 with `keep_axis`. A negative `axis` counts
  from the last. The axis must not be empty.
  """

  @type t :: %__MODULE__{axis: integer(), keep_axis: boolean(), min: boolean(), last: boolean()}
  defstruct axis: -1, keep_axis: false, min: false, last: false
end
