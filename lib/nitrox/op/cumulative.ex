defmodule Nitrox.Op.Cumulative do
  @moduledoc """
  What the elements along an axis come to, up to and with each of them: `x {…}` → the same shape and
  type. With `reverse` it goes from the last element to the first.

  Floats are summed in f32 or longer, always in the same order; integers wrap around. A NaN among
  `:max` or `:min` stays from there on. A negative `axis` counts from the last.
  """

  @type kind :: :sum | :product | :max | :min
  @type t :: %__MODULE__{kind: kind(), axis: integer(), reverse: boolean()}
  @enforce_keys [:kind]
  defstruct [:kind, axis: 0, reverse: false]
end
