defmodule Nitrox.Op.Transpose do
  @moduledoc """
  The axes in another order: axis `i` of the result is axis `axes[i]` of `x`.
  """

  @type t :: %__MODULE__{axes: [non_neg_integer()]}
  @enforce_keys [:axes]
  defstruct [:axes]
end
