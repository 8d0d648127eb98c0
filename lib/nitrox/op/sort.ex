defmodule Nitrox.Op.Sort do
  @moduledoc """
  The elements along an axis from the least to the greatest, or with `descending` the other way
  round: `x {…}` → the same shape and type. With `indices` the places along the axis that they had
  instead, `{:s, 32}`.

  The sort is stable in both directions. A NaN counts as greater than any number, and the two zeros
  as equal. A negative `axis` counts from the last.
  """

  @type t :: %__MODULE__{axis: integer(), descending: boolean(), indices: boolean()}
  defstruct axis: -1, descending: false, indices: false
end
