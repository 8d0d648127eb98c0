defmodule Nitrox.Op.Concatenate do
  @moduledoc """
  Tensors one after the other along an axis. They are of one type and agree on every other axis.
  A negative `axis` counts from the last.
  """

  @type t :: %__MODULE__{axis: integer()}
  defstruct axis: 0
end
