if Code.ensure_loaded?(Nx.Tensor) do
  defmodule Nitrox.Nx.Fused do
    @moduledoc false
    # The functions of `Nitrox` on tensors of Nx, eagerly or inside `defn`.
    #
    # An op that Nx has no word for becomes a `Nitrox.Nx.Block`. `Nitrox.Backend` runs it in one
    # kernel; everything else, and every gradient, takes its body, which is `Nitrox.Nx.Reference`.
    # The other ops are only words for what Nx does, and are that at once.

    alias Nitrox.{Error, Native, Op, Tensor, Value}
    alias Nitrox.Nx.{Block, Data, Reference}
    alias Nx.Tensor, as: T

    # The most tensors that an op takes: those of the selective scan.
    @most 12

    @doc "Applies an op to tensors of Nx, numbers and nil. Gives its outputs as a list."
    def apply(op, inputs) do
      inputs = Enum.map(inputs, &input!(op, &1, inputs))
      outs = outs(op, inputs)

      if Reference.fused?(op),
        do: block(op, inputs, outs),
        else: op |> Reference.run(inputs) |> List.wrap()
    end

    defp input!(op, %T{vectorized_axes: [_ | _]}, _) do
      message = "takes no vectorized tensors"
      raise Error.argument(Op.name(op), message, "devectorize them with Nx.devectorize/2")
    end

    defp input!(_, %T{} = tensor, _), do: tensor
    defp input!(_, nil, _), do: nil

    # A number is of the type of the first tensor, as everywhere in Nitrox.
    defp input!(op, number, inputs) when is_number(number) do
      %T{type: type} = Enum.find(inputs, &is_struct(&1, T))
      Tensor.check_spec!(Op.name(op), type, {})
      Op.constant(op, number, type)
      Nx.tensor(number, type: type)
    end

    defp input!(op, %module{}, _) when module in [Tensor, Value] do
      message = "takes tensors of Nx or of Nitrox, not both"
      hint = "Nitrox.to_nx/1 and Nitrox.from_nx/1 give the one for the other"
      raise Error.argument(Op.name(op), message, hint)
    end

    defp input!(op, other, _),
      do: raise(Error.argument(Op.name(op), "expected a tensor, got #{inspect(other)}"))

    # By the rule of the engine, so that what is refused of our tensors is refused here too, in the
    # same words.
    defp outs(op, inputs) do
      specs = Enum.map(inputs, &(&1 && Tensor.to_spec(&1)))

      for {type, shape} <- Native.call(:infer, [Op.wire(op), specs]),
          do: template(op, type, shape)
    end

    defp block(op, inputs, outs) do
      {tensors, places} =
        inputs |> Enum.with_index() |> Enum.filter(&elem(&1, 0)) |> Enum.unzip()

      out = if match?([_], outs), do: hd(outs), else: List.to_tuple(outs)

      case Nx.block(%Block{op: op, places: places}, tensors, out, body(length(tensors))) do
        %T{} = result -> [result]
        results -> Tuple.to_list(results)
      end
    end

    defp template(op, type, shape) do
      if 0 in Tuple.to_list(shape) do
        message = "a result of shape #{inspect(shape)} is nothing Nx has"
        raise Error.argument(Op.name(op), message)
      end

      %T{type: type, shape: shape, names: List.duplicate(nil, tuple_size(shape))}
    end

    # A block's body takes the struct and each argument by itself.
    for n <- 1..@most do
      tensors = Macro.generate_arguments(n, __MODULE__)

      defp body(unquote(n)) do
        fn %Block{} = block, unquote_splicing(tensors) ->
          Reference.run(block.op, placed([unquote_splicing(tensors)], block.places))
        end
      end
    end

    # The op's inputs, with nil where there is none.
    defp placed(values, places) do
      given = Map.new(Enum.zip(places, values))
      for place <- 0..List.last(places), do: given[place]
    end

    @doc "`c:Nx.Backend.block/4` for an op of ours: one kernel where the device has it."
    def native(%Block{op: op, places: places}, out, tensors) do
      device = Data.device(tensors)
      refs = for t <- tensors, do: Data.whole(t, t.type, device)
      results = Data.outputs(op, placed(refs, places), device)

      case {out, results} do
        {%T{}, [{ref, _}]} ->
          Data.put(out, ref, device)

        _ ->
          Tuple.to_list(out)
          |> Enum.zip_with(results, fn out, {ref, _} -> Data.put(out, ref, device) end)
          |> List.to_tuple()
      end
    end
  end
end
