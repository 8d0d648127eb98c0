defmodule Nitrox.Op.Embedding do
  @moduledoc """
  Rows of a table, one for each id.

  | input | shape |
  |---|---|
  | `table` | `{V, E}`, `{:f, 32}`, `{:bf, 16}` or `{:f, 16}` |
  | `ids` | `{…}`, an integer type |
  | output | `{…, E}`, the table's type |

  An id below 0 or not below V gives a row of NaN: ids lie on the device, where nothing can be raised.
  """

  @type t :: %__MODULE__{}
  defstruct []
end
