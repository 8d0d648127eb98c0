defmodule Nitrox.Telemetry do
  @moduledoc """
  The events of Nitrox, for machines where the `:telemetry` application is there. It is looked for
  once, when Nitrox starts.

  | event | measurements | metadata |
  |---|---|---|
  | `[:nitrox, :op, :run]` | `duration` | `op`, such as `:dense`; `device`. An eager op; on CUDA its launch, not its end |
  | `[:nitrox, :op, :fallback]` | `count`: 1 | `op`, `device`, `why`: an op takes a longer way than its best variant, at each eager run and once when a program is compiled |
  | `[:nitrox, :fallback]` | `count`: 1 | `op`, `device`, `why`: a call of Nx went through the host (see `Nitrox.Backend`) |
  | `[:nitrox, :axon, :fallback]` | `count`: 1 | `layer`, such as `"lstm_0"`; `op`, such as `:lstm`; `why`: a layer of an accelerated model is as Axon has it after all (see `Nitrox.Axon.accelerate/2`), each time that the model is traced |
  | `[:nitrox, :compile]` | `duration` | `device`, `programs`: how many there are, `host`: what is done between them, such as `:while`. `Nitrox.Compiler` compiled a function |
  | `[:nitrox, :program, :compile]` | `duration` | `device`, `info` (as of `Nitrox.Program.info/1`) |
  | `[:nitrox, :program, :run]` | `duration` | `program` |
  | `[:nitrox, :session, :step]` | `duration` | `session`: a frame |
  | `[:nitrox, :session, :prepare]` | `duration` | `session`: what `Nitrox.Session.prepare/1` did; up to 10 of them a frame with `prepare_until/2` |
  | `[:nitrox, :kernel, :load]` | `duration` | `kernel`, `device`, `from`: `:cache` (of the disk) or `:compiler` (NVRTC) |
  | `[:nitrox, :tensor, :transfer]` | `duration`, `bytes` | `device`, `direction`: `:to_device`, `:to_host` or `:copy`, to `device` from the same or another |
  | `[:nitrox, :memory, :trimmed]` | `bytes`, `segments` | `device`: unused memory went back to the system |
  | `[:nitrox, :memory, :out_of_memory]` | `requested`, `in_use`, `reserved`, `largest_free` | `device`: an allocation failed |
  | `[:nitrox, :memory, :collected]` | `duration` | `call`: all processes were collected, as that call ran out of memory, which it then makes once more |

  Durations are in native units (`System.convert_time_unit/3`), sizes in bytes. A call that raises has
  no event of its own. What programs and sessions read and write themselves is part of their run.

  Without `:telemetry` a call pays for the look at a flag. With it and no handler, an eager op of two
  elements on the CPU device took 3.1 to 3.2 µs instead of 2.5 and a step of a small session 1.1 µs
  instead of 0.8; a handler that does nothing took the step another 0.1 µs (medians of
  `bench/telemetry.exs`, on two busy cores).

  Handlers of `:op, :fallback`, `:kernel`, `:memory, :trimmed` and `:memory, :out_of_memory` run in a
  process of Nitrox, a moment later; those of all others in the process that made the call.
  """

  @doc false
  def setup do
    :persistent_term.put(__MODULE__, match?({:ok, _}, Application.ensure_all_started(:telemetry)))
  end

  @doc false
  # The key is an atom: the VM would hash a tuple at each call, word for word.
  def on?, do: :persistent_term.get(__MODULE__, false)

  @doc false
  # Through apply, since the module may not be there when this one is compiled.
  def execute(event, measurements, metadata) do
    if on?(), do: apply(:telemetry, :execute, [event, measurements, metadata])
    :ok
  end

  @doc false
  # What the body gives; where somebody may listen, the event after it, with how long it took and
  # what else was measured, a keyword list.
  defmacro span(event, metadata, measurements \\ [], do: body) do
    quote do
      if :persistent_term.get(Nitrox.Telemetry, false) do
        started = :erlang.monotonic_time()
        result = unquote(body)
        duration = :erlang.monotonic_time() - started
        measurements = %{unquote_splicing(measurements), duration: duration}
        apply(:telemetry, :execute, [unquote(event), measurements, unquote(metadata)])
        result
      else
        unquote(body)
      end
    end
  end

  defmodule Relay do
    @moduledoc false
    # Makes events of what the library tells. It is told by messages, since it happens in the middle
    # of a native call.
    use GenServer

    alias Nitrox.{Native, Telemetry}

    def start_link(_), do: GenServer.start_link(__MODULE__, nil, name: __MODULE__)

    @impl true
    def init(nil) do
      # Where there is no library each call says so, and there are no events.
      Native.listen(self())
      {:ok, nil}
    end

    @impl true
    def handle_info(message, state) do
      tell(message)
      {:noreply, state}
    end

    defp tell({:nitrox_event, :kernel, device, kernel, from, nanoseconds}) do
      duration = System.convert_time_unit(nanoseconds, :nanosecond, :native)
      metadata = %{kernel: kernel, device: device, from: from}
      Telemetry.execute([:nitrox, :kernel, :load], %{duration: duration}, metadata)
    end

    defp tell({:nitrox_event, :trimmed, device, bytes, segments}) do
      measurements = %{bytes: bytes, segments: segments}
      Telemetry.execute([:nitrox, :memory, :trimmed], measurements, %{device: device})
    end

    defp tell({:nitrox_event, :out_of_memory, device, requested, stats}) do
      measurements =
        stats |> Map.take([:in_use, :reserved, :largest_free]) |> Map.put(:requested, requested)

      Telemetry.execute([:nitrox, :memory, :out_of_memory], measurements, %{device: device})
    end

    defp tell({:nitrox_event, :fallback, device, op, why}) do
      metadata = %{op: op, device: device, why: why}
      Telemetry.execute([:nitrox, :op, :fallback], %{count: 1}, metadata)
    end

    defp tell(_), do: :ok
  end
end
