if Code.ensure_loaded?(Axon) do
  defmodule Nitrox.Axon.Fused do
    @moduledoc false
    # What the layers of an accelerated model run.
    #
    # Every node of the model stays where it is, and its value is what it always was: only how it is
    # computed is another. A layer that does the work of others as well (a dense layer's activation, a
    # sum with a residual, attention) is found when the model is traced: a fused layer leaves a note on
    # its result of what it was made of, and the layer after it, on finding the note, makes its own
    # result of that. What nobody reads then is never computed. Where something came in between, such
    # as a hook or another type, there is no note to be found, and the layer runs by itself.

    alias Nitrox.{Error, Telemetry}
    alias Nitrox.Axon.{Attention, Recurrent}
    alias Nx.Defn.Expr
    alias Nx.Tensor, as: T

    @types [{:f, 32}, {:bf, 16}, {:f, 16}]
    @most 8

    @doc """
    The function of an accelerated node whose own one is `op`. `details` is what is known of the layer:
    its name, its kind, and what else the kind looks at.
    """
    def function(%Axon.Node{args: args}, op, details) do
      wrap(length(args) + 1, fn arguments ->
        {inputs, [opts]} = Enum.split(arguments, -1)
        run(inputs, opts, op, details)
      end)
    end

    @doc "The most arguments that a layer's function takes."
    def most, do: @most

    for n <- 2..@most do
      arguments = Macro.generate_arguments(n, __MODULE__)

      defp wrap(unquote(n), fun),
        do: fn unquote_splicing(arguments) -> fun.([unquote_splicing(arguments)]) end
    end

    defp run(inputs, opts, op, details) do
      {own, opts} = Keyword.split(opts, [:output_attentions])

      try do
        fused(details.kind, inputs, own ++ opts, op, details)
      rescue
        # What the engine has no kernel for, Axon's own layer may do, or refuse in its own words.
        error in Error ->
          if error.reason in [:shape, :type, :argument, :unsupported],
            do: {:plain, Exception.message(error)},
            else: reraise(error, __STACKTRACE__)
      end
      |> case do
        {:ok, result} ->
          result

        {:plain, why} ->
          metadata = %{layer: details.layer, op: details.kind, why: why}
          Telemetry.execute([:nitrox, :axon, :fallback], %{count: 1}, metadata)
          plain(op, details.kind, inputs, opts)
      end
    end

    defp plain(op, kind, inputs, opts) when kind in [:lstm, :gru],
      do: plain(op, nil, Recurrent.unpacked(kind, inputs), opts)

    defp plain(op, :sum_and_norm, [a, b | parameters], opts) do
      sum = plain(:add, nil, [{a, b}], [])
      {plain(op, nil, [sum | parameters], opts), sum}
    end

    defp plain(op, _, inputs, opts) when is_atom(op), do: apply(Axon.Layers, op, inputs ++ [opts])
    defp plain(op, _, inputs, opts), do: apply(op, inputs ++ [opts])

    # ── The layers ────────────────────────────────────────────────────────────────────────────────

    defp fused(:dense, [x, w | rest], _opts, _op, _) do
      b = List.first(rest)

      with {:ok, type} <- common_type([x, w | rest]),
           :ok <- fits(dense?(x, w, b), "a dense layer of shapes #{shapes([x, w | rest])}") do
        parts = %{x: cast(x, type), w: cast(w, type), b: b && cast(b, type)}
        names = List.replace_at(x.names, -1, nil)
        dense(parts, [], names)
      end
    end

    defp fused(:activation, [x], opts, _op, %{activation: activation}) do
      case {note(x), activation, opts[:mode]} do
        # Losses look for what a sigmoid was taken of.
        {_, :sigmoid, :train} ->
          {:plain, "the losses of training look for what the sigmoid is taken of"}

        {{:dense, parts, []}, _, _} ->
          dense(parts, [activation: activation], x.names)

        _ ->
          {:plain, "it does not follow on a dense layer that it could be fused with"}
      end
    end

    # A sum of which one operand may be a dense layer. Another one is left as a note for a norm.
    defp fused(:residual, [operands], _opts, op, %{index: index}) when is_tuple(operands) do
      sum = plain(op, nil, [operands], [])

      with true <- is_integer(index),
           {:dense, parts, done} <- note(elem(operands, index)),
           rest = operands |> Tuple.delete_at(index) |> Tuple.to_list() |> Enum.reduce(&Nx.add/2),
           true <- rest.shape == sum.shape and rest.type == sum.type,
           true <- elem(operands, index).shape == sum.shape and parts.x.type == sum.type do
        dense(parts, [residual: rest] ++ done, sum.names)
      else
        _ ->
          case operands do
            {a, b} -> {:ok, put_sum(sum, a, b)}
            _ -> {:plain, "it adds no dense layer of its own shape and type"}
          end
      end
    end

    defp fused(:layer_norm, [x, gamma, beta], opts, _op, details) do
      epsilon = Keyword.get(opts, :epsilon, 1.0e-5)

      with {:ok, type} <- common_type([x, gamma, beta]),
           :ok <- last_axis(x, opts) do
        [gamma, beta] = for t <- [gamma, beta], do: cast(t, type)
        norm(x, type, details, &Nitrox.layer_norm(&1, gamma, beta, [epsilon: epsilon] ++ &2))
      end
    end

    defp fused(:rms_norm, [x, gamma], opts, _op, details) do
      epsilon = Keyword.get(opts, :epsilon, 1.0e-6)
      # Where all is brought to f32 first, that is what comes out.
      wide = if details[:upcast] == :all, do: [Nx.tensor(0, type: :f32)], else: []

      with {:ok, type} <- common_type([x, gamma | wide]),
           :ok <- last_axis(x, opts) do
        shift = Keyword.get(opts, :shift, 0.0)
        gamma = if shift == 0, do: gamma, else: Nx.add(gamma, shift)
        gamma = cast(gamma, type)
        norm(x, type, details, &Nitrox.rms_norm(&1, gamma, [epsilon: epsilon] ++ &2))
      end
    end

    # A norm, and the sum that it is of for others.
    defp fused(:sum_and_norm, [a, b | parameters], opts, op, details) do
      sum = plain(:add, nil, [{a, b}], [])
      fused(details.norm, [put_sum(sum, a, b) | parameters], opts, op, details)
    end

    defp fused(kind, inputs, opts, _op, details) when kind in [:lstm, :gru],
      do: Recurrent.run(kind, inputs, opts, details)

    # In training a dropout of nothing still draws its next key.
    defp fused(:dropout, [x, _key] = inputs, opts, op, _) do
      case plain(op, nil, inputs, opts) do
        %Axon.StatefulOutput{} = result -> {:ok, %{result | output: x}}
        result -> {:ok, result}
      end
    end

    defp fused(:attention_weights, inputs, opts, op, _) do
      weights = plain(op, nil, inputs, opts)
      {:ok, put_note(weights, {:attention, inputs, opts})}
    end

    defp fused(:attention, [weights, value], opts, _op, _) do
      case {note(weights), opts[:output_attentions]} do
        {{:attention, inputs, given}, asked} when asked in [nil, false] ->
          Attention.run(inputs, value, given)

        {{:attention, _, _}, _} ->
          {:plain, "its weights are asked for"}

        _ ->
          {:plain, "a dropout or a hook changed its weights"}
      end
    end

    defp fused(:repeat, [x], opts, _op, %{times: times}) do
      axis = Nx.axis_index(x, opts[:axis])
      axes = Enum.reject(0..Nx.rank(x), &(&1 == axis + 1))
      repeated = Nx.broadcast(x, Tuple.insert_at(x.shape, axis + 1, times), axes: axes)
      {:ok, Nx.flatten(repeated, axes: [axis, axis + 1])}
    end

    # Reverses what `Recurrent` reversed.
    defp fused(:reverse, inputs, opts, op, _) do
      result = plain(op, nil, inputs, opts)
      {:ok, Nx.Defn.Composite.traverse(result, &(reversed(&1, :any) || &1))}
    end

    defp fused(_, _, _, _, _), do: {:plain, "it has other inputs than Axon gives such a layer"}

    # ── Dense layers and norms ────────────────────────────────────────────────────────────────────

    # `done` is what the layer does besides. The note is for what may be added to that.
    defp dense(parts, done, names) do
      out = Nitrox.dense(parts.x, parts.w, parts.b, done) |> Nx.rename(names)
      {:ok, if(done[:residual], do: out, else: put_note(out, {:dense, parts, done}))}
    end

    defp dense?(x, w, b) do
      Nx.rank(x) >= 2 and Nx.rank(w) == 2 and Nx.axis_size(x, -1) == Nx.axis_size(w, 0) and
        (b == nil or b.shape == {Nx.axis_size(w, 1)})
    end

    defp last_axis(x, opts) do
      axis = Keyword.get(opts, :channel_index, -1)
      last = Nx.rank(x) - 1
      fits(axis in [-1, last], "it normalises axis #{inspect(axis)} and not the last one")
    end

    defp put_sum(sum, %T{shape: shape, type: type} = a, %T{shape: shape, type: type} = b),
      do: put_note(sum, {:sum, a, b})

    defp put_sum(sum, _, _), do: sum

    # Of x or, where that is a sum which nobody else reads or which goes out with the norm, of its
    # operands.
    defp norm(x, type, details, fun) do
      {normed, sum} =
        case details.sum? && note(x) do
          {:sum, %T{type: ^type} = a, b} -> fun.(a, residual: b)
          _ -> {fun.(cast(x, type), []), x}
        end

      [normed, sum] = for t <- [normed, sum], do: Nx.rename(t, x.names)
      {:ok, if(details.kind == :sum_and_norm, do: {normed, sum}, else: normed)}
    end

    # ── Notes ─────────────────────────────────────────────────────────────────────────────────────

    # A note is metadata of an expression, as Axon keeps the logits of a softmax for its losses: it
    # stays when a layer hands a value on, and is gone when it makes another one of it.

    @doc "A value with a note on it."
    def put_note(tensor, note),
      do: tensor |> Expr.tensor() |> Expr.metadata(%{__MODULE__ => note})

    @doc "The note on a value, or nil. A cast to a wider type and back is no other value."
    def note(%T{type: type} = tensor), do: note(tensor, type)
    def note(_), do: nil

    defp note(%T{type: type, data: %Expr{op: :metadata, args: [inner, metadata]}}, wanted) do
      case metadata do
        %{__MODULE__ => note} -> if type == wanted, do: note
        _ -> if only_named?(metadata), do: note(inner, wanted)
      end
    end

    defp note(%T{type: {_, bits} = type, data: %Expr{op: :as_type, args: [inner]}}, wanted)
         when type == wanted or bits >= 32,
         do: note(inner, wanted)

    defp note(_, _), do: nil

    @doc "What a value is the reverse of along these axes, or nil."
    def reversed(tensor, axes) do
      with %T{data: %Expr{op: :reverse, args: [inner, there]}} when axes in [:any, there] <-
             bare(tensor) do
        if axes == :any, do: reversed(inner, there), else: inner
      else
        _ -> nil
      end
    end

    defp bare(%T{data: %Expr{op: :metadata, args: [inner, metadata]}} = tensor),
      do: if(only_named?(metadata), do: bare(inner), else: tensor)

    defp bare(tensor), do: tensor

    # Nothing that gradients look at.
    defp only_named?(metadata), do: Map.keys(metadata) == [:axon_layer]

    # ── Of all layers ─────────────────────────────────────────────────────────────────────────────

    @doc "The type of a layer's tensors that Nx would compute in, if there are kernels for it."
    def common_type(tensors) do
      cond do
        not Enum.all?(tensors, &is_struct(&1, T)) ->
          {:plain, "it takes tensors, and got something else"}

        Enum.any?(tensors, &(&1.vectorized_axes != [])) ->
          {:plain, "no kernel takes vectorized tensors"}

        true ->
          type = tensors |> Enum.map(& &1.type) |> Enum.reduce(&Nx.Type.merge/2)
          name = Nx.Type.to_string(type)
          if type in @types, do: {:ok, type}, else: {:plain, "no kernel computes in #{name}"}
      end
    end

    @doc false
    def type?(type), do: type in @types

    @doc false
    def cast(%T{type: type} = tensor, type), do: tensor
    def cast(tensor, type), do: Nx.as_type(tensor, type)

    @doc false
    def fits(true, _), do: :ok
    def fits(false, why), do: {:plain, why}

    @doc false
    def shapes(tensors), do: Enum.map_join(tensors, " and ", &inspect(&1 && &1.shape))
  end
end
