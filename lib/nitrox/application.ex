defmodule Nitrox.Application do
  @moduledoc false
  use Application

  @impl true
  def start(_type, _args) do
    Nitrox.Telemetry.setup()
    Supervisor.start_link([], strategy: :one_for_one, name: Nitrox.Supervisor)
  end
end
