defmodule Nitrox.Op.Dot do
  @moduledoc """
  The sum of products over any axes, with or without a batch: `Nx.dot/6`.

  | input | shape |
  |---|---|
  | `a` | batch axes, then its own and the contracted ones in any order |
  | `b` | the same batch axes, then its own and the contracted ones in any order |
  | output | the batch axes, `a`'s own, `b`'s own |

  Both have one type, any of them, which is the output's. f16 and bf16 are summed in f32, f32 at the
  accuracy of f32, integers wrap. The contracted axes stand in pairs: the first of `contract_a` with
  the first of `contract_b`. The batch axes are the first ones, in order.
  """

  @type t :: %__MODULE__{
          contract_a: [non_neg_integer()],
          batch_a: [non_neg_integer()],
          contract_b: [non_neg_integer()],
          batch_b: [non_neg_integer()]
        }
  @enforce_keys [:contract_a, :contract_b]
  defstruct [:contract_a, :contract_b, batch_a: [], batch_b: []]
end
