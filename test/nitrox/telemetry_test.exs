defmodule Nitrox.TelemetryTest do
  use ExUnit.Case, async: false

  alias Nitrox.{Program, Session, Telemetry, Tensor}
  @moduletag :telemetry

  def handle(event, measurements, metadata, pid) do
    send(pid, {event, measurements, metadata})
  end

  setup do
    events = [
      [:nitrox, :program, :compile],
      [:nitrox, :program, :run],
      [:nitrox, :session, :step],
      [:nitrox, :memory, :collected]
    ]

    # As an application's own module: this one is not there for the compiler on every machine.
    apply(:telemetry, :attach_many, [__MODULE__, events, &__MODULE__.handle/4, self()])
    on_exit(fn -> apply(:telemetry, :detach, [__MODULE__]) end)
  end

  test "compiling, runs and steps are told of" do
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
  end
end
