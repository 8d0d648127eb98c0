defmodule Nitrox.Op.LayerNorm do
  @moduledoc """
  Layer normalisation over the last axis (Ba, Kiros and Hinton, 2016):
  `(x − mean) / √(variance + epsilon) · gamma + beta`, the variance taken over all D elements.

  | input | shape |
  |---|---|
  | `x` | `{…, D}` |
  | `gamma` | `{D}` |
  | `beta` | `{D}` |
  | `residual`, may be nil | `{…, D}` |
  | outputs | `normed {…, D}`; with a residual also `x + residual {…, D}`, which is what was normalised |

  Types are `{:f, 32}`, `{:bf, 16}` or `{:f, 16}`, one for all; the statistics are taken in f32.
  """

  @type t :: %__MODULE__{epsilon: float()}
  defstruct epsilon: 1.0e-5
end
