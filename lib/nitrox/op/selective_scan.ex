defmodule Nitrox.Op.SelectiveScan do
  @moduledoc """
  The selective scan of Mamba (Gu and Dao, 2023), a recurrence whose steps depend on the input:

      dt ← clamp(softplus(dt + dt_bias))
      h ← exp(dt · a) · h + dt · b · x
      y = (c · h + d · x) · silu(z) + residual

  with N states to each of D channels, as the `mamba_ssm` package computes it.

  | input | shape |
  |---|---|
  | `x`, `dt` | `{B, L, D}` |
  | `a`: A itself, which is negative, and not its logarithm | `{D, N}`, N up to 256 |
  | `b`, `c` | `{B, L, N}` |
  | `d`, may be nil | `{D}` |
  | `z`, may be nil | `{B, L, D}` |
  | `dt_bias`, may be nil | `{D}` |
  | `state`, may be nil for zeros | `{B, D, N}`, `{:f, 32}` |
  | `residual`, may be nil | `{B, L, D}` |
  | `gamma`, of a norm | `{D}` |
  | `beta`, of a layer norm; may be nil for an RMS norm | `{D}` |
  | outputs | `y {B, L, D}`, `h {B, D, N}`; with a norm `normed {B, L, D}`, `y {B, L, D}`, `h {B, D, N}` |

  `norm` is nil, `:layer_norm` or `:rms_norm`, taken over D of y once the residual is added, with
  `epsilon` added to the variance. `dt_softplus` and `dt_clamp`, `{low, high}` or nil, are what dt
  takes after its bias.

  Types are `{:f, 32}`, `{:bf, 16}` or `{:f, 16}`, one for all but these: `a`, `d` and `dt_bias` may
  be `{:f, 32}` whatever x is; the state is `{:f, 32}`. All is computed in f32.
  """

  @type t :: %__MODULE__{
          dt_softplus: boolean(),
          dt_clamp: {number(), number()} | nil,
          norm: nil | :layer_norm | :rms_norm,
          epsilon: float()
        }
  defstruct dt_softplus: false, dt_clamp: nil, norm: nil, epsilon: 1.0e-5
end
