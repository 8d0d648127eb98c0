# What a forward of each backbone costs beside its time, as a model of Axon run by `Axon.predict`'s
# own means, op by op: device memory, transfers and ops.
#
#     mix run bench/axon_memory.exs                       the CPU device, batch 1 and 16
#     mix run bench/axon_memory.exs --device cuda:0 --batch 1,64
#     mix run bench/axon_memory.exs --batch 4 --frames 16 --features 48 --width 64 --outputs 9 --raw
#
# A forward is a window of 60 frames of 288 features, f32, to 53 logits for each, in models of the sizes
# that `bench/frame_time.exs` has. The options say otherwise; `--raw` prints terms instead of a table.
#
#   * parameters: bytes of the model's parameters, which lie on the device before
#   * peak: the most that the forward takes beside them, its input and its output with it. The pool
#     knows the most that was ever in use, so before the forward a tensor is allocated that brings
#     what is in use up to that; what the most rises by is the forward's
#   * with collection: the same with `garbage_collect: true`, with which Nx's evaluator collects the
#     process after each op. Without it a tensor that is not needed any more goes when the VM collects
#     the process, which knows nothing of the device's memory
#   * all tensors: bytes of all that the model computes from first to last, a loop's in each frame
#   * widest: bytes of the largest of them
#   * transfers: to and from the host, and their bytes; ops: those run on the device

defmodule Nitrox.AxonMemory do
  @moduledoc false

  @events [[:nitrox, :tensor, :transfer], [:nitrox, :op, :run], [:nitrox, :fallback]]

  @doc "The backbones: name and model."
  def models(%{features: features, width: width, outputs: outputs} = sizes) do
    x = Axon.input("x", shape: {nil, nil, features})
    head = &Axon.dense(&1, outputs)
    norm = &Axon.rms_norm(&1, epsilon: 1.0e-5)
    stack = fn layer -> x |> Axon.dense(width) |> layer.() |> layer.() |> norm.() |> head.() end

    recurrent = fn cell ->
      layer = fn x ->
        {seq, _} = cell.(x, width, recurrent_initializer: :zeros)
        Axon.layer_norm(seq)
      end

      x |> layer.() |> layer.() |> head.()
    end

    [
      mlp:
        x
        |> Axon.dense(2 * width, activation: :relu)
        |> Axon.dense(2 * width, activation: :relu)
        |> head.(),
      lstm: recurrent.(&Axon.lstm/3),
      gru: recurrent.(&Axon.gru/3),
      mamba: stack.(&Nitrox.Axon.mamba(&1, norm: :rms_norm)),
      attention: stack.(&attention(&1, norm, width, sizes.frames)),
      jamba:
        x
        |> Axon.dense(width)
        |> Nitrox.Axon.jamba(
          layers: 6,
          attention_every: 3,
          attention: [heads: 4],
          mlp: [hidden: width]
        )
        |> head.()
    ]
  end

  defp attention(x, norm, width, frames) do
    x =
      Nitrox.Axon.flash_attention(x,
        heads: 4,
        window: {frames - 1, 0},
        rope: true,
        norm: :rms_norm,
        use_bias: false,
        use_output_bias: false
      )

    x |> norm.() |> Axon.dense(width, activation: :gelu) |> Axon.dense(width) |> Axon.add(x)
  end

  @doc "What a forward takes, of `batch` windows."
  def measure(model, %{frames: frames, features: features}, batch, device) do
    backend = {Nitrox.Backend, device: device}
    shape = {batch, frames, features}
    {init, _} = Axon.build(model, seed: 1)
    template = %{"x" => Nx.template(shape, :f32)}
    state = Nx.with_default_backend(backend, fn -> init.(template, Axon.ModelState.empty()) end)
    parameters = Nx.Defn.Composite.reduce(state.data, 0, &(Nx.byte_size(&1) + &2))
    bytes = :binary.copy(<<0.5::float-32-native>>, Tuple.product(shape))

    run = fn opts ->
      {_, predict} = Axon.build(model, opts)

      forward = fn ->
        x = bytes |> Nx.from_binary(:f32, backend: backend) |> Nx.reshape(shape)
        state |> predict.(%{"x" => x}) |> Nx.to_binary()
      end

      # In a process of its own, whose heap is as small at the beginning of each.
      in_process(fn ->
        Nx.default_backend(backend)
        # Kernels are compiled and numbers kept on the device the first time.
        size = byte_size(forward.())
        {peak, {^size, events}} = risen(device, fn -> events(fn -> byte_size(forward.()) end) end)
        {peak, events, size}
      end)
    end

    tensors = tensors(model, template, state, frames)
    {peak, events, output} = run.([])
    {collected, _, _} = run.(garbage_collect: true)
    transfers = for {:transfer, e} <- events, do: {e.direction, e.bytes}

    %{
      parameters: parameters,
      input: byte_size(bytes),
      output: output,
      widest: Enum.max(tensors),
      # As the pool hands them out, in multiples of 256.
      tensors: Enum.sum(for bytes <- tensors, do: div(bytes + 255, 256) * 256),
      peak: peak,
      collected: collected,
      transfers: transfers,
      ops: Enum.count(events, &match?({:run, _}, &1)),
      fallbacks: for({:fallback, e} <- events, do: e.op)
    }
  end

  # By how much the most that is in use at a time rises above what is in use now.
  defp risen(device, fun, tries \\ 5) do
    base = settled(device)
    %{peak: peak} = Nitrox.memory_stats(device)
    # From here on all that is allocated raises the peak.
    size = max(peak - base, 256)
    ballast = Nitrox.from_binary(:binary.copy(<<0>>, size), {:u, 8}, {size}, device: device)
    %{in_use: in_use} = Nitrox.memory_stats(device)
    result = fun.()
    %{peak: after_peak} = Nitrox.memory_stats(device)
    Nitrox.deallocate(ballast)

    cond do
      in_use >= peak and settled(device) == base -> {after_peak - in_use, result}
      tries > 1 -> risen(device, fun, tries - 1)
      true -> raise "what is in use on #{inspect(device)} changes by itself"
    end
  end

  # What is in use when all is collected. The VM lets go of what a collection found a moment later, so
  # that is when it stays the same.
  defp settled(device, last \\ nil, same \\ 0) do
    :erlang.garbage_collect()
    Process.sleep(1)
    in_use = Nitrox.memory_stats(device).in_use

    cond do
      in_use != last -> settled(device, in_use, 0)
      same == 30 -> in_use
      true -> settled(device, in_use, same + 1)
    end
  end

  # The bytes of each tensor that the model computes. All loops go over the frames.
  defp tensors(model, template, state, frames) do
    model
    |> Axon.trace_forward(template, Nx.Defn.Composite.traverse(state, &Nx.to_template/1))
    |> tensors(%{}, frames)
    |> Map.values()
    |> List.flatten()
  end

  defp tensors(%Nx.Tensor{data: %Nx.Defn.Expr{id: id, op: op, args: args}} = t, seen, frames) do
    if is_map_key(seen, id) do
      seen
    else
      bytes =
        case {op, args} do
          {op, _} when op in [:parameter, :constant, :tensor, :elem] ->
            []

          {:while, [_, _, condition, body]} ->
            once = body |> tensors(tensors(condition, %{}, frames), frames) |> Map.values()
            List.duplicate(once, frames)

          {:block, [_, _, results, _]} ->
            Nx.Defn.Composite.reduce(results, [], &[Nx.byte_size(&1) | &2])

          _ ->
            [Nx.byte_size(t)]
        end

      seen = Map.put(seen, id, bytes)

      # What a block is in plain Nx does not run.
      if op == :block do
        args |> Enum.at(1) |> List.flatten() |> Enum.reduce(seen, &tensors(&1, &2, frames))
      else
        {_, seen} = Nx.Defn.Tree.apply_args(t, seen, &{&1, tensors(&1, &2, frames)})
        seen
      end
    end
  end

  defp tensors(%Nx.Tensor{}, seen, _), do: seen

  defp tensors(container, seen, frames),
    do: Nx.Defn.Composite.reduce(container, seen, &tensors(&1, &2, frames))

  defp in_process(fun), do: fun |> Task.async() |> Task.await(:infinity)

  defp events(fun) do
    id = make_ref()
    :ok = :telemetry.attach_many(id, @events, &__MODULE__.handle/4, {self(), id})
    result = fun.()
    :telemetry.detach(id)
    {result, received(id, [])}
  end

  def handle(event, measurements, metadata, {parent, id}) do
    if self() == parent,
      do: send(parent, {id, List.last(event), Map.merge(measurements, metadata)})
  end

  defp received(id, events) do
    receive do
      {^id, event, details} -> received(id, [{event, details} | events])
    after
      0 -> Enum.reverse(events)
    end
  end

  # ── The table ──────────────────────────────────────────────────────────────────────────────────

  @sizes [features: 288, width: 256, outputs: 53, frames: 60]

  def main(arguments) do
    known = [device: :string, batch: :string, raw: :boolean]
    integers = for {name, _} <- @sizes, do: {name, :integer}
    {opts, _} = OptionParser.parse!(arguments, strict: known ++ integers)
    sizes = @sizes |> Keyword.merge(Keyword.take(opts, Keyword.keys(@sizes))) |> Map.new()

    device =
      case opts[:device] || "cpu" do
        "cpu" -> :cpu
        "cuda:" <> n -> {:cuda, String.to_integer(n)}
      end

    batches = (opts[:batch] || "1,16") |> String.split(",") |> Enum.map(&String.to_integer/1)

    for batch <- batches do
      if !opts[:raw], do: IO.puts(header(device, batch, sizes))

      for {name, model} <- models(sizes) do
        measured = measure(model, sizes, batch, device)

        line =
          if opts[:raw],
            do: inspect({name, measured}, limit: :infinity),
            else: row(name, measured)

        IO.puts(line)
      end
    end
  end

  defp header(device, batch, %{frames: frames, features: features}) do
    """

    #{inspect(device)}, batch #{batch}, #{frames} frames of #{features} features

    | backbone | parameters, MB | peak, MB | with collection, MB | all tensors, MB | widest, MB | transfers | ops |
    |---|---|---|---|---|---|---|---|\
    """
  end

  defp row(name, m) do
    transfers =
      Enum.map_join(m.transfers, ", ", fn {direction, bytes} -> "#{direction} #{bytes} B" end)

    fallbacks = if m.fallbacks == [], do: "", else: ", fallbacks #{inspect(m.fallbacks)}"
    sizes = for bytes <- [m.parameters, m.peak, m.collected, m.tensors, m.widest], do: mb(bytes)
    "| #{Enum.join([name | sizes] ++ [transfers <> fallbacks, m.ops], " | ")} |"
  end

  defp mb(bytes), do: :erlang.float_to_binary(bytes / 1.0e6, decimals: 2)
end

for app <- [:nx, :axon, :telemetry], do: {:ok, _} = Application.ensure_all_started(app)
Nitrox.AxonMemory.main(System.argv())
