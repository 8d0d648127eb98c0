if Code.ensure_loaded?(Nx.Tensor) do
  defmodule Nitrox.Nx.Index do
    @moduledoc false
    # What reads and writes at places that lie on the device, and what puts elements in order.

    alias Nitrox.Nx.{Data, Shape}
    alias Nitrox.Op

    def gather(out, t, indices, opts) do
      device = Data.device([t, indices])
      refs = [Data.whole(t, out.type, device), Data.whole(indices, indices.type, device)]
      Data.run(out, %Op.Gather{axes: opts[:axes]}, refs, device)
    end

    def indexed_add(out, t, indices, updates, opts),
      do: indexed(%Op.IndexedAdd{axes: opts[:axes]}, out, t, indices, updates)

    def indexed_put(out, t, indices, updates, opts),
      do: indexed(%Op.IndexedPut{axes: opts[:axes]}, out, t, indices, updates)

    defp indexed(op, out, t, indices, updates) do
      device = Data.device([t, indices, updates])

      refs = [
        Data.whole(t, out.type, device),
        Data.whole(indices, indices.type, device),
        Data.whole(updates, out.type, device)
      ]

      Data.run(out, op, refs, device)
    end

    def sort(%{shape: {}} = out, t, _opts), do: Shape.reshape(out, t)

    def sort(out, t, opts) do
      device = Data.device(t)
      Data.run(out, order(opts, false), [Data.whole(t, out.type, device)], device)
    end

    def argsort(%{shape: {}} = out, t, _opts),
      do: Data.put_constant(out, Data.element(0, out.type), Data.device(t))

    def argsort(out, t, opts) do
      device = Data.device(t)
      ref = Data.call(order(opts, true), [Data.whole(t, t.type, device)], device)
      Data.put_typed(out, ref, {:s, 32}, device)
    end

    # The engine's sort is stable whether it is asked to be or not.
    defp order(opts, indices?),
      do: %Op.Sort{axis: opts[:axis], descending: opts[:direction] == :desc, indices: indices?}

    def top_k({values, indices}, t) do
      device = Data.device(t)
      axis = tuple_size(t.shape) - 1
      x = Data.whole(t, t.type, device)
      order = Data.call(%Op.Sort{axis: axis, descending: true, indices: true}, [x], device)
      shape = Tuple.to_list(indices.shape)
      zeros = Enum.map(shape, fn _ -> 0 end)
      ones = Enum.map(shape, fn _ -> 1 end)
      first = %Op.Slice{starts: zeros, lengths: shape, strides: ones}
      best = Data.call(first, [order, nil], device)
      found = Data.put(%{indices | type: {:s, 32}}, best, device)
      # The same elements by their indices, so that the two agree whatever the order of equals is.
      chosen = Nx.take_along_axis(Data.put(t, x, device), found, axis: axis)
      {%{values | data: chosen.data}, Data.put_typed(indices, best, {:s, 32}, device)}
    end
  end
end
