defmodule Nitrox.Program do
  @moduledoc """
  A function on tensors, traced once and run with one call to the device; on CUDA one graph launch,
  however many ops it has.

      program =
        Nitrox.Program.compile(
          fn x -> Nitrox.softmax(Nitrox.dense(x, w, b)) end,
          [Nitrox.template({1, 288}, {:f, 32})],
          device: {:cuda, 0}
        )

      probabilities = Nitrox.Program.run(program, [x])

  * **Arguments** are tensors, or nested tuples, lists and maps of them. Where the function is
    traced it gets a `Nitrox.Value` for each.
  * **Parameters** are the tensors that the function uses beside its arguments, `w` and `b` here.
    They are bound when the program is compiled. What depends on parameters alone is computed then,
    once.
  * **Outputs** are fresh at each run: a later run never changes them.
  * One **instance** of a program runs one call at a time, and callers of several processes queue
    for it. `instances: n` gives more, at the cost of their memory.
  * A **state** makes the program one for sessions: see `Nitrox.Session`.

  A program lives as long as some process holds it, or a session of it.

  What does not fit raises `Nitrox.Error`: while it is traced, by the op that refuses, at the line
  that wrote it; in a run, before anything of it has begun.
  """

  import Nitrox.Options, only: [fail!: 2, fail!: 3]

  alias Nitrox.{Container, Device, Native, Op, Options, Telemetry, Template, Tensor, Value}
  require Telemetry

  @type t :: %__MODULE__{
          ref: reference(),
          device: Device.t(),
          arguments: [Container.skeleton()],
          inputs: [{Tensor.type(), Tensor.shape()}],
          outputs: Container.skeleton(),
          output_specs: [{Tensor.type(), Tensor.shape()}],
          state: nil | {Container.skeleton(), [{Tensor.type(), Tensor.shape()}]},
          readback: boolean()
        }
  @enforce_keys [
    :ref,
    :device,
    :arguments,
    :inputs,
    :outputs,
    :output_specs,
    :state,
    :readback
  ]
  defstruct @enforce_keys

  @typedoc "A tensor, or nested tuples, lists and maps of them."
  @type container :: term()

  @doc """
  Traces `fun` and makes it ready to run.

  `templates` has one container of `Nitrox.template/2` (or of tensors, of which only type and shape
  are used) for each argument of `fun`. This may take long: on CUDA kernels may have to be compiled.

  ## Options

    * `:device` — by default `Nitrox.Device.default/0`
    * `:state` — a container of tensors, the state that each session starts from. `fun` then takes
      the state as one more argument, the last, and returns `{outputs, new_state}`, the new state of
      the same structure, types and shapes.
    * `:outputs` — `:tensor`, or `:binary` to have each output read back to the host in the same run
    * `:instances` — how many runs may be under way at once, 1 by default and 1024 at most. A session
      is always one.
  """
  @spec compile(function(), [container()],
          device: Device.t(),
          state: container(),
          outputs: :tensor | :binary,
          instances: pos_integer()
        ) :: t()
  def compile(fun, templates, options \\ []) do
    if not is_function(fun), do: fail!(:program, "expected a function, got #{inspect(fun)}")

    if not Options.list?(templates),
      do: fail!(:program, "expected a list of templates, got #{inspect(templates)}")

    options =
      Options.known!(:program, options, [
        :state,
        device: Device.default(),
        outputs: :tensor,
        instances: 1
      ])

    started = System.monotonic_time()
    readback = readback!(options[:outputs])
    {arguments, inputs, values} = sources(templates)
    {state, initial, state_values} = state_sources(options)
    check_arity!(fun, values ++ state_values)

    {outputs, next_state} = split(apply(fun, values ++ state_values), state)
    {output_leaves, outputs} = Container.flatten(outputs, :program, "output", &traced?/1)
    next_leaves = next_leaves(next_state, state)

    trace = graph(inputs, output_leaves, next_leaves, %{})
    device = options[:device]
    {ref, output_specs} = build(trace, device, initial, {readback, options[:instances]})

    told(
      %__MODULE__{
        ref: ref,
        device: device,
        arguments: arguments,
        inputs: Enum.map(inputs, &{&1.type, &1.shape}),
        outputs: outputs,
        output_specs: output_specs,
        state: state,
        readback: readback
      },
      started
    )
  end

  @doc false
  # A program of values that were traced already: from those of `inputs`, whatever they were made of,
  # to those of `outputs`.
  def link(inputs, outputs, device, instances) do
    started = System.monotonic_time()

    sources =
      for {%Value{node: node, index: index}, i} <- Enum.with_index(inputs),
          into: %{},
          do: {{node.id, index}, {:input, i}}

    {ref, output_specs} =
      inputs |> graph(outputs, [], sources) |> build(device, [], {false, instances})

    told(
      %__MODULE__{
        ref: ref,
        device: device,
        arguments: Enum.map(inputs, fn _ -> :leaf end),
        inputs: Enum.map(inputs, &{&1.type, &1.shape}),
        outputs: {:list, Enum.map(outputs, fn _ -> :leaf end)},
        output_specs: output_specs,
        state: nil,
        readback: false
      },
      started
    )
  end

  defp build({graph, parameters}, device, initial, options) do
    # Scalars that the trace made, held until the program has them.
    parameters = Enum.map(parameters, &parameter(&1, device))
    refs = &Enum.map(&1, fn tensor -> tensor.ref end)
    Native.call(:compile, [device, graph, refs.(parameters), refs.(initial), options])
  end

  defp told(program, started) do
    if Telemetry.on?() do
      duration = System.monotonic_time() - started
      metadata = %{device: program.device, info: info(program)}
      Telemetry.execute([:nitrox, :program, :compile], %{duration: duration}, metadata)
    end

    program
  end

  @doc """
  Runs a program. `args` has one container for each argument, of the structure it was compiled for.

  A leaf is a tensor on the program's device, or a host binary of exactly the input's size.
  """
  @spec run(t(), [container()]) :: container()
  def run(program, args)

  def run(%__MODULE__{state: nil} = program, args) do
    outputs(program, launch(program, feeds(program, args)))
  end

  def run(%__MODULE__{}, _) do
    fail!(
      :program,
      "it has a state, and runs in a session",
      "make one with Nitrox.Session.new/1 and call Nitrox.Session.step/2"
    )
  end

  def run(other, _), do: Options.struct!(:program, other, __MODULE__)

  @doc """
  What a program costs.

    * `steps` — ops, but for reshapes, which cost nothing
    * `kernel_nodes`, `copy_nodes` — of the CUDA graph; 0 on the CPU
    * `arena_bytes` — of one instance: inputs, states, temporaries and outputs
    * `parameter_bytes` — shared by all instances and sessions
    * `instances`, `device`
  """
  @spec info(t()) :: %{atom() => non_neg_integer() | Device.t()}
  def info(program) do
    %{ref: ref, device: device} = Options.struct!(:program, program, __MODULE__)
    Map.put(Native.call(:program_info, [ref]), :device, device)
  end

  @doc """
  What a program's steps are: the op of each, and which kernel it uses and why, as in `Nitrox.explain/2`.

  On a GPU neighbours are fused, so that a step may be several of the ops that were traced: a dense
  layer with its activation is one of `:dense`, dense layers one upon the other may be one of `:dense_stack`
  and recurrent ones one of `:recurrent_stack`. An op that was left by itself is there under its own name.

      for step <- Nitrox.Program.explain(program), do: {step.op, step.variant}
  """
  @spec explain(t()) :: [
          %{op: atom(), variant: String.t(), why: String.t(), launches: non_neg_integer()}
        ]
  def explain(program) do
    %{ref: ref} = Options.struct!(:program, program, __MODULE__)

    for {op, variant, why, launches} <- Native.call(:program_explain, [ref]),
        do: %{op: String.to_atom(op), variant: variant, why: why, launches: launches}
  end

  @doc false
  # A run on what the library takes for inputs, to what it gives for outputs.
  def launch(%__MODULE__{} = program, feeds) do
    Telemetry.span [:nitrox, :program, :run], %{program: program} do
      Native.call(:program_run, [program.ref, feeds])
    end
  end

  @doc false
  def feeds(%__MODULE__{arguments: arguments}, args) do
    feeds(arguments, args, 0)
  end

  defp feeds([:leaf | arguments], [%Tensor{ref: ref} | args], i),
    do: [ref | feeds(arguments, args, i + 1)]

  defp feeds([:leaf | arguments], [binary | args], i) when is_binary(binary),
    do: [binary | feeds(arguments, args, i + 1)]

  defp feeds([skeleton | arguments], [arg | args], i) do
    Container.leaves(arg, skeleton, :program, "argument #{i}", &feed/1) ++
      feeds(arguments, args, i + 1)
  end

  defp feeds([], [], _), do: []

  defp feeds(arguments, args, i) do
    {expected, got} = {i + length(arguments), if(is_list(args), do: i + length(args), else: args)}

    fail!(:program, "takes a list of #{expected} arguments, got #{inspect(got)}")
  end

  defp feed(%Tensor{ref: ref}), do: {:ok, ref}
  defp feed(binary) when is_binary(binary), do: {:ok, binary}
  defp feed(_), do: {:error, "a tensor or a binary"}

  @doc false
  def outputs(%__MODULE__{readback: true, outputs: skeleton}, binaries) do
    Container.build(skeleton, binaries)
  end

  def outputs(%__MODULE__{outputs: skeleton, output_specs: specs, device: device}, refs) do
    Container.build(skeleton, tensors(refs, specs, device))
  end

  @doc false
  def tensors(refs, specs, device) do
    Enum.zip_with(refs, specs, fn ref, spec -> Tensor.from_native({ref, spec}, device) end)
  end

  # -- Tracing --------------------------------------------------------------------------------

  defp readback!(:tensor), do: false
  defp readback!(:binary), do: true

  defp readback!(other) do
    fail!(:program, "outputs are :tensor or :binary, got #{inspect(other)}")
  end

  # The skeletons of the arguments, the leaves of all, and the values that stand for them.
  defp sources(templates) do
    {arguments, {leaves, values}} =
      templates
      |> Enum.with_index()
      |> Enum.map_reduce({[], []}, fn {template, i}, {leaves, values} ->
        {own, skeleton} = Container.flatten(template, :program, "template #{i}", &template?/1)
        first = length(leaves)
        symbols = own |> Enum.with_index(first) |> Enum.map(&source(:input, &1))
        {skeleton, {leaves ++ own, values ++ [Container.build(skeleton, symbols)]}}
      end)

    {arguments, leaves, values}
  end

  defp source(kind, {leaf, i}), do: Value.source({kind, i}, leaf)

  defp template?(leaf), do: is_struct(leaf, Template) or is_struct(leaf, Tensor)
  defp traced?(leaf), do: is_struct(leaf, Value) or is_struct(leaf, Tensor)

  defp state_sources(options) do
    if Keyword.has_key?(options, :state) do
      tensor? = &is_struct(&1, Tensor)
      {initial, skeleton} = Container.flatten(options[:state], :program, "state", tensor?)

      if initial == [] do
        fail!(:program, "the state has no tensor in it")
      end

      symbols = initial |> Enum.with_index() |> Enum.map(&source(:state, &1))
      specs = Enum.map(initial, &{&1.type, &1.shape})
      {{skeleton, specs}, initial, [Container.build(skeleton, symbols)]}
    else
      {nil, [], []}
    end
  end

  defp check_arity!(fun, values) do
    unless is_function(fun, length(values)) do
      {:arity, arity} = Function.info(fun, :arity)

      message =
        "a function of #{length(values)} arguments was expected for these templates, got one of " <>
          "#{arity} (a state is one more argument, the last)"

      fail!(:program, message)
    end
  end

  defp split(outputs, nil), do: {outputs, nil}
  defp split({outputs, next_state}, _), do: {outputs, next_state}

  defp split(other, _) do
    Container.mismatch(:program, "a function with a state", {:tuple, [:outputs, :state]}, other)
  end

  defp next_leaves(_, nil), do: []

  defp next_leaves(next_state, {skeleton, specs}) do
    leaves =
      Container.leaves(next_state, skeleton, :program, "new state", fn leaf ->
        if traced?(leaf), do: {:ok, leaf}, else: {:error, "a value or a tensor"}
      end)

    for {leaf, {type, shape}} <- Enum.zip(leaves, specs),
        {leaf.type, leaf.shape} != {type, shape} do
      expected = Tensor.spec_text(%{type: type, shape: shape})

      fail!(:program, "a state is #{expected}, its new value #{Tensor.spec_text(leaf)}")
    end

    leaves
  end

  # The nodes that outputs and states depend on, each after those it reads, and the parameters. Of
  # what is before the values of `sources` nothing is asked.
  defp graph(inputs, outputs, next_state, sources) do
    trace = %{
      nodes: [],
      count: 0,
      seen: %{},
      equal: %{},
      parameters: [],
      known: %{},
      sources: sources
    }

    {outputs, trace} = Enum.map_reduce(outputs, trace, &reference/2)
    {next_state, trace} = Enum.map_reduce(next_state, trace, &reference/2)

    graph = %{
      nodes: Enum.reverse(trace.nodes),
      inputs: Enum.map(inputs, &Tensor.to_spec/1),
      outputs: outputs,
      next_state: next_state
    }

    {graph, Enum.reverse(trace.parameters)}
  end

  defp reference(nil, trace), do: {nil, trace}

  defp reference(%Value{node: %{id: id}, index: index}, %{sources: sources} = trace)
       when is_map_key(sources, {id, index}),
       do: {Map.fetch!(sources, {id, index}), trace}

  defp reference(%Value{node: %{op: {:input, i}}}, trace), do: {{:input, i}, trace}
  defp reference(%Value{node: %{op: {:state, i}}}, trace), do: {{:state, i}, trace}

  defp reference(%Value{node: node, index: index}, trace) do
    {n, trace} = visit(node, trace)
    {{:node, n, index}, trace}
  end

  defp reference(%Tensor{ref: ref} = tensor, trace), do: known(ref, tensor, trace)
  defp reference({:constant, _, _} = constant, trace), do: known(constant, constant, trace)

  defp known(key, parameter, %{known: known, parameters: parameters} = trace) do
    case known do
      %{^key => i} ->
        {{:param, i}, trace}

      _ ->
        i = map_size(known)
        trace = %{trace | known: Map.put(known, key, i), parameters: [parameter | parameters]}
        {{:param, i}, trace}
    end
  end

  defp visit(%{id: id, op: op, inputs: inputs}, trace) do
    case trace.seen do
      %{^id => n} ->
        {n, trace}

      _ ->
        {inputs, trace} = Enum.map_reduce(inputs, trace, &reference/2)
        node = %{op: Op.wire(op), inputs: inputs}
        {n, trace} = number(node, trace)
        {n, %{trace | seen: Map.put(trace.seen, id, n)}}
    end
  end

  # The same op on the same values is computed once.
  defp number(node, %{equal: equal, count: count} = trace) do
    case equal do
      %{^node => n} ->
        {n, trace}

      _ ->
        equal = Map.put(equal, node, count)
        {count, %{trace | nodes: [node | trace.nodes], count: count + 1, equal: equal}}
    end
  end

  defp parameter(%Tensor{} = tensor, _), do: tensor

  defp parameter({:constant, binary, type}, device),
    do: Tensor.from_binary(binary, type, {}, device: device)

  defimpl Inspect do
    def inspect(program, _opts) do
      specs = fn specs ->
        Enum.map_join(specs, ", ", fn {type, shape} ->
          Nitrox.Tensor.spec_text(%{type: type, shape: shape})
        end)
      end

      state = with {_, states} <- program.state, do: ", state (#{specs.(states)})"

      "#Nitrox.Program<(#{specs.(program.inputs)}) -> (#{specs.(program.output_specs)})#{state} " <>
        "on #{Kernel.inspect(program.device)}>"
    end
  end
end
