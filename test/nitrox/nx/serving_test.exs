defmodule Nitrox.Nx.ServingTest do
  # Attaches to telemetry, and fills the devices.
  use ExUnit.Case, async: false

  @moduletag :nx

  import Nitrox.TestServing
  alias Nitrox.{Backend, Error, Program, Serving}

  setup context do
    :rand.seed(:exsss, ExUnit.configuration()[:seed])
    # A name for the process of the test's serving.
    %{name: Module.concat(__MODULE__, "S#{:erlang.phash2(context.test)}")}
  end

  defp start(serving, name, options \\ []) do
    options = Keyword.merge([serving: serving, name: name, batch_timeout: 1], options)
    start_supervised!({Nx.Serving, options})
  end

  describe "inline" do
    test "batches of all sizes, filled up or taken apart" do
      serving = Serving.new(product(5, []))

      for n <- [1, 4, 5, 6, 10, 23] do
        rows = rows(n)
        assert answer(Nx.Serving.run(serving, batch(rows))) == expected(rows)
      end

      [a, b] = rows(2)
      stacked = Nx.Batch.stack([tensor(a), tensor(b)])
      assert answer(Nx.Serving.run(serving, stacked)) == expected([a, b])
    end

    test "the smallest program that takes the batch runs" do
      programs = for size <- [16, 1, 4], do: product(size, [])

      serving = Serving.new(programs, client_postprocessing: fn {_, meta}, _ -> meta end)

      sizes = for n <- [1, 2, 4, 5, 16], do: Nx.Serving.run(serving, batch(rows(n))).batch_size
      assert sizes == [1, 4, 4, 16, 16]
      assert Nx.Serving.run(serving, batch(rows(1))).device == :cpu
      assert serving.batch_size == 16
    end

    test "containers in and out" do
      x = Nitrox.template({3, 2}, {:f, 32})
      id = Nitrox.template({3}, {:s, 32})
      fun = fn {x, %{id: id}} -> {Nitrox.negate(x), {Nitrox.add(id, 1)}} end

      for outputs <- [:binary, :tensor] do
        serving = Serving.new(Program.compile(fun, [{x, %{id: id}}], outputs: outputs))
        input = {Nx.tensor([[1.0, 2.0]]), %{id: Nx.tensor([7])}}
        {y, {next}} = Nx.Serving.run(serving, Nx.Batch.concatenate([input, input]))
        assert Nx.to_list(y) == [[-1.0, -2.0], [-1.0, -2.0]]
        assert Nx.to_list(next) == [8, 8]
        assert Nx.type(next) == {:s, 32}
      end
    end

    test "streams of batches, to a stream of results" do
      serving = Serving.new(product(4, []))
      batches = for n <- [4, 4, 3], do: rows(n)
      all = Enum.concat(batches)
      assert answer(Nx.Serving.run(serving, Stream.map(batches, &batch/1))) == expected(all)

      streaming = Nx.Serving.streaming(serving)
      events = Nx.Serving.run(streaming, batch(all)) |> Enum.to_list()
      assert length(events) == 3

      {y, sum} = events |> Enum.map(fn {:batch, out, _} -> answer(out) end) |> Enum.unzip()
      assert {Enum.concat(y), Enum.concat(sum)} == expected(all)
    end
  end

  describe "a process" do
    test "answers 64 callers at once, with any number of entries, from all partitions", context do
      programs = for size <- [3, 16], do: everywhere(size, instances: 2)
      start(Serving.new(Enum.concat(programs)), context.name)

      1..64
      |> Task.async_stream(
        fn i ->
          :rand.seed(:exsss, {ExUnit.configuration()[:seed], i, 0})

          for _ <- 1..20 do
            rows = rows(:rand.uniform(16))
            assert answer(Nx.Serving.batched_run(context.name, batch(rows))) == expected(rows)
          end
        end,
        max_concurrency: 64,
        timeout: 300_000
      )
      |> Enum.each(&assert {:ok, _} = &1)
    end

    @tag :telemetry
    test "runs as many batches at once as there are instances, on every device", context do
      programs = everywhere(2, instances: 2)
      serving = Serving.new(programs, client_postprocessing: fn {_, meta}, _ -> meta.device end)

      start(serving, context.name)
      lanes = 2 * length(programs)
      test = self()

      # Each waits at its start until all have started: with fewer partitions nobody would go on.
      :telemetry.attach(context.name, [:nx, :serving, :execute, :start], &__MODULE__.gate/4, test)
      on_exit(fn -> :telemetry.detach(context.name) end)

      callers =
        for _ <- 1..lanes,
            do: Task.async(fn -> Nx.Serving.batched_run(context.name, batch(rows(2))) end)

      waiting =
        for _ <- 1..lanes do
          assert_receive {:started, pid}, 60_000
          pid
        end

      for pid <- waiting, do: send(pid, :go)
      devices = Task.await_many(callers, 60_000)

      assert Enum.sort(devices) ==
               programs |> Enum.flat_map(&[&1.device, &1.device]) |> Enum.sort()
    end

    test "keeps entries of two keys apart", context do
      negate = fn size, width ->
        Program.compile(&Nitrox.negate/1, [Nitrox.template({size, width}, {:f, 32})], [])
      end

      keys = %{short: [negate.(1, 2), negate.(4, 2)], long: negate.(4, 5)}
      start(Serving.new(keys), context.name)

      1..40
      |> Task.async_stream(
        fn i ->
          {key, width} = if rem(i, 2) == 0, do: {:short, 2}, else: {:long, 5}
          x = Nx.broadcast(Nx.tensor(i * 1.0), {width})
          batch = Nx.Batch.stack([x]) |> Nx.Batch.key(key)
          got = Nx.Serving.batched_run(context.name, batch)
          assert Nx.to_list(got) == [List.duplicate(i * -1.0, width)]
        end,
        timeout: :infinity
      )
      |> Enum.each(&assert {:ok, _} = &1)

      wrong = Nx.Batch.stack([Nx.tensor([1.0, 2.0])]) |> Nx.Batch.key(:wide)
      error = catch_error(Nx.Serving.batched_run(context.name, wrong))
      assert Exception.message(error) =~ "unknown batch key :wide (it is one of [:long, :short])"
    end

    test "takes what the caller's own preprocessing makes", context do
      serving =
        Serving.new(product(4, []),
          client_preprocessing: fn text ->
            rows = for line <- String.split(text, ";"), do: to_charlist(line)
            {batch(rows), length(rows)}
          end,
          client_postprocessing: fn {out, _meta}, n -> {n, answer(out)} end
        )

      start(serving, context.name)
      assert {2, answer} = Nx.Serving.batched_run(context.name, "abcd;efgh")
      assert answer == expected([~c"abcd", ~c"efgh"])
      error = catch_error(Nx.Serving.batched_run(context.name, "abc"))
      assert %Error{message: "serving: an entry of the batch is f32[4], got f32[3]"} = error
    end

    test "answers by the ways of a cluster", context do
      host = &Nx.backend_copy(&1, Nx.BinaryBackend)

      for outputs <- [:binary, :tensor] do
        name = Module.concat(context.name, outputs)

        serving =
          Serving.new(product(4, outputs: outputs, instances: 2))
          |> Nx.Serving.distributed_postprocessing(&Map.new(&1, fn {k, t} -> {k, host.(t)} end))

        start_supervised!(
          {Nx.Serving, serving: serving, name: name, batch_timeout: 1, distribution_weight: 3},
          id: name
        )

        # Twice for each partition, thrice by the weight.
        members = :pg.get_members(Nx.Serving.PG, name)
        assert length(members) == 6
        rows = rows(3)

        for place <- [name, {:local, name}, {:distributed, name}] do
          assert answer(Nx.Serving.batched_run(place, batch(rows))) == expected(rows)
        end
      end
    end

    @tag :telemetry
    test "gives entries and parts of a stream back in their order, whichever is ready first",
         context do
      serving = Serving.new(everywhere(4, instances: 3))
      start(serving, context.name)
      streaming = Module.concat(context.name, Stream)

      start_supervised!(
        {Nx.Serving, serving: Nx.Serving.streaming(serving), name: streaming, batch_timeout: 1},
        id: streaming
      )

      handler = fn -> :rand.uniform(3) end

      :telemetry.attach(
        context.name,
        [:nx, :serving, :execute, :start],
        &__MODULE__.late/4,
        handler
      )

      on_exit(fn -> :telemetry.detach(context.name) end)

      1..16
      |> Task.async_stream(
        fn i ->
          :rand.seed(:exsss, {ExUnit.configuration()[:seed], i, 1})

          for _ <- 1..10 do
            rows = rows(9 + i)
            assert answer(Nx.Serving.batched_run(context.name, batch(rows))) == expected(rows)
            stream = Nx.Serving.batched_run(streaming, batch(rows))
            {y, sum} = stream |> Enum.map(fn {:batch, out, _} -> answer(out) end) |> Enum.unzip()
            assert {Enum.concat(y), Enum.concat(sum)} == expected(rows)
          end
        end,
        max_concurrency: 16,
        timeout: 300_000
      )
      |> Enum.each(&assert {:ok, _} = &1)
    end

    test "may have one partition, or be given a smaller task", context do
      serving = Serving.new(product(4, instances: 3))
      start(serving, context.name, partitions: false, hibernate_after: 1)
      rows = rows(4)
      assert answer(Nx.Serving.batched_run(context.name, batch(rows))) == expected(rows)
      assert length(:pg.get_members(Nx.Serving.PG, context.name)) == 1
    end
  end

  def late(_event, _measurements, %{module: Nitrox.Serving}, milliseconds) do
    Process.sleep(milliseconds.())
  end

  def gate(_event, _measurements, %{module: Nitrox.Serving}, test) do
    send(test, {:started, self()})

    receive do
      :go -> :ok
    after
      60_000 -> exit(:nobody_came)
    end
  end

  describe "tensors of a caller" do
    setup do
      %{device: List.last(devices())}
    end

    test "stay on the device of the serving, as do the results", %{device: device, name: name} do
      start(Serving.new(product(4, device: device, outputs: :tensor)), name)
      rows = rows(3)
      x = tensor(rows, backend: {Backend, device: device})
      out = Nx.Serving.batched_run(name, Nx.Batch.concatenate([x]))
      assert %{data: %{__struct__: Backend, device: ^device}} = out.y
      assert answer(out) == expected(rows)
    end

    @tag :telemetry
    test "cross over neither way where both sides are on the device",
         %{device: device, name: name} do
      serving = Serving.new(product(4, device: device, outputs: :tensor))
      start(serving, name)
      x = tensor(rows(3), backend: {Backend, device: device})
      test = self()
      event = [:nitrox, :tensor, :transfer]
      :telemetry.attach(name, event, &__MODULE__.tell/4, {test, name})
      on_exit(fn -> :telemetry.detach(name) end)

      # Filled up, full, and cut in two.
      for parts <- [[x], [x, x[0..0]], [x, x]] do
        Nx.Serving.batched_run(name, Nx.Batch.concatenate(parts))
        refute_received {^name, _}
      end

      Nx.Serving.batched_run(name, batch(rows(1), backend: Nx.BinaryBackend))
      # The entries of the host go up with the launch: no transfer of its own either.
      refute_received {^name, _}
    end

    test "of the host, of a device and of another backend meet in one batch",
         %{device: device, name: name} do
      start(Serving.new(everywhere(6, [])), name, batch_timeout: 50)

      tasks =
        for backend <- [Nx.BinaryBackend | for(d <- devices(), do: {Backend, device: d})],
            rows = rows(2) do
          Task.async(fn ->
            got = Nx.Serving.batched_run(name, batch(rows, backend: backend))
            assert answer(got) == expected(rows)
          end)
        end

      Task.await_many(tasks, 60_000)
      assert device in devices()
    end

    test "may be given up once they are in the batch", %{device: device} do
      serving = Serving.new(product(4, device: device))
      rows = rows(2)
      x = tensor(rows, backend: {Backend, device: device})
      {batch, nil} = serving.client_preprocessing.(Nx.Batch.concatenate([x]))
      :ok = Nx.backend_deallocate(x)
      again = %{serving | client_preprocessing: fn batch -> {batch, nil} end}
      assert answer(Nx.Serving.run(again, batch)) == expected(rows)

      # The caller learns of it, not the batch.
      assert %Error{reason: :deallocated} =
               catch_error(Nx.Serving.run(serving, Nx.Batch.concatenate([x])))
    end
  end

  describe "what goes wrong" do
    test "in one request is that caller's alone", context do
      pid = start(Serving.new(product(8, [])), context.name, batch_timeout: 20)
      server = Process.whereis(context.name)

      bad = [
        {"an entry of the batch is f32[4], got f32[5]",
         Nx.Batch.stack([Nx.iota({5}, type: :f32)])},
        {"an entry of the batch is f32[4], got s32[4]", Nx.Batch.stack([Nx.iota({4})])},
        {"a batch must be a tensor, got a tuple", Nx.Batch.stack([{tensor([1]), tensor([1])}])},
        {"unknown batch key :other", Nx.Batch.key(batch(rows(1)), :other)},
        {"an Nx.Batch or a stream of them was expected", :nothing},
        {"an Nx.Batch or a stream of them was expected", tensor(rows(1))}
      ]

      1..64
      |> Task.async_stream(
        fn i ->
          if rem(i, 3) == 0 do
            {message, input} = Enum.at(bad, rem(i, length(bad)))
            error = catch_error(Nx.Serving.batched_run(context.name, input))
            assert %Error{reason: :argument, op: :serving} = error
            assert error.message =~ message
          else
            rows = for j <- 1..2, do: [i, j, 1, 0]
            assert answer(Nx.Serving.batched_run(context.name, batch(rows))) == expected(rows)
          end
        end,
        max_concurrency: 64,
        timeout: 60_000
      )
      |> Enum.each(&assert {:ok, _} = &1)

      assert Process.alive?(pid)
      assert Process.whereis(context.name) == server
    end

    @tag :capture_log
    test "while a batch runs is of those in it, and the next ones are answered", context do
      # Without the look at the batch in the caller.
      serving =
        Serving.new(product(4, instances: 2))
        |> Nx.Serving.client_preprocessing(fn x ->
          numbers = Nx.iota({Nx.axis_size(x, 0)}, type: :s64)
          {Nx.Batch.concatenate([{x, numbers}]), nil}
        end)

      start(serving, context.name)
      server = Process.whereis(context.name)
      wrong = Nx.iota({4, 4}, type: :s32)

      for _ <- 1..5 do
        assert {{%Error{op: :serving}, _stack}, _call} =
                 catch_exit(Nx.Serving.batched_run(context.name, wrong))

        rows = rows(4)
        assert answer(Nx.Serving.batched_run(context.name, tensor(rows))) == expected(rows)
      end

      assert Process.whereis(context.name) == server
    end

    test "hooks, of which a program has none", context do
      serving = Nx.Serving.streaming(Serving.new(product(4, [])), hooks: [:token])

      Process.flag(:trap_exit, true)

      assert {:error, {{:shutdown, {:failed_to_start_child, _, {error, _}}}, _}} =
               start_supervised({Nx.Serving, serving: serving, name: context.name})

      assert %Error{message: "serving: a program has no hooks to stream"} = error
    end

    test "in the programs is said when the serving is made" do
      x = Nitrox.template({4, 2}, {:f, 32})
      compile = fn fun, templates, options -> Program.compile(fun, templates, options) end
      whole = compile.(&Nitrox.sum/1, [x], [])
      two = compile.(&Nitrox.add/2, [x, x], [])
      list = compile.(fn x -> [Nitrox.negate(x)] end, [x], [])

      state =
        compile.(fn x, s -> {x, Nitrox.add(s, x)} end, [x],
          state: Nitrox.broadcast_to(Nitrox.tensor(0.0), {4, 2})
        )

      a = product(4, [])
      b = compile.(&Nitrox.negate/1, [Nitrox.template({8, 2}, {:f, 32})], [])

      for {programs, message} <- [
            {[], "a program is needed"},
            {%{}, "a program is needed"},
            {%{a: [], b: []}, "a program is needed"},
            {:program, "programs were expected"},
            {[:program], "a Nitrox.Program was expected, got :program"},
            {whole, "the first axis of all inputs and outputs is the batch"},
            {two, "a program of one argument was expected, this one takes 2"},
            {list, "containers of Nx have no lists"},
            {state, "a program with a state runs in sessions"},
            {[a, b], "programs of the key :default differ"},
            {[a, product(8, outputs: :tensor)], "programs of the key :default differ"},
            {[a, a], "two programs of the key :default take 4 entries on :cpu"},
            {[product(4, outputs: :tensor), elsewhere(product(4, outputs: :tensor))],
             "can't be put together"},
            {%{a: a, b: b}, "no program of the key :a takes 8 entries on :cpu"},
            {%{a: a, b: []}, "no program of the key :b takes 4 entries on :cpu"}
          ] do
        error = catch_error(Serving.new(programs))
        assert %Error{reason: :argument, op: :serving} = error
        assert error.message =~ message
      end

      for {options, message} <- [
            {[preprocessing: & &1], "unknown option :preprocessing; known are :client_prep"},
            {[client_preprocessing: fn -> 1 end], "expected a function of 1 arguments"},
            {[client_postprocessing: & &1], "expected a function of 2 arguments"},
            {:none, "options must be a keyword list"}
          ] do
        assert %Error{op: :serving} = error = catch_error(Serving.new(a, options))
        assert error.message =~ message
      end

      serving = Serving.new(a, client_preprocessing: &elem(&1, 0))
      error = catch_error(Nx.Serving.run(serving, {:no_pair}))
      assert error.message =~ "a preprocessing gives {batch, info}, got :no_pair"
    end
  end

  # Of the caller, and of the tasks of the server.
  def tell(_event, _measurements, metadata, {test, name}) do
    if test in [self() | Process.get(:"$callers", [])] or
         Process.whereis(name) in Process.get(:"$callers", []),
       do: send(test, {name, metadata})
  end
end
