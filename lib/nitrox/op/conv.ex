defmodule Nitrox.Op.Conv do
  @moduledoc """
  A convolution, which as in all of machine learning is a cross-correlation: `Nx.conv/3` on channels
  that come first.

  | input | shape |
  |---|---|
  | `input` | `{n, c, spatial…}`, one to six spatial axes |
  | `kernel` | `{o, c / feature_groups, spatial…}` |
  | output | `{n / batch_groups, o, spatial…}` |

  Both have one float type, which is the output's; f16 and bf16 are summed in f32. The lists have an
  entry for each spatial axis. The input is first dilated with zeros (`input_dilation`), then padded
  (`padding`, `[low, high]` each; negative ones crop), and the kernel dilated (`kernel_dilation`).
  With `feature_groups` the channels and the outputs fall into groups that do not see each other;
  with `batch_groups` it is the batch that is cut, and each group of outputs sees its part of it. One
  of the two is 1.
  """

  @type t :: %__MODULE__{
          strides: [pos_integer()],
          padding: [[integer()]],
          input_dilation: [pos_integer()],
          kernel_dilation: [pos_integer()],
          feature_groups: pos_integer(),
          batch_groups: pos_integer()
        }
  @enforce_keys [:strides, :padding, :input_dilation, :kernel_dilation]
  defstruct [
    :strides,
    :padding,
    :input_dilation,
    :kernel_dilation,
    feature_groups: 1,
    batch_groups: 1
  ]
end
