defmodule Nitrox.Functions.Shape do
  @moduledoc false
  # Shapes, parts and types.

  alias Nitrox.{Op, Options}

  defmacro __using__(_) do
    quote location: :keep, unquote: false do
      @doc """
      The same elements in another type. Floats to integers are truncated, and what is out of range
      becomes the nearest end of it. See `Nitrox.Op.Cast`.

          iex> Nitrox.tensor([1.9, -1.9, 300.0]) |> Nitrox.cast({:u, 8}) |> Nitrox.to_list()
          [1, 0, 255]
      """
      @doc group: "Shape and type"
      @spec cast(t(), type()) :: t()
      def cast(x, type) do
        if tensor!(:cast, x).type == type, do: x, else: one(%Op.Cast{type: type}, [x])
      end

      @doc """
      The same elements under another shape; costs nothing. One axis may be `:auto`.

          iex> Nitrox.tensor([[1, 2], [3, 4]]) |> Nitrox.reshape({:auto}) |> Nitrox.to_list()
          [1, 2, 3, 4]
      """
      @doc group: "Shape and type"
      @spec reshape(t(), shape()) :: t()
      def reshape(x, shape) do
        x = tensor!(:reshape, x)
        one(%Op.Reshape{shape: shape!(:reshape, fill(shape, x))}, [x])
      end

      defp fill(shape, x) when is_tuple(shape) do
        {axes, size} = {Tuple.to_list(shape), size(x)}
        known = for axis <- axes, is_integer(axis), reduce: 1, do: (product -> product * axis)

        case Enum.count(axes, &(&1 == :auto)) do
          0 ->
            shape

          1 when known > 0 and rem(size, known) == 0 ->
            axes |> Enum.map(&if(&1 == :auto, do: div(size, known), else: &1)) |> List.to_tuple()

          _ ->
            fail!(
              :reshape,
              "#{inspect(shape)} does not fit the #{size} elements of #{inspect(x.shape)}"
            )
        end
      end

      defp fill(shape, _x), do: shape

      @doc """
      The axes in another order: axis i of the result is axis `axes[i]` of `x`. Without `:axes` the order
      is reversed.

          iex> Nitrox.tensor([[1, 2], [3, 4]]) |> Nitrox.transpose() |> Nitrox.to_list()
          [[1, 3], [2, 4]]
      """
      @doc group: "Shape and type"
      @spec transpose(t(), keyword()) :: t()
      def transpose(x, opts \\ []) do
        opts = Options.validate!(:transpose, opts, axes: {nil, axes()})
        rank = tuple_size(tensor!(:transpose, x).shape)
        axes = opts.axes || Enum.to_list((rank - 1)..0//-1)
        one(%Op.Transpose{axes: Enum.map(axes, &from_start(&1, rank))}, [x])
      end

      @doc """
      `x` repeated to a shape: axes are aligned at the last, and those that are missing or of length 1
      are repeated.

          iex> Nitrox.tensor([1, 2]) |> Nitrox.broadcast_to({2, 2}) |> Nitrox.to_list()
          [[1, 2], [1, 2]]
      """
      @doc group: "Shape and type"
      @spec broadcast_to(t(), shape()) :: t()
      def broadcast_to(x, shape), do: one(%Op.Broadcast{shape: shape!(:broadcast_to, shape)}, [x])

      @doc """
      A part of `x`: `lengths[i]` elements of axis i, from `starts[i]` on. See `Nitrox.Op.Slice`.

      Options:

        * `:strides` - a step for each axis, or one for all (default `1`)
        * `:position` - a scalar of `{:s, 32}` on the device, added to the start on `:axis`
        * `:axis` - default `0`
        * `:wrap` - `:axis` is a ring: the slice goes on at its beginning. Without it, a slice that would
          run over the end is moved back until it fits (default `false`)

      ## Examples

          iex> x = Nitrox.tensor([0, 1, 2, 3])
          iex> Nitrox.slice(x, [1], [2]) |> Nitrox.to_list()
          [1, 2]
          iex> Nitrox.slice(x, [0], [3], position: Nitrox.tensor(2), wrap: true) |> Nitrox.to_list()
          [2, 3, 0]
      """
      @doc group: "Shape and type"
      @spec slice(t(), [integer()], [non_neg_integer()], keyword()) :: t()
      def slice(x, starts, lengths, opts \\ []) do
        opts =
          Options.validate!(
            :slice,
            opts,
            [strides: {1, {"a step or a list of steps", &(is_integer(&1) or is_list(&1))}}] ++
              place()
          )

        if not (is_list(starts) and is_list(lengths)) do
          fail!(
            :slice,
            "starts and lengths are lists, got #{inspect(starts)} and #{inspect(lengths)}"
          )
        end

        strides =
          if is_integer(opts.strides),
            do: List.duplicate(opts.strides, length(lengths)),
            else: opts.strides

        op = %Op.Slice{
          starts: starts,
          lengths: lengths,
          strides: strides,
          axis: opts.axis,
          wrap: opts.wrap
        }

        one(op, [x, opts.position])
      end

      @doc """
      `x` with `slice` written over it from `starts` on. See `Nitrox.Op.PutSlice`.

      Options: `:position`, `:axis` and `:wrap` of `slice/4`.

          iex> ring = Nitrox.tensor([0, 0, 0])
          iex> one_two = Nitrox.tensor([1, 2])
          iex> ring |> Nitrox.put_slice([2], one_two, wrap: true) |> Nitrox.to_list()
          [2, 0, 1]
      """
      @doc group: "Shape and type"
      @spec put_slice(t(), [integer()], t(), keyword()) :: t()
      def put_slice(x, starts, slice, opts \\ []) do
        opts = Options.validate!(:put_slice, opts, place())
        op = %Op.PutSlice{starts: starts, axis: opts.axis, wrap: opts.wrap}
        one(op, [x, slice, opts.position])
      end

      defp place, do: [position: {nil, tensor()}, axis: {0, integer()}, wrap: {false, boolean()}]

      @doc """
      Tensors one after the other along `:axis` (default `0`). They agree on every other axis.

          iex> Nitrox.concatenate([Nitrox.tensor([1, 2]), Nitrox.tensor([3])]) |> Nitrox.to_list()
          [1, 2, 3]
      """
      @doc group: "Shape and type"
      @spec concatenate([t()], keyword()) :: t()
      def concatenate(tensors, opts \\ []) do
        opts = Options.validate!(:concatenate, opts, axis: {0, integer()})

        case tensors do
          [_ | _] ->
            one(%Op.Concatenate{axis: opts.axis}, tensors)

          other ->
            fail!(:concatenate, "expected a list of at least one tensor, got #{inspect(other)}")
        end
      end

      @doc """
      Tensors of one shape side by side along a new `:axis` (default `0`).

          iex> Nitrox.stack([Nitrox.tensor([1, 2]), Nitrox.tensor([3, 4])], axis: 1) |> Nitrox.to_list()
          [[1, 3], [2, 4]]
      """
      @doc group: "Shape and type"
      @spec stack([t()], keyword()) :: t()
      def stack(tensors, opts \\ []) do
        opts = Options.validate!(:stack, opts, axis: {0, integer()})

        case Options.list?(tensors) && tensors do
          [first | _] ->
            rank = tuple_size(tensor!(:stack, first).shape)
            axis = from_start(opts.axis, rank + 1)

            if axis not in 0..rank,
              do: fail!(:stack, "axis #{opts.axis} is out of range for #{rank + 1} axes")

            tensors
            |> Enum.map(&reshape(&1, Tuple.insert_at(tensor!(:stack, &1).shape, axis, 1)))
            |> concatenate(axis: axis)

          _ ->
            fail!(:stack, "expected a list of at least one tensor, got #{inspect(tensors)}")
        end
      end
    end
  end
end
