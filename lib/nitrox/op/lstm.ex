defmodule Nitrox.Op.Lstm do
  @moduledoc """
  A whole window of an LSTM layer (Hochreiter and Schmidhuber, 1997; the forget gate of Gers,
  Schmidhuber and Cummins, 2000), gates in Axon's order i f g o:

      [i, f, g, o] = x_t · wi + h · wh + b
      c ← σ(f) · c + σ(i) · tanh(g)
      h ← σ(o) · tanh(c)

  | input | shape |
  |---|---|
  | `x` | `{B, T, I}` |
  | `c0`, `h0`, may be nil for zeros | `{B, H}` |
  | `wi` | `{I, 4H}` |
  | `wh` | `{H, 4H}` |
  | `b`, may be nil | `{4H}` |
  | `mask`, may be nil | `{B, T}`, `{:u, 8}` |
  | outputs | `seq {B, T, H}`, `c {B, H}`, `h {B, H}` |

  Where the mask is not zero the old state is kept, and `seq` repeats the kept h. With `reverse` the
  frames are read from the last to the first, and `seq` keeps the order of `x`.

  Types are `{:f, 32}`, `{:bf, 16}` or `{:f, 16}`, one for x and the weights. The state is of that
  type or `{:f, 32}`, and comes back in its own. Within the window gates and state are f32 whatever
  the types.
  """

  @type t :: %__MODULE__{reverse: boolean()}
  defstruct reverse: false
end
