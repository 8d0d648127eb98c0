defmodule Nitrox.Op.CausalConv1d do
  @moduledoc """
  A causal convolution along time, each channel by itself (the short convolution of Mamba; Gu and
  Dao, 2023):

      y[t] = activation(b + Σ w[k] · x[t − K + 1 + k])

  so that `w[K − 1]` weighs the newest frame.

  | input | shape |
  |---|---|
  | `x` | `{B, L, D}` |
  | `w` | `{K, D}`, K from 1 to 16 |
  | `b`, may be nil | `{D}` |
  | `state`, may be nil for zeros | `{B, K − 1, D}`: the frames before the first |
  | outputs | `y {B, L, D}`, `state {B, K − 1, D}`: the last K − 1 frames |

  Types are `{:f, 32}`, `{:bf, 16}` or `{:f, 16}`, one for all; sums are f32. `activation` is one of
  those of `Nitrox.Op.Dense`.
  """

  @type t :: %__MODULE__{activation: Nitrox.Op.Dense.activation()}
  defstruct activation: :none
end
