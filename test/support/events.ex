defmodule Nitrox.TestEvents do
  @moduledoc false
  # The telemetry of this process while a function runs.

  @doc """
  What the function gives, and the events of these names that this process made meanwhile, in their
  order: `{name's last part, measurements and metadata}`.
  """
  @spec during([[atom()]], (-> result)) :: {result, [{atom(), map()}]} when result: term()
  def during(names, fun) do
    id = make_ref()
    :ok = apply(:telemetry, :attach_many, [id, names, &__MODULE__.handle/4, {self(), id}])

    try do
      result = fun.()
      {result, received(id, [])}
    after
      apply(:telemetry, :detach, [id])
    end
  end

  @doc false
  def handle(event, measurements, metadata, {parent, id}) do
    message = {id, List.last(event), Map.merge(measurements, metadata)}
    if self() == parent, do: send(parent, message)
  end

  defp received(id, events) do
    receive do
      {^id, event, details} -> received(id, [{event, details} | events])
    after
      0 -> Enum.reverse(events)
    end
  end
end
