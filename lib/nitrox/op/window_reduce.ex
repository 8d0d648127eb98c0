defmodule Nitrox.Op.WindowReduce do
  @moduledoc """
  What the elements inside a window come to, at each place where the window can stand: `x {…}` → the
  number of places along each axis, of the type of `x`.

  `window`, `strides` and `dilations` have a number for each axis, `padding` a list of two: how much
  lies before the first element and behind the last, and takes no part; where it is negative, so many
  elements take no part. A window of nothing but padding gives 0, 1, or for `:max` and `:min` the
  least and the greatest value of the type, which for floats is infinite.

  Floats are summed in f32 or longer; integers wrap around. A NaN in the window of a `:max` or `:min`
  gives NaN.
  """

  @type kind :: :sum | :product | :max | :min
  @type t :: %__MODULE__{
          kind: kind(),
          window: [pos_integer()],
          strides: [pos_integer()],
          padding: [[integer()]],
          dilations: [pos_integer()]
        }
  @enforce_keys [:kind, :window, :strides, :padding, :dilations]
  defstruct [:kind, :window, :strides, :padding, :dilations]
end
