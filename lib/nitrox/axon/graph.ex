if Code.ensure_loaded?(Axon) do
  defmodule Nitrox.Axon.Graph do
    @moduledoc false
    # An Axon model, or a container of models that share nodes, as one graph: its nodes by id, in the
    # order in which Axon compiles them, with the names that Axon will give them and who reads whom.

    defstruct [:nodes, :outputs, :order, :names, :readers]

    @doc "The graph of a model or of a container of models."
    def new(model) do
      outputs = outputs(model)
      nodes = for %Axon{nodes: nodes} <- outputs, reduce: %{}, do: (all -> Map.merge(all, nodes))
      ids = Enum.map(outputs, & &1.output)
      order = order(ids, nodes)

      readers =
        for id <- order, parent <- nodes[id].parent, reduce: Map.new(ids, &{&1, [:output]}) do
          readers -> Map.update(readers, parent, [id], &[id | &1])
        end

      names = names(order, nodes)
      %__MODULE__{nodes: nodes, outputs: ids, order: order, names: names, readers: readers}
    end

    @doc "The models in a container, or the one given."
    def outputs(model) do
      {_, outputs} = traverse(model, [], &{&1, [&1 | &2]})
      Enum.reverse(outputs)
    end

    @doc "The container with a function of each model in it."
    def map(model, fun) do
      {result, nil} = traverse(model, nil, &{fun.(&1), &2})
      result
    end

    defp traverse(%Axon{} = model, acc, fun), do: fun.(model, acc)

    defp traverse(container, acc, fun) do
      if not container?(container) do
        message = "expected an Axon model or a container of them, got #{inspect(container)}"
        raise Nitrox.Error.argument(:accelerate, message)
      end

      Nx.Container.traverse(container, acc, &traverse(&1, &2, fun))
    end

    defp container?(%Nx.Tensor{}), do: false
    defp container?(term), do: is_tuple(term) or is_map(term)

    # Parents first, in their order: as Axon numbers its layers.
    defp order(ids, nodes) do
      {order, _} = Enum.reduce(ids, {[], MapSet.new()}, &visit(&1, nodes, &2))
      Enum.reverse(order)
    end

    defp visit(id, nodes, {order, seen}) do
      if MapSet.member?(seen, id) do
        {order, seen}
      else
        {order, seen} = Enum.reduce(nodes[id].parent, {order, seen}, &visit(&1, nodes, &2))
        {[id | order], MapSet.put(seen, id)}
      end
    end

    # A block has its name once, however often it is used, and an optional node has none.
    defp names(order, nodes) do
      {names, _counts, _blocks} =
        for id <- order, reduce: {%{}, %{}, %{}} do
          {names, counts, blocks} ->
            case nodes[id] do
              %{op: :optional} ->
                {Map.put(names, id, "optional"), counts, blocks}

              %{op: :block, name: name, opts: opts} ->
                case blocks[opts[:block_id]] do
                  nil ->
                    name = name.(:block, counts)
                    blocks = Map.put(blocks, opts[:block_id], name)
                    {Map.put(names, id, name), count(counts, :block), blocks}

                  name ->
                    {Map.put(names, id, name), counts, blocks}
                end

              %{name: name, op_name: op_name} ->
                {Map.put(names, id, name.(op_name, counts)), count(counts, op_name), blocks}
            end
        end

      names
    end

    defp count(counts, op_name), do: Map.update(counts, op_name, 1, &(&1 + 1))

    @doc """
    New nodes for the old ones of a model, which draw their initial parameters as the old ones do.

    Axon draws them by names that it makes in another order and counts by the nodes' functions, so that
    new functions would change them. It asks for the names themselves by words alone. `moved` tells
    whose parameters a node has, where they are not its own.
    """
    def keep_draws(new, old, moved) do
      {names, _} =
        for {id, %{op: op, name: name}} <- old, reduce: {%{}, %{}} do
          {names, counts} -> {Map.put(names, id, name.(op, counts)), count(counts, op)}
        end

      Map.new(new, fn
        {id, %{parameters: [_ | _]} = node} ->
          {id, %{node | name: draw(node.name, names[moved[id] || id])}}

        other ->
          other
      end)
    end

    defp draw(name, drawn_by) do
      fn op, counts ->
        if is_function(op) or Enum.any?(counts, fn {op, _} -> is_function(op) end),
          do: drawn_by,
          else: name.(op, counts)
      end
    end

    @doc "Whether all parameters of other nodes for a graph have the names that they had."
    def same_names?(graph, nodes, moved) do
      order = order(graph.outputs, nodes)
      names = names(order, nodes)

      Enum.all?(order, fn id ->
        nodes[id].parameters == [] or names[id] == graph.names[moved[id] || id]
      end)
    end

    @doc "The node that alone reads a node, or why there is none."
    def only_reader(%{readers: readers, nodes: nodes}, id) do
      case readers[id] do
        [:output] -> {:error, "it is an output of the model"}
        [reader] -> {:ok, nodes[reader]}
        _ -> {:error, "others read it too"}
      end
    end

    @doc """
    Whether a node is read on a way to an output that does not lead through the nodes of `gate?`.
    """
    def reaches_output?(graph, id, gate?), do: reaches?([id], graph, gate?, MapSet.new())

    defp reaches?([], _, _, _), do: false
    defp reaches?([:output | _], _, _, _), do: true

    defp reaches?([id | rest], graph, gate?, seen) do
      if MapSet.member?(seen, id) or gate?.(graph.nodes[id]),
        do: reaches?(rest, graph, gate?, seen),
        else: reaches?((graph.readers[id] || []) ++ rest, graph, gate?, MapSet.put(seen, id))
    end
  end
end
