defmodule Nitrox.Op.Gather do
  @moduledoc """
  The elements, or the slices, that indices name.

  | input | shape |
  |---|---|
  | `x` | `{…}` |
  | `indices` | `{…, n}`, of any integer type, `n` the number of `axes` |
  | output | the leading axes of `indices`, then the axes of `x` that `axes` does not name |

  The `i`-th number of an index counts along `axes[i]` of `x`. An index out of range is moved to the
  nearest end of its axis; `Nx.BinaryBackend` raises there.
  """

  @type t :: %__MODULE__{axes: [integer()]}
  @enforce_keys [:axes]
  defstruct [:axes]
end
