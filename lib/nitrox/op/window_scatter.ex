defmodule Nitrox.Op.WindowScatter do
  @moduledoc """
  The gradient of a greatest element in a window, or with `min` of a least: each element of `source`
  is added where the window that it stands for has that element, the last of equals.

  | input | shape |
  |---|---|
  | `x` | `{…}` |
  | `source` | what `Nitrox.Op.WindowReduce` makes of `x` with this window |
  | `init` | `{}` |
  | output | that of `x`: `init`, and what was added to it |

  All are of one type. As in `Nx.BinaryBackend`, the padding counts as elements of the value `init`,
  and where one of those wins the element of `source` is lost.
  """

  @type t :: %__MODULE__{
          min: boolean(),
          window: [pos_integer()],
          strides: [pos_integer()],
          padding: [[integer()]]
        }
  @enforce_keys [:window, :strides, :padding]
  defstruct [:window, :strides, :padding, min: false]
end
