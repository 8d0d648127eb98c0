defmodule Nitrox.Op.Broadcast do
  @moduledoc """
  Repeats `x` until it has the given shape: axes are aligned at the last, and an axis that is
  missing or of length 1 is repeated.
  """

  @typedoc "The new shape, as a list."
  @type t :: %__MODULE__{shape: [non_neg_integer()]}
  @enforce_keys [:shape]
  defstruct [:shape]
end
