defmodule Nitrox.Nx.Block do
  @moduledoc """
  An op of Nitrox as `Nx.block/4` takes it, for backends and compilers that look at the struct of a
  block: the op, and at which of the op's inputs each argument of the block stands. The others, which
  are optional, are not given.
  """

  @type t :: %__MODULE__{op: Nitrox.Op.t(), places: [non_neg_integer()]}
  @enforce_keys [:op, :places]
  defstruct [:op, :places]
end
