defmodule Nitrox.Backbone.Config do
  @moduledoc false
  # What a backbone is made of: its config as checked and as a file of weights tells it, the module of
  # each layer, and name, shape and first values of every parameter.

  import Nitrox.Options, only: [fail!: 2, fail!: 3]

  alias Nitrox.{Backbone, Options, Weights}
  alias Nitrox.Backbone.{Attention, Mamba}

  @layers %{
    mlp: Backbone.Mlp,
    lstm: Backbone.Lstm,
    gru: Backbone.Gru,
    mamba: Mamba,
    attention: Attention,
    # The layers that are no attention.
    jamba: Mamba
  }
  @kinds Enum.sort(Map.keys(@layers))
  # Whose layers add to a stream of one width, and those among them that attend.
  @residual [:mamba, :attention, :jamba]
  @attending [:attention, :jamba]

  # What a kind's config may have beside `input`, `hidden` and `outputs`; nil is worked out.
  @mamba [state: 16, expand: 2, conv: 4, dt_rank: nil]
  @attention [heads: 4, ffn: nil, context: 60]
  @sizes %{
    mlp: [context: nil],
    lstm: [],
    gru: [],
    mamba: @mamba,
    attention: @attention,
    jamba: @mamba ++ @attention ++ [attention_every: 3]
  }

  def residual, do: @residual
  def attending, do: @attending

  @doc "The module of each layer."
  def layers(%{kind: :jamba, hidden: hidden, sizes: %{attention_every: every}}) do
    for n <- 1..length(hidden), do: if(rem(n, every) == 0, do: Attention, else: Mamba)
  end

  def layers(%{kind: kind, hidden: hidden}), do: Enum.map(hidden, fn _ -> @layers[kind] end)

  @doc "A config, checked, with the sizes that were left out."
  def new(kind, config) do
    if kind not in @kinds do
      fail!(:backbone, "kind: expected one of #{inspect(@kinds)}, got #{inspect(kind)}")
    end

    size? = &(is_integer(&1) and &1 > 0)

    common = [
      input: {nil, {"{:features, n} or {:tokens, vocabulary, width}", &input?/1}},
      hidden:
        {nil,
         {"a list of widths, [256, 256]",
          &(&1 != [] and Options.list?(&1) and Enum.all?(&1, size?))}},
      outputs: {nil, Options.integer(1)}
    ]

    sizes = for {name, default} <- @sizes[kind], do: {name, {default, Options.integer(1)}}
    config = Options.validate!(:backbone, foreign!(kind, config), common ++ sizes)

    for name <- [:input, :hidden, :outputs], config[name] == nil do
      fail!(:backbone, "the config needs #{inspect(name)}")
    end

    {common, sizes} = Map.split(config, [:input, :hidden, :outputs])
    residual!(kind, common, sizes)
    width = hd(common.hidden)
    worked_out = %{dt_rank: div(width + 15, 16), ffn: width}
    sizes = Map.new(sizes, fn {name, size} -> {name, size || worked_out[name]} end)
    Map.merge(common, %{kind: kind, sizes: sizes})
  end

  # An option of another kind.
  defp foreign!(kind, config) do
    for {name, _} <- if(Keyword.keyword?(config), do: config, else: []),
        not Keyword.has_key?(@sizes[kind], name) do
      kinds = for other <- @kinds, Keyword.has_key?(@sizes[other], name), do: inspect(other)

      if kinds != [],
        do: fail!(:backbone, "#{name}: is for #{Enum.join(kinds, ", ")}, got #{inspect(kind)}")
    end

    config
  end

  defp residual!(kind, %{hidden: [width | _] = hidden, input: input}, sizes)
       when kind in @residual do
    if Enum.uniq(hidden) != [width] do
      fail!(
        :backbone,
        "hidden: the layers of #{inspect(kind)} are of one width, got #{inspect(hidden)}"
      )
    end

    with {:tokens, _, embedding} when embedding != width <- input do
      fail!(
        :backbone,
        "input: the embedding must be as wide as the layers, #{width}, got #{embedding}"
      )
    end

    with %{heads: heads} when rem(width, 2 * heads) != 0 <- sizes do
      fail!(:backbone, "heads: #{heads} heads of an even size do not make the width #{width}")
    end
  end

  defp residual!(_kind, _common, _sizes), do: :ok

  defp input?({:features, n}), do: is_integer(n) and n > 0
  defp input?({:tokens, v, e}), do: is_integer(v) and v > 0 and is_integer(e) and e > 0
  defp input?(_), do: false

  @doc "Name, shape and draw of every parameter."
  def layout(%{hidden: [first | _], sizes: sizes, outputs: outputs} = config) do
    residual? = config.kind in @residual

    {input, width} =
      case config.input do
        {:features, n} when residual? ->
          {[{"input.w", {n, first}, {:fan_in, n}}, {"input.b", {first}, {:fan_in, n}}], first}

        {:features, n} ->
          {[], n}

        {:tokens, vocabulary, width} ->
          {[{"embedding.table", {vocabulary, width}, {:fan_in, 1}}], width}
      end

    inputs = if config.kind == :mlp, do: width * (sizes.context || 1), else: width

    {layers, last} =
      [layers(config), config.hidden]
      |> Enum.zip()
      |> Enum.with_index()
      |> Enum.map_reduce(inputs, fn {{layer, width}, n}, inputs ->
        params = layer.params(inputs, width, sizes)
        {for({name, shape, draw} <- params, do: {"layers.#{n}.#{name}", shape, draw}), width}
      end)

    norm = if residual?, do: [{"norm.gamma", {last}, :ones}], else: []

    head = [
      {"head.w", {last, outputs}, {:fan_in, last}},
      {"head.b", {outputs}, {:fan_in, last}}
    ]

    input ++ Enum.concat(layers) ++ norm ++ head
  end

  @doc "The kind and the config that a file of weights tells, by its metadata and its shapes."
  def stored(weights) do
    kind = Enum.find(@kinds, &(Atom.to_string(&1) == Weights.metadata(weights)["backbone"]))

    if kind == nil do
      fail!(
        :backbone,
        "#{weights.path}: its metadata must name a backbone, one of #{Enum.join(@kinds, ", ")}"
      )
    end

    layers =
      Stream.iterate(0, &(&1 + 1))
      |> Stream.take_while(&(&1 == 0 or layer?(weights, &1, "")))
      |> Enum.map(fn n ->
        module =
          if kind == :jamba and layer?(weights, n, "qkv.w"), do: Attention, else: @layers[kind]

        {module, module.sizes(&matrix!(weights, "layers.#{n}.#{&1}"))}
      end)

    [{_, {rows, _, _}} | _] = layers
    {_, outputs} = matrix!(weights, "head.w")
    {input, context} = stored_input(weights, kind, rows)

    config =
      [input: input, hidden: for({_, {_, width, _}} <- layers, do: width), outputs: outputs] ++
        for({_, {_, _, sizes}} <- layers, size <- sizes, uniq: true, do: size) ++
        stored_sizes(weights, kind, context, for({module, _} <- layers, do: module))

    {kind, config}
  end

  defp layer?(weights, n, name) do
    Enum.any?(Weights.names(weights), &String.starts_with?(&1, "layers.#{n}.#{name}"))
  end

  defp stored_input(weights, kind, rows) do
    cond do
      Weights.member?(weights, "embedding.table") ->
        {vocabulary, width} = matrix!(weights, "embedding.table")
        {{:tokens, vocabulary, width}, if(kind == :mlp and rows > width, do: div(rows, width))}

      kind in @residual ->
        {features, _} = matrix!(weights, "input.w")
        {{:features, features}, nil}

      true ->
        {{:features, rows}, nil}
    end
  end

  # What no shape tells, from the metadata; the rest of jamba's from the order of its layers.
  defp stored_sizes(weights, kind, _context, modules) when kind in @attending do
    sizes = for name <- [:heads, :context], do: {name, stored_size!(weights, name)}
    every = Enum.find_index(modules, &(&1 == Attention))
    if kind == :jamba and every, do: [attention_every: every + 1] ++ sizes, else: sizes
  end

  defp stored_sizes(_weights, :mlp, context, _modules), do: [context: context]
  defp stored_sizes(_weights, _kind, _context, _modules), do: []

  defp stored_size!(weights, name) do
    text = Weights.metadata(weights)["#{name}"]

    case Integer.parse(text || "") do
      {size, ""} when size > 0 ->
        size

      _ ->
        fail!(:backbone, "#{weights.path}: its metadata must say #{name}, got #{inspect(text)}")
    end
  end

  defp matrix!(weights, name) do
    case Weights.template(weights, name).shape do
      {_, _} = shape ->
        shape

      shape ->
        fail!(:backbone, "#{weights.path}: #{name} must have two axes, got #{inspect(shape)}")
    end
  end

  # What is drawn is made on the host, one number after the other.
  @most 2 ** 28

  @doc "Refuses a layout that is too large to be drawn."
  def check_drawn!(layout) do
    weights = for {_, shape, _} <- layout, reduce: 0, do: (sum -> sum + Tuple.product(shape))

    if weights > @most do
      fail!(
        :backbone,
        "init draws at most #{@most} weights, the config makes #{weights}",
        "Nitrox.Backbone.load/2 and new/4 take any number"
      )
    end
  end

  @doc "The first values of a parameter, as f32."
  def draw(:ones, shape, rand), do: {repeated(1.0, Tuple.product(shape)), rand}
  def draw(:zeros, shape, rand), do: {repeated(0.0, Tuple.product(shape)), rand}

  def draw(:decays, {channels, states}, rand) do
    {:binary.copy(for(n <- 1..states, into: <<>>, do: f32(-n)), channels), rand}
  end

  # Steps t from 0.001 to 0.1, evenly by their logarithm, and what softplus gives them for.
  def draw(:time_steps, {channels}, rand) do
    uniform(channels, rand, fn u ->
      t = 0.001 * :math.pow(100, u)
      :math.log(:math.exp(t) - 1)
    end)
  end

  # A uniform draw from −a to a has the deviation a/√3.
  def draw({:fan_in, inputs}, shape, rand) do
    a = :math.sqrt(3 / inputs)
    uniform(Tuple.product(shape), rand, &((2 * &1 - 1) * a))
  end

  defp uniform(count, rand, fun, drawn \\ <<>>)
  defp uniform(0, rand, _fun, drawn), do: {drawn, rand}

  defp uniform(count, rand, fun, drawn) do
    {u, rand} = :rand.uniform_s(rand)
    uniform(count - 1, rand, fun, <<drawn::binary, f32(fun.(u))::binary>>)
  end

  defp repeated(x, count), do: :binary.copy(f32(x), count)
  defp f32(x), do: <<x::float-32-native>>
end
