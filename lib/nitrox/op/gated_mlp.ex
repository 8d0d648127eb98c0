defmodule Nitrox.Op.GatedMlp do
  @moduledoc """
  The feed-forward block with a gate (Shazeer, 2020): SwiGLU with `:silu`, GEGLU with `:gelu`.

      (activation(x · gate) ⊙ (x · up)) · down + residual

  | input | shape |
  |---|---|
  | `x` | `{…, D}` |
  | `gate`, `up` | `{D, F}` |
  | `down` | `{F, D}` |
  | `residual`, may be nil | `{…, D}` |
  | output | `{…, D}` |

  Types are `{:f, 32}`, `{:bf, 16}` or `{:f, 16}`, one for all; products are summed in f32. On CUDA
  what lies between the products is kept in x's type. `activation` is one of those of
  `Nitrox.Op.Dense`.
  """

  @type t :: %__MODULE__{activation: Nitrox.Op.Dense.activation()}
  defstruct activation: :silu
end
