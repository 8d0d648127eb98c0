if Code.ensure_loaded?(Nx.Tensor) do
  defmodule Nitrox.Nx.Lower do
    @moduledoc false
    # A `defn`'s expression as a plan: each node is given to `Nitrox.Backend`, whose tensors are on
    # `{:traced, device}` meanwhile, so that what makes ops of Nx's calls makes programs as well.
    #
    # A scope is what is computed together: the function, the body of a loop, a branch. A branch sees
    # the scopes around it, innermost first; what it takes from there are inputs of its plan.

    alias Nitrox.Backend, as: B
    alias Nitrox.{Error, Value}
    alias Nitrox.Nx.{Blocks, Data, Places, Plan, Step, Transfer}
    alias Nx.Defn.{Composite, Expr, Tree}
    alias Nx.Tensor, as: T

    defmodule Scope do
      @moduledoc false
      # `depth` says in how many branches it is, `places` in how many each node is to be, and `cache`
      # what was made of them. `params` are the tensors that parameters stand for, or where they come
      # from. Of what a branch takes from around it, `taken` has the value within by the one outside,
      # and `outer` the tensors outside, the latest first. `effects` are nodes that must not be lost,
      # the latest first.
      defstruct [:places, :params, depth: 0, cache: %{}, taken: %{}, outer: [], effects: []]
    end

    @callbacks Keyword.keys(Nx.Backend.behaviour_info(:callbacks))
    @created [:eye, :iota]

    # Of a loop that is unrolled: the most nodes of all rounds together, the most rounds, and how many
    # times less a loop in it may take.
    @nodes 4096
    @rounds 32
    @inner 8

    @doc """
    The plan of an expression, a list of its leaves. `options` has the device, the number of instances
    and the names of the hooks that will be given.
    """
    def plan(leaves, %{device: device} = options) do
      context = Map.merge(options, %{device: {:traced, device}, unroll: @nodes})

      # What Nx itself creates on the way, in a block's default body, say.
      Nx.with_default_backend({B, device: context.device}, fn ->
        {outputs, [scope]} = eval_all(leaves, [scope(leaves, :inputs)], context)
        build(outputs, scope, context)
      end)
    end

    defp build(outputs, scope, context),
      do: Plan.build(outputs, Enum.reverse(scope.effects), context.device, context.instances)

    defp scope(exprs, params), do: %Scope{places: Places.depths(exprs), params: params}

    # ── Nodes ─────────────────────────────────────────────────────────────────────────────────────

    defp eval_all(exprs, scopes, context),
      do: Enum.map_reduce(exprs, scopes, &eval(&1, &2, context))

    # A tensor; a tuple of them for a node that gives several.
    defp eval(%T{vectorized_axes: [_ | _]} = t, scopes, context),
      do: t |> Nx.devectorize() |> eval(scopes, context)

    defp eval(%T{data: %Expr{op: :constant, args: [number]}} = t, scopes, context),
      do: {Transfer.constant(t, number, device: context.device), scopes}

    defp eval(%T{data: %Expr{id: id, op: op, args: args}} = t, [scope | outer], context) do
      case scope.cache do
        %{^id => result} ->
          {result, [scope | outer]}

        %{} ->
          {result, [scope | outer]} =
            if outer != [] and (op == :parameter or scope.places[id] < scope.depth) do
              {result, outer} = eval(t, outer, context)
              {result, scope} = take(result, scope, context)
              {result, [scope | outer]}
            else
              apply_op(op, args, t, [scope | outer], context)
            end

          {result, [put_in(scope.cache[id], result) | outer]}
      end
    end

    # What lies in the scope around as a tensor of this one.
    defp take(results, scope, context) when is_tuple(results) do
      {results, scope} =
        results |> Tuple.to_list() |> Enum.map_reduce(scope, &take(&1, &2, context))

      {List.to_tuple(results), scope}
    end

    defp take(%T{data: %B{ref: %Value{node: %{id: id}, index: index}}} = t, scope, context) do
      case scope.taken do
        %{{^id, ^index} => value} ->
          {Data.put(t, value, context.device), scope}

        taken ->
          inner = input(t, map_size(taken), context)
          taken = Map.put(taken, {id, index}, inner.data.ref)
          {inner, %{scope | taken: taken, outer: [t | scope.outer]}}
      end
    end

    # A number, a parameter of the program, or a function.
    defp take(result, scope, _), do: {result, scope}

    # A tensor that a plan gets.
    defp input(%T{} = t, i, context) do
      {type, shape} = Data.spec(t)
      Data.put(t, Value.source({:input, i}, %{type: type, shape: shape}), context.device)
    end

    defp apply_op(:parameter, [i], t, [scope | _] = scopes, context) do
      case scope.params do
        :inputs -> {input(t, i, context), scopes}
        tensors -> {elem(tensors, i), scopes}
      end
    end

    defp apply_op(:tensor, [tensor], _, scopes, context),
      do: {tensor |> Nx.devectorize() |> Data.here(context.device), scopes}

    defp apply_op(:metadata, [expr, _], _, scopes, context),
      do: eval_composite(expr, scopes, context)

    defp apply_op(:elem, [tuple, i], _, scopes, context) do
      {results, scopes} = eval(tuple, scopes, context)
      {elem(results, i), scopes}
    end

    # For the calls that take one, which go through the host.
    defp apply_op(:fun, [parameters, expr, _], _, scopes, _) do
      evaluate = Nx.Defn.Evaluator.__compile__(nil, parameters, fn _ -> expr end, [])

      call = fn arguments ->
        [result] = evaluate.([Enum.map(arguments, fn a -> fn -> Nx.to_tensor(a) end end)])
        result
      end

      case length(parameters) do
        1 -> {fn a -> call.([a]) end, scopes}
        2 -> {fn a, b -> call.([a, b]) end, scopes}
      end
    end

    defp apply_op(:block, [struct, arguments, expr, _], t, scopes, context) do
      {exprs, options} = Enum.split_while(arguments, &(not is_list(&1)))
      {tensors, scopes} = eval_all(exprs, scopes, context)
      out = if match?({:tuple, _}, t.type), do: expr, else: t

      case Blocks.native(struct, out, tensors ++ options) do
        {:ok, result} -> {result, scopes}
        :default -> closed(expr, tensors, scopes, context)
      end
    end

    defp apply_op(:while, [initial, _, condition, body], _, scopes, context) do
      {initial, scopes} = eval_leaves(initial, scopes, context)
      nodes = map_size(Places.depths([condition | leaves(body)]))
      rounds = min(div(context.unroll, nodes), @rounds)
      inner = %{context | unroll: div(context.unroll, @inner)}

      with :error <- unroll(initial, condition, body, rounds, scopes, inner) do
        {first, scopes} = closed(condition, initial, scopes, context)
        while(first, initial, condition, body, scopes, context)
      end
    end

    defp apply_op(:cond, [clauses, last], t, [scope | _] = scopes, context),
      do: choose(clauses, last, scope.places[t.data.id] + 1, t, scopes, context)

    defp apply_op(:io_call, [expr, callback, template, _], _, scopes, context) do
      {tensors, scopes} = eval_leaves(expr, scopes, context)
      result = result(tensors, if(is_struct(template, T), do: template, else: {}))

      called? =
        case callback do
          {:fn, _} -> true
          {:named, name, default} -> default != nil or name in context.hooks
        end

      if called? do
        why = "it calls a function of the caller's"
        work = {:io_call, callback, Step.container(template)}
        step = %Step{name: :io_call, why: why, inputs: tensors, work: work, effect?: true}
        {_, scopes} = record(step, [], scopes, context)
        {result, scopes}
      else
        {result, scopes}
      end
    end

    defp apply_op(:runtime_call, [expr, function, template, options], _, scopes, context) do
      {tensors, scopes} = eval_leaves(expr, scopes, context)
      why = "it calls a function of the caller's"
      work = {:runtime_call, function, Step.container(expr), template, options}
      step = %Step{name: :runtime_call, why: why, inputs: tensors, work: work, effect?: true}
      outs = [template] |> Composite.flatten_list() |> Enum.map(&Nx.devectorize/1)
      {tensors, scopes} = record(step, outs, scopes, context)
      {result(tensors, if(is_struct(template, T), do: template, else: {})), scopes}
    end

    defp apply_op(op, _, t, scopes, context) do
      if op not in @callbacks do
        message = "#{inspect(op)} is nothing that Nitrox.Compiler knows of Nx's expressions"

        raise Error.argument(
                :compiler,
                message,
                "use a version of Nx that mix.exs of Nitrox allows"
              )
      end

      {arguments, scopes} = Tree.apply_args(t, scopes, &eval(&1, &2, context))
      arguments = if op in @created, do: arguments ++ [[device: context.device]], else: arguments
      {apply(B, op, [t | arguments]), scopes}
    end

    defp record(step, outs, [scope | outer], context) do
      {node, tensors} = Step.record(step, outs, context.device)
      scope = if step.effect?, do: %{scope | effects: [node | scope.effects]}, else: scope
      {tensors, [scope | outer]}
    end

    # ── Several nodes ─────────────────────────────────────────────────────────────────────────────

    # Numbers are leaves too.
    defp leaves(composite),
      do: [composite] |> Composite.flatten_list() |> Enum.map(&Expr.tensor/1)

    defp eval_leaves(composite, scopes, context), do: eval_all(leaves(composite), scopes, context)

    defp eval_composite(composite, scopes, context) do
      {results, scopes} = eval_leaves(composite, scopes, context)
      {result(results, composite), scopes}
    end

    # What a node gives that is a tensor or a tuple, as `like` is.
    defp result([tensor], %T{}), do: tensor
    defp result(tensors, _), do: List.to_tuple(tensors)

    # An expression that sees nothing but its parameters, as a part of the scope.
    defp closed(expr, tensors, [scope | outer], context) do
      inner = scope(leaves(expr), List.to_tuple(tensors))
      {result, [inner]} = eval_composite(expr, [inner], context)
      {result, [%{scope | effects: inner.effects ++ scope.effects} | outer]}
    end

    # ── Loops ─────────────────────────────────────────────────────────────────────────────────────

    # The rounds one after the other, where each condition is known by now, or `:error`.
    defp unroll(variables, condition, body, left, scopes, context) do
      {condition?, scopes} = closed(condition, variables, scopes, context)

      case Data.present(condition?) && Nx.to_number(condition?) do
        nil ->
          :error

        number when number == 0 ->
          {result(variables, body), scopes}

        _ when left == 0 ->
          :error

        _ ->
          {next, scopes} = closed(body, variables, scopes, context)
          next = if is_tuple(next), do: Tuple.to_list(next), else: [next]
          unroll(next, condition, body, left - 1, scopes, context)
      end
    end

    # One plan makes the variables of the next round and says whether there is one.
    defp while(first, initial, condition, body, scopes, context) do
      parameters = Enum.with_index(initial, &input(&1, &2, context))
      inner = scope(leaves(body), List.to_tuple(parameters))
      {variables, [inner]} = eval_leaves(body, [inner], context)
      {next, [inner]} = closed(condition, variables, [inner], context)
      plan = build([next | variables], inner, context)
      why = "its condition is read in each round"

      step = %Step{
        name: :while,
        why: why,
        inputs: [first | initial],
        work: {:while, plan},
        effect?: plan.effect?
      }

      {tensors, scopes} = record(step, initial, scopes, context)
      {result(tensors, body), scopes}
    end

    # ── Branches ──────────────────────────────────────────────────────────────────────────────────

    # `depth` is that of the branches of the first clause.
    defp choose([], last, _, _, scopes, context), do: eval_composite(last, scopes, context)

    defp choose([{condition, body} | rest], last, depth, t, scopes, context) do
      {condition, scopes} = eval(condition, scopes, context)

      case Data.present(condition) && Nx.to_number(condition) do
        nil ->
          {yes, scopes} = branch(&eval_composite(body, &1, context), depth, scopes, context)
          rest = &choose(rest, last, depth + 1, t, &1, context)
          {no, scopes} = branch(rest, depth, scopes, context)
          decide(condition, yes, no, t, scopes, context)

        number when number == 0 ->
          choose(rest, last, depth + 1, t, scopes, context)

        _ ->
          eval_composite(body, scopes, context)
      end
    end

    # A plan, the tensors that it takes from around it, and those that it gives.
    defp branch(eval, depth, [%{places: places} | _] = scopes, context) do
      {result, [inner | scopes]} = eval.([%Scope{places: places, depth: depth} | scopes])
      outputs = if is_tuple(result), do: Tuple.to_list(result), else: [result]
      {{build(outputs, inner, context), Enum.reverse(inner.outer), outputs}, scopes}
    end

    defp decide(condition, {yes, yes_takes, outputs}, {no, no_takes, _}, t, scopes, context) do
      step = %Step{
        name: :cond,
        why: "its condition is read",
        inputs: [condition | yes_takes ++ no_takes],
        work: {:cond, yes, no, length(yes_takes)},
        effect?: yes.effect? or no.effect?
      }

      {tensors, scopes} = record(step, outputs, scopes, context)
      {if(match?({:tuple, _}, t.type), do: List.to_tuple(tensors), else: hd(tensors)), scopes}
    end
  end
end
