defmodule Nitrox.Op.Gru do
  @moduledoc """
  A whole window of a GRU layer (Cho et al., 2014), gates in the order r z n, with the reset applied
  after the recurrent product, as Axon and cuDNN have it:

      r = σ(x_t · wi_r + h · wh_r + b_r)
      z = σ(x_t · wi_z + h · wh_z + b_z)
      n = tanh(x_t · wi_n + b_n + r · (h · wh_n + b_hn))
      h ← (1 − z) · n + z · h

  | input | shape |
  |---|---|
  | `x` | `{B, T, I}` |
  | `h0`, may be nil for zeros | `{B, H}` |
  | `wi` | `{I, 3H}` |
  | `wh` | `{H, 3H}` |
  | `b`, may be nil | `{4H}`: r, z, n and the recurrent n |
  | `mask`, may be nil | `{B, T}`, `{:u, 8}` |
  | outputs | `seq {B, T, H}`, `h {B, H}` |

  Where the mask is not zero the old state is kept, and `seq` repeats the kept h. With `reverse` the
  frames are read from the last to the first, and `seq` keeps the order of `x`.

  Types are `{:f, 32}`, `{:bf, 16}` or `{:f, 16}`, one for x and the weights. The state is of that
  type or `{:f, 32}`, and comes back in its own. Within the window gates and state are f32 whatever
  the types.
  """

  @type t :: %__MODULE__{reverse: boolean()}
  defstruct reverse: false
end
