if Code.ensure_loaded?(Nx.Serving) do
  defmodule Nitrox.Serving do
    @moduledoc """
    An `Nx.Serving` whose batches are run by programs: one call to the device a batch, on several
    devices, and on several streams of each.

        program = fn device, size ->
          Nitrox.Program.compile(
            &Nitrox.softmax(Nitrox.dense(&1, weights[device], nil)),
            [Nitrox.template({size, 64}, {:f, 32})],
            device: device,
            outputs: :binary,
            instances: 2
          )
        end

        serving = Nitrox.Serving.new([program.({:cuda, 0}, 32), program.({:cuda, 1}, 32)])

        children = [{Nx.Serving, serving: serving, name: MyServing, batch_timeout: 2}]

    and then, from any process, `Nx.Serving.batched_run(MyServing, Nx.Batch.concatenate([x]))`.

    * A **partition** is an instance of a program: here four, two on each GPU. Each has a stream and an
      arena of its own; all instances of a program share its parameters.
    * The **batch size** is the first axis of the program's inputs and outputs. A batch with fewer
      entries is filled up with zeros. There may be programs of several sizes: the smallest that takes
      the batch runs, so that one caller alone does not pay for 32.
    * **Batch keys**: `new(%{short: programs, long: programs})`, for entries of several shapes.
    * **Inputs** stay where they are if that is the only device of the serving. Else they come to the
      host, since which device will take them is not known yet.
    * **Outputs**: with `outputs: :binary` they come back in the same launch and are tensors of
      `Nx.BinaryBackend`, and no batch takes memory on the device. Else they are tensors of
      `Nitrox.Backend`, which is for programs of one device.
    * **Order**: `Nx.Serving` may cut a request in two to fill a batch up, and puts the parts together
      as they arrive, which with several partitions may be the wrong way round. Here the entries carry
      their numbers, so that what comes out is in the order of what went in, streams too.
    * **Errors**: a request is looked at in its caller. One of another type, shape or batch key, or
      whose tensors are gone, raises a `Nitrox.Error` there, and nobody else sees of it. (`Nx.Serving`
      puts requests together in its own process, which one of another shape takes down.)

    The programs are compiled once, before the serving starts, and held by it: a serving that crashed
    and is started again by its supervisor uses the same.

    A function of Nx, an Axon model say, is served by `Nx.Serving` alone: see `guides/serving.md`.
    """

    @behaviour Nx.Serving

    alias Nitrox.{Container, Options, Program, Tensor}
    alias Nx.Tensor, as: T

    @type programs :: Program.t() | [Program.t()]

    @doc """
    A serving of programs: one, a list of them, or a map of batch keys to either.

    A program takes one argument (a tensor, or nested tuples and maps of them) and has no state. All
    inputs and outputs of it have the batch as their first axis. Programs of one key have the same
    inputs and outputs but for the batch size, and differ in size or in device. For each key and
    device there has to be one of the largest size, which is the serving's batch size.

    ## Options

      * `:client_preprocessing` - a function of a request, which gives `{batch, info}`, or a stream of
        batches in place of one. Without it a request is the batch or the stream.
      * `:client_postprocessing` - a function of `{output, metadata}` and `info`, which gives the answer.
        `metadata` is `%{device: device, batch_size: size}` of the (last) program that ran. With
        `Nx.Serving.streaming/1` it gets a stream of `{:batch, output, metadata}`. Without it the
        output, or that stream, is the answer.

    Nx keeps the two for the life of the VM: let them hold no tensors and no programs. They are given here, since those of the same names in `Nx.Serving` would take the place of what this
    module does there. All else is set as ever, but for the process options, which are
    better given where the serving is started: `Nx.Serving.process_options/2` forgets those that are
    set here, `partitions: true` and `:batch_keys`.
    """
    @spec new(programs() | %{(key :: term()) => programs()},
            client_preprocessing: Nx.Serving.client_preprocessing(),
            client_postprocessing: Nx.Serving.client_postprocessing()
          ) :: Nx.Serving.t()
    def new(programs, options \\ [])
    def new(%Program{} = program, options), do: new([program], options)
    def new(programs, options) when is_list(programs), do: new(%{default: programs}, options)

    def new(keys, options) when is_map(keys) and not is_struct(keys) do
      options =
        Options.validate!(:serving, options,
          client_preprocessing: {&{&1, nil}, function(1)},
          client_postprocessing: {nil, function(2)}
        )

      keys = Map.new(keys, fn {key, programs} -> {key, sized(key, List.wrap(programs))} end)
      all = for {_, programs} <- keys, sized <- programs, do: sized
      if all == [], do: fail!("a program is needed")

      limit = all |> Enum.map(&elem(&1, 0)) |> Enum.max()
      devices = all |> Enum.map(fn {_, program} -> program.device end) |> Enum.uniq()
      routes = for {key, programs} <- keys, d <- devices, do: {{key, d}, route(programs, d)}
      for {place, sizes} <- routes, do: largest!(place, sizes, limit)
      readable!(all, devices)

      lanes = Enum.flat_map(devices, &List.duplicate(&1, instances(all, &1)))
      arg = %{lanes: List.to_tuple(lanes), routes: Map.new(routes)}
      forms = Map.new(keys, fn {key, [{_, program} | _]} -> {key, form(program)} end)

      # The evaluator has as many partitions as this says; what each of them is, is said above.
      Nx.Serving.new(__MODULE__, arg, compiler: Nx.Defn.Evaluator, max_concurrency: length(lanes))
      |> Nx.Serving.batch_size(limit)
      |> Nx.Serving.process_options(partitions: true, batch_keys: Map.keys(keys))
      |> Nx.Serving.client_preprocessing(
        preprocessing(options.client_preprocessing, forms, devices)
      )
      |> Nx.Serving.client_postprocessing(postprocessing(options.client_postprocessing))
    end

    def new(other, _options) do
      fail!("programs were expected, or a map of batch keys to them, got #{inspect(other)}")
    end

    defp function(arity), do: {"a function of #{arity} arguments", &is_function(&1, arity)}

    # ── The behaviour ─────────────────────────────────────────────────────────────────────────────

    @impl true
    def init(_type, arg, partitions) do
      if length(partitions) > tuple_size(arg.lanes) do
        fail!("#{length(partitions)} partitions, but #{tuple_size(arg.lanes)} instances")
      end

      if Enum.any?(partitions, &(Map.new(&1[:hooks] || []) != %{})) do
        fail!("a program has no hooks to stream", "call Nx.Serving.streaming/1 without :hooks")
      end

      {:ok, arg}
    end

    @impl true
    def handle_batch(batch, partition, arg) do
      device = elem(arg.lanes, partition)
      sizes = Map.fetch!(arg.routes, {batch.key, device})
      {size, program} = Enum.find(sizes, fn {size, _} -> size >= batch.size end)

      execute = fn ->
        {container, numbers} = tensors(batch)

        {{run(program, container, size - batch.size), numbers},
         %{device: device, batch_size: size}}
      end

      {:execute, execute, arg}
    end

    defp run(%{device: device, outputs: outputs} = program, container, missing) do
      {skeleton, _} = form = form(program)
      feeds = container |> leaves!(form) |> Enum.map(&feed(&1, device, missing))
      results = Program.run(program, [Container.build(skeleton, feeds)])

      tensors =
        results
        |> Container.leaves(outputs, :serving, "an output", &{:ok, &1})
        |> Enum.zip_with(program.output_specs, &result/2)

      Container.build(outputs, tensors)
    end

    # Filled up with zeros; not by Nx.Batch.pad/2, which goes element by element on the host.
    defp feed(%T{data: %Nitrox.Backend{device: device}} = t, device, 0), do: Nitrox.from_nx(t)

    defp feed(%T{data: %Nitrox.Backend{device: device}} = t, device, missing) do
      [_ | others] = Tuple.to_list(t.shape)
      zero = Nx.tensor(0, type: t.type, backend: Nx.BinaryBackend)
      config = [{0, missing, 0} | Enum.map(others, fn _ -> {0, 0, 0} end)]
      t |> Nx.pad(zero, config) |> Nitrox.from_nx()
    end

    defp feed(%T{} = t, _, 0), do: Nx.to_binary(t)

    defp feed(%T{} = t, _, missing) do
      bytes = Nx.to_binary(t)
      <<bytes::binary, 0::size(missing * div(byte_size(bytes), elem(t.shape, 0)))-unit(8)>>
    end

    defp result(%Tensor{} = tensor, _), do: Nitrox.to_nx(tensor)

    defp result(bytes, {type, shape}),
      do: bytes |> Nx.from_binary(type, backend: Nx.BinaryBackend) |> Nx.reshape(shape)

    # A batch is a promise until it is walked through.
    defp tensors(batch) do
      {container, _} = Nx.LazyContainer.traverse(batch, nil, fn _, fun, _ -> {fun.(), nil} end)
      container
    end

    # ── In the caller: before ─────────────────────────────────────────────────────────────────────

    # Nx keeps this function for the life of the VM, so it holds what programs take and not them.
    defp preprocessing(fun, forms, devices) do
      target =
        case devices do
          [device] -> {Nitrox.Backend, device: device}
          _ -> Nx.BinaryBackend
        end

      fn request ->
        case fun.(request) do
          {%Nx.Batch{} = batch, info} ->
            {batch, _} = accept(batch, 0, forms, target)
            {batch, info}

          {stream, info} ->
            unless Enumerable.impl_for(stream), do: no_batch!(stream)

            numbered =
              Stream.transform(stream, 0, fn batch, first ->
                {batch, next} = accept(batch, first, forms, target)
                {[batch], next}
              end)

            {numbered, info}

          other ->
            fail!("a preprocessing gives {batch, info}, got #{inspect(other)}")
        end
      end
    end

    # A batch of the same entries, placed and numbered from `first` on, and the next number.
    defp accept(%Nx.Batch{size: 0} = batch, first, _, _), do: {batch, first}

    defp accept(%Nx.Batch{key: key, size: size} = batch, first, forms, target) do
      {skeleton, _} =
        form = forms[key] || fail!("unknown batch key #{inspect(key)}", known(forms))

      leaves = batch |> Nx.Batch.pad(0) |> tensors() |> leaves!(form)
      placed = Container.build(skeleton, Enum.map(leaves, &place(&1, target)))
      next = first + size
      numbers = for n <- first..(next - 1), into: <<>>, do: <<n::64-native>>
      numbers = Nx.from_binary(numbers, :s64, backend: Nx.BinaryBackend)
      {[{placed, numbers}] |> Nx.Batch.concatenate() |> Nx.Batch.key(key), next}
    end

    defp accept(other, _, _, _), do: no_batch!(other)

    defp no_batch!(other) do
      fail!(
        "an Nx.Batch or a stream of them was expected, got #{inspect(other, limit: 5)}",
        "Nx.Batch.stack/1 and concatenate/1 make one of tensors"
      )
    end

    # The tensors of a batch, which are to be what a program takes.
    defp leaves!(container, {skeleton, specs}) do
      leaves =
        Container.leaves(container, skeleton, :serving, "a batch", fn
          %T{} = t -> {:ok, t}
          _ -> {:error, "a tensor"}
        end)

      for {%T{type: type, shape: shape}, spec} <- Enum.zip(leaves, specs),
          entry = {type, Tuple.delete_at(shape, 0)},
          entry != spec do
        fail!("an entry of the batch is #{text(spec)}, got #{text(entry)}")
      end

      leaves
    end

    # By a handle of its own, so that the caller may give up the tensor.
    defp place(%T{data: %Nitrox.Backend{device: d}} = t, {_, device: d} = target),
      do: Nx.backend_copy(t, target)

    defp place(t, _), do: Nx.backend_copy(t, Nx.BinaryBackend)

    defp known(forms), do: "it is one of #{inspect(Map.keys(forms))}"

    # ── In the caller: after ──────────────────────────────────────────────────────────────────────

    defp postprocessing(fun) do
      fn result, info ->
        result = ordered(result)

        case result do
          _ when fun != nil -> fun.(result, info)
          {output, _metadata} -> output
          stream -> stream
        end
      end
    end

    defp ordered({{output, numbers}, metadata}) do
      numbers = Nx.to_flat_list(numbers)

      if numbers == Enum.sort(numbers) do
        {output, metadata}
      else
        places = numbers |> Enum.with_index() |> Enum.sort() |> Enum.map(&elem(&1, 1))
        places = Nx.tensor(places, backend: Nx.BinaryBackend)
        {Nx.Defn.Composite.traverse(output, &Nx.take(&1, places, axis: 0)), metadata}
      end
    end

    # Parts that come too early wait for those before them.
    defp ordered(stream) do
      Stream.transform(stream, {0, %{}}, fn {:batch, {output, numbers}, metadata},
                                            {next, early} ->
        [first | _] = numbers = Nx.to_flat_list(numbers)
        part = {length(numbers), {:batch, output, metadata}}
        ready(next, Map.put(early, first, part), [])
      end)
    end

    defp ready(next, early, parts) do
      case early do
        %{^next => {count, part}} -> ready(next + count, Map.delete(early, next), [part | parts])
        _ -> {Enum.reverse(parts), {next, early}}
      end
    end

    # ── Programs ──────────────────────────────────────────────────────────────────────────────────

    # Those of one key, each with its batch size; all alike but for that.
    defp sized(key, programs) do
      sized = Enum.map(programs, &{size!(&1), &1})

      case Enum.uniq_by(programs, &{form(&1), results(&1), &1.readback}) do
        [a, b | _] -> fail!("programs of the key #{inspect(key)} differ: #{two(a, b)}")
        _ -> :ok
      end

      case sized -- Enum.uniq_by(sized, fn {size, program} -> {size, program.device} end) do
        [{size, program} | _] ->
          fail!(
            "two programs of the key #{inspect(key)} take #{size} entries on " <>
              inspect(program.device),
            "compile one with `instances: 2`"
          )

        [] ->
          sized
      end
    end

    defp two(a, b), do: "#{inspect(a)} and #{inspect(b)}"

    # What a program takes and gives, but for the batch.
    defp form(%{arguments: [skeleton], inputs: inputs}), do: {skeleton, entries(inputs)}
    defp results(%{outputs: skeleton, output_specs: specs}), do: {skeleton, entries(specs)}
    defp entries(specs), do: for({type, shape} <- specs, do: {type, Tuple.delete_at(shape, 0)})

    defp size!(%Program{state: nil, arguments: [argument]} = program) do
      if list?(argument) or list?(program.outputs) do
        fail!("containers of Nx have no lists, use tuples or maps: #{inspect(program)}")
      end

      if argument in [{:tuple, []}, {:map, []}],
        do: fail!("a program without inputs has no batch")

      case Enum.uniq_by(program.inputs ++ program.output_specs, &first_axis/1) do
        [{_, shape}] when tuple_size(shape) > 0 and elem(shape, 0) > 0 ->
          elem(shape, 0)

        _ ->
          fail!("the first axis of all inputs and outputs is the batch: #{inspect(program)}")
      end
    end

    defp size!(%Program{state: nil, arguments: arguments}) do
      fail!(
        "a program of one argument was expected, this one takes #{length(arguments)}",
        "give it a tuple or a map of tensors"
      )
    end

    defp size!(%Program{}) do
      fail!("a program with a state runs in sessions", "serve it by Nitrox.Session.step/2")
    end

    defp size!(other), do: fail!("a Nitrox.Program was expected, got #{inspect(other)}")

    defp first_axis({_, {}}), do: nil
    defp first_axis({_, shape}), do: elem(shape, 0)

    defp list?({:list, _}), do: true
    defp list?({:tuple, parts}), do: Enum.any?(parts, &list?/1)
    defp list?({:map, parts}), do: Enum.any?(parts, fn {_, part} -> list?(part) end)
    defp list?(:leaf), do: false

    # Programs of a device, the smallest first.
    defp route(programs, device) do
      programs
      |> Enum.filter(fn {_, program} -> program.device == device end)
      |> Enum.sort_by(&elem(&1, 0))
    end

    defp largest!({key, device}, sizes, limit) do
      unless match?({^limit, _}, List.last(sizes)) do
        fail!(
          "no program of the key #{inspect(key)} takes #{limit} entries on #{inspect(device)}",
          "each key and device has one of the largest batch"
        )
      end
    end

    # A request may be cut in two, for two devices, and its outputs meet again at the caller.
    defp readable!(all, devices) do
      if length(devices) > 1 and Enum.any?(all, fn {_, program} -> not program.readback end) do
        fail!(
          "tensors of #{inspect(devices)} can't be put together in one answer",
          "compile programs for several devices with `outputs: :binary`"
        )
      end
    end

    defp instances(all, device) do
      for({_, %{device: ^device} = program} <- all, do: Program.info(program).instances)
      |> Enum.max()
    end

    defp text({type, shape}), do: Tensor.spec_text(%{type: type, shape: shape})

    @spec fail!(String.t(), String.t() | nil) :: no_return()
    defp fail!(message, hint \\ nil), do: Options.fail!(:serving, message, hint)
  end
end
