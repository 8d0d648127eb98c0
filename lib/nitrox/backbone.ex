defmodule Nitrox.Backbone do
  @moduledoc """
  Policy networks that answer frame by frame, with their state on the device.

  A backbone is a config and its weights. It has two forms that give the same numbers: `step/3` takes
  one frame and the state, and `window/3` takes T frames at once, for training data or for a policy
  that is shown its last second again in every frame. Both are plain functions on tensors: call them
  as they are, or inside a function given to `Nitrox.Program.compile/3`. `session/2` compiles the step
  with sampling into a policy.

      backbone = Nitrox.Backbone.init(:lstm, [input: {:features, 288}, hidden: [256, 256], outputs: 53])
      session = Nitrox.Backbone.session(backbone, sample: [temperature: 0.8, seed: 7])
      {action, logits} = Nitrox.Session.step(session, [observation])

  ## Kinds

    * `:mlp` - dense layers with ReLU
    * `:lstm`, `:gru` - recurrent layers, each followed by a layer norm

  and after the last layer of each a dense head to `outputs` logits.

  ## Config

    * `:input` - `{:features, n}`, frames of n numbers in the type of the weights, or
      `{:tokens, vocabulary, width}`, one `{:s, 32}` token a frame, looked up in an embedding
    * `:hidden` - the width of each layer, `[256, 256]`
    * `:outputs` - how many logits
    * `:context` - `:mlp` only: the net sees the last n frames, kept as a ring in its state, which
      begins with token 0 or zeros (default: the one frame)

  ## Weights

  A map, or a `Nitrox.Weights` file, of `embedding.table {vocabulary, width}` (for tokens),
  `layers.N.w`, `layers.N.b` (mlp) or `layers.N.wi`, `.wh`, `.b`, `.norm.gamma`, `.norm.beta` (as
  `Nitrox.lstm/6` and `Nitrox.gru/6` take them), `head.w`, `head.b`.
  """

  import Nitrox.Options, only: [fail!: 2]

  alias Nitrox.{Backbone, Options, Program, Session, Tensor, Weights}
  alias Nitrox.Backbone.Context

  @layers %{mlp: Backbone.Mlp, lstm: Backbone.Lstm, gru: Backbone.Gru}
  @kinds Enum.sort(Map.keys(@layers))

  @enforce_keys [:kind, :input, :hidden, :outputs, :params, :type, :device]
  defstruct [:kind, :input, :hidden, :outputs, :context, :params, :type, :device, metadata: %{}]

  @type kind :: :mlp | :lstm | :gru
  @type input :: {:features, pos_integer()} | {:tokens, pos_integer(), pos_integer()}
  @type params :: %{String.t() => Tensor.t()}

  @typedoc "A container of tensors; what is in it depends on the kind."
  @type state :: map()

  @type t :: %__MODULE__{
          kind: kind(),
          input: input(),
          hidden: [pos_integer()],
          outputs: pos_integer(),
          context: %Context{} | nil,
          params: params(),
          type: Nitrox.type(),
          device: Nitrox.Device.t(),
          metadata: %{String.t() => String.t()}
        }

  @doc """
  A backbone of given weights.

  From a `Nitrox.Weights` they are fetched to `:device` (default: the default device) as `:type`
  (default `{:f, 32}`); a map of tensors is used as it is.
  """
  @spec new(kind(), keyword(), Weights.t() | params(), keyword()) :: t()
  def new(kind, config, weights, opts \\ []) do
    config = config!(kind, config)
    opts = Options.validate!(:backbone, opts, placing())
    layout = layout(config)

    params =
      case weights do
        %Weights{} ->
          opts = [type: opts.type, device: opts.device || Nitrox.Device.default()]

          Map.new(layout, fn {n, shape, _} ->
            {n, Weights.fetch(weights, n, [shape: shape] ++ opts)}
          end)

        %{} ->
          Map.new(layout, fn {name, shape, _} -> {name, given!(weights, name, shape)} end)
      end

    metadata = if is_struct(weights, Weights), do: Weights.metadata(weights), else: %{}
    build(config, params, metadata)
  end

  @doc """
  A backbone of random weights: uniform, with deviation 1/√fan-in. The same `:seed` (default 0) gives
  the same weights. Other options are those of `new/4`.
  """
  @spec init(kind(), keyword(), keyword()) :: t()
  def init(kind, config, opts \\ []) do
    config = config!(kind, config)
    opts = Options.validate!(:backbone, opts, [seed: {0, Options.integer()}] ++ placing())
    device = opts.device || Nitrox.Device.default()

    {params, _} =
      Enum.map_reduce(layout(config), :rand.seed_s(:exsss, opts.seed), fn {name, shape, draw},
                                                                          rand ->
        {binary, rand} = draw(draw, Tuple.product(shape), rand)
        tensor = Nitrox.from_binary(binary, {:f, 32}, shape, device: device)
        {{name, Nitrox.cast(tensor, opts.type)}, rand}
      end)

    build(config, Map.new(params), %{})
  end

  @doc """
  A backbone from a safetensors file whose metadata names its kind (`backbone`); the sizes are read
  from the tensors' shapes. Options are those of `new/4`.
  """
  @spec load(Path.t(), keyword()) :: t()
  def load(path, opts \\ []) do
    weights = Weights.open(path)
    kind = Enum.find(@kinds, &(Atom.to_string(&1) == Weights.metadata(weights)["backbone"]))

    if kind == nil do
      fail!(
        :backbone,
        "#{path}: its metadata must name a backbone, one of #{Enum.join(@kinds, ", ")}"
      )
    end

    {input_weight, gates} = @layers[kind].sizes()

    sizes =
      Stream.iterate(0, &(&1 + 1))
      |> Stream.map(&"layers.#{&1}.#{input_weight}")
      |> Stream.take_while(&(&1 == "layers.0.#{input_weight}" or Weights.member?(weights, &1)))
      |> Enum.map(&matrix!(weights, &1))

    [{rows, _} | _] = sizes

    {input, context} =
      if Weights.member?(weights, "embedding.table") do
        {vocabulary, width} = matrix!(weights, "embedding.table")
        {{:tokens, vocabulary, width}, if(kind == :mlp and rows > width, do: div(rows, width))}
      else
        {{:features, rows}, nil}
      end

    hidden = for {_, columns} <- sizes, do: div(columns, gates)
    {_, outputs} = matrix!(weights, "head.w")
    new(kind, [input: input, context: context, hidden: hidden, outputs: outputs], weights, opts)
  end

  @doc "The state before the first frame, for `batch` games at once."
  @spec initial_state(t(), pos_integer()) :: state()
  def initial_state(%__MODULE__{} = backbone, batch \\ 1) do
    zeros = &zeros(&1, {:f, 32}, backbone.device)

    layers =
      for width <- backbone.hidden do
        case @layers[backbone.kind].state(width, batch) do
          nil -> {}
          shapes -> shapes |> Tuple.to_list() |> Enum.map(zeros) |> List.to_tuple()
        end
      end

    case backbone do
      %{context: nil} ->
        %{layers: layers}

      %{context: context} ->
        [_batch | frame] = Tuple.to_list(template(backbone, batch).shape)

        ring =
          zeros(
            List.to_tuple([batch, context.length | frame]),
            frame_type(backbone),
            backbone.device
          )

        %{layers: layers, context: %{ring: ring, position: zeros({}, {:s, 32}, backbone.device)}}
    end
  end

  @doc "Shape and type of a frame for `batch` games at once: `{batch}` tokens or `{batch, n}` features."
  @spec template(t(), pos_integer()) :: Nitrox.Template.t()
  def template(%__MODULE__{} = backbone, batch \\ 1) do
    case backbone.input do
      {:features, n} -> Nitrox.template({batch, n}, backbone.type)
      {:tokens, _, _} -> Nitrox.template({batch}, {:s, 32})
    end
  end

  @doc "One frame: `x {B}` tokens or `{B, n}` features → `{logits {B, outputs}, state}`."
  @spec step(t(), Nitrox.t(), state()) :: {Nitrox.t(), state()}
  def step(%__MODULE__{} = backbone, x, state) do
    batch = elem(Nitrox.shape(x), 0)
    {x, state} = remember(backbone, x, state, &Context.step/3)
    {logits, state} = layers(backbone, x, {batch, 1}, state)
    {Nitrox.reshape(logits, {batch, backbone.outputs}), state}
  end

  @doc "T frames: `x {B, T}` tokens or `{B, T, n}` features → `{logits {B, T, outputs}, state}`."
  @spec window(t(), Nitrox.t(), state()) :: {Nitrox.t(), state()}
  def window(%__MODULE__{} = backbone, x, state) do
    frames = {elem(Nitrox.shape(x), 0), elem(Nitrox.shape(x), 1)}
    {x, state} = remember(backbone, x, state, &Context.window/3)
    layers(backbone, x, frames, state)
  end

  @doc """
  A program of one frame: the step, then a draw from its logits. `Nitrox.Session.new/1` makes policies
  of it that share the weights.

  Its input is the frame (`template/2`); its outputs are `{action {batch}, logits {batch, outputs}}`,
  read back in the same graph as binaries: `{:s, 32}` actions and logits in the weights' type.

  Options:

    * `:batch` - how many games a frame answers at once (default 1)
    * `:sample` - the options of `Nitrox.sample/3` (default `[temperature: 0]`, the most likely)
  """
  @spec program(t(), keyword()) :: Program.t()
  def program(%__MODULE__{} = backbone, opts \\ []) do
    opts =
      Options.validate!(:backbone, opts,
        batch: {1, Options.integer(1)},
        sample: {[temperature: 0], {"options of Nitrox.sample/3", &Keyword.keyword?/1}}
      )

    frame = fn x, state ->
      {logits, network} = step(backbone, x, state.network)
      {action, counter} = Nitrox.sample(logits, state.counter, opts.sample)
      {{action, logits}, %{network: network, counter: counter}}
    end

    state = %{
      network: initial_state(backbone, opts.batch),
      counter: zeros({}, {:s, 32}, backbone.device)
    }

    Program.compile(frame, [template(backbone, opts.batch)],
      device: backbone.device,
      state: state,
      outputs: :binary
    )
  end

  @doc """
  A policy: a session of `program/2`, whose options these are.

      {action, logits} = Nitrox.Session.step(session, [frame])

  with `frame` a tensor or a host binary, and the answers as host binaries. The action of a tokens
  backbone is as its next frame has to be.
  """
  @spec session(t(), keyword()) :: Session.t()
  def session(%__MODULE__{} = backbone, opts \\ []),
    do: backbone |> program(opts) |> Session.new()

  # ── The network ────────────────────────────────────────────────────────────────────────────────

  defp remember(%{context: nil}, x, state, _form), do: {x, state}

  defp remember(%{context: context}, x, state, form) do
    {x, remembered} = form.(context, x, state.context)
    {x, %{state | context: remembered}}
  end

  defp layers(backbone, x, {batch, time}, state) do
    x =
      case backbone.input do
        {:tokens, _, _} -> Nitrox.embedding(backbone.params["embedding.table"], x)
        {:features, _} -> x
      end

    layer = @layers[backbone.kind]

    {states, x} =
      state.layers
      |> Enum.with_index()
      |> Enum.map_reduce(Nitrox.reshape(x, {batch, time, :auto}), fn {state, n}, x ->
        {x, state} = layer.run(params(backbone, n), x, if(state != {}, do: state))
        {state || {}, x}
      end)

    logits = Nitrox.dense(x, backbone.params["head.w"], backbone.params["head.b"])
    {logits, %{state | layers: states}}
  end

  defp params(backbone, n) do
    prefix = "layers.#{n}."
    for {^prefix <> name, tensor} <- backbone.params, into: %{}, do: {name, tensor}
  end

  # ── Config and weights ─────────────────────────────────────────────────────────────────────────

  defp placing, do: [type: {{:f, 32}, Options.type()}, device: {nil, Options.device()}]

  defp config!(kind, config) do
    if kind not in @kinds do
      fail!(:backbone, "kind: expected one of #{inspect(@kinds)}, got #{inspect(kind)}")
    end

    size? = &(is_integer(&1) and &1 > 0)

    config =
      Options.validate!(:backbone, config,
        input: {nil, {"{:features, n} or {:tokens, vocabulary, width}", &input?/1}},
        hidden:
          {nil,
           {"a list of widths, [256, 256]", &(is_list(&1) and &1 != [] and Enum.all?(&1, size?))}},
        outputs: {nil, Options.integer(1)},
        context: {nil, Options.integer(1)}
      )

    for name <- [:input, :hidden, :outputs], config[name] == nil do
      fail!(:backbone, "the config needs #{inspect(name)}")
    end

    if config.context && kind != :mlp,
      do: fail!(:backbone, "context: is for :mlp, got #{inspect(kind)}")

    Map.put(config, :kind, kind)
  end

  defp input?({:features, n}), do: is_integer(n) and n > 0
  defp input?({:tokens, v, e}), do: is_integer(v) and v > 0 and is_integer(e) and e > 0
  defp input?(_), do: false

  # Name, shape and draw of every parameter.
  defp layout(config) do
    {table, width} =
      case config.input do
        {:features, n} ->
          {[], n}

        {:tokens, vocabulary, width} ->
          {[{"embedding.table", {vocabulary, width}, {:fan_in, 1}}], width}
      end

    {layers, last} =
      config.hidden
      |> Enum.with_index()
      |> Enum.map_reduce(width * (config.context || 1), fn {width, n}, inputs ->
        params = @layers[config.kind].params(inputs, width)
        {for({name, shape, draw} <- params, do: {"layers.#{n}.#{name}", shape, draw}), width}
      end)

    head = [
      {"head.w", {last, config.outputs}, {:fan_in, last}},
      {"head.b", {config.outputs}, {:fan_in, last}}
    ]

    table ++ Enum.concat(layers) ++ head
  end

  defp build(config, params, metadata) do
    %Tensor{type: type, device: device} = params["head.w"]
    context = config.context && Context.new(config.context, device)
    fields = %{config | context: context}

    struct!(
      __MODULE__,
      Map.merge(fields, %{params: params, type: type, device: device, metadata: metadata})
    )
  end

  defp given!(params, name, shape) do
    case params do
      %{^name => %Tensor{shape: ^shape} = tensor} ->
        tensor

      %{^name => %Tensor{shape: other}} ->
        fail!(:backbone, "#{name} must be #{inspect(shape)}, got #{inspect(other)}")

      %{^name => other} ->
        fail!(:backbone, "#{name} must be a tensor, got #{inspect(other)}")

      %{} ->
        fail!(:backbone, "#{name} #{inspect(shape)} is missing")
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

  defp draw(:ones, count, rand), do: {String.duplicate(<<1.0::float-32-native>>, count), rand}
  defp draw(:zeros, count, rand), do: {String.duplicate(<<0.0::float-32-native>>, count), rand}

  defp draw({:fan_in, inputs}, count, rand) do
    # A uniform draw from −a to a has the deviation a/√3.
    a = :math.sqrt(3 / inputs)

    {numbers, rand} =
      Enum.map_reduce(1..count, rand, fn _, rand ->
        {u, rand} = :rand.uniform_s(rand)
        {<<(2 * u - 1) * a::float-32-native>>, rand}
      end)

    {IO.iodata_to_binary(numbers), rand}
  end

  # No bit set is zero in every type.
  defp zeros(shape, {_, bits} = type, device) do
    Nitrox.from_binary(<<0::size(bits * Tuple.product(shape))>>, type, shape, device: device)
  end

  defp frame_type(backbone), do: template(backbone, 1).type

  defimpl Inspect do
    def inspect(backbone, _opts) do
      input =
        case backbone.input do
          {:features, n} -> "#{n} features"
          {:tokens, vocabulary, _} -> "tokens of #{vocabulary}"
        end

      seen = if backbone.context, do: ", the last #{backbone.context.length} frames", else: ""
      sizes = Enum.join([input <> seen | backbone.hidden] ++ [backbone.outputs], " -> ")
      {kind, bits} = backbone.type

      "#Nitrox.Backbone<#{backbone.kind}, #{sizes}, #{kind}#{bits} on #{Kernel.inspect(backbone.device)}>"
    end
  end
end
