if Code.ensure_loaded?(Axon) do
  defmodule Nitrox.Axon.Rewrite do
    @moduledoc false
    # Which nodes of a model become what, and why others do not. A node keeps its id, its name, its
    # parents, its parameters and its hooks: only its function is another (see `Nitrox.Axon.Fused`),
    # and its `meta` says what was decided, under `:nitrox`.

    alias Nitrox.Axon.{Fused, Graph, SharedSum, Stack}

    @kinds [
      :lstm,
      :gru,
      :layer_norm,
      :rms_norm,
      :dense,
      :activation,
      :residual,
      :attention
    ]
    @recurrent [:lstm, :gru]
    @activations [:relu, :silu, :gelu, :tanh, :sigmoid]
    @other_activations [:celu, :elu, :exp, :hard_sigmoid, :hard_silu, :hard_tanh, :leaky_relu] ++
                         [:log_sigmoid, :log_softmax, :log_sumexp, :mish, :relu6, :selu] ++
                         [:softmax, :softplus, :softsign]
    # Blocks of more inputs are left alone.
    @most_inputs 16

    def kinds, do: @kinds

    @doc """
    A model, or a container of models, with the layers of `how.kinds` rewritten. `how.weights` is what
    is done with attention whose weights are an output: `:keep` or `:beside`.
    """
    def model(model, how) do
      graph = Graph.new(model)
      state = %{graph: graph, how: how, kinds: how.kinds, new: %{}, taken: %{}, moved: %{}}
      %{new: new, moved: moved} = Enum.reduce(graph.order, state, &visit/2)

      Graph.map(model, fn %Axon{nodes: nodes} = model ->
        changed = Map.merge(nodes, Map.take(new, Map.keys(nodes)))
        %{model | nodes: Graph.keep_draws(changed, nodes, moved)}
      end)
    end

    @doc "What was decided of each layer of a model, in order; nil if nothing ever was."
    def layers(%Graph{} = graph) do
      decided = for id <- graph.order, %{nitrox: layers} <- [graph.nodes[id].meta], do: layers
      if decided != [], do: Enum.concat(decided)
    end

    # ── One node after the other, parents first ───────────────────────────────────────────────────

    # What an earlier call did stays; inside of a block there may be more to do.
    defp visit(id, state) do
      case state.graph.nodes[id] do
        %{op: op, meta: %{nitrox: [%{op: done}]}} when op != :block and done != nil -> state
        node -> decide(kind(node), node, state)
      end
    end

    defp kind(%{op: op}) when op in [:block, :layer_norm, :rms_norm, :dense, :dropout], do: op
    defp kind(%{op: op}) when op in @recurrent, do: op
    defp kind(%{op_name: :nx}), do: :nx

    # Axon's layer where it has no bias.
    defp kind(%{op: op} = node) when is_function(op) do
      case Function.info(op, :module) do
        {:module, Axon.Layers} -> if op == (&Axon.Layers.lstm/6), do: :lstm, else: other(node)
        _ -> bumblebee_kind(node)
      end
    end

    defp kind(node), do: other(node)

    defp bumblebee_kind(node) do
      case bumblebee(node.op) do
        "rms_norm" <> _ -> :rms_norm
        "attention_output" <> _ -> :attention
        "-repeat_interleave/3" <> _ -> :repeat
        _ -> other(node)
      end
    end

    defp other(node), do: if(Enum.any?(node.parameters, &(&1.kind == :parameter)), do: :other)

    # The name of a function of Bumblebee's layers.
    defp bumblebee(op) when is_function(op) do
      info = Function.info(op)
      if info[:module] == Bumblebee.Layers, do: Atom.to_string(info[:name])
    end

    defp bumblebee(_), do: nil

    defp decide(nil, _, state), do: state

    defp decide(:other, %{op_name: :dense_transposed} = node, state),
      do: keep(state, node, :dense, "its kernel is transposed")

    defp decide(:other, %{op: op} = node, state) when is_function(op),
      do: keep(state, node, node.op_name, "it is a function of its own")

    defp decide(:other, node, state),
      do: keep(state, node, node.op_name, "no kind of accelerate/2 is for it")

    defp decide(kind, node, state) when kind in @recurrent do
      masked? = not match?({:ok, 0}, constant(state.graph.nodes[Enum.at(node.parent, 2)]))

      cond do
        why = left_out(state, kind, node) ->
          keep(state, node, kind, why)

        node.opts[:activation] != :tanh ->
          keep(state, node, kind, "its activation is #{show(node.opts[:activation])}, not tanh")

        node.opts[:gate] != :sigmoid ->
          keep(state, node, kind, "its gate is #{show(node.opts[:gate])}, not sigmoid")

        true ->
          replace(state, node, kind, %{masked?: masked?}, kind, [], stacked(state, node))
      end
    end

    defp decide(kind, node, state) when kind in [:layer_norm, :rms_norm] do
      cond do
        why = left_out(state, kind, node) -> keep(state, node, kind, why)
        why = other_axis(node) -> keep(state, node, kind, why)
        true -> norm(state, node, kind)
      end
    end

    defp decide(:dense, node, state) do
      case left_out(state, :dense, node) do
        nil ->
          {state, with, notes} = follow(state, node, node, [], [])
          replace(state, node, :dense, %{}, :dense, with, notes)

        why ->
          keep(state, node, :dense, why)
      end
    end

    defp decide(:dropout, node, state) do
      if node.opts[:rate] == 0 and :dense in state.kinds,
        do: put(state, node, %{kind: :dropout}),
        else: state
    end

    defp decide(:attention, node, state), do: attention(state, node)

    # Keys and values for several heads, which Bumblebee repeats by more axes than kernels have.
    defp decide(:repeat, node, state) do
      case Function.info(node.op, :env) do
        {:env, [times]} when is_integer(times) ->
          if :attention in state.kinds,
            do: put(state, node, %{kind: :repeat, times: times}),
            else: state

        _ ->
          state
      end
    end

    defp decide(:block, node, state), do: block(state, node)

    # Behind a block a sequence may be turned around again, as Axon.bidirectional/4 does.
    defp decide(:nx, %{parent: [parent]} = node, state) do
      recurrent? = Enum.any?(@recurrent, &(&1 in state.kinds))

      if recurrent? and state.graph.nodes[parent].op == :block,
        do: put(state, node, %{kind: :reverse}),
        else: state
    end

    defp decide(:nx, _, state), do: state

    defp left_out(state, kind, node) do
      cond do
        kind not in state.kinds -> "left out by the options"
        node.policy.compute == {:f, 64} -> "its policy computes in f64, and no kernel does"
        length(node.args) >= Fused.most() -> "it has more inputs than such a layer"
        true -> nil
      end
    end

    defp stacked(state, node) do
      replaced? = &match?(%{meta: %{nitrox: [%{op: op}]}} when op in @recurrent, state.new[&1.id])
      Stack.notes(state.graph, node, replaced?, &(kind(&1) in [:layer_norm, :rms_norm]))
    end

    defp constant(%{op: :constant, opts: [value: %{shape: {}} = value]}),
      do: {:ok, Nx.to_number(value)}

    defp constant(_), do: :error

    defp show(term) when is_atom(term), do: Atom.to_string(term)
    defp show(_), do: "a function of its own"

    # ── Norms ─────────────────────────────────────────────────────────────────────────────────────

    defp other_axis(%{opts: opts}) do
      case Keyword.get(opts, :channel_index, -1) do
        axis when is_integer(axis) and axis < -1 -> "it normalises axis #{axis}, not the last"
        _ -> nil
      end
    end

    defp norm(%{graph: graph} = state, node, kind) do
      details = %{upcast: node.opts[:upcast] || upcast(bumblebee(node.op)), sum?: false}

      case sum(state, node) do
        # Where a dense layer that was to add it does not, the norm may.
        {:alone, add} ->
          details = %{details | sum?: true}

          if state.taken[add.id],
            do: replace(state, node, kind, details, kind),
            else:
              state
              |> put(add, %{kind: :residual, index: nil})
              |> replace(node, kind, details, kind, [graph.names[add.id]])

        {:shared, operands, add} ->
          shared(state, operands, add, node, kind, details)

        {:apart, add, why} ->
          notes = ["#{graph.names[add.id]} stays apart: #{why}"]
          replace(state, node, kind, details, kind, [], notes)

        :none ->
          replace(state, node, kind, details, kind)
      end
    end

    defp upcast("rms_norm_impl_upcast_all" <> _), do: :all
    defp upcast(_), do: nil

    # The sum of two that a norm is of, and whether others read it.
    defp sum(%{graph: graph} = state, node) do
      add = graph.nodes[hd(node.parent)]

      with true <- :residual in state.kinds and match?(%{op: :add}, add),
           operands = graph.nodes[hd(add.parent)],
           true <- match?(%{op_name: :container, parent: [_, _]}, operands),
           {:sum, :ok} <- {:sum, undisturbed(add, node)},
           {:error, why} <- Graph.only_reader(graph, add.id) do
        cond do
          state.taken[add.id] -> :none
          Graph.only_reader(graph, operands.id) != {:ok, add} -> {:apart, add, why}
          Enum.any?([operands, add, node], &(&1.hooks != [])) -> {:apart, add, why}
          operands.policy != node.policy or add.policy != node.policy -> {:apart, add, why}
          true -> {:shared, operands, add}
        end
      else
        {:ok, _} -> {:alone, add}
        {:sum, apart} -> put_elem(apart, 1, add)
        false -> :none
      end
    end

    defp shared(%{graph: graph} = state, operands, add, node, kind, details) do
      layer = %{layer(state, node, kind) | op: kind, with: [graph.names[add.id]]}
      node = decided(node, [layer])
      details = Map.merge(details, %{layer: layer.layer, norm: kind, sum?: true})

      case SharedSum.share(graph, state.new, state.moved, {operands, add, node}, details) do
        {:ok, nodes, moved} ->
          taken = Map.put(state.taken, add.id, true)
          %{state | new: Map.merge(state.new, nodes), moved: moved, taken: taken}

        :error ->
          notes = ["#{layer.with} stays apart: layers would be numbered in another order"]
          replace(state, node, kind, %{details | sum?: false}, kind, [], notes)
      end
    end

    # ── What follows on a dense layer ─────────────────────────────────────────────────────────────

    # Goes from reader to reader, `done` being the kinds that are fused already, and gives the names
    # of the layers that became part of `dense`.
    defp follow(%{graph: graph} = state, dense, node, done, names) do
      with {:ok, reader} <- Graph.only_reader(graph, node.id),
           {:ok, kind, details} <- follower(reader, node, graph),
           :ok <- fusable(kind, details, done, state),
           :ok <- undisturbed(node, reader) do
        case kind do
          :residual ->
            state = put(state, details.add, %{kind: :residual, index: details.index})

            {put_in(state.taken[details.add.id], true), names ++ [graph.names[details.add.id]],
             []}

          :activation ->
            name = graph.names[reader.id]
            state = put(state, reader, Map.put(details, :kind, :activation))
            notes = if details.activation == :sigmoid, do: [sigmoid(name)], else: []
            {state, names, more} = follow(state, dense, reader, [kind | done], names ++ [name])
            {state, names, notes ++ more}

          :through ->
            {state, all, notes} = follow(state, dense, reader, done, names)
            {state, all, behind(reader, graph, all -- names) ++ notes}
        end
      else
        {:apart, reader, why} -> {state, names, ["#{graph.names[reader.id]} stays apart: #{why}"]}
        {:error, why} -> {state, names, apart(graph, node, why)}
        :end -> {state, names, []}
      end
    end

    # In training a dropout makes other values.
    defp behind(%{opts: opts} = dropout, graph, [_ | _] = names) do
      if opts[:rate] == 0,
        do: [],
        else: ["#{graph.names[dropout.id]} keeps #{Enum.join(names, ", ")} apart in training"]
    end

    defp behind(_, _, []), do: []

    defp sigmoid(name), do: "#{name} runs by itself in training, for the losses"

    # Only where one of the readers might have been fused is it worth a word.
    defp apart(graph, node, why) do
      for reader <- Enum.uniq(graph.readers[node.id]),
          reader != :output,
          {:ok, kind, details} when kind != :through <-
            [follower(graph.nodes[reader], node, graph)],
          reader = if(kind == :residual, do: details.add.id, else: reader),
          do: "#{graph.names[reader]} stays apart: #{why}"
    end

    defp follower(%{op: :dropout} = _reader, _, _), do: {:ok, :through, %{}}

    defp follower(%{op: activation}, _, _) when activation in @activations,
      do: {:ok, :activation, %{activation: activation}}

    defp follower(%{op: activation} = reader, _, _) when activation in @other_activations,
      do: {:apart, reader, "no kernel has #{activation}"}

    defp follower(%{op_name: :container} = container, node, graph) do
      with {:ok, %{op: :add} = add} <- Graph.only_reader(graph, container.id),
           :ok <- undisturbed(container, add) do
        {:ok, :residual, %{index: Enum.find_index(container.parent, &(&1 == node.id)), add: add}}
      else
        {:apart, _, _} = apart -> apart
        _ -> :end
      end
    end

    defp follower(%{op: op, parent: [_], args: [:layer]} = reader, _, _) when is_function(op) do
      info = Function.info(op)

      cond do
        info[:module] == Bumblebee.Layers and info[:env] == [:gelu_approx_tanh] ->
          {:ok, :activation, %{activation: :gelu_tanh}}

        reader.op_name == :custom ->
          {:apart, reader, "its activation is a function of its own"}

        true ->
          :end
      end
    end

    defp follower(_, _, _), do: :end

    defp fusable(:through, _, _, _), do: :ok

    defp fusable(kind, details, done, state) do
      cond do
        kind not in state.kinds -> :end
        kind == :activation and kind in done -> :end
        kind == :residual and state.taken[details.add.id] != nil -> :end
        true -> :ok
      end
    end

    # Whether the second node finds what the first one made just as it was.
    defp undisturbed(node, reader) do
      cond do
        hooks?(node, [:forward, :backward]) ->
          {:apart, reader, "there is a hook before it"}

        hooks?(reader, [:pre_forward]) ->
          {:apart, reader, "there is a hook before it"}

        node.policy.compute != reader.policy.compute ->
          {:apart, reader, "its policy computes in another type"}

        true ->
          :ok
      end
    end

    defp hooks?(node, events), do: Enum.any?(node.hooks, &(elem(&1, 0) in [:all | events]))

    # ── Attention ─────────────────────────────────────────────────────────────────────────────────

    # Bumblebee's weights, their dropout, and the product with the values.
    defp attention(%{graph: graph} = state, node) do
      dropout = graph.nodes[hd(node.parent)]
      weights = if dropout.op == :dropout, do: graph.nodes[hd(dropout.parent)], else: dropout
      rate = if dropout.op == :dropout, do: dropout.opts[:rate], else: 0

      cond do
        why = left_out(state, :attention, node) ->
          keep(state, node, :attention, why)

        not String.starts_with?(bumblebee(weights.op) || "", "attention_weights") ->
          keep(state, node, :attention, "its weights are not what Bumblebee computes")

        Enum.any?([weights, dropout], &hooks?(&1, [:forward, :backward])) ->
          keep(state, node, :attention, "there is a hook on its weights")

        state.how.weights == :keep and
            Graph.reaches_output?(graph, weights.id, &(&1.id == node.id or optional_output?(&1))) ->
          keep(
            state,
            node,
            :attention,
            "its weights are an output of the model; weights: :beside takes it"
          )

        weights.policy.compute != node.policy.compute ->
          keep(state, node, :attention, "its policy computes in another type than its weights")

        true ->
          state = put(state, weights, %{kind: :attention_weights})
          state = if rate == 0, do: put(state, dropout, %{kind: :dropout}), else: state
          notes = if rate == 0, do: [], else: ["plain in training, by its dropout of #{rate}"]
          # So that it knows when the weights are to be given out.
          node = Map.update!(node, :global_options, &Enum.uniq([:output_attentions | &1]))
          notes = ["plain where :output_attentions is asked for" | notes]
          replace(state, node, :attention, %{}, :flash_attention, [], notes)
      end
    end

    defp optional_output?(%{op_name: :global_opt_in, global_options: options}),
      do: :output_attentions in options

    defp optional_output?(_), do: false

    # ── Blocks ────────────────────────────────────────────────────────────────────────────────────

    # A block makes its nodes anew each time that it is built, so its function is wrapped.
    defp block(%{graph: graph, how: how} = state, node) do
      [block_fun: fun, block_id: id] = node.opts
      {:arity, arity} = Function.info(fun, :arity)

      if arity in 1..@most_inputs do
        fun = wrap(arity, &model(apply(fun, &1), how))
        node = %{node | opts: [block_fun: fun, block_id: id]}
        inside = for(i <- 0..(arity - 1), do: Axon.input("subgraph#{i}")) |> then(&apply(fun, &1))

        layers =
          for layer <- layers(Graph.new(inside)) || [] do
            path = [graph.names[node.id] | layer.path]
            %{layer | path: path, layer: Enum.join(path, ".")}
          end

        put_new(state, node, if(first_use?(graph, node), do: layers, else: []))
      else
        keep(state, node, :block, "it has #{arity} inputs, and may have 1 to #{@most_inputs}")
      end
    end

    # Every use of a block is the same layers.
    defp first_use?(graph, node) do
      node.id == Enum.find(graph.order, &(block_id(graph.nodes[&1]) == block_id(node)))
    end

    defp block_id(%{op: :block, opts: opts}), do: opts[:block_id]
    defp block_id(_), do: nil

    for n <- 1..@most_inputs do
      inputs = Macro.generate_arguments(n, __MODULE__)

      defp wrap(unquote(n), fun),
        do: fn unquote_splicing(inputs) -> fun.([unquote_splicing(inputs)]) end
    end

    # ── Decisions ─────────────────────────────────────────────────────────────────────────────────

    # A node with another function. It may have been changed already, for what it is to another node.
    defp put(state, node, details) do
      original = state.graph.nodes[node.id]
      details = Map.put(details, :layer, state.graph.names[node.id])
      node = %{Map.get(state.new, node.id, node) | op: Fused.function(node, original.op, details)}
      put_in(state.new[node.id], node)
    end

    defp replace(state, node, kind, details, op, with \\ [], notes \\ []) do
      layer = %{layer(state, node, kind) | op: op, with: with, notes: notes}
      details = Map.merge(details, %{kind: kind, layer: layer.layer})
      put_new(state, %{node | op: Fused.function(node, node.op, details)}, [layer])
    end

    defp keep(state, node, kind, why),
      do: put_new(state, node, [%{layer(state, node, kind) | why: why}])

    defp put_new(state, node, layers), do: put_in(state.new[node.id], decided(node, layers))

    defp decided(node, layers), do: %{node | meta: Map.put(node.meta || %{}, :nitrox, layers)}

    defp layer(state, node, kind) do
      name = state.graph.names[node.id]
      %{layer: name, path: [name], kind: kind, op: nil, with: [], why: nil, notes: []}
    end
  end
end
