defmodule Nitrox.Op.Dense do
  @moduledoc """
  A linear layer: `activation(x · w + b) + residual`.

  | input | shape |
  |---|---|
  | `x` | `{…, in}` |
  | `w` | `{in, out}` |
  | `b`, may be nil | `{out}` |
  | `residual`, may be nil | `{…, out}` |
  | output | `{…, out}` |

  Types are `{:f, 32}`, `{:bf, 16}` or `{:f, 16}`, one for all; products are summed in f32.
  The bias, the activation and the residual cost no pass of their own over the result.
  Activations: `:none`, `:relu`, `:silu`, `:gelu` (by the error function), `:gelu_tanh` (by tanh, as
  in GPT-2), `:tanh`, `:sigmoid`. GELU is of Hendrycks and Gimpel (2016), SiLU of Elfwing, Uchibe
  and Doya (2017).
  """

  @typedoc "What is applied after the bias and before the residual."
  @type activation :: :none | :relu | :silu | :gelu | :gelu_tanh | :tanh | :sigmoid

  @type t :: %__MODULE__{activation: activation()}
  defstruct activation: :none
end
