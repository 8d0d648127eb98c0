defmodule Nitrox.Op.Iota do
  @moduledoc """
  A tensor of counting numbers: each element is its place along `axis`, or among all elements, in
  their order, where that is nil. It takes no inputs; `Nitrox.Op.create/2` makes it on a device.

  Integers wrap around, and floats are rounded to the nearest.
  """

  @type t :: %__MODULE__{
          type: Nitrox.Tensor.type(),
          shape: [non_neg_integer()],
          axis: integer() | nil
        }
  @enforce_keys [:type, :shape]
  defstruct [:type, :shape, axis: nil]
end
