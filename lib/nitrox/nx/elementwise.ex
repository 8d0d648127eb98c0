if Code.ensure_loaded?(Nx.Tensor) do
  defmodule Nitrox.Nx.Elementwise do
    @moduledoc false
    # Functions of each element. Operands are brought to the type that the result is computed in;
    # what is made of constants alone is a constant.

    alias Nitrox.Backend, as: B
    alias Nitrox.Nx.{Data, Shape}
    alias Nitrox.{Element, Op}
    alias Nx.Tensor, as: T

    @comparisons [:equal, :not_equal, :less, :less_equal, :greater, :greater_equal]
    @logical [:logical_and, :logical_or, :logical_xor]

    def unary(name, out, %T{data: %B{constant: element}} = t) when element != nil do
      case Data.fold(name, out, [t]) do
        {:ok, bytes} -> Data.put_constant(out, bytes, t.data.device)
        :error -> launch_unary(name, out, t)
      end
    end

    def unary(name, out, t), do: launch_unary(name, out, t)

    defp launch_unary(name, out, t), do: launch(name, out, t, out.type)

    # Integers have neither.
    def non_finite(_, out, %T{type: {kind, _}} = t) when kind in [:s, :u],
      do: Data.put_constant(out, <<0>>, Data.device(t))

    def non_finite(name, out, t), do: flag(name, out, t)

    # A function of an element in its own type, of another as a result.
    defp flag(name, out, t), do: launch(name, out, t, t.type)

    # A constant gives one element, which is then repeated.
    defp launch(name, out, t, type) do
      device = Data.device(t)
      ref = Data.operand(t, type, device)
      Data.call(%Op.Unary{kind: name}, [ref], device) |> spread(operand_shape(t), out, device)
    end

    @doc "1 where an element is 0."
    def logical_not(out, t), do: flag(:logical_not, out, t)

    @doc "1 where an element is not 0: any tensor as the engine's predicate."
    def predicate(%T{type: {:u, 8}} = t, device), do: Data.operand(t, {:u, 8}, device)

    def predicate(t, device) do
      zero = Data.put_constant(%T{type: t.type, shape: {}, names: []}, zero(t.type), device)
      operands = [Data.operand(t, t.type, device), Data.operand(zero, t.type, device)]
      Data.call(%Op.Binary{kind: :not_equal}, operands, device)
    end

    defp zero({_, bits}), do: <<0::size(bits)>>

    def binary(name, out, %T{data: %Nx.BinaryBackend{}} = a, b),
      do: settled(name, out, Data.settled(a, Data.device(a, b)), b)

    def binary(name, out, a, %T{data: %Nx.BinaryBackend{}} = b),
      do: settled(name, out, a, Data.settled(b, Data.device(a, b)))

    def binary(name, out, a, b), do: settled(name, out, a, b)

    defp settled(name, out, a, b) do
      with %T{data: %B{constant: x}} when x != nil <- a,
           %T{data: %B{constant: y}} when y != nil <- b,
           {:ok, bytes} <- Data.fold(name, out, [a, b]) do
        Data.put_constant(out, bytes, Data.device(a, b))
      else
        _ ->
          device = Data.device(a, b)
          type = common_type(name, out, a, b)
          operands = [Data.operand(a, type, device), Data.operand(b, type, device)]
          ref = Data.call(%Op.Binary{kind: name}, operands, device)
          spread(ref, joint_shape(operand_shape(a), operand_shape(b), out), out, device)
      end
    end

    defp common_type(name, _, a, b) when name in @comparisons or name in @logical,
      do: Nx.Type.merge(a.type, b.type)

    defp common_type(_, out, _, _), do: out.type

    def clip(out, t, least, most) do
      device = Data.device([t, least, most])
      [x, least, most] = for o <- [t, least, most], do: Data.operand(o, out.type, device)
      x = Data.call(%Op.Binary{kind: :max}, [x, least], device)

      Data.call(%Op.Binary{kind: :min}, [x, most], device)
      |> spread(operand_shape(t), out, device)
    end

    # A predicate that is known here chooses, and nothing is computed.
    def select(out, %T{data: %B{constant: element}, type: type} = pred, on_true, on_false)
        when element != nil do
      [number] = Element.decode(type, element)
      chosen = if number == 0, do: on_false, else: on_true
      device = Data.device([on_true, on_false, pred])
      chosen = Shape.as_type(%{chosen | type: out.type}, Data.here(chosen, device))

      if chosen.shape == out.shape,
        do: %{out | data: chosen.data},
        else:
          Shape.broadcast(
            out,
            chosen,
            out.shape,
            Nx.Shape.broadcast_axes(chosen.shape, out.shape)
          )
    end

    def select(out, pred, on_true, on_false) do
      device = Data.device([pred, on_true, on_false])

      operands = [
        predicate(pred, device),
        Data.operand(on_true, out.type, device),
        Data.operand(on_false, out.type, device)
      ]

      shape =
        operand_shape(on_true)
        |> joint_shape(operand_shape(on_false), out)
        |> joint_shape(operand_shape(pred), out)

      Data.call(%Op.Select{}, operands, device) |> spread(shape, out, device)
    end

    # The shape an operand is given to the engine in.
    defp operand_shape(%T{data: %B{constant: element}}) when element != nil, do: {}
    defp operand_shape(%T{shape: shape}), do: shape

    # That of the engine's result, as far as it matters: whether it is the whole of `out`.
    defp joint_shape(shape, _, %{shape: shape}), do: shape
    defp joint_shape(_, shape, %{shape: shape}), do: shape

    defp joint_shape(a, b, _) do
      {shape, _} = Nx.Shape.binary_broadcast(a, nils(a), b, nils(b))
      shape
    end

    defp nils(shape), do: List.duplicate(nil, tuple_size(shape))

    # Where constants stood for all there is of some axes.
    defp spread(ref, shape, %{shape: shape} = out, device), do: Data.put(out, ref, device)

    defp spread(ref, _, out, device),
      do: Data.run(out, %Op.Broadcast{shape: Tuple.to_list(out.shape)}, [ref], device)
  end
end
