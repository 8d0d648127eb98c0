defmodule Nitrox.Application do
  @moduledoc false
  use Application

  alias Nitrox.Telemetry

  @impl true
  def start(_type, _args) do
    Telemetry.setup()
    relay = if Telemetry.on?(), do: [Telemetry.Relay], else: []

    # However often the relay ends, that is no reason for the application to end, and the VM with it.
    Supervisor.start_link([Nitrox.Nx.Cache | relay],
      strategy: :one_for_one,
      max_restarts: 1_000,
      max_seconds: 1,
      name: Nitrox.Supervisor
    )
  end
end
