defmodule Nitrox.Telemetry do
  @moduledoc """
  The events of Nitrox, for machines where the `:telemetry` application is there. It is looked for
  once, when Nitrox starts; without it an event costs some nanoseconds.

  | event | measurements | metadata |
  |---|---|---|
  | `[:nitrox, :program, :compile]` | `duration` | `device`, `info` (as of `Nitrox.Program.info/1`) |
  | `[:nitrox, :program, :run]` | `duration` | `program` |
  | `[:nitrox, :session, :step]` | `duration` | `session` |
  | `[:nitrox, :memory, :collected]` | `duration` | `call`: all processes were collected, as it ran out of memory |

  Durations are in native units (`System.convert_time_unit/3`).
  """

  @key {__MODULE__, :on?}

  @doc false
  def setup do
    :persistent_term.put(@key, match?({:ok, _}, Application.ensure_all_started(:telemetry)))
  end

  @doc false
  def on?, do: :persistent_term.get(@key, false)

  @doc false
  # Through apply, since the module may not be there when this one is compiled.
  def execute(event, measurements, metadata) do
    if on?(), do: apply(:telemetry, :execute, [event, measurements, metadata])
    :ok
  end

  @doc false
  # `fun`'s result; where somebody may listen, the event after it, with how long it took.
  defmacro span(event, metadata, do: body) do
    quote do
      if Nitrox.Telemetry.on?() do
        started = System.monotonic_time()
        result = unquote(body)
        duration = System.monotonic_time() - started
        Nitrox.Telemetry.execute(unquote(event), %{duration: duration}, unquote(metadata))
        result
      else
        unquote(body)
      end
    end
  end
end
