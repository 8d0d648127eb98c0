if Code.ensure_loaded?(Nx.Tensor) do
  defmodule Nitrox.Nx.Plan do
    @moduledoc false
    # A traced `defn` as programs and the steps between them.
    #
    # A node of the trace is an op, or a `Nitrox.Nx.Step`. An op is in the first program that it can be
    # in: the one after the last step that it waits for. So there are as many programs as steps wait
    # for each other, and one more; without steps it is one program.

    alias Nitrox.Backend, as: B
    alias Nitrox.Nx.{Data, Step, Transfer}
    alias Nitrox.{Element, Error, Program, Value}
    alias Nx.Tensor, as: T

    # `inputs` are those of the function that are used, `{i, in_program?}`, with whether a program
    # reads them and nothing else does. A part is `{program, from, to, done}` or `{step, from, to,
    # done}`: the slots read, those written, and those that nobody reads any more. What is known
    # already stands for itself, as `{:fixed, data}`.
    @enforce_keys [:device, :inputs, :parts, :outputs, :effect?]
    defstruct [:device, :inputs, :parts, :outputs, :effect?]

    # ── Making one ────────────────────────────────────────────────────────────────────────────────

    @doc """
    The plan that computes `outputs`, traced tensors, from values whose nodes are `{:input, i}`.
    `effects` are nodes of steps that are to be made whether or not an output needs them.
    """
    def build(outputs, effects, {:traced, device}, instances) do
      values = for %T{data: %B{ref: %Value{} = value}} <- outputs, do: value
      start = %{stages: %{}, order: [], inputs: %{}}
      trace = Enum.reduce(effects, Enum.reduce(values, start, &see/2), &visit/2)
      nodes = Enum.reverse(trace.order)

      # What is read across the border of a program.
      inner = for node <- nodes, value <- across(node, trace.stages), do: value
      crossing = Enum.uniq_by(inner ++ values, &key/1)
      produced = Enum.reject(crossing, &match?({:input, _}, &1.node.op))
      first = trace.inputs |> Map.keys() |> Enum.max(fn -> -1 end) |> Kernel.+(1)

      slots =
        for({value, i} <- Enum.with_index(produced, first), into: %{}, do: {key(value), i})
        |> Map.merge(for {i, value} <- trace.inputs, into: %{}, do: {key(value), i})

      stages = Enum.group_by(nodes, &stage(&1, trace.stages))

      parts =
        for {_, nodes} <- Enum.sort(stages),
            part <- parts(nodes, produced, slots, device, instances),
            do: part

      outputs = Enum.map(outputs, &kept(&1, slots))

      %__MODULE__{
        device: device,
        inputs: inputs(trace.inputs, parts, outputs),
        parts: release(parts, outputs),
        outputs: outputs,
        effect?: Enum.any?(nodes, &match?(%{op: %Step{effect?: true}}, &1))
      }
    end

    defp key(%Value{node: %{id: id}, index: index}), do: {id, index}
    defp step?(%Value.Node{op: op}), do: is_struct(op, Step)

    defp values(%Value.Node{inputs: inputs}), do: for(%Value{} = value <- inputs, do: value)
    defp stage(%{id: id}, stages), do: Map.fetch!(stages, id)

    # Nodes in an order they can be made in, the latest first, each with its stage.
    defp see(%Value{node: %{op: {:input, i}}} = value, trace), do: put_in(trace.inputs[i], value)
    defp see(%Value{node: node}, trace), do: visit(node, trace)

    defp visit(%Value.Node{id: id}, %{stages: stages} = trace) when is_map_key(stages, id),
      do: trace

    defp visit(%Value.Node{id: id} = node, trace) do
      trace = node |> values() |> Enum.reduce(trace, &see/2)

      stage =
        for value <- values(node), not match?({:input, _}, value.node.op), reduce: 0 do
          stage -> max(stage, ready(value.node, trace.stages))
        end

      %{trace | stages: Map.put(trace.stages, id, stage), order: [node | trace.order]}
    end

    # The first program that can read what a node gives.
    defp ready(node, stages),
      do: if(step?(node), do: stage(node, stages) + 1, else: stage(node, stages))

    # What a node reads that is not made by its own program.
    defp across(node, stages) do
      Enum.reject(values(node), fn %Value{node: from} ->
        not match?({:input, _}, from.op) and not step?(node) and not step?(from) and
          stage(from, stages) == stage(node, stages)
      end)
    end

    # One stage: a program of its ops, if there are any, and then its steps.
    defp parts(nodes, produced, slots, device, instances) do
      {steps, ops} = Enum.split_with(nodes, &step?/1)
      own = MapSet.new(ops, & &1.id)
      to = Enum.filter(produced, &(&1.node.id in own))

      from =
        for(node <- ops, value <- values(node), value.node.id not in own, do: value)
        |> Enum.uniq_by(&key/1)

      program =
        if to == [],
          do: [],
          else: [
            {Program.link(from, to, device, instances), Enum.map(from, &slots[key(&1)]),
             Enum.map(to, &slots[key(&1)]), []}
          ]

      program ++
        for %{id: id, op: step} <- steps do
          to = for value <- produced, value.node.id == id, do: {value.index, slots[key(value)]}
          {Step.settle(step), Enum.map(step.inputs, &source(&1, slots)), to, []}
        end
    end

    defp source(%T{data: %B{ref: %Value{} = value}}, slots), do: Map.fetch!(slots, key(value))
    defp source(%T{} = tensor, _), do: {:fixed, Data.present(tensor)}

    # An output that is a parameter of the program.
    defp kept(tensor, slots) do
      case source(tensor, slots) do
        {:fixed, %B{ref: ref} = data} when ref != nil -> {:kept, %{tensor | data: data}}
        source -> source
      end
    end

    # Inputs that lie on the host can go to a program as they are, if it is the only reader.
    defp inputs(inputs, parts, outputs) do
      readers =
        for({reader, from, _, _} <- parts, slot <- from, do: {slot, is_struct(reader, Program)}) ++
          Enum.map(outputs, &{&1, false})

      for {i, _} <- Enum.sort(inputs),
          do: {i, for({^i, program?} <- readers, do: program?) == [true]}
    end

    # Slots are given up with their last reader.
    defp release(parts, outputs) do
      {parts, _} =
        parts
        |> Enum.reverse()
        |> Enum.map_reduce(MapSet.new(outputs), fn {reader, from, to, []}, later ->
          slots = from |> Enum.reject(&match?({:fixed, _}, &1)) |> Enum.uniq()
          done = Enum.reject(slots, &(&1 in later))
          {{reader, from, to, done}, MapSet.union(later, MapSet.new(slots))}
        end)

      Enum.reverse(parts)
    end

    # ── Running it ────────────────────────────────────────────────────────────────────────────────

    @doc """
    The outputs for a function's inputs, of which `inputs` says what is used, each as the data of a
    tensor. `context` has the device and the hooks.
    """
    def run(%__MODULE__{} = plan, inputs, context) when is_list(inputs) do
      inputs = List.to_tuple(inputs)
      run_slots(plan, Map.new(plan.inputs, fn {i, _} -> {i, elem(inputs, i)} end), context)
    end

    @doc "As `run/3`, with the inputs that are used by their places."
    def run_slots(plan, slots, context) do
      slots = Enum.reduce(plan.parts, slots, &part(&1, &2, context))
      Enum.map(plan.outputs, &output(&1, slots))
    end

    defp part({%Program{} = program, from, to, done}, slots, %{device: device}) do
      feeds = Enum.zip_with(from, program.inputs, &feed(Map.fetch!(slots, &1), &2, device))
      refs = Program.launch(program, feeds)
      write(to, refs, Map.drop(slots, done), device)
    end

    defp part({step, from, to, done}, slots, context) do
      data = step |> Step.run(Enum.map(from, &read(&1, slots)), context) |> List.to_tuple()
      slots = Map.drop(slots, done)

      Enum.reduce(to, slots, fn {index, slot}, slots ->
        Map.put(slots, slot, elem(data, index))
      end)
    end

    defp write([slot | to], [ref | refs], slots, device),
      do: write(to, refs, Map.put(slots, slot, %B{ref: ref, device: device}), device)

    defp write([], [], slots, _), do: slots

    defp read({:fixed, data}, _), do: data
    defp read(slot, slots), do: Map.fetch!(slots, slot)

    # By a handle of its own: giving that up leaves the program its parameter.
    defp output({:kept, %T{data: %B{device: device}} = tensor}, _),
      do: Transfer.backend_copy(tensor, B, device: device).data

    defp output(source, slots), do: read(source, slots)

    # What a program takes: a reference or host bytes. A constant of few bytes goes as those.
    @few_bytes 65_536

    defp feed(%B{ref: ref}, _, _) when ref != nil, do: ref
    defp feed(bytes, _, _) when is_binary(bytes), do: bytes

    defp feed(%B{constant: element} = data, {type, shape}, device) do
      count = Tuple.product(shape)

      if byte_size(element) == Element.bytes(type) and count * byte_size(element) <= @few_bytes do
        :binary.copy(element, count)
      else
        tensor = %T{type: type, shape: shape, names: [], data: data}
        Data.whole(tensor, type, device)
      end
    end

    @doc "Raises where a tensor is on another device."
    def device!(%B{device: device} = data, device, _), do: data
    def device!(%B{ref: nil} = data, device, _), do: %{data | device: device}

    def device!(%B{device: other}, device, what) do
      raise Error.argument(
              :compiler,
              "#{what} is on #{inspect(other)}, and the function is compiled for #{inspect(device)}",
              "bring it over with Nx.backend_copy(tensor, {Nitrox.Backend, device: " <>
                "#{inspect(device)}}), or give the compiler the option device: #{inspect(other)}"
            )
    end

    # ── Telling of it ─────────────────────────────────────────────────────────────────────────────

    @doc "All programs, and all steps, with those of loops and branches."
    def contents(%__MODULE__{parts: parts}) do
      Enum.reduce(parts, {[], []}, fn
        {%Program{} = program, _, _, _}, {programs, steps} ->
          {programs ++ [program], steps}

        {step, _, _, _}, {programs, steps} ->
          {inner, inside} = step |> Step.plans() |> Enum.map(&contents/1) |> Enum.unzip()
          {programs ++ Enum.concat(inner), steps ++ [step | Enum.concat(inside)]}
      end)
    end
  end
end
