defmodule Nitrox.Op.Reduce do
  @moduledoc """
  The sum, mean, product, greatest or least element over some axes, or over all where none are named.

  `x {…}` → the axes left out, or of length 1 with `keep_axes`; the type is that of `x`. `:mean` takes
  floats. Floats are summed in f32 or longer, always in the same order; integers wrap around.
  A NaN among the elements of `:max` or `:min` gives NaN, and there must be at least one element.
  `:all` (no element is zero) and `:any` (one is not) give `{:u, 8}`.
  """

  @type kind :: :sum | :mean | :product | :max | :min | :all | :any
  @type t :: %__MODULE__{kind: kind(), axes: [integer()], keep_axes: boolean()}
  @enforce_keys [:kind]
  defstruct [:kind, axes: [], keep_axes: false]
end
