if Code.ensure_loaded?(Nx.Tensor) do
  defmodule Nitrox.Nx.Places do
    @moduledoc false
    # Where each node of an expression belongs: to the innermost branch that all its readers are in.
    # There it is computed once, and not where nobody reads it.

    alias Nx.Defn.{Composite, Expr, Tree}
    alias Nx.Tensor, as: T

    @doc """
    How many branches each node is in, by its id. `leaves` are in none.

    Of a `cond` the first condition is in what the `cond` is in, its body in one more branch, and the
    clauses after it together in another one.
    """
    def depths(leaves) do
      {readers_first, _} = Enum.reduce(leaves, {[], %{}}, &visit/2)
      paths = Enum.reduce(leaves, %{}, &read(&1, [], &2))

      readers_first
      |> Enum.reduce(paths, fn %T{data: %Expr{id: id}} = t, paths ->
        path = Map.fetch!(paths, id)

        t
        |> arguments()
        |> Enum.reduce(paths, fn {a, inner}, ps -> read(a, path ++ inner, ps) end)
      end)
      |> Map.new(fn {id, path} -> {id, length(path)} end)
    end

    defp visit(%T{data: %Expr{id: id}} = t, {order, seen}) do
      if is_map_key(seen, id) do
        {order, seen}
      else
        seen = Map.put(seen, id, true)
        read = for {argument, _} <- arguments(t), do: argument
        {order, seen} = Enum.reduce(read, {order, seen}, &visit/2)
        {[t | order], seen}
      end
    end

    defp read(%T{data: %Expr{id: id}}, path, paths),
      do: Map.update(paths, id, path, &common(&1, path))

    defp common([branch | a], [branch | b]), do: [branch | common(a, b)]
    defp common(_, _), do: []

    # What a node reads, and in which branches of its own. Other bodies see nothing of this one.
    defp arguments(%T{data: %Expr{id: id, op: :cond, args: [clauses, last]}}),
      do: clauses(clauses, last, id, [])

    defp arguments(%T{data: %Expr{op: op}}) when op in [:constant, :tensor, :parameter, :fun],
      do: []

    defp arguments(%T{} = t) do
      {_, read} =
        Tree.apply_args(t, :scope, [], fn argument, read -> {argument, [argument | read]} end)

      for %T{} = argument <- read, do: {argument, []}
    end

    defp clauses([], last, _, path), do: in_branch(last, path)

    defp clauses([{condition, body} | rest], last, id, path) do
      k = length(path)

      [{condition, path} | in_branch(body, path ++ [{id, k, :yes}])] ++
        clauses(rest, last, id, path ++ [{id, k, :no}])
    end

    defp in_branch(body, path),
      do: for(%T{} = leaf <- Composite.flatten_list([body]), do: {leaf, path})
  end
end
