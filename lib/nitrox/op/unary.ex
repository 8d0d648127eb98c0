defmodule Nitrox.Op.Unary do
  @moduledoc """
  A function of each element: `x {…}` → the same shape and type.

  `:negate`, `:abs`, `:sign` and `:relu` take every type, `:logical_not` (1 where zero) every type
  and gives `{:u, 8}`; the others take floats. `:round` rounds halves away from zero. `:gelu` is by
  the error function, `:gelu_tanh` its approximation by tanh. 16-bit types are computed in f32 and
  rounded once.
  """

  @type kind ::
          :negate
          | :abs
          | :sign
          | :exp
          | :expm1
          | :log
          | :log1p
          | :sqrt
          | :rsqrt
          | :reciprocal
          | :sin
          | :cos
          | :tanh
          | :erf
          | :floor
          | :ceil
          | :round
          | :sigmoid
          | :relu
          | :silu
          | :gelu
          | :gelu_tanh
          | :softplus
          | :logical_not

  @type t :: %__MODULE__{kind: kind()}
  @enforce_keys [:kind]
  defstruct [:kind]
end
