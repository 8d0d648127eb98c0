defmodule Nitrox.Op.Cast do
  @moduledoc """
  The same elements in another type: `x {…}` → `{…}`.

  A float becomes an integer by cutting off its fraction; what lies outside the integer's range
  becomes the nearest end of it, and NaN becomes 0. An integer becomes a shorter one by dropping its
  upper bits, and a float a shorter float by rounding to the nearest, ties to even.
  """

  @type t :: %__MODULE__{type: Nitrox.Tensor.type()}
  @enforce_keys [:type]
  defstruct [:type]
end
