if Code.ensure_loaded?(Nx.Tensor) do
  defmodule Nitrox.Nx.Transfer do
    @moduledoc false
    # What brings tensors here, away, and to the screen.

    import Nitrox.Options, only: [fail!: 2, fail!: 3]

    alias Nitrox.Backend, as: B
    alias Nitrox.{Device, Native, Op, Options, Tensor}
    alias Nitrox.Nx.{Data, Host, Routes, Shape}
    alias Nx.Tensor, as: T

    # Named once, so that what is made later goes where the default was then.
    def init(opts), do: [device: device(opts)]

    def device(opts), do: Options.known!(:backend, opts, [:device])[:device] || Device.default()

    def constant(out, number, opts),
      do: Data.put_constant(out, Data.element(number, out.type), device(opts))

    def from_binary(out, bits, opts), do: Data.upload(out, bits, device(opts))
    def to_binary(t, limit), do: Data.download(t, limit)

    def backend_copy(t, Nx.Tensor, opts), do: backend_copy(t, Nx.BinaryBackend, opts)

    def backend_copy(%T{data: %B{constant: element}} = t, Nitrox.Backend, opts)
        when element != nil,
        do: Data.put_constant(t, element, device(opts))

    # On its own device a copy shares the buffer, which nothing ever writes to again, by a handle of
    # its own: giving up one leaves the other.
    def backend_copy(%T{data: %B{device: from}} = t, Nitrox.Backend, opts) do
      case device(opts) do
        ^from ->
          {_, shape} = Data.spec(t)
          Data.run(t, %Op.Reshape{shape: Tuple.to_list(shape)}, [t.data.ref], from)

        to ->
          %Tensor{ref: ref} = Tensor.copy(Data.tensor(t), to)
          Data.put(t, ref, to)
      end
    end

    def backend_copy(t, backend, opts),
      do: backend.from_binary(t, Data.download(t, Nx.size(t)), opts)

    def backend_transfer(%T{data: %B{device: device}} = t, backend, opts) do
      if backend == Nitrox.Backend and device(opts) == device do
        t
      else
        copy = backend_copy(t, backend, opts)
        backend_deallocate(t)
        copy
      end
    end

    def backend_deallocate(%T{data: %B{ref: nil}}), do: :ok

    def backend_deallocate(%T{data: %B{ref: ref}}) do
      # No bytes of it: only to know whether it is still there.
      Native.call(:to_binary, [ref, 0])
      Native.call(:deallocate, [ref])
    rescue
      error in Nitrox.Error ->
        if error.reason == :deallocated,
          do: :already_deallocated,
          else: reraise(error, __STACKTRACE__)
    end

    def to_batched(out, t, opts) do
      size = elem(out.shape, 0)
      total = elem(t.shape, 0)
      full = div(total, size)
      rest = rem(total, size)
      last = if rest != 0 and opts[:leftover] == :repeat, do: full, else: full - 1

      Stream.map(0..last//1, fn
        ^full ->
          parts = [
            rows(t, full * size, rest),
            rows(t, 0, size - rest)
          ]

          Nx.concatenate(parts) |> then(&%{out | data: &1.data})

        i ->
          %{out | data: rows(t, i * size, size).data}
      end)
    end

    defp rows(t, start, length), do: Nx.slice_along_axis(t, start, length, axis: 0)

    def inspect(%T{data: %B{device: device}} = t, opts) do
      # One more than is shown, by which Nx knows that there are more.
      limit =
        if opts.limit == :infinity, do: Nx.size(t), else: min(opts.limit + 1, Nx.size(t))

      doc = Nx.Backend.inspect(t, Data.download(t, limit), opts)

      if Application.get_env(:nitrox, :add_backend_on_inspect, true) do
        Inspect.Algebra.concat([
          "Nitrox.Backend<#{Kernel.inspect(device)}>",
          Inspect.Algebra.line(),
          doc
        ])
      else
        doc
      end
    rescue
      error in Nitrox.Error -> "(#{error.message})"
    end

    @doc "Without a copy. See `Nitrox.from_nx/1`."
    def from_nx(t) do
      %{type: type, shape: shape, vectorized_axes: vectorized} = Options.struct!(:from_nx, t, T)
      Tensor.check_spec!(:from_nx, type, shape)

      if vectorized != [],
        do:
          fail!(:from_nx, "takes no vectorized tensors", "devectorize them with Nx.devectorize/2")

      if tuple_size(shape) > Routes.max_axes(),
        do: fail!(:from_nx, "takes at most #{Routes.max_axes()} axes, got #{inspect(shape)}")

      if is_struct(t.data, B),
        do: Data.tensor(t),
        else: Data.tensor(Nx.backend_copy(t, Nitrox.Backend))
    end

    @doc "Without a copy. See `Nitrox.to_nx/1`."
    def to_nx(tensor) do
      %{ref: ref, type: type, shape: shape, device: device} =
        Options.struct!(:to_nx, tensor, Tensor)

      names = List.duplicate(nil, tuple_size(shape))
      Data.put(%T{type: type, shape: shape, names: names}, ref, device)
    end

    def iota(out, axis, opts) do
      device = device(opts)

      if Routes.native?(out),
        do: Data.put(out, count(out.type, Tuple.to_list(out.shape), axis, device), device),
        else: Host.make(:iota, [out, axis], device)
    end

    # 1 where the row's number is the column's.
    def eye(%{type: type, shape: shape} = out, opts) do
      device = device(opts)
      rank = tuple_size(shape)
      [rows, columns] = [elem(shape, rank - 2), elem(shape, rank - 1)]

      if Routes.native?(out) do
        places = [
          count({:s, 32}, [rows, 1], 0, device),
          count({:s, 32}, [1, columns], 1, device)
        ]

        ones = Data.call(%Op.Binary{kind: :equal}, places, device)
        plane = %T{type: type, shape: {rows, columns}, names: [nil, nil]}
        plane = Data.put_typed(plane, ones, {:u, 8}, device)
        Shape.broadcast(out, plane, shape, [rank - 2, rank - 1])
      else
        Host.make(:eye, [out], device)
      end
    end

    defp count(type, shape, axis, device),
      do: Data.call(%Op.Iota{type: type, shape: shape, axis: axis}, [], device)
  end
end
