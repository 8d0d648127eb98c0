defmodule Nitrox.Op.Unary do
  @moduledoc """
  A function of each element: `x {…}` → the same shape and type.

  `:negate`, `:abs`, `:sign` and `:relu` take every type. `:logical_not` (1 where zero), `:is_nan` and
  `:is_infinity` take every type and give `{:u, 8}`. `:bitwise_not`, `:population_count` and
  `:count_leading_zeros` take integers, the others floats. `:round` rounds halves away from zero. `:gelu` is by
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
          | :tan
          | :asin
          | :acos
          | :atan
          | :sinh
          | :cosh
          | :asinh
          | :acosh
          | :atanh
          | :cbrt
          | :erfc
          | :erf_inv
          | :bitwise_not
          | :population_count
          | :count_leading_zeros
          | :logical_not
          | :is_nan
          | :is_infinity

  @type t :: %__MODULE__{kind: kind()}
  @enforce_keys [:kind]
  defstruct [:kind]
end
