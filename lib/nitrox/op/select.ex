defmodule Nitrox.Op.Select do
  @moduledoc """
  `on_true` where the predicate is not zero, `on_false` elsewhere.

  `predicate {…}` is `{:u, 8}`; `on_true {…}` and `on_false {…}` are of one type, which is the
  result's. The three shapes broadcast.
  """

  @type t :: %__MODULE__{}
  defstruct []
end
