defmodule Nitrox.Op.Reshape do
  @moduledoc """
  The same elements, in the same order, under another shape of as many. It shares the buffer and
  costs nothing.
  """

  @typedoc "The new shape, as a list."
  @type t :: %__MODULE__{shape: [non_neg_integer()]}
  @enforce_keys [:shape]
  defstruct [:shape]
end
