defmodule Nitrox.Import.Mamba do
  @moduledoc false
  # mamba_ssm's Mamba block, and the language model made of such blocks. A block's sizes are read from
  # four of its tensors, and all are held to them.

  alias Nitrox.Import.StateDict

  @required ~w(in_proj.weight conv1d.weight x_proj.weight dt_proj.weight dt_proj.bias A_log D
               out_proj.weight)
  @optional ~w(in_proj.bias conv1d.bias out_proj.bias)

  @doc "The parameters of a block by name; nil for a bias that it has not."
  def block(dict) do
    StateDict.check_names!(dict, "a Mamba block", @required, @optional)
    params(dict)
  end

  defp params(dict) do
    {_, model} = StateDict.shape!(dict, "in_proj.weight", 2)
    {channels, states} = StateDict.shape!(dict, "A_log", 2)
    {_, rank} = StateDict.shape!(dict, "dt_proj.weight", 2)
    {_, _, taps} = StateDict.shape!(dict, "conv1d.weight", 3)

    matrix = fn name, inputs, outputs ->
      dict |> StateDict.fetch("#{name}.weight", {outputs, inputs}) |> Nitrox.transpose()
    end

    bias = fn name, outputs ->
      name = "#{name}.bias"
      if StateDict.member?(dict, name), do: StateDict.fetch(dict, name, {outputs})
    end

    conv = StateDict.fetch(dict, "conv1d.weight", {channels, 1, taps})
    a_log = StateDict.fetch_f32(dict, "A_log", {channels, states})

    %{
      "in.w" => matrix.("in_proj", model, 2 * channels),
      "in.b" => bias.("in_proj", 2 * channels),
      "conv.w" => conv |> Nitrox.reshape({channels, taps}) |> Nitrox.transpose(),
      "conv.b" => bias.("conv1d", channels),
      "x.w" => matrix.("x_proj", channels, rank + 2 * states),
      "dt.w" => matrix.("dt_proj", rank, channels),
      "dt.b" => StateDict.fetch_f32(dict, "dt_proj.bias", {channels}),
      "a" => a_log |> Nitrox.exp() |> Nitrox.negate(),
      "d" => StateDict.fetch_f32(dict, "D", {channels}),
      "out.w" => matrix.("out_proj", channels, model),
      "out.b" => bias.("out_proj", model)
    }
  end

  @doc "The config and the weights of a `Nitrox.Backbone` of the kind `:mamba`."
  def language_model(dict) do
    # transformers has the embedding in the plural.
    plural = "backbone.embeddings.weight"
    embedding = if StateDict.member?(dict, plural), do: plural, else: "backbone.embedding.weight"
    layers = Enum.map(0..last_layer(dict), &"backbone.layers.#{&1}.")

    required = for layer <- layers, name <- @required, do: "#{layer}mixer.#{name}"
    norms = ["backbone.norm_f.weight" | Enum.map(layers, &"#{&1}norm.weight")]
    optional = ["lm_head.weight" | Enum.map(layers, &"#{&1}mixer.conv1d.bias")]
    what = "a MambaLMHeadModel"
    StateDict.check_names!(dict, what, [embedding | norms] ++ required, optional)

    {vocabulary, width} = StateDict.shape!(dict, embedding, 2)
    table = StateDict.fetch(dict, embedding, {vocabulary, width})
    blocks = Enum.map(layers, &layer(StateDict.at(dict, &1), width))

    head =
      if StateDict.member?(dict, "lm_head.weight"),
        do: StateDict.fetch(dict, "lm_head.weight", {vocabulary, width}),
        else: table

    params = %{
      "embedding.table" => table,
      "norm.gamma" => StateDict.fetch(dict, "backbone.norm_f.weight", {width}),
      "head.w" => Nitrox.transpose(head),
      "head.b" => zeros(vocabulary, head)
    }

    params =
      for {block, n} <- Enum.with_index(blocks), {name, tensor} <- block, into: params do
        {"layers.#{n}.#{name}", tensor}
      end

    {config(hd(blocks), vocabulary, width, length(blocks)), params}
  end

  defp last_layer(dict) do
    numbers =
      for name <- dict.names,
          [_, n] <- [Regex.run(~r/^backbone\.layers\.(0|[1-9]\d{0,3})\./, name)],
          do: String.to_integer(n)

    Enum.max(numbers, fn -> 0 end)
  end

  # The backbone's blocks have a bias in the convolution and nowhere else.
  defp layer(dict, width) do
    block = dict |> StateDict.at("mixer.") |> params()
    {_, channels} = Nitrox.shape(block["conv.w"])

    block
    |> Map.drop(["in.b", "out.b"])
    |> Map.put("conv.b", block["conv.b"] || zeros(channels, block["conv.w"]))
    |> Map.put("norm.gamma", StateDict.fetch(dict, "norm.weight", {width}))
  end

  defp zeros(length, %{type: type, device: device}) do
    Nitrox.tensor(List.duplicate(0.0, length), type: type, device: device)
  end

  defp config(block, vocabulary, width, layers) do
    {channels, states} = Nitrox.shape(block["a"])
    {taps, _} = Nitrox.shape(block["conv.w"])
    {rank, _} = Nitrox.shape(block["dt.w"])

    [
      input: {:tokens, vocabulary, width},
      hidden: List.duplicate(width, layers),
      outputs: vocabulary,
      state: states,
      expand: div(channels, width),
      conv: taps,
      dt_rank: rank
    ]
  end
end
