defmodule Nitrox.Nx.ServingMemoryTest do
  # What servings leave on the devices, so nothing else may run.
  use ExUnit.Case, async: false

  @moduletag :nx

  import Nitrox.TestServing
  alias Nitrox.{Backend, Device, Serving}

  setup context do
    :rand.seed(:exsss, ExUnit.configuration()[:seed])
    # A name for the process of the test's serving.
    %{name: Module.concat(__MODULE__, "S#{:erlang.phash2(context.test)}")}
  end

  describe "memory" do
    # In use and number of blocks, once what dead processes held has come back.
    defp held do
      for device <- devices() do
        Device.synchronize(device)
        for pid <- Process.list(), do: :erlang.garbage_collect(pid)
        Map.take(Device.memory_stats(device), [:in_use, :allocations])
      end
    end

    # A call that its process did not live to see may still end.
    defp settles(before, deadline \\ System.monotonic_time(:millisecond) + 60_000) do
      now = held()

      cond do
        Enum.zip(now, before)
        |> Enum.all?(fn {now, before} ->
          now.in_use <= before.in_use and now.allocations <= before.allocations
        end) ->
          :ok

        System.monotonic_time(:millisecond) > deadline ->
          flunk("held #{inspect(before)}, and holds #{inspect(now)}")

        true ->
          Process.sleep(20)
          settles(before, deadline)
      end
    end

    defp answered(name, n) do
      rows = rows(n)
      assert answer(Nx.Serving.batched_run(name, batch(rows))) == expected(rows)
    catch
      # Killed meanwhile, or not there yet.
      :exit, _ -> :down
    end

    for outputs <- [:binary, :tensor] do
      @tag :capture_log
      test "a serving that is killed and started again leaks none (#{outputs})", context do
        work = fn name ->
          programs =
            for d <- devices(),
                do: product(8, device: d, instances: 2, outputs: unquote(outputs))

          {:ok, supervisor} =
            Supervisor.start_link(
              [
                {Nx.Serving, serving: Serving.new(programs), name: name, batch_timeout: 1}
              ],
              strategy: :one_for_one,
              max_restarts: 1000
            )

          answered(name, 3)
          before = held()

          for _ <- 1..10 do
            callers =
              for i <- 1..8,
                  do: Task.async(fn -> for(_ <- 1..4, do: answered(name, i)) end)

            answered(name, 2)

            with pid when is_pid(pid) <- Process.whereis(name),
                 do: Process.exit(pid, :kill)

            Task.await_many(callers, 60_000)
          end

          # Back again, with the same programs and nothing else.
          back = fn back -> if answered(name, 5) == :down, do: back.(back) end
          back.(back)
          settles(before)
          Supervisor.stop(supervisor)
        end

        run = fn i ->
          {_, monitor} = spawn_monitor(fn -> work.(Module.concat(context.name, "N#{i}")) end)
          assert_receive {:DOWN, ^monitor, _, _, :normal}, 120_000
        end

        # What is kept for good comes with the first time; after the second all programs are gone too.
        run.(1)
        before = held()
        run.(2)
        settles(before)
      end
    end
  end

  describe "a model of Axon" do
    @describetag :axon

    test "is served by the evaluator, with one copy of its parameters", context do
      model =
        Axon.input("x", shape: {nil, 6}) |> Axon.dense(64, activation: :relu) |> Axon.dense(3)

      {init, predict} = Axon.build(model, mode: :inference)
      state = init.(Nx.template({1, 6}, :f32), Axon.ModelState.empty())

      for {device, i} <- Enum.with_index(devices()) do
        name = Module.concat(context.name, "N#{i}")
        params = Nx.backend_copy(state, {Backend, device: device})
        :erlang.garbage_collect()
        before = Device.memory_stats(device).in_use

        serving =
          Nx.Serving.new(
            fn opts ->
              predict = Nx.Defn.jit(predict, opts)
              fn batch -> predict.(params, batch) end
            end,
            max_concurrency: 4
          )

        start_supervised!(
          {Nx.Serving,
           serving: serving, name: name, batch_size: 8, batch_timeout: 1, partitions: true},
          id: name
        )

        assert length(:pg.get_members(Nx.Serving.PG, name)) == 4
        assert Device.memory_stats(device).in_use == before

        1..32
        |> Task.async_stream(
          fn i ->
            # One entry each: requests of several may be cut, see Nitrox.Serving about their order.
            x = Nx.iota({1, 6}, type: :f32) |> Nx.divide(i)
            x = Nx.backend_copy(x, {Backend, device: device})
            got = Nx.Serving.batched_run(name, Nx.Batch.concatenate([x]))
            want = predict.(state, Nx.backend_copy(x, Nx.BinaryBackend))
            difference = Nx.subtract(Nx.backend_copy(got, Nx.BinaryBackend), want)
            assert difference |> Nx.abs() |> Nx.reduce_max() |> Nx.to_number() < 1.0e-5
          end,
          max_concurrency: 32,
          timeout: 60_000
        )
        |> Enum.each(&assert {:ok, _} = &1)
      end
    end
  end
end
