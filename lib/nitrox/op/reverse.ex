defmodule Nitrox.Op.Reverse do
  @moduledoc """
  The elements of the axes named in the opposite order: `x {…}` → the same shape. A negative axis
  counts from the last.
  """

  @type t :: %__MODULE__{axes: [integer()]}
  @enforce_keys [:axes]
  defstruct [:axes]
end
