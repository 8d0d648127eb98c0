defmodule Nitrox.Application do
  @moduledoc false
  use Application

  alias Nitrox.Telemetry

  @impl true
  def start(_type, _args) do
    Telemetry.setup()
    children = if Telemetry.on?(), do: [Telemetry.Relay], else: []
    Supervisor.start_link(children, strategy: :one_for_one, name: Nitrox.Supervisor)
  end
end
