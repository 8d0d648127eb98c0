defmodule Nitrox.Container do
  @moduledoc false
  # Nested tuples, lists and maps of leaves, flattened in a fixed order (lists and tuples by
  # position, maps by their sorted keys) and put together again.
  #
  # A skeleton is a container without its leaves: `:leaf`, `{:list, [skeleton]}`,
  # `{:tuple, [skeleton]}` or `{:map, [{key, skeleton}]}`.

  alias Nitrox.Error

  @type skeleton ::
          :leaf
          | {:list, [skeleton()]}
          | {:tuple, [skeleton()]}
          | {:map, [{term(), skeleton()}]}

  @doc """
  The leaves of a container and its skeleton. `what` names it in errors, `leaf?` tells a leaf.
  """
  @spec flatten(term(), atom(), String.t(), (term() -> boolean())) :: {[term()], skeleton()}
  def flatten(container, op, what, leaf?) do
    {leaves, skeleton} = collect(container, {op, what, leaf?}, [], [])
    {Enum.reverse(leaves), skeleton}
  end

  defp collect(term, {op, what, leaf?} = context, path, leaves) do
    cond do
      leaf?.(term) ->
        {[term | leaves], :leaf}

      is_list(term) and not List.improper?(term) ->
        {leaves, parts} = collect_each(Enum.with_index(term), context, path, leaves)
        {leaves, {:list, Enum.map(parts, &elem(&1, 1))}}

      is_tuple(term) ->
        parts = term |> Tuple.to_list() |> Enum.with_index()
        {leaves, parts} = collect_each(parts, context, path, leaves)
        {leaves, {:tuple, Enum.map(parts, &elem(&1, 1))}}

      is_map(term) and not is_struct(term) ->
        parts = for {key, value} <- Enum.sort(term), do: {value, key}
        {leaves, parts} = collect_each(parts, context, path, leaves)
        {leaves, {:map, parts}}

      true ->
        raise Error.argument(op, "#{what}#{path_text(path)} can't be #{describe(term)}")
    end
  end

  defp collect_each(parts, context, path, leaves) do
    {parts, leaves} =
      Enum.map_reduce(parts, leaves, fn {term, key}, leaves ->
        {leaves, skeleton} = collect(term, context, [key | path], leaves)
        {{key, skeleton}, leaves}
      end)

    {leaves, parts}
  end

  @doc """
  The leaves of a container that has to be of a skeleton, each given by `leaf` with its path.
  """
  @spec leaves(term(), skeleton(), atom(), String.t(), (term() -> leaf)) :: [leaf]
        when leaf: term()
  def leaves(container, skeleton, op, what, leaf) do
    container |> gather(skeleton, {op, what, leaf}, [], []) |> Enum.reverse()
  end

  defp gather(term, :leaf, {op, what, leaf}, path, acc) do
    case leaf.(term) do
      {:error, expected} ->
        message = "#{what}#{path_text(path)} must be #{expected}, got #{describe(term)}"
        raise Error.argument(op, message)

      {:ok, leaf} ->
        [leaf | acc]
    end
  end

  defp gather(term, {:list, parts}, context, path, acc)
       when is_list(term) and length(term) == length(parts),
       do: gather_each(term, parts, context, path, 0, acc)

  defp gather(term, {:tuple, parts}, context, path, acc)
       when is_tuple(term) and tuple_size(term) == length(parts),
       do: gather_each(Tuple.to_list(term), parts, context, path, 0, acc)

  defp gather(term, {:map, parts} = skeleton, {op, what, _} = context, path, acc)
       when is_map(term) and map_size(term) == length(parts) do
    Enum.reduce(parts, acc, fn {key, part}, acc ->
      case term do
        %{^key => value} -> gather(value, part, context, [key | path], acc)
        _ -> mismatch(op, what, path, skeleton, term)
      end
    end)
  end

  defp gather(term, skeleton, {op, what, _}, path, _),
    do: mismatch(op, what, path, skeleton, term)

  defp gather_each([term | terms], [part | parts], context, path, i, acc) do
    acc = gather(term, part, context, [i | path], acc)
    gather_each(terms, parts, context, path, i + 1, acc)
  end

  defp gather_each([], [], _, _, _, acc), do: acc

  @doc """
  A container of a skeleton, with the leaves given.
  """
  @spec build(skeleton(), [term()]) :: term()
  def build(skeleton, leaves) do
    {container, []} = take(skeleton, leaves)
    container
  end

  # A frame's answers go through here: no functions passed on, no other module's code.
  defp take(:leaf, [leaf | leaves]), do: {leaf, leaves}
  defp take({:list, parts}, leaves), do: take_each(parts, leaves, [])

  defp take({:tuple, parts}, leaves) do
    {terms, leaves} = take_each(parts, leaves, [])
    {:erlang.list_to_tuple(terms), leaves}
  end

  defp take({:map, parts}, leaves), do: take_pairs(parts, leaves, [])

  defp take_each([:leaf | parts], [leaf | leaves], terms),
    do: take_each(parts, leaves, [leaf | terms])

  defp take_each([part | parts], leaves, terms) do
    {term, leaves} = take(part, leaves)
    take_each(parts, leaves, [term | terms])
  end

  defp take_each([], leaves, terms), do: {:lists.reverse(terms), leaves}

  defp take_pairs([{key, part} | parts], leaves, pairs) do
    {term, leaves} = take(part, leaves)
    take_pairs(parts, leaves, [{key, term} | pairs])
  end

  defp take_pairs([], leaves, pairs), do: {:maps.from_list(pairs), leaves}

  @doc """
  As in an error: what a skeleton is of.
  """
  def mismatch(op, what, path \\ [], skeleton, got) do
    message = "#{what}#{path_text(path)} must be #{text(skeleton)}, got #{describe(got)}"
    raise Error.argument(op, message)
  end

  defp text(:leaf), do: "a tensor"
  defp text({kind, parts}) when kind in [:list, :tuple], do: "a #{kind} of #{length(parts)}"

  defp text({:map, parts}) do
    "a map with the keys #{Enum.map_join(parts, ", ", &inspect(elem(&1, 0)))}"
  end

  defp describe(term) when is_binary(term), do: "a binary of #{byte_size(term)} bytes"
  defp describe(term) when is_tuple(term), do: "a tuple of #{tuple_size(term)}"
  defp describe(%module{}), do: "a #{inspect(module)}"

  defp describe(term) when is_list(term) do
    if List.improper?(term), do: "an improper list", else: "a list of #{length(term)}"
  end

  defp describe(term) when is_map(term) do
    keys = term |> Map.keys() |> Enum.sort() |> Enum.take(10)
    "a map with the keys #{Enum.map_join(keys, ", ", &inspect/1)}"
  end

  defp describe(term), do: inspect(term)

  defp path_text(path) do
    path |> Enum.reverse() |> Enum.map_join(&"[#{inspect(&1)}]")
  end
end
