# Nx is not there for the compiler on every machine.
if Code.ensure_loaded?(Nx) do
  defmodule Nitrox.CompilerCallsTest do
    # What Nitrox.Compiler keeps, who calls it, and what it refuses.
    use ExUnit.Case, async: false
    @moduletag :nx
    @moduletag :telemetry

    import Nitrox.Compiled
    alias Nitrox.Compiled.Functions

    setup do
      Nx.default_backend(Nx.BinaryBackend)
      Nitrox.Compiler.clear()
      :ok
    end

    # ── What is kept ────────────────────────────────────────────────────────────────────────────

    test "a function is compiled once for each type, shape, name and option" do
      for device <- devices() do
        count = fn fun, args ->
          {_, events} = counted(fn -> apply(fun, args) end)
          Map.get(events, [:compile], 0)
        end

        fun = compiled(&Nx.sum/1, device)
        assert count.(fun, [t([1, 2])]) == 1
        assert count.(fun, [t([3, 4])]) == 0
        assert count.(compiled(&Nx.sum/1, device), [t([3, 4])]) == 0
        assert count.(fun, [t([1.0, 2.0])]) == 1
        assert count.(fun, [t([1, 2, 3])]) == 1
        assert count.(fun, [t([1, 2], names: [:x])]) == 1
        assert count.(compiled(&Nx.sum/1, device, instances: 2), [t([1, 2])]) == 1
        assert count.(compiled(&Nx.sum/2, device), [t([1, 2]), [keep_axes: true]]) == 1
        assert count.(compiled(&Nx.sum/2, device), [t([1, 2]), [keep_axes: true]]) == 0
        assert count.(compiled(&Nx.sum/2, device), [t([1, 2]), [keep_axes: false]]) == 1
        Nitrox.Compiler.clear()
        assert count.(fun, [t([1, 2])]) == 1
      end
    end

    test "memory comes back when programs are no longer kept" do
      in_use = fn device ->
        :erlang.garbage_collect()
        Nitrox.memory_stats(device).in_use
      end

      for device <- devices() do
        before = in_use.(device)
        # A table of 4 MB.
        fun =
          compiled(
            fn x -> Nx.add(x, Nx.sum(Nx.add(Nx.iota({1024, 1024}), x), axes: [0])) end,
            device
          )

        Nx.backend_deallocate(fun.(t(1)))
        assert in_use.(device) - before > 4_000_000
        Nitrox.Compiler.clear()
        assert in_use.(device) - before < 1_000_000
      end
    end

    test "those used last are kept" do
      Application.put_env(:nitrox, :compiler_cache, 3)
      on_exit(fn -> Application.delete_env(:nitrox, :compiler_cache) end)
      fun = compiled(&Nx.sum/1, :cpu)
      for n <- 1..3, do: fun.(t(List.duplicate(1, n)))
      fun.(t([1]))
      fun.(t([1, 2, 3, 4]))
      assert Nitrox.Nx.Cache.size() == 3
      {_, events} = counted(fn -> fun.(t([1])) end)
      refute is_map_key(events, [:compile])
      {_, events} = counted(fn -> fun.(t([1, 2])) end)
      assert events[[:compile]] == 1
    end

    test "Nx.Defn.compile/3 holds its program by itself" do
      for device <- devices() do
        opts = [compiler: Nitrox.Compiler, device: device]
        fun = Nx.Defn.compile(&Nx.add/2, [Nx.template({2}, :f32), Nx.template({}, :s32)], opts)
        assert Nitrox.Nx.Cache.size() == 0
        {result, events} = counted(fn -> fun.(t([1.0, 2.0]), 3) end)
        assert Nx.to_flat_list(result) == [4.0, 5.0]
        assert events == %{[:program, :run] => 1}
        assert_raise ArgumentError, fn -> fun.(t([1.0]), 3) end
      end
    end

    test "a function that raises while it is traced is compiled again, and others go on" do
      fun =
        compiled(
          fn x -> if(Process.get(:fail), do: raise("traced"), else: Nx.add(x, 1)) end,
          :cpu
        )

      Process.put(:fail, true)
      assert_raise RuntimeError, "traced", fn -> fun.(1) end
      Process.put(:fail, false)
      assert Nx.to_number(fun.(1)) == 2
    end

    test "64 processes call one function at once, which is compiled once" do
      for device <- devices() do
        id = make_ref()
        counter = :counters.new(1, [])
        :telemetry.attach(id, [:nitrox, :compile], &__MODULE__.count/4, counter)
        fun = compiled(&Functions.double_up/2, device, instances: 2)

        results =
          1..64
          |> Enum.map(fn i -> Task.async(fn -> for _ <- 1..5, do: fun.(t([i * 1.0]), 4) end) end)
          |> Task.await_many(120_000)

        :telemetry.detach(id)
        assert :counters.get(counter, 1) == 1

        for {tensors, i} <- Enum.with_index(results, 1),
            tensor <- tensors,
            do: assert(Nx.to_flat_list(tensor) == [16.0 * i + 11])
      end
    end

    def count(_, _, _, counter), do: :counters.add(counter, 1, 1)

    test "who waits for a function that another one gave up compiles it" do
      parent = self()

      traced = fn x ->
        send(parent, {:traced, self()})

        receive do
          :go -> Nx.add(x, 1)
        end
      end

      fun = compiled(traced, :cpu)
      for _ <- 1..3, do: spawn(fn -> send(parent, {:result, fun.(1)}) end)
      assert_receive {:traced, builder}, 60_000
      Process.exit(builder, :kill)
      assert_receive {:traced, builder}, 60_000
      send(builder, :go)
      for _ <- 1..2, do: assert_receive({:result, _}, 60_000)
      refute_received {:traced, _}
    end

    # ── Options and errors ──────────────────────────────────────────────────────────────────────

    test "options" do
      call = fn opts -> Nx.Defn.jit(&Nx.add(&1, 1), [compiler: Nitrox.Compiler] ++ opts).(1) end

      assert_raise Nitrox.Error, ~r/unknown option :client; known are :device/, fn ->
        call.(client: :host)
      end

      assert_raise Nitrox.Error, ~r/device: expected :cpu or/, fn -> call.(device: :gpu) end
      assert_raise Nitrox.Error, ~r/instances: expected an integer/, fn -> call.(instances: 0) end

      assert Nx.Defn.to_backend(compiler: Nitrox.Compiler, device: :cpu) ==
               {Nitrox.Backend, device: :cpu}
    end

    test "partitions" do
      options = &Nitrox.Compiler.__partitions_options__/1
      assert options.(device: :cpu) == [[device: :cpu]]

      assert options.(device: :cpu, max_concurrency: 2, instances: 3) ==
               List.duplicate([device: :cpu, instances: 3], 2)

      assert options.(devices: [{:cuda, 0}, {:cuda, 1}]) == [
               [device: {:cuda, 0}],
               [device: {:cuda, 1}]
             ]
    end

    test "a serving with partitions" do
      for device <- devices() do
        serving =
          Nx.Serving.jit(&Nx.multiply(&1, 2),
            compiler: Nitrox.Compiler,
            devices: [device, device]
          )

        name = :"compiler_#{System.unique_integer([:positive])}"

        options = [
          serving: serving,
          name: name,
          batch_size: 4,
          batch_timeout: 10,
          partitions: true
        ]

        start_supervised!({Nx.Serving, options}, id: name)

        1..16
        |> Enum.map(fn i ->
          Task.async(fn -> Nx.Serving.batched_run(name, Nx.Batch.stack([t([i, i])])) end)
        end)
        |> Task.await_many(60_000)
        |> Enum.with_index(1)
        |> Enum.each(fn {result, i} -> assert Nx.to_flat_list(result) == [2 * i, 2 * i] end)
      end
    end

    test "an argument on another device, and an expression for one" do
      elsewhere = %{(t([1.0]) |> on(:cpu)).data | device: {:cuda, 63}}
      tensor = %{t([1.0]) | data: elsewhere}
      message = ~r/argument 2 is on \{:cuda, 63\}, and the function is compiled for :cpu/
      assert_raise Nitrox.Error, message, fn -> compiled(&Nx.add/2, :cpu).(1, tensor) end

      expr = Nx.Defn.debug_expr(&Nx.add(&1, 1)).(t([1.0]))

      assert_raise Nitrox.Error, ~r/a tensor expression is no argument/, fn ->
        compiled(&Nx.exp/1, :cpu).(expr)
      end
    end

    test "what Nx refuses stays refused, and is an error of Nx" do
      assert_raise ArgumentError, fn -> compiled(&Nx.add/2, :cpu).(t([1, 2]), t([1, 2, 3])) end
      assert_raise Protocol.UndefinedError, fn -> compiled(fn -> :ok end, :cpu).() end
    end
  end
else
  defmodule Nitrox.CompilerCallsTest do
    use ExUnit.Case, async: true
    @moduletag :nx

    test "calls of this compiler", do: flunk("Nx is not there")
  end
end
