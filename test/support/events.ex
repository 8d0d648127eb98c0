defmodule Nitrox.TestEvents do
  @moduledoc false
  # The telemetry of this process while a function runs.

  @doc """
  What the function gives, and the events of these names that this process made meanwhile, in their
  order: `{name, measurements and metadata}`.
  """
  @spec all([[atom()]], (-> result)) :: {result, [{[atom()], map()}]} when result: term()
  def all(names, fun) do
    id = make_ref()
    :ok = apply(:telemetry, :attach_many, [id, names, &__MODULE__.handle/4, {self(), id}])

    try do
      result = fun.()
      {result, received(id, [])}
    after
      apply(:telemetry, :detach, [id])
    end
  end

  @doc "As `all/2`, with the names' last parts."
  @spec during([[atom()]], (-> result)) :: {result, [{atom(), map()}]} when result: term()
  def during(names, fun) do
    {result, events} = all(names, fun)
    {result, for({name, details} <- events, do: {List.last(name), details})}
  end

  @doc false
  def handle(event, measurements, metadata, {parent, id}) do
    if self() == parent, do: send(parent, {id, event, Map.merge(measurements, metadata)})
  end

  defp received(id, events) do
    receive do
      {^id, event, details} -> received(id, [{event, details} | events])
    after
      0 -> Enum.reverse(events)
    end
  end
end
