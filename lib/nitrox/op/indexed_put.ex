defmodule Nitrox.Op.IndexedPut do
  @moduledoc """
  A tensor with the rows of `updates` put in place of the elements, or the slices, that indices name.

  | input | shape |
  |---|---|
  | `x` | `{…}` |
  | `indices` | `{k, n}`, of any integer type, `n` the number of `axes` |
  | `updates` | `k`, then the axes of `x` that `axes` does not name; of the type of `x` |
  | output | that of `x` |

  The `i`-th number of an index counts along `axes[i]` of `x`. A row with a number out of range is
  left out; `Nx.BinaryBackend` raises there.

  Of two rows for the same place the last one wins.
  """

  @type t :: %__MODULE__{axes: [integer()]}
  @enforce_keys [:axes]
  defstruct [:axes]
end
