if Code.ensure_loaded?(Nx.Tensor) do
  defmodule Nitrox.Nx.Reduce do
    @moduledoc false
    # Reductions along axes, over windows, and those that keep what they had so far.

    alias Nitrox.Nx.Data
    alias Nitrox.Op

    @doc "Elements are brought to the result's type first, so that a sum of `u8` is one of `u32`."
    def reduce(kind, out, t, opts), do: reduce(kind, out.type, out, t, opts)

    @doc "All and any: of elements as they are."
    def test(kind, out, t, opts), do: reduce(kind, t.type, out, t, opts)

    # Nx itself answers for an empty list of axes, which the engine would take for all of them.
    defp reduce(kind, type, out, t, opts) do
      device = Data.device(t)
      op = %Op.Reduce{kind: kind, axes: opts[:axes] || [], keep_axes: opts[:keep_axes] || false}
      Data.run(out, op, [Data.whole(t, type, device)], device)
    end

    def argmax(out, t, opts), do: arg(false, out, t, opts)
    def argmin(out, t, opts), do: arg(true, out, t, opts)

    # Without an axis the index is that among all elements.
    defp arg(min?, out, t, opts) do
      device = Data.device(t)
      ref = Data.whole(t, t.type, device)

      {ref, axis} =
        case opts[:axis] do
          nil -> {Data.call(%Op.Reshape{shape: [Tuple.product(t.shape)]}, [ref], device), 0}
          axis -> {ref, axis}
        end

      op = %Op.Argmax{
        axis: axis,
        keep_axis: opts[:keep_axis] || false,
        min: min?,
        last: opts[:tie_break] == :high
      }

      Data.put_typed(out, Data.call(op, [ref], device), {:s, 32}, device)
    end

    def window(kind, out, t, window, opts) do
      device = Data.device(t)

      op = %Op.WindowReduce{
        kind: kind,
        window: Tuple.to_list(window),
        strides: opts[:strides],
        padding: pairs(opts[:padding]),
        dilations: opts[:window_dilations]
      }

      Data.run(out, op, [Data.whole(t, out.type, device)], device)
    end

    @doc "The gradient of a window's greatest or least element."
    def window_scatter(min?, out, t, source, init, window, opts) do
      device = Data.device([t, source, init])
      # Elements are compared in a type that holds them, which the result's may not.
      type = Nx.Type.merge(t.type, out.type)

      op = %Op.WindowScatter{
        min: min?,
        window: Tuple.to_list(window),
        strides: opts[:strides],
        padding: pairs(opts[:padding])
      }

      refs = [Data.whole(t, type, device), Data.whole(source, type, device)]
      ref = Data.call(op, refs ++ [Data.operand(init, type, device)], device)
      Data.put_typed(out, ref, type, device)
    end

    defp pairs(padding), do: Enum.map(padding, &Tuple.to_list/1)

    def cumulative(kind, out, t, %{axis: axis, reverse: reverse}) do
      device = Data.device(t)
      op = %Op.Cumulative{kind: kind, axis: axis, reverse: reverse}
      Data.run(out, op, [Data.whole(t, out.type, device)], device)
    end
  end
end
