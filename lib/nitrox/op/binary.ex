defmodule Nitrox.Op.Binary do
  @moduledoc """
  A function of two elements: `a {…}`, `b {…}` of one type, broadcast against each other (axes are
  aligned at the last; lengths are equal, or one of them is 1).

  Comparisons and logical operations give `{:u, 8}`, the others the type of `a` and `b`. `:divide`
  takes floats, `:quotient` integers (truncating; by zero it gives zero). `:remainder` has the sign
  of `a`. Integers wrap around. A NaN on either side of `:max` or `:min` gives NaN. `:atan2` takes
  floats, the bitwise operations and the shifts integers; `:right_shift` keeps the sign of a signed
  type. A shift by a negative count, or by the bits of the type or more, shifts every bit out.
  """

  @type kind ::
          :add
          | :subtract
          | :multiply
          | :divide
          | :quotient
          | :remainder
          | :max
          | :min
          | :pow
          | :atan2
          | :bitwise_and
          | :bitwise_or
          | :bitwise_xor
          | :left_shift
          | :right_shift
          | :equal
          | :not_equal
          | :less
          | :less_equal
          | :greater
          | :greater_equal
          | :logical_and
          | :logical_or
          | :logical_xor

  @type t :: %__MODULE__{kind: kind()}
  @enforce_keys [:kind]
  defstruct [:kind]
end
