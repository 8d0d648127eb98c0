if Code.ensure_loaded?(Axon) do
  defmodule Nitrox.Axon.SharedSum do
    @moduledoc false
    # A norm of a sum that others read as well, `n = norm(x + r)`: one op gives both.
    #
    # Axon finds parameters by the name of the node that takes them, and no node may be added (see
    # `Nitrox.Axon.Graph.keep_draws/3`). So the three nodes that there are change their roles: the one
    # that held the operands together becomes the norm, with its name and parameters, and gives the
    # norm and the sum; the other two hand these on.

    alias Nitrox.Axon.{Fused, Graph}

    @doc """
    The three nodes anew, by id, or `:error` where a name would change, since Axon counts its layers in
    their order. `new` is what was made of the graph's other nodes so far.
    """
    def share(graph, new, moved, {operands, add, norm}, details) do
      parameters = Enum.map(norm.parameters, fn _ -> :parameter end)
      name = graph.names[norm.id]

      both = %{norm | id: operands.id, parent: operands.parent, name: fn _, _ -> name end}
      both = %{both | args: [:layer, :layer | parameters]}
      both = %{both | parameters: Enum.map(norm.parameters, &of_sum/1)}
      both = %{both | op: Fused.function(both, norm.op, Map.put(details, :kind, :sum_and_norm))}

      normed = %{operands | id: norm.id, parent: [operands.id], args: [:layer], opts: []}
      normed = %{normed | op: fn {normed, _sum}, _ -> normed end}
      sum = %{add | parent: [operands.id], op: fn {_normed, sum}, _ -> sum end}

      changed = Map.new([both, normed, sum], &{&1.id, &1})
      moved = Map.put(moved, both.id, norm.id)
      all = graph.nodes |> Map.merge(new) |> Map.merge(changed)

      if Graph.same_names?(graph, all, moved), do: {:ok, changed, moved}, else: :error
    end

    # A parameter whose shape is that of the sum, of which it is told the operands now.
    defp of_sum(%{template: template} = parameter) when is_function(template, 1),
      do: %{parameter | template: fn a, b -> template.(sum(a, b)) end}

    defp of_sum(parameter), do: parameter

    defp sum(a, b) do
      {shape, names} = Nx.Shape.binary_broadcast(a.shape, a.names, b.shape, b.names)
      Nx.template(shape, Nx.Type.merge(a.type, b.type), names: names)
    end
  end
end
