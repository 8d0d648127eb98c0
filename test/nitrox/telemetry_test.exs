defmodule Nitrox.TelemetryTest do
  # The events of other tests' calls would come in between.
  use ExUnit.Case, async: false

  alias Nitrox.{Device, Error, Native, Program, Session, Telemetry, Tensor}
  @moduletag :telemetry

  @events [
    [:nitrox, :op, :run],
    [:nitrox, :op, :fallback],
    [:nitrox, :fallback],
    [:nitrox, :axon, :fallback],
    [:nitrox, :compile],
    [:nitrox, :program, :compile],
    [:nitrox, :program, :run],
    [:nitrox, :session, :step],
    [:nitrox, :session, :prepare],
    [:nitrox, :kernel, :load],
    [:nitrox, :tensor, :transfer],
    [:nitrox, :memory, :trimmed],
    [:nitrox, :memory, :out_of_memory],
    [:nitrox, :memory, :collected]
  ]

  def handle(event, measurements, metadata, pid) do
    send(pid, {event, measurements, metadata})
  end

  setup do
    # There is one listener for all of the VM, which tests of other files give to somebody else.
    Native.listen(Process.whereis(Telemetry.Relay))
    # As an application's own module: this one is not there for the compiler on every machine.
    apply(:telemetry, :attach_many, [__MODULE__, @events, &__MODULE__.handle/4, self()])
    on_exit(fn -> apply(:telemetry, :detach, [__MODULE__]) end)
  end

  test "the table of the documentation has these events and no other" do
    {:docs_v1, _, _, _, %{"en" => doc}, _, _} = Code.fetch_docs(Telemetry)

    documented =
      for [_, names] <- Regex.scan(~r/^\| `\[:nitrox, (.+?)\]`/m, doc) do
        [:nitrox | names |> String.split(", ") |> Enum.map(&String.to_atom(tl_colon(&1)))]
      end

    assert Enum.sort(documented) == Enum.sort(@events)
  end

  defp tl_colon(":" <> name), do: name

  test "an eager op" do
    x = Tensor.tensor([1.0, 2.0])
    Nitrox.tanh(x)
    assert_received {[:nitrox, :op, :run], %{duration: duration}, %{op: :unary, device: :cpu}}
    assert duration > 0
  end

  test "compiling, runs and steps" do
    assert Telemetry.on?()
    x = Tensor.tensor([1.0, 2.0])
    program = Program.compile(&Nitrox.add(&1, 1), [x])
    assert_received {[:nitrox, :program, :compile], %{duration: duration}, metadata}
    assert duration > 0
    assert metadata == %{device: :cpu, info: Program.info(program)}

    Program.run(program, [x])
    assert_received {[:nitrox, :program, :run], %{duration: _}, %{program: ^program}}

    session = Session.new(Program.compile(fn s -> {s, s} end, [], state: x))
    Session.step(session, [])
    assert_received {[:nitrox, :session, :step], %{duration: _}, %{session: ^session}}

    # It counts as no step.
    Session.prepare(session)
    assert_received {[:nitrox, :session, :prepare], %{duration: _}, %{session: ^session}}
    refute_received {[:nitrox, :session, :step], _, _}
  end

  @tag :nx
  test "functions that the compiler of Nx compiles" do
    fun = fn x -> Nx.io_call(Nx.add(x, 1), :seen) end
    opts = [compiler: Nitrox.Compiler, device: :cpu, hooks: %{seen: fn _ -> :ok end}]
    Nx.Defn.compile(fun, [Nx.template({2}, :f32)], opts)
    assert_received {[:nitrox, :compile], %{duration: duration}, metadata}
    assert duration > 0
    assert metadata == %{device: :cpu, programs: 1, host: [:io_call]}
  end

  test "transfers, with their bytes and where they go" do
    event = [:nitrox, :tensor, :transfer]
    x = Tensor.tensor([1.0, 2.0, 3.0])
    assert_received {^event, %{bytes: 12, duration: _}, %{device: :cpu, direction: :to_device}}
    Tensor.to_list(x)
    assert_received {^event, %{bytes: 12, duration: _}, %{device: :cpu, direction: :to_host}}
    Nitrox.copy(x, :cpu)
    assert_received {^event, %{bytes: 12, duration: _}, %{device: :cpu, direction: :copy}}
    refute_received {^event, _, _}
  end

  test "memory: out of it, collected, given back" do
    one = Tensor.tensor(1, type: {:u, 8})
    bytes = 2 ** 40
    assert_raise Error, ~r/out of memory/, fn -> Nitrox.broadcast_to(one, {bytes}) end
    assert_receive {[:nitrox, :memory, :out_of_memory], measurements, %{device: :cpu}}
    assert %{requested: ^bytes, in_use: _, reserved: _, largest_free: _} = measurements
    assert_received {[:nitrox, :memory, :collected], %{duration: _}, %{call: :run_dirty}}
    # The second try, after the collection.
    assert_receive {[:nitrox, :memory, :out_of_memory], %{requested: ^bytes}, _}

    # More than any hole and any least segment, so that it has a segment to itself. The calls above
    # have given back segments too, which is not waited for here.
    idle = max(Device.memory_stats(:cpu).largest_free, 20 * 1024 ** 2) + 1
    Nitrox.deallocate(Nitrox.broadcast_to(one, {idle}))
    Device.trim(:cpu)

    assert_receive {[:nitrox, :memory, :trimmed], %{bytes: bytes, segments: segments},
                    %{device: :cpu}}
                   when bytes >= idle and segments >= 1
  end

  test "a relay that was killed is back, each time, and hears again" do
    for _ <- 1..20 do
      relay = Process.whereis(Telemetry.Relay)
      monitor = Process.monitor(relay)
      Process.exit(relay, :kill)
      assert_receive {:DOWN, ^monitor, :process, ^relay, :killed}
      await_other(relay)
    end

    one = Tensor.tensor(1, type: {:u, 8})
    assert_raise Error, fn -> Nitrox.broadcast_to(one, {2 ** 40}) end
    assert_receive {[:nitrox, :memory, :out_of_memory], _, _}
  end

  defp await_other(pid) do
    case Process.whereis(Telemetry.Relay) do
      other when is_pid(other) and other != pid -> :sys.get_state(other, :infinity)
      _ -> await_other(pid)
    end
  end

  test "nobody is told who has not asked" do
    assert Native.listen(nil) == {:ok, :ok}
    one = Tensor.tensor(1, type: {:u, 8})
    assert_raise Error, fn -> Nitrox.broadcast_to(one, {2 ** 40}) end
    :sys.get_state(Telemetry.Relay, :infinity)
    refute_received {[:nitrox, :memory, :out_of_memory], _, _}
  after
    Native.listen(Process.whereis(Telemetry.Relay))
  end

  describe "on a GPU" do
    @describetag :cuda

    test "kernels, from the compiler and from the cache" do
      # What is loaded already is not loaded again: so in a VM of its own, with a cache of its own.
      cache = Nitrox.TestVM.folder("telemetry")

      script = """
      {:ok, _} = Application.ensure_all_started(:nitrox)
      report = fn _, %{duration: d}, %{kernel: k, from: from, device: {:cuda, 0}}, pid ->
        send(pid, {k, from, d > 0})
      end
      :ok = apply(:telemetry, :attach, [:t, [:nitrox, :kernel, :load], report, self()])
      Nitrox.tanh(Nitrox.tensor([1.0], device: {:cuda, 0}))
      # Opening the device loads others.
      receive do
        {"elementwise" <> _, _, _} = told -> IO.inspect(told)
      after
        60_000 -> IO.puts("nothing")
      end
      """

      for from <- [:compiler, :cache] do
        {out, 0} = Nitrox.TestVM.run(script, [{"NITROX_CACHE", cache}])
        assert out =~ ~r/\{"elementwise[^"]*", :#{from}, true\}/
      end
    end

    test "fallbacks" do
      # A row of the norm that no block holds.
      [x, gamma] = for shape <- [{1, 200_000}, {200_000}], do: zeros(shape)
      Nitrox.rms_norm(x, gamma)
      assert_receive {[:nitrox, :op, :fallback], %{count: 1}, metadata}
      assert %{op: :rms_norm, device: {:cuda, 0}, why: why} = metadata
      assert why =~ "does not fit"
      assert Nitrox.explain(%Nitrox.Op.RmsNorm{epsilon: 1.0e-5}, [x, gamma]).why =~ "does not fit"
    end

    defp zeros(shape),
      do: Nitrox.broadcast_to(Nitrox.tensor(0.0, device: {:cuda, 0}), shape)
  end
end
