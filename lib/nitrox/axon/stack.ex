if Code.ensure_loaded?(Axon) do
  defmodule Nitrox.Axon.Stack do
    @moduledoc false
    # What there is to say of a recurrent layer upon another: whether a program may run both in one
    # launch. Nothing is done for it in the model; it is `engine/src/fuse/stack.rs` that looks for such
    # layers among the ops of a program, by these same rules.

    alias Nitrox.Axon.Graph

    @doc """
    Notes on a node for the layer right below it. `recurrent?` and `norm?` say of a node whether it is
    such a layer, and one that has an op.
    """
    def notes(graph, node, recurrent?, norm?) do
      with {below, path} <- below(graph, node, recurrent?, norm?) do
        name = graph.names[below.id]

        case why_apart(graph, below, node, path) do
          nil ->
            ["may be one launch with #{name}, in a program of a GPU that holds their weights"]

          why ->
            ["#{name} below is apart: #{why}"]
        end
      else
        nil -> []
      end
    end

    # The layer below, and the nodes between, the nearest first: a norm, if any, and the sequence.
    defp below(graph, node, recurrent?, norm?) do
      x = graph.nodes[hd(node.parent)]
      path = if norm?.(x), do: [x, graph.nodes[hd(x.parent)]], else: [x]

      with %{op_name: :elem, parent: [parent]} <- List.last(path),
           below = graph.nodes[parent],
           true <- recurrent?.(below) do
        {below, path}
      else
        _ -> nil
      end
    end

    defp why_apart(graph, below, node, path) do
      between = [below | Enum.reverse(path)]

      cond do
        below.op_name != node.op_name ->
          "it is another kind of layer"

        Enum.any?(between, &(&1.hooks != [])) ->
          "there is a hook between them"

        Enum.any?(between, &(&1.policy != node.policy)) ->
          "its policy is another one"

        true ->
          Enum.find_value(path, &others(graph, &1.id))
      end
    end

    # The first states are drawn for the shape of a sequence, and nothing of it is read for that.
    defp others(graph, id) do
      drawn? = &(&1 != :output and graph.nodes[&1].op_name == :recurrent_state)
      readers = update_in(graph.readers[id], fn all -> Enum.reject(all, drawn?) end)

      case Graph.only_reader(readers, id) do
        {:ok, _} -> nil
        {:error, why} -> why
      end
    end
  end
end
