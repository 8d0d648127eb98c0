if Code.ensure_loaded?(Nx.Tensor) do
  defmodule Nitrox.Nx.Pointer do
    @moduledoc false
    # `Nx.to_pointer/2` and `Nx.from_pointer/5`, for tensors of other libraries in this process.

    import Nitrox.Options, only: [fail!: 2, fail!: 3]

    alias Nitrox.Backend, as: B
    alias Nitrox.{Native, Options}
    alias Nitrox.Nx.{Data, Transfer}
    alias Nx.Tensor, as: T

    def to_pointer(%T{data: %B{ref: nil}}, _opts) do
      fail!(
        :to_pointer,
        "a number that is kept as a constant has no address",
        "give it memory with t |> Nitrox.from_nx() |> Nitrox.to_nx()"
      )
    end

    def to_pointer(%T{data: %B{ref: ref}}, opts) do
      local!(:to_pointer, opts[:mode] || :local)
      {address, bytes} = Native.call(:address, [ref])
      %Nx.Pointer{kind: :local, address: address, data_size: bytes}
    end

    def from_pointer(pointer, type, shape, backend_opts, opts) do
      pointer = Options.struct!(:from_pointer, pointer, Nx.Pointer)
      local!(:from_pointer, pointer.kind)
      opts = Options.known!(:from_pointer, opts, [:names, :owner])
      device = backend_opts |> Transfer.init() |> Transfer.device()
      names = opts[:names] || List.duplicate(nil, tuple_size(shape))
      out = %T{type: type, shape: shape, names: names}
      {kept_type, kept_shape} = Data.spec(out)
      size = Data.bytes(out)

      if pointer.data_size not in [nil, size] do
        fail!(
          :from_pointer,
          "a tensor #{inspect(type)} of shape #{inspect(shape)} takes #{size} bytes, " <>
            "the pointer is to #{inspect(pointer.data_size)}"
        )
      end

      spec = {kept_type, Tuple.to_list(kept_shape)}
      Data.put(out, Native.call(:adopt, [device, spec, pointer.address, opts[:owner]]), device)
    end

    defp local!(_, :local), do: :ok

    defp local!(op, kind) do
      fail!(op, "pointers are of the kind :local, within this process, got #{inspect(kind)}")
    end
  end
end
