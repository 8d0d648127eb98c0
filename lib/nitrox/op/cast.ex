defmodule Nitrox.Op.Cast do
  @moduledoc """
  The same elements in another type: `x {…}` → `{…}`.

  A float becomes an integer by cutting off its fraction; what lies outside the integer's range
  becomes the nearest end of it, and NaN becomes 0. A float becomes a shorter float by rounding to
  the nearest, ties to even.
  """

  @type t :: %__MODULE__{type: Nitrox.Tensor.type()}
  @enforce_keys [:type]
  defstruct [:type]
end
