# What goes wrong on a machine, on purpose. Nothing of it may take the VM along, and what was held
# before is there afterwards.
for {name, device, tags} <- [{:CPU, :cpu, []}, {:CUDA, {:cuda, 0}, [cuda: true]}] do
  defmodule Module.concat(Nitrox.FaultsTest, name) do
    # Counts what the device holds.
    use ExUnit.Case, async: false

    @moduletag tags
    @device device

    alias Nitrox.{Program, Session, TestMemory, TestVM, Tensor}

    defp f32(list), do: Tensor.tensor(list, type: {:f, 32}, device: @device)

    # Gives `{count, sum}`, and keeps them.
    defp counter(options) do
      fun = fn x, {count, sum} ->
        {count, sum} = {Nitrox.add(count, 1), Nitrox.add(sum, x)}
        {{count, sum}, {count, sum}}
      end

      state = {Tensor.tensor(0, device: @device), f32([0, 0])}
      templates = [Nitrox.template({2}, {:f, 32})]
      Program.compile(fun, templates, [device: @device, state: state] ++ options)
    end

    describe "out of memory in the middle of a program" do
      # A device with room for three of the outputs, and a session with a state that is written in
      # place and one that is not.
      @script """
      device = DEVICE
      Application.put_env(:nitrox, :devices, [{device, memory_limit: 64 * 1024 ** 2}])
      {:ok, _} = Application.ensure_all_started(:nitrox)
      alias Nitrox.{Program, Session, Tensor}
      n = 4 * 1024 ** 2
      zeros = fn shape -> Nitrox.broadcast_to(Nitrox.tensor(0.0, device: device), shape) end

      fun = fn x, {ring, at, sum} ->
        ring = Nitrox.put_slice(ring, [0], Nitrox.reshape(x, {1}), position: at, wrap: true)
        sum = Nitrox.add(sum, x)
        big = Nitrox.broadcast_to(sum, {n})
        {{big, ring}, {ring, Nitrox.add(at, 1), sum}}
      end

      state = {zeros.({4}), Nitrox.tensor(0, device: device), Nitrox.tensor(0.0, device: device)}
      program = Program.compile(fun, [Nitrox.template({}, {:f, 32})], device: device, state: state)
      session = Session.new(program)
      one = Nitrox.tensor(1.0, device: device)
      two = Nitrox.tensor(2.0, device: device)

      # Held until there is no room for one more.
      held =
        Enum.reduce_while(1..10, [], fn _, held ->
          try do
            {:cont, [Session.step(session, [one]) | held]}
          rescue
            error in Nitrox.Error -> (true = error.reason == :out_of_memory; {:halt, held})
          end
        end)

      steps = length(held)
      true = steps in 1..9
      state = fn -> session |> Session.state() |> Tuple.to_list() |> Enum.map(&Nitrox.to_list/1) end
      before = state.()

      for _ <- 1..3 do
        error = try(do: Session.step(session, [two]), rescue: (e -> e))
        %Nitrox.Error{reason: :out_of_memory, message: message} = error
        true = message =~ "limit"
        # The step that failed has not begun, for the ring neither.
        ^before = state.()
      end

      # What was held is whole.
      for {{big, _}, i} <- Enum.with_index(held), expected = (steps - i) * 1.0 do
        <<first::float-32-native, _::binary>> = bytes = Tensor.to_binary(big)
        ^expected = first
        true = bytes == :binary.copy(<<expected::float-32-native>>, n)
      end

      # Room again: the next call works, and goes on from where it was.
      for {big, _} <- held, do: Tensor.deallocate(big)
      {big, ring} = Session.step(session, [two])
      <<sum::float-32-native, _::binary>> = Tensor.to_binary(big)
      true = sum == steps + 2.0
      expected = Enum.reduce(0..(steps - 1), [0.0, 0.0, 0.0, 0.0], &List.replace_at(&2, rem(&1, 4), 1.0))
      true = Nitrox.to_list(ring) == List.replace_at(expected, rem(steps, 4), 2.0)
      IO.puts("whole after \#{steps} steps")
      """

      test "what was held is whole, and the next call works" do
        {out, status} = TestVM.run(String.replace(@script, "DEVICE", inspect(@device)))
        assert status == 0, out
        assert out =~ ~r/whole after \d steps/
      end
    end

    test "processes that are killed in their steps leave a session that works, and nothing else" do
      work = fn ->
        session = Session.new(counter(outputs: :binary))
        x = <<1.0::float-32-native, 1.0::float-32-native>>

        for _ <- 1..40 do
          pids =
            for _ <- 1..4 do
              spawn(fn ->
                Stream.repeatedly(fn -> Session.step(session, [x]) end) |> Stream.run()
              end)
            end

          Process.sleep(:rand.uniform(4))
          monitors = Enum.map(pids, &Process.monitor/1)
          Enum.each(pids, &Process.exit(&1, :kill))
          for m <- monitors, do: assert_receive({:DOWN, ^m, :process, _, :killed})

          # Its turn comes, and whole steps were made.
          {<<count::32-native>>, <<sum::float-32-native, _::32>>} = Session.step(session, [x])
          assert sum == count * 1.0
        end
      end

      assert TestMemory.leaks(@device, work) == {0, 0}
    end

    describe "64 processes at once" do
      defp from_64(fun) do
        1..64
        |> Task.async_stream(fun, max_concurrency: 64, timeout: :infinity, ordered: false)
        |> Enum.map(fn {:ok, answer} -> answer end)
      end

      for instances <- [1, 4] do
        test "on a program of #{instances} instance(s) get each its own answers, and leak nothing" do
          work = fn ->
            w = f32(for i <- 1..16, do: for(j <- 1..16, do: if(i == j, do: 2.0, else: 0.0)))
            fun = fn x, y -> {Nitrox.dense(x, w, nil), Nitrox.add(Nitrox.sum(x), y)} end
            templates = [Nitrox.template({1, 16}, {:f, 32}), Nitrox.template({}, {:f, 32})]
            options = [device: @device, instances: unquote(instances)]
            bytes = Program.compile(fun, templates, [outputs: :binary] ++ options)
            tensors = Program.compile(fun, templates, options)

            from_64(fn i ->
              for n <- 1..25 do
                x = :binary.copy(<<i * 1.0::float-32-native>>, 16)
                y = <<n * 1.0::float-32-native>>
                doubled = :binary.copy(<<i * 2.0::float-32-native>>, 16)
                total = 16.0 * i + n
                assert {^doubled, <<^total::float-32-native>>} = Program.run(bytes, [x, y])
                {a, b} = Program.run(tensors, [x, y])
                assert Tensor.to_binary(a) == doubled
                assert Tensor.to_number(b) == total
              end
            end)
          end

          assert TestMemory.leaks(@device, work) == {0, 0}
        end
      end

      test "on a session have their steps in the order of their calls, none lost and none twice" do
        work = fn ->
          session = Session.new(counter(outputs: :binary))
          x = <<1.0::float-32-native, 0.0::float-32-native>>

          counts =
            from_64(fn _ ->
              own =
                for _ <- 1..25 do
                  {<<count::32-native>>, _} = Session.step(session, [x])
                  count
                end

              assert own == Enum.sort(own)
              own
            end)

          assert counts |> Enum.concat() |> Enum.sort() == Enum.to_list(1..1600)
        end

        assert TestMemory.leaks(@device, work) == {0, 0}
      end
    end
  end
end

defmodule Nitrox.FaultsTest.Libraries do
  # VMs of their own: a library that was opened stays open.
  use ExUnit.Case, async: true

  alias Nitrox.TestVM

  test "without a driver, or with all its cards hidden, the error says what was looked for" do
    script = """
    {:ok, _} = Application.ensure_all_started(:nitrox)
    {:error, %Nitrox.Error{reason: :unavailable} = error} = Nitrox.Device.get({:cuda, 0})
    IO.puts(error.message)
    IO.puts(error.hint)
    # Again, and by a call that needs it, and the CPU serves on.
    {:error, ^error} = Nitrox.Device.get({:cuda, 0})
    ^error = try(do: Nitrox.tensor(1, device: {:cuda, 0}), rescue: (e -> e))
    [_cpu] = Nitrox.devices()
    [2.0] = Nitrox.tensor([1.0]) |> Nitrox.add(1) |> Nitrox.to_list()
    IO.puts("served on")
    """

    {out, status} = TestVM.run(script, [{"CUDA_VISIBLE_DEVICES", "-1"}])
    assert status == 0, out
    assert out =~ "{:cuda, 0} is not available"
    # Without a driver the one, with all cards hidden the other.
    assert out =~ ~r/libcuda\.so\.1 .*searched|libcuda\.so\.1 .*were looked for/ or
             out =~ "shows no GPU"

    assert out =~ "install the NVIDIA driver"
    assert out =~ "served on"
  end

  @tag :cuda
  test "without libnvrtc a kernel is refused with every place that was tried; the VM serves on" do
    script = """
    {:ok, _} = Application.ensure_all_started(:nitrox)
    x = Nitrox.tensor([1.0], device: {:cuda, 0})

    for _ <- 1..2 do
      error = try(do: Nitrox.tanh(x), rescue: (e -> e))
      %Nitrox.Error{reason: :unavailable} = error
      IO.puts(Exception.message(error))
    end

    # What needs no kernel works, here and on the CPU.
    [1.0] = Nitrox.to_list(Nitrox.copy(x))
    [2.0] = x |> Nitrox.copy(:cpu) |> Nitrox.add(1) |> Nitrox.to_list()
    IO.puts("served on")
    """

    env = [
      {"NITROX_NVRTC_PATH", "/nowhere/libnvrtc.so"},
      {"NITROX_CACHE", TestVM.folder("cache")}
    ]

    {out, status} = TestVM.run(script, env)
    assert status == 0, out
    assert out =~ "looked for libnvrtc: /nowhere/libnvrtc.so"
    assert out =~ "NITROX_NVRTC_PATH is /nowhere/libnvrtc.so"
    assert out =~ "served on"
  end

  @tag :cuda
  test "a cache whose every entry is damaged is built anew" do
    cache = TestVM.folder("cache")

    script = """
    {:ok, _} = Application.ensure_all_started(:nitrox)
    x = Nitrox.tensor([0.0, 1.0], device: {:cuda, 0})
    [1.0, 2.0] = x |> Nitrox.add(1) |> Nitrox.to_list()
    [0.0, 1.0] = x |> Nitrox.relu() |> Nitrox.to_list()
    IO.puts("right")
    """

    run = fn ->
      {out, status} = TestVM.run(script, [{"NITROX_CACHE", cache}])
      assert status == 0, out
      assert out =~ "right"
    end

    run.()
    entries = Path.wildcard(Path.join(cache, "nitrox/kernels/*/*.cubin"))
    assert length(entries) >= 2
    whole = Map.new(entries, &{&1, File.read!(&1)})

    damages = [
      fn _ -> "" end,
      fn bytes -> binary_part(bytes, 0, div(byte_size(bytes), 2)) end,
      fn bytes ->
        at = div(byte_size(bytes), 2)
        <<before::binary-size(at), byte, rest::binary>> = bytes
        <<before::binary, Bitwise.bxor(byte, 1), rest::binary>>
      end,
      fn bytes -> :rand.bytes(byte_size(bytes)) end
    ]

    for damage <- damages do
      for {path, bytes} <- whole, do: File.write!(path, damage.(bytes))
      run.()
      for {path, bytes} <- whole, do: assert(File.read!(path) == bytes, path)
    end
  end
end
