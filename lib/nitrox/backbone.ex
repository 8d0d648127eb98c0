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
    * `:mamba` - Mamba blocks, each on its normalised input and added to it
    * `:attention` - attention over the last frames, whose keys and values lie in a ring on the device,
      and a feed-forward block; rotary positions
    * `:jamba` - Mamba blocks, and every third layer one of attention

  and after the last layer of each a dense head to `outputs` logits. The last three keep one width from
  layer to layer: features come to it by a dense layer, an embedding has it, and an RMS norm stands
  before the head.

  A game may run for ever, but for the number of its frames, by which attention places its keys: it has
  32 bits, and after 2^31 frames, more than a year at 60 a second, such a policy has to begin anew.

  ## Config

    * `:input` - `{:features, n}`, frames of n numbers in the type of the weights, or
      `{:tokens, vocabulary, width}`, one `{:s, 32}` token a frame, looked up in an embedding
    * `:hidden` - the width of each layer, `[256, 256]`
    * `:outputs` - how many logits
    * `:context` - `:mlp`: the net sees the last n frames, kept as a ring in its state, which
      begins with token 0 or zeros (default: the one frame). `:attention`, `:jamba`: each layer of
      attention sees the last n frames of what is before it (default 60)
    * `:state` (16), `:expand` (2), `:conv` (4), `:dt_rank` (a sixteenth of the width) - of Mamba's
      blocks: numbers a channel, channels for each of the width, frames of the convolution, and the
      rank of the time steps
    * `:heads` (4), `:ffn` (the width) - of layers of attention: into how many heads the width is
      divided, and how wide the feed-forward block is
    * `:attention_every` - `:jamba`: 3 for every third layer

  ## Weights

  A map, or a `Nitrox.Weights` file, of `embedding.table {vocabulary, width}` (for tokens), `head.w`,
  `head.b`, and for layer N

    * mlp: `layers.N.w`, `.b`
    * lstm, gru: `.wi`, `.wh`, `.b`, `.norm.gamma`, `.norm.beta`, as `Nitrox.lstm/6` and `Nitrox.gru/6`
      take them
    * mamba, of width D, with E = expand · D, N states and rank R: `.norm.gamma {D}`, `.in.w {D, 2E}`
      (what is scanned, then the gate), `.conv.w {K, E}`, `.conv.b {E}`, `.x.w {E, R + 2N}` (dt, b, c),
      `.dt.w {R, E}`, `.dt.b {E}`, `.a {E, N}` (A itself, negative), `.d {E}`, `.out.w {E, D}`
    * attention, of width D: `.norm.gamma {D}`, `.qkv.w {D, 3D}` (q, k, v, each of them head by head),
      `.out.w {D, D}`, `.ffn.norm.gamma {D}`, `.up.w {D, F}`, `.up.b`, `.down.w {F, D}`, `.down.b`

  and for these two kinds and jamba `norm.gamma {D}`, and for features `input.w {n, D}`, `input.b {D}`.

  A config, weights, frames or a state that do not fit raise `Nitrox.Error`.
  """

  import Nitrox.Options, only: [fail!: 2]

  alias Nitrox.{Container, Options, Program, Session, Tensor, Weights}
  alias Nitrox.Backbone.{Attention, Config, Context}

  @residual Config.residual()
  @attending Config.attending()

  @enforce_keys [:kind, :input, :hidden, :outputs, :params, :type, :device]
  defstruct @enforce_keys ++ [context: nil, sizes: %{}, metadata: %{}]

  @type kind :: :mlp | :lstm | :gru | :mamba | :attention | :jamba
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
          sizes: %{atom() => pos_integer()},
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
    config = Config.new(kind, config)
    opts = Options.validate!(:backbone, opts, placing())
    layout = Config.layout(config)

    params =
      case weights do
        %Weights{} ->
          opts = [type: opts.type, device: opts.device || Nitrox.Device.default()]

          Map.new(layout, fn {n, shape, _} ->
            {n, Weights.fetch(weights, n, [shape: shape] ++ opts)}
          end)

        %{} ->
          Map.new(layout, fn {name, shape, _} -> {name, given!(weights, name, shape)} end)

        other ->
          fail!(:backbone, "expected weights, a Nitrox.Weights or a map, got #{inspect(other)}")
      end

    metadata = if is_struct(weights, Weights), do: Weights.metadata(weights), else: %{}
    build(config, params, metadata)
  end

  @doc """
  A backbone of random weights: uniform, with deviation 1/√fan-in, but for what Mamba's authors start
  otherwise (`a`, `d` and `dt.b`). The same `:seed` (default 0) gives the same weights. They are drawn
  on the host, 2^28 of them at the most. Other options are those of `new/4`.
  """
  @spec init(kind(), keyword(), keyword()) :: t()
  def init(kind, config, opts \\ []) do
    config = Config.new(kind, config)
    opts = Options.validate!(:backbone, opts, [seed: {0, Options.integer()}] ++ placing())
    device = opts.device || Nitrox.Device.default()
    layout = Config.layout(config)
    Config.check_drawn!(layout)
    rand = :rand.seed_s(:exsss, opts.seed)

    {params, _rand} =
      Enum.map_reduce(layout, rand, fn {name, shape, draw}, rand ->
        {binary, rand} = Config.draw(draw, shape, rand)
        tensor = Nitrox.from_binary(binary, {:f, 32}, shape, device: device)
        {{name, Nitrox.cast(tensor, opts.type)}, rand}
      end)

    build(config, Map.new(params), %{})
  end

  @doc """
  A backbone from a safetensors file whose metadata names its kind (`backbone`), and where it attends
  also `heads` and `context`; the other sizes are read from the tensors' shapes. Options are those of
  `new/4`.
  """
  @spec load(Path.t(), keyword()) :: t()
  def load(path, opts \\ []) do
    weights = Weights.open(path)
    {kind, config} = Config.stored(weights)
    new(kind, config, weights, opts)
  end

  @doc "The state before the first frame, for `batch` games at once: all zeros."
  @spec initial_state(t(), pos_integer()) :: state()
  def initial_state(backbone, batch \\ 1) do
    {templates, skeleton} = state_templates(ours!(backbone), batch)

    # Made on the device, which knows what it has room for.
    zeros =
      for %{type: type, shape: shape} <- templates do
        Nitrox.broadcast_to(Nitrox.tensor(0, type: type, device: backbone.device), shape)
      end

    Container.build(skeleton, zeros)
  end

  @doc "Shape and type of a frame for `batch` games at once: `{batch}` tokens or `{batch, n}` features."
  @spec template(t(), pos_integer()) :: Nitrox.Template.t()
  def template(backbone, batch \\ 1) do
    if not (is_integer(batch) and batch > 0),
      do: fail!(:backbone, "batch: expected an integer of at least 1, got #{inspect(batch)}")

    case ours!(backbone).input do
      {:features, n} -> Nitrox.template({batch, n}, backbone.type)
      {:tokens, _, _} -> Nitrox.template({batch}, {:s, 32})
    end
  end

  @doc "One frame: `x {B}` tokens or `{B, n}` features → `{logits {B, outputs}, state}`."
  @spec step(t(), Nitrox.t(), state()) :: {Nitrox.t(), state()}
  def step(backbone, x, state) do
    [batch] = frames!(backbone, x, state, ["B"])
    {x, state} = remember(backbone, x, state, &Context.step/3)
    {logits, state} = network(backbone, x, {batch, 1}, state)
    {Nitrox.reshape(logits, {batch, backbone.outputs}), state}
  end

  @doc "T frames: `x {B, T}` tokens or `{B, T, n}` features → `{logits {B, T, outputs}, state}`."
  @spec window(t(), Nitrox.t(), state()) :: {Nitrox.t(), state()}
  def window(backbone, x, state) do
    [batch, time] = frames!(backbone, x, state, ["B", "T"])
    {x, state} = remember(backbone, x, state, &Context.window/3)
    network(backbone, x, {batch, time}, state)
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
  def program(backbone, opts \\ []) do
    ours!(backbone)

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
      counter: Nitrox.tensor(0, device: backbone.device)
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
  def session(backbone, opts \\ []), do: backbone |> program(opts) |> Session.new()

  # ── What is given ──────────────────────────────────────────────────────────────────────────────

  defp ours!(backbone), do: Options.struct!(:backbone, backbone, __MODULE__)

  # The first axes of x, named as they are in errors, where x and the state are what the backbone takes.
  defp frames!(backbone, x, state, names) do
    %{input: input} = ours!(backbone)
    if not Options.tensor?(x), do: fail!(:backbone, "x must be a tensor, got #{inspect(x)}")
    {first, rest} = x.shape |> Tuple.to_list() |> Enum.split(length(names))
    frame = with {:tokens, _, _} <- input, do: [], else: ({:features, n} -> [n])

    if length(first) < length(names) or rest != frame or 0 in first do
      expected = Enum.join(names ++ frame, ", ")
      fail!(:backbone, "x must be {#{expected}}, got #{inspect(x.shape)}")
    end

    {templates, skeleton} = state_templates(backbone, hd(first))
    leaf = &if Options.tensor?(&1), do: {:ok, &1}, else: {:error, "a tensor"}
    parts = Container.leaves(state, skeleton, :backbone, "the state", leaf)

    for {part, template} <- Enum.zip(parts, templates),
        {part.type, part.shape} != {template.type, template.shape} do
      [expected, got] = Enum.map([template, part], &Tensor.spec_text/1)
      fail!(:backbone, "a part of the state must be #{expected}, got #{got}")
    end

    first
  end

  # Type and shape of each part of the state, and how they lie in it.
  defp state_templates(backbone, batch) do
    frame = template(backbone, batch)

    layers =
      for {layer, width} <- Enum.zip(Config.layers(backbone), backbone.hidden) do
        for {shape, type} <- layer.state(width, batch, backbone.sizes) do
          Nitrox.template(shape, if(type == :f32, do: {:f, 32}, else: backbone.type))
        end
        |> List.to_tuple()
      end

    beside =
      case backbone do
        %{kind: kind} when kind in @attending ->
          %{turns: Nitrox.template({3}, {:s, 32})}

        %{context: nil} ->
          %{}

        %{context: %{length: length}} ->
          ring = Nitrox.template(Tuple.insert_at(frame.shape, 1, length), frame.type)
          %{context: %{ring: ring, position: Nitrox.template({}, {:s, 32})}}
      end

    state = Map.put(beside, :layers, layers)
    Container.flatten(state, :backbone, "state", &is_struct(&1, Nitrox.Template))
  end

  # ── The network ────────────────────────────────────────────────────────────────────────────────

  defp remember(%{context: nil}, x, state, _form), do: {x, state}

  defp remember(%{context: context}, x, state, form) do
    {x, remembered} = form.(context, x, state.context)
    {x, %{state | context: remembered}}
  end

  defp network(%{params: params} = backbone, x, {batch, time} = frames, state) do
    {places, state} = place(backbone, frames, state)
    x = backbone |> input(x) |> Nitrox.reshape({batch, time, :auto})

    {states, x} =
      [Config.layers(backbone), state.layers]
      |> Enum.zip()
      |> Enum.with_index()
      |> Enum.map_reduce(x, fn {{layer, state}, n}, x ->
        {x, state} = layer.run(params(backbone, n), x, state, places)
        {state, x}
      end)

    x = if backbone.kind in @residual, do: Nitrox.rms_norm(x, params["norm.gamma"]), else: x
    {Nitrox.dense(x, params["head.w"], params["head.b"]), %{state | layers: states}}
  end

  defp input(%{input: {:tokens, _, _}, params: params}, x) do
    Nitrox.embedding(params["embedding.table"], x)
  end

  defp input(%{kind: kind, params: params}, x) when kind in @residual do
    Nitrox.dense(x, params["input.w"], params["input.b"])
  end

  defp input(_backbone, x), do: x

  defp place(%{kind: kind} = backbone, frames, state) when kind in @attending do
    {_, time} = frames
    places = Attention.places(state.turns, backbone.sizes.context, frames, backbone.device)
    {places, %{state | turns: Attention.turns(state.turns, time, backbone.device)}}
  end

  defp place(_backbone, _frames, state), do: {nil, state}

  defp params(backbone, n) do
    prefix = "layers.#{n}."
    for {^prefix <> name, tensor} <- backbone.params, into: %{}, do: {name, tensor}
  end

  # ── Weights ────────────────────────────────────────────────────────────────────────────────────

  defp placing, do: [type: {{:f, 32}, Options.type()}, device: {nil, Options.device()}]

  defp build(config, params, metadata) do
    %Tensor{type: type, device: device} = params["head.w"]
    context = if config.kind == :mlp and config.sizes.context, do: config.sizes.context
    fields = Map.put(config, :context, context && Context.new(context, device))

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
