# What telemetry costs: an eager op and a session's step, on the CPU device, without :telemetry, with
# it and no handler, and with a handler that does nothing.
#
#     mix run bench/telemetry.exs
#
# Medians of blocks of calls, the three settings in turn, so that a slow moment of the machine falls
# on all of them.
alias Nitrox.{Program, Session, Telemetry}

defmodule Nothing do
  def handle(_event, _measurements, _metadata, _config), do: :ok
end

x = Nitrox.tensor([1.0, 2.0])
zeros = Nitrox.tensor([0.0, 0.0])

program =
  Program.compile(fn a, s -> {s, Nitrox.add(a, s)} end, [x], state: zeros, outputs: :binary)

session = Session.new(program)
bytes = Nitrox.to_binary(x)

calls = [
  "eager op": fn -> Nitrox.tanh(x) end,
  step: fn -> Session.step(session, [bytes]) end
]

# The flag that `Nitrox.Telemetry.setup/0` sets.
flag = fn on? -> :persistent_term.put(Telemetry, on?) end
nothing = &Nothing.handle/4
events = [[:nitrox, :op, :run], [:nitrox, :session, :step], [:nitrox, :tensor, :transfer]]

settings = [
  "no :telemetry": {fn -> flag.(false) end, fn -> flag.(true) end},
  "no handler": {fn -> :ok end, fn -> :ok end},
  "a handler": {
    fn -> apply(:telemetry, :attach_many, [:bench, events, nothing, nil]) end,
    fn -> apply(:telemetry, :detach, [:bench]) end
  }
]

Telemetry.on?() || raise "the :telemetry application is not there"
{rounds, block} = {200, 500}

for {name, call} <- calls do
  times =
    for _ <- 1..rounds, {setting, {set, unset}} <- settings do
      set.()
      {us, _} = :timer.tc(fn -> for _ <- 1..block, do: call.() end)
      unset.()
      {setting, us * 1000 / block}
    end

  for {setting, _} <- settings do
    sorted = for({^setting, ns} <- times, do: ns) |> Enum.sort()
    IO.puts("#{name}, #{setting}: #{round(Enum.at(sorted, div(rounds, 2)))} ns")
  end
end
