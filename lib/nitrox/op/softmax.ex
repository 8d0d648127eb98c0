defmodule Nitrox.Op.Softmax do
  @moduledoc """
  `exp(x) / Σ exp(x)` along an axis, computed after the axis' greatest element is taken off, so that
  it does not overflow; with `log` the logarithm of that.

  `x {…}` of type `{:f, 32}`, `{:bf, 16}` or `{:f, 16}` → the same shape and type. A negative `axis`
  counts from the last.
  """

  @type t :: %__MODULE__{axis: integer(), log: boolean()}
  defstruct axis: -1, log: false
end
