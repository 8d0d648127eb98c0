defmodule Nitrox.Op.Bitcast do
  @moduledoc """
  The same bytes as elements of another type of the same size: `x {…}` → `{…}`. It costs nothing:
  the result is the buffer of `x`.
  """

  @type t :: %__MODULE__{type: Nitrox.Tensor.type()}
  @enforce_keys [:type]
  defstruct [:type]
end
