defmodule Nitrox.Import do
  @moduledoc """
  Weights that PyTorch trained, from a state dict saved as safetensors:

      # Python: safetensors.torch.save_file(model.state_dict(), "model.safetensors")
      weights = Nitrox.Weights.open("model.safetensors")
      layers = Nitrox.Import.lstm(weights, prefix: "encoder.lstm.")

  Each function reads one PyTorch module and gives what the function of Nitrox takes: matrices
  transposed, gates in our order, two biases made one. It knows every name that the module has. One
  that is missing, one that is not its own and a shape that does not fit are each a `Nitrox.Error`
  that says what was expected; nothing is left out in silence.

  Options of all:

    * `:prefix` - what stands before the module's names in the file, its dot included (default `""`).
      Names that do not begin with it belong to other modules and are not looked at
    * `:type` - casts to it (default: the types stored)
    * `:device` - default: the default device
  """

  alias Nitrox.Import.{Mamba, StateDict}

  @typedoc "The weights of one direction of a layer, as `Nitrox.lstm/6` and `Nitrox.gru/6` take them."
  @type cell :: {wi :: Nitrox.Tensor.t(), wh :: Nitrox.Tensor.t(), b :: Nitrox.Tensor.t() | nil}

  @doc """
  An `nn.LSTM`: a list of its layers, each the list of its directions, `[{wi, wh, b}]` or, of a
  bidirectional one, `[{wi, wh, b}, {wi, wh, b}]`, the second for `reverse: true`.

  How many layers and directions there are, and whether there are biases (`b` is nil where there are
  none), is read from the names. PyTorch's two biases are added, and rounded once where they are kept
  in 16 bits. `proj_size` is refused. Running what comes of it:

      for directions <- layers, reduce: x do
        x ->
          for {{wi, wh, b}, reverse} <- Enum.zip(directions, [false, true]) do
            {seq, _state} = Nitrox.lstm(x, nil, wi, wh, b, reverse: reverse)
            seq
          end
          |> Nitrox.concatenate(axis: -1)
      end

  `batch_first` and `dropout` are not in a state dict: x is `{B, T, I}` here whatever it was there.
  """
  @spec lstm(Nitrox.Weights.t(), keyword()) :: [[cell()]]
  def lstm(weights, opts \\ []) do
    recurrent(weights, opts, "LSTM", 4, fn bi, bh, _hidden -> Nitrox.add(bi, bh) end)
  end

  @doc """
  An `nn.GRU`: layers and directions as `lstm/2` gives them, for `Nitrox.gru/6`.

  Of the two biases those of r and z are added. The recurrent n's is kept apart, since the reset gate
  takes it: `b` is r, z, n, recurrent n.
  """
  @spec gru(Nitrox.Weights.t(), keyword()) :: [[cell()]]
  def gru(weights, opts \\ []) do
    recurrent(weights, opts, "GRU", 3, fn bi, bh, hidden ->
      both = Nitrox.add(Nitrox.slice(bi, [0], [2 * hidden]), Nitrox.slice(bh, [0], [2 * hidden]))
      [n, recurrent_n] = for b <- [bi, bh], do: Nitrox.slice(b, [2 * hidden], [hidden])
      Nitrox.concatenate([both, n, recurrent_n], axis: 0)
    end)
  end

  @doc """
  A `Mamba` block of the `mamba_ssm` package: its parameters by name,

  | name | shape | of PyTorch's |
  |---|---|---|
  | `in.w`, `in.b` | `{M, 2D}`, `{2D}`: x, then z | `in_proj` |
  | `conv.w`, `conv.b` | `{K, D}`, `{D}` | `conv1d` |
  | `x.w` | `{D, R + 2N}`: dt, b, c | `x_proj` |
  | `dt.w`, `dt.b` | `{R, D}`, `{D}` | `dt_proj` |
  | `a`, `d` | `{D, N}`, `{D}` | `−exp(A_log)`, `D` |
  | `out.w`, `out.b` | `{D, M}`, `{M}` | `out_proj` |

  for a model width M, D channels (M times `expand`), N states (`d_state`), a convolution over K
  frames (`d_conv`) and a dt of rank R, all read from the shapes. `in.b`, `conv.b` and `out.b` are nil
  where the block has none. `a`, `d` and `dt.b` are f32 whatever the type, as `mamba_ssm` and
  `Nitrox.selective_scan/6` use them.
  """
  @spec mamba(Nitrox.Weights.t(), keyword()) :: %{String.t() => Nitrox.Tensor.t() | nil}
  def mamba(weights, opts \\ []), do: weights |> StateDict.new(opts) |> Mamba.block()

  @doc """
  A whole `MambaLMHeadModel` of `mamba_ssm`, or a `MambaForCausalLM` of transformers:
  `{config, params}` for a `Nitrox.Backbone`,

      {config, params} = Nitrox.Import.mamba_lm(weights)
      backbone = Nitrox.Backbone.new(:mamba, config, params)

  It is made of `backbone.embedding`, `backbone.layers.N.norm` and `.mixer` (as in `mamba/2`, with RMS
  norms), `backbone.norm_f` and `lm_head`, which is the embedding where the file has none of its own.
  Biases of `in_proj` and `out_proj` and layer norms are refused: the backbone has none.
  """
  @spec mamba_lm(Nitrox.Weights.t(), keyword()) ::
          {config :: keyword(), Nitrox.Backbone.params()}
  def mamba_lm(weights, opts \\ []), do: weights |> StateDict.new(opts) |> Mamba.language_model()

  # ── nn.LSTM and nn.GRU ─────────────────────────────────────────────────────────────────────────

  defp recurrent(weights, opts, kind, gates, join) do
    dict = StateDict.new(weights, opts)
    {layers, suffixes, bias?} = structure!(dict, kind)
    {_, hidden} = StateDict.shape!(dict, "weight_hh_l0", 2)
    {_, inputs} = StateDict.shape!(dict, "weight_ih_l0", 2)
    rows = gates * hidden

    for n <- 0..(layers - 1) do
      # A layer above reads all directions of the one below.
      inputs = if n == 0, do: inputs, else: length(suffixes) * hidden

      for suffix <- suffixes do
        weight = fn name, columns ->
          dict |> StateDict.fetch("#{name}_l#{n}#{suffix}", {rows, columns}) |> Nitrox.transpose()
        end

        bias = fn name -> StateDict.fetch(dict, "#{name}_l#{n}#{suffix}", {rows}) end
        b = if bias?, do: join.(bias.("bias_ih"), bias.("bias_hh"), hidden)
        {weight.("weight_ih", inputs), weight.("weight_hh", hidden), b}
      end
    end
  end

  @name ~r/^(weight|bias)_(?:ih|hh)_l(0|[1-9]\d{0,3})(_reverse)?$/

  # Of the names that are there: how many layers, which directions, whether there are biases. All
  # that this makes must then be there, and nothing else.
  defp structure!(dict, kind) do
    if Enum.any?(dict.names, &String.starts_with?(&1, "weight_hr_l")) do
      StateDict.fail!(
        dict,
        "this nn.#{kind} has a proj_size (weight_hr_l0), which Nitrox does not have",
        "train it without proj_size"
      )
    end

    parsed = for name <- dict.names, match = Regex.run(@name, name), do: match
    last = parsed |> Enum.map(&String.to_integer(Enum.at(&1, 2))) |> Enum.max(fn -> 0 end)
    reverse? = Enum.any?(parsed, &(length(&1) == 4))
    bias? = Enum.any?(parsed, &(Enum.at(&1, 1) == "bias"))
    suffixes = if reverse?, do: ["", "_reverse"], else: [""]

    StateDict.check_names!(
      dict,
      "an nn.#{kind}",
      for n <- 0..last,
          suffix <- suffixes,
          part <- if(bias?, do: ["weight", "bias"], else: ["weight"]),
          side <- ["ih", "hh"] do
        "#{part}_#{side}_l#{n}#{suffix}"
      end
    )

    {last + 1, suffixes, bias?}
  end
end
