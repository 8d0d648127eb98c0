if Code.ensure_loaded?(Nx.Tensor) do
  defmodule Nitrox.Nx.Shape do
    @moduledoc false
    # What moves elements about, or only sees them under another shape or type.

    alias Nitrox.Backend, as: B
    alias Nitrox.Nx.Data
    alias Nitrox.Op
    alias Nx.Tensor, as: T

    defguardp is_constant(t) when t.data.__struct__ == B and t.data.constant != nil

    def as_type(%{type: type}, %T{type: type} = t), do: t

    def as_type(out, t) when is_constant(t),
      do: Data.put_constant(out, Data.convert(t.data.constant, t.type, out.type), t.data.device)

    def as_type(out, t) do
      device = Data.device(t)
      Data.put(out, Data.whole(t, out.type, device), device)
    end

    @doc "The same elements under another shape, of whatever type; costs nothing."
    def reshape(out, t) when is_constant(t), do: %{out | data: t.data}

    def reshape(out, t) do
      device = Data.device(t)
      ref = Data.whole(t, t.type, device)
      {_, to} = Data.spec(out)
      {_, from} = Data.spec(t)

      if to == from,
        do: Data.put(out, ref, device),
        else: Data.run(out, %Op.Reshape{shape: Tuple.to_list(to)}, [ref], device)
    end

    def squeeze(out, t, _axes), do: reshape(out, t)

    def broadcast(out, t, _shape, _axes) when is_constant(t), do: %{out | data: t.data}

    def broadcast(out, t, shape, axes) do
      device = Data.device(t)
      aligned = aligned(t.shape, tuple_size(shape), axes)
      ref = Data.whole(t, out.type, device)

      # The engine aligns axes at the last.
      ref =
        if trailing?(axes, tuple_size(shape)),
          do: ref,
          else: Data.call(%Op.Reshape{shape: aligned}, [ref], device)

      Data.run(out, %Op.Broadcast{shape: Tuple.to_list(shape)}, [ref], device)
    end

    # The lengths of a tensor whose axis i becomes the axis `axes[i]` of `rank`.
    defp aligned(shape, rank, axes) do
      lengths = Map.new(Enum.zip(axes, Tuple.to_list(shape)))
      for axis <- 0..(rank - 1)//1, do: Map.get(lengths, axis, 1)
    end

    defp trailing?(axes, rank), do: axes == Enum.to_list((rank - length(axes))..(rank - 1)//1)

    def transpose(out, t, _axes) when is_constant(t), do: %{out | data: t.data}

    def transpose(out, t, axes) do
      if axes == Nx.axes(t) do
        reshape(out, t)
      else
        device = Data.device(t)
        Data.run(out, %Op.Transpose{axes: axes}, [Data.whole(t, out.type, device)], device)
      end
    end

    @doc "The same bytes as elements of another type; costs nothing."
    def bitcast(out, t) when is_constant(t), do: %{out | data: t.data}

    def bitcast(out, t) do
      device = Data.device(t)
      Data.run(out, %Op.Bitcast{type: out.type}, [Data.whole(t, t.type, device)], device)
    end

    def reverse(out, t, _axes) when is_constant(t), do: %{out | data: t.data}

    def reverse(out, t, axes) do
      device = Data.device(t)
      Data.run(out, %Op.Reverse{axes: axes}, [Data.whole(t, out.type, device)], device)
    end

    def pad(out, t, value, config) do
      device = Data.device(t, value)

      op = %Op.Pad{
        low: Enum.map(config, &elem(&1, 0)),
        high: Enum.map(config, &elem(&1, 1)),
        interior: Enum.map(config, &elem(&1, 2))
      }

      refs = [Data.whole(t, out.type, device), Data.operand(value, out.type, device)]
      Data.run(out, op, refs, device)
    end

    def concatenate(out, tensors, axis) do
      device = Data.device(tensors)
      refs = for t <- tensors, do: Data.whole(t, out.type, device)
      Data.run(out, %Op.Concatenate{axis: axis}, refs, device)
    end

    def stack(out, tensors, axis) do
      device = Data.device(tensors)
      shape = out.shape |> put_elem(axis, 1) |> Tuple.to_list()

      refs =
        for t <- tensors do
          Data.call(%Op.Reshape{shape: shape}, [Data.whole(t, out.type, device)], device)
        end

      Data.run(out, %Op.Concatenate{axis: axis}, refs, device)
    end

    # ── Slices ────────────────────────────────────────────────────────────────────────────────────

    def slice(out, t, _starts, _lengths, _strides) when is_constant(t), do: %{out | data: t.data}

    # A table that a `defn` holds, read at a place that is known here: that stays on the host.
    def slice(out, %T{data: %Nx.BinaryBackend{}} = t, starts, lengths, strides) do
      known = Enum.map(starts, &known/1)

      if nil in known,
        do: cut(out, t, starts, lengths, strides),
        else: Nx.BinaryBackend.slice(out, t, known, lengths, strides)
    end

    def slice(out, t, starts, lengths, strides), do: cut(out, t, starts, lengths, strides)

    defp cut(out, t, starts, lengths, strides) do
      device = Data.device([t | Enum.reject(starts, &is_integer/1)])
      {fixed, held} = split_starts(starts, Tuple.to_list(t.shape), lengths)
      unit = Enum.map(strides, fn _ -> 1 end)

      # The engine adds one position on the device to a start. So where several axes have one, each
      # is cut by itself; strides come last, since Nx holds a start within the unstrided slice.
      {ref, fixed, shape} =
        Enum.reduce(held, {Data.whole(t, out.type, device), fixed, Tuple.to_list(t.shape)}, fn
          {axis, position}, {ref, fixed, shape} ->
            shape = List.replace_at(shape, axis, Enum.at(lengths, axis))
            starts = Enum.map(fixed, fn _ -> 0 end)
            op = %Op.Slice{starts: starts, lengths: shape, strides: unit, axis: axis}
            ref = Data.call(op, [ref, position(position, device)], device)
            {ref, List.replace_at(fixed, axis, 0), shape}
        end)

      wanted = Tuple.to_list(out.shape)

      if shape == wanted and strides == unit,
        do: Data.put(out, ref, device),
        else:
          Data.run(
            out,
            %Op.Slice{starts: fixed, lengths: wanted, strides: strides},
            [ref, nil],
            device
          )
    end

    def put_slice(out, t, starts, slice) do
      device = Data.device([t, slice | Enum.reject(starts, &is_integer/1)])
      x = Data.whole(t, out.type, device)
      part = Data.whole(slice, out.type, device)
      shape = Tuple.to_list(t.shape)
      lengths = Tuple.to_list(slice.shape)
      {fixed, held} = split_starts(starts, shape, lengths)
      Data.put(out, put(x, shape, part, lengths, fixed, held, device), device)
    end

    defp put(x, _, part, _, fixed, [], device),
      do: Data.call(%Op.PutSlice{starts: fixed}, [x, part, nil], device)

    defp put(x, _, part, _, fixed, [{axis, position}], device) do
      op = %Op.PutSlice{starts: fixed, axis: axis}
      Data.call(op, [x, part, position(position, device)], device)
    end

    # Of several positions on the device the engine takes one: a band along the first of their axes is
    # cut out, written by the others, and put back.
    defp put(x, shape, part, lengths, fixed, [{axis, position} | held], device) do
      position = position(position, device)
      zeros = Enum.map(fixed, fn _ -> 0 end)
      band_shape = List.replace_at(shape, axis, Enum.at(lengths, axis))
      ones = Enum.map(fixed, fn _ -> 1 end)
      cut = %Op.Slice{starts: zeros, lengths: band_shape, strides: ones, axis: axis}
      band = Data.call(cut, [x, position], device)
      band = put(band, band_shape, part, lengths, fixed, held, device)
      Data.call(%Op.PutSlice{starts: zeros, axis: axis}, [x, band, position], device)
    end

    # The starts that are known here, held within the tensor, and `{axis, tensor}` of the others.
    defp split_starts(starts, shape, lengths) do
      [starts, shape, lengths]
      |> Enum.zip()
      |> Enum.with_index()
      |> Enum.map_reduce([], fn {{start, size, length}, axis}, held ->
        case known(start) do
          nil -> {0, held ++ [{axis, start}]}
          start -> {start |> max(0) |> min(size - length), held}
        end
      end)
    end

    defp known(start) when is_integer(start), do: start

    defp known(%T{data: %B{constant: element}, type: type}) when element != nil do
      <<start::64-signed-native>> = Data.convert(element, type, {:s, 64})
      start
    end

    defp known(%T{data: %B{}}), do: nil
    defp known(%T{} = start), do: Nx.to_number(start)

    defp position(t, device) do
      Data.call(%Op.Reshape{shape: []}, [Data.whole(t, {:s, 32}, device)], device)
    end
  end
end
