defmodule Nitrox.Op.TriangularSolve do
  @moduledoc """
  The solution of triangular systems, one for each entry of the batch: `Nx.LinAlg.triangular_solve/3`.

  | input | shape |
  |---|---|
  | `a` | `{batch…, m, m}` |
  | `b` | `{batch…, m}`, or `{batch…, m, n}`, and `{batch…, n, m}` without `left_side` |
  | output | `b`'s |

  Solves `a·x = b`, or `x·a = b` without `left_side`. Of `a` one triangle is read, the lower one or
  the upper one; with `transpose` the transpose of that triangle takes its place. Both have one float
  type, which is the output's; f16 and bf16 are computed in f32, and rounded once.

  A zero on the diagonal divides as any zero does: the unknown is ∞ or NaN, and so is what depends on
  it. The diagonal is on the device, where nothing can be raised.
  """

  @type t :: %__MODULE__{lower: boolean(), left_side: boolean(), transpose: boolean()}
  defstruct lower: true, left_side: true, transpose: false
end
