defmodule Nitrox.Nx.ConcurrencyTest do
  # Many processes of Nx on one device: right answers, and nothing left of those that are killed.
  # Counts what the device holds, so nothing else may run.
  use ExUnit.Case, async: false

  @moduletag :nx
  @moduletag timeout: 300_000

  alias Nitrox.Device

  @processes 64

  defp devices, do: Application.get_env(:nitrox, :test_devices)

  # What a process does with numbers of its own, by a name. Gives tensors.
  @work ~w(dot conv sort random recurrent attention reduce scatter gradient)a

  defp work(:dot, x), do: [Nx.dot(x, Nx.transpose(x)), Nx.dot(x, [0], x, [0])]

  defp work(:conv, x) do
    image = Nx.reshape(x, {2, 4, 8, 8})
    kernel = x |> Nx.flatten() |> Nx.slice([0], [108]) |> Nx.reshape({3, 4, 3, 3})
    [Nx.conv(image, kernel, padding: :same), Nx.window_max(image, {1, 1, 2, 2})]
  end

  defp work(:sort, x), do: [Nx.sort(x, axis: 0), Nx.argsort(x, axis: 1), Nx.cumulative_sum(x)]

  defp work(:random, x) do
    key = x |> Nx.sum() |> Nx.as_type(:s64) |> Nx.abs() |> Nx.Random.key()
    {normal, key} = Nx.Random.normal(key, shape: {9, 7})
    {choice, _} = Nx.Random.randint(key, 0, 100, shape: {31})
    [normal, choice]
  end

  defp work(:recurrent, x) do
    frames = Nx.reshape(x, {4, 16, 8})
    [wi, wh] = for n <- [8, 6], do: Nx.divide(Nx.iota({n, 24}, type: :f32), 24 * n)
    {seq, {c, _h}} = Nitrox.lstm(frames, nil, wi, wh, nil)
    [seq, c, Nitrox.layer_norm(seq, Nx.broadcast(1.0, {6}), Nx.broadcast(0.5, {6}))]
  end

  defp work(:attention, x) do
    q = Nx.reshape(x, {2, 8, 2, 16})
    [Nitrox.flash_attention(q, q, Nx.negate(q), causal: true), Nitrox.softmax(x)]
  end

  defp work(:reduce, x) do
    [Nx.sum(x, axes: [1]), Nx.argmax(x), Nx.reduce_max(Nx.exp(x), axes: [0]), Nx.variance(x)]
  end

  defp work(:scatter, x) do
    places = x |> Nx.flatten() |> Nx.argsort() |> Nx.remainder(16) |> Nx.new_axis(1)
    sums = Nx.indexed_add(Nx.broadcast(0.0, {16}), places, Nx.flatten(x))
    [sums, Nx.take(x, Nx.remainder(Nx.argsort(x, axis: 0), 8)), Nx.concatenate([x, x])]
  end

  defp work(:gradient, x) do
    [Nx.Defn.grad(x, fn x -> x |> Nx.tanh() |> Nx.dot(Nx.transpose(x)) |> Nx.sum() end)]
  end

  defp numbers(i, backend) do
    {bytes, _} =
      Enum.map_reduce(1..512, :rand.seed_s(:exsss, {ExUnit.configuration()[:seed], i, 0}), fn
        _, state ->
          {x, state} = :rand.normal_s(state)
          {<<x::float-32-native>>, state}
      end)

    bytes
    |> IO.iodata_to_binary()
    |> Nx.from_binary(:f32, backend: backend)
    |> Nx.reshape({8, 64})
  end

  defp on(backend, kind, i) do
    Nx.default_backend(backend)
    work(kind, numbers(i, backend))
  end

  defp bytes(tensors), do: Enum.map(tensors, &Nx.to_binary/1)

  test "#{@processes} processes at once get what one alone gets, bit for bit" do
    for device <- devices() do
      backend = {Nitrox.Backend, device: device}
      # Several processes share numbers.
      alone =
        for kind <- @work, i <- 1..8, into: %{}, do: {{kind, i}, bytes(on(backend, kind, i))}

      1..@processes
      |> Task.async_stream(
        fn n ->
          :rand.seed(:exsss, {ExUnit.configuration()[:seed], n, 1})

          for kind <- Enum.shuffle(@work), i <- Enum.take_random(1..8, 3) do
            assert bytes(on(backend, kind, i)) == alone[{kind, i}], "#{kind} of #{i}"
          end
        end,
        max_concurrency: @processes,
        timeout: 240_000
      )
      |> Enum.each(&assert {:ok, _} = &1)

      # And that is what Nx's own backend gives.
      for kind <- @work do
        ours = on(backend, kind, 1)
        theirs = on(Nx.BinaryBackend, kind, 1)
        Nx.default_backend(Nx.BinaryBackend)

        for {a, b} <- Enum.zip(ours, theirs) do
          close =
            Nx.all_close(Nx.backend_copy(a, Nx.BinaryBackend), b, atol: 1.0e-4, rtol: 1.0e-4)

          assert Nx.to_number(close) == 1, "#{kind}"
        end
      end
    end
  end

  defp held(device) do
    Device.synchronize(device)
    for pid <- Process.list(), do: :erlang.garbage_collect(pid)
    Map.take(Device.memory_stats(device), [:in_use, :allocations])
  end

  # A call that its process did not live to see may still end. (One may have been under way before, too.)
  defp settles(device, before, deadline \\ System.monotonic_time(:millisecond) + 60_000) do
    now = held(device)

    cond do
      now.in_use <= before.in_use and now.allocations <= before.allocations ->
        :ok

      System.monotonic_time(:millisecond) > deadline ->
        flunk("#{inspect(device)} held #{inspect(before)}, and holds #{inspect(now)}")

      true ->
        Process.sleep(20)
        settles(device, before, deadline)
    end
  end

  # Each works until it is killed, and holds what it made last.
  defp restless(device, n) do
    test = self()

    spawn_monitor(fn ->
      :rand.seed(:exsss, {ExUnit.configuration()[:seed], n, 2})
      backend = {Nitrox.Backend, device: device}

      Enum.reduce(Stream.cycle([:more]), [], fn _, _held ->
        result = on(backend, Enum.random(@work), Enum.random(1..8))
        send(test, {:works, n})
        result
      end)
    end)
  end

  defp kill_all(device) do
    processes = for n <- 1..@processes, do: restless(device, n)
    # All have a result, and are at the next one.
    for n <- 1..@processes, do: assert_receive({:works, ^n}, 120_000)
    assert Device.memory_stats(device).in_use > 0

    for {pid, monitor} <- Enum.shuffle(processes) do
      if :rand.uniform(4) == 1, do: Process.sleep(1)
      Process.exit(pid, :kill)
      assert_receive {:DOWN, ^monitor, :process, ^pid, :killed}, 60_000
    end

    drain()
  end

  defp drain do
    receive do
      {:works, _} -> drain()
    after
      0 -> :ok
    end
  end

  test "#{@processes} processes that are killed at any moment leave nothing behind" do
    for device <- devices() do
      # What is kept for good comes with the first time.
      kill_all(device)
      before = held(device)

      for _ <- 1..3 do
        kill_all(device)
        settles(device, before)
      end

      # And the device serves on.
      backend = {Nitrox.Backend, device: device}
      x = numbers(1, backend)
      assert Nx.to_number(Nx.sum(Nx.subtract(x, x))) == 0.0
    end
  end

  test "one killed in the middle of what others wait for takes none of them along" do
    for device <- devices() do
      backend = {Nitrox.Backend, device: device}
      shared = numbers(3, backend)
      expected = bytes(work(:dot, shared))
      victims = for n <- 1..8, do: restless(device, n)

      callers =
        for _ <- 1..16 do
          Task.async(fn ->
            Nx.default_backend(backend)
            # The same buffer in all of them.
            for _ <- 1..20, do: assert(bytes(work(:dot, shared)) == expected)
          end)
        end

      for {pid, monitor} <- victims do
        Process.exit(pid, :kill)
        assert_receive {:DOWN, ^monitor, :process, ^pid, :killed}, 60_000
      end

      Task.await_many(callers, 240_000)
      drain()
    end
  end
end
