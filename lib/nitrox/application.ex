defmodule Nitrox.Application do
  @moduledoc false
  use Application

  alias Nitrox.Telemetry

  @impl true
  def start(_type, _args) do
    Telemetry.setup()
    relay = if Telemetry.on?(), do: [Telemetry.Relay], else: []

    Supervisor.start_link([Nitrox.Nx.Cache | relay],
      strategy: :one_for_one,
      name: Nitrox.Supervisor
    )
  end
end
