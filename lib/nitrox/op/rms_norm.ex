defmodule Nitrox.Op.RmsNorm do
  @moduledoc """
  Normalisation by the root mean square of the last axis (Zhang and Sennrich, 2019):
  `x / √(mean(x²) + epsilon) · gamma`.

  | input | shape |
  |---|---|
  | `x` | `{…, D}` |
  | `gamma` | `{D}` |
  | `residual`, may be nil | `{…, D}` |
  | outputs | `normed {…, D}`; with a residual also `x + residual {…, D}`, which is what was normalised |

  Types are `{:f, 32}`, `{:bf, 16}` or `{:f, 16}`, one for all; the mean is taken in f32.
  """

  @type t :: %__MODULE__{epsilon: float()}
  defstruct epsilon: 1.0e-5
end
