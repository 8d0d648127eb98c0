if Code.ensure_loaded?(Nx.Tensor) do
  defmodule Nitrox.Nx.Data do
    @moduledoc false
    # What an Nx tensor holds on this backend: a handle on a buffer, or one element that stands for
    # all of them and is on no device yet (a constant).
    #
    # A type that the engine does not know is kept as the bytes of its elements, `{:u, 8}`, and more
    # axes than it knows as a single one: enough to hold such a tensor and to bring it back.

    # While a `defn` is compiled its tensors are on the device `{:traced, device}`. Where else there
    # would be a reference they have a `Nitrox.Value`, which the program is to compute, or a
    # `Nitrox.Tensor`, which is computed already and becomes a parameter. So what makes ops of Nx's
    # calls is the same for both.

    alias Nitrox.{Element, Error, Native, Op, Telemetry, Tensor, Value}
    require Telemetry
    alias Nitrox.Backend, as: B
    alias Nitrox.Nx.Routes
    alias Nx.Tensor, as: T

    # ── Of a buffer ───────────────────────────────────────────────────────────────────────────────

    def put(out, ref, device), do: %{out | data: %B{ref: ref, device: device}}

    @doc "The type and shape that the engine has a tensor under."
    def spec(%{type: type, shape: shape}) do
      cond do
        not Routes.native_type?(type) -> {{:u, 8}, {bytes(%{type: type, shape: shape})}}
        tuple_size(shape) > Routes.max_axes() -> {type, {Tuple.product(shape)}}
        true -> {type, shape}
      end
    end

    @doc "What all elements take, narrow ones without gaps."
    def bytes(%{type: {_, bits}, shape: shape}), do: div(bits * Tuple.product(shape) + 7, 8)

    @doc "A tensor of host bytes; a bit string where elements are narrower than a byte."
    def upload(out, bits, device) do
      {type, shape} = spec(out)

      case device do
        {:traced, device} ->
          tensor = Tensor.from_binary(padded(bits), type, shape, device: device)
          put(out, tensor, {:traced, device})

        _ ->
          %Tensor{ref: ref} = Tensor.from_binary(padded(bits), type, shape, device: device)
          put(out, ref, device)
      end
    end

    defp padded(bits) when is_binary(bits), do: bits
    defp padded(bits), do: <<bits::bitstring, 0::size(8 - rem(bit_size(bits), 8))>>

    @doc "The first `count` elements as host bytes."
    def download(%T{data: %B{constant: element}}, count) when is_bitstring(element),
      do: for(_ <- 1..count//1, into: <<>>, do: element)

    def download(%T{type: {_, bits}} = tensor, count) do
      bits = bits * count
      bytes = Tensor.to_binary(tensor(tensor), div(bits + 7, 8))
      <<wanted::bitstring-size(^bits), _::bitstring>> = bytes
      wanted
    end

    @doc "The handle behind an Nx tensor, constants put on their device."
    def tensor(%T{data: %B{ref: %Tensor{} = tensor}}), do: tensor

    def tensor(%T{data: %B{ref: %Value{}}}) do
      message = "a tensor has no elements while its defn is compiled"
      raise Error.argument(:compiler, message)
    end

    def tensor(%T{data: %B{constant: element}, shape: {}} = tensor) when element != nil,
      do: tensor(upload(tensor, element, device(tensor)))

    def tensor(%T{} = tensor) do
      {type, shape} = spec(tensor)
      device = device(tensor)
      %Tensor{ref: whole(tensor, tensor.type, device), type: type, shape: shape, device: device}
    end

    @doc "What a tensor is outside of the program being compiled, or nil where that will compute it."
    def present(%T{data: %B{device: {:traced, device}} = data}) do
      case data do
        %B{ref: %Value{}} -> nil
        %B{ref: %Tensor{ref: ref}} -> %B{ref: ref, device: device}
        _ -> %{data | device: device}
      end
    end

    # ── Of a constant ─────────────────────────────────────────────────────────────────────────────

    def put_constant(out, element, device),
      do: %{out | data: %B{constant: element, device: device}}

    @doc "The bytes of a number as an element of a type, by Nx's rules: integers wrap around."
    def element(number, type) do
      with true <- Element.type?(type),
           bytes when bytes != :error <- Element.encode(number, type) do
        bytes
      else
        _ -> scalar_bytes(Nx.BinaryBackend.constant(scalar(type), number, []))
      end
    end

    @doc "An element's bytes in another type, as `Nx.as_type/2` has it."
    def convert(element, type, type), do: element

    def convert(element, from, to) do
      cond do
        Element.type?(from) and Element.type?(to) ->
          [number] = Element.decode(from, element)
          integer? = elem(to, 0) in [:s, :u]

          cond do
            not integer? or is_integer(number) -> element(number, to)
            number == :nan -> element(0, to)
            number == :infinity -> Nx.Type.max_finite_binary(to)
            number == :neg_infinity -> Nx.Type.min_finite_binary(to)
            true -> clamp(trunc(number), to)
          end

        true ->
          host = Nx.BinaryBackend.from_binary(scalar(from), element, [])
          scalar_bytes(Nx.BinaryBackend.as_type(scalar(to), host))
      end
    end

    # As the kernels do: the nearest end of the type's range.
    defp clamp(integer, type) do
      [least] = Element.decode(type, Nx.Type.min_finite_binary(type))
      [most] = Element.decode(type, Nx.Type.max_finite_binary(type))
      element(integer |> max(least) |> min(most), type)
    end

    @doc """
    A function of `Nx.BinaryBackend` on constants: what it gives for one element, or `:error` where it
    can't say, and the device is to be asked. Its bf16 is not rounded, so that is left to the device.
    """
    def fold(name, %{type: type}, constants) do
      if Enum.any?([type | Enum.map(constants, & &1.type)], &(&1 == {:bf, 16})) do
        :error
      else
        operands =
          for %T{type: type, data: %B{constant: element}} <- constants,
              do: Nx.BinaryBackend.from_binary(scalar(type), element, [])

        try do
          {:ok, scalar_bytes(apply(Nx.BinaryBackend, name, [scalar(type) | operands]))}
        rescue
          # Elixir's arithmetic has no infinities.
          [ArithmeticError, ArgumentError] -> :error
        end
      end
    end

    defp scalar(type), do: %T{type: type, shape: {}, names: []}
    defp scalar_bytes(tensor), do: Nx.BinaryBackend.to_binary(tensor, 1)

    # ── Of operands ───────────────────────────────────────────────────────────────────────────────

    @doc """
    The device of an op: that of its first operand with a buffer. A constant goes where it is needed,
    and so does a tensor of `Nx.BinaryBackend`, which `Nx.Defn.Evaluator` may give alone.
    """
    def device(%T{data: %B{device: device}}), do: device
    def device(%T{}), do: default_device()

    def device([_ | _] = operands) do
      Enum.find_value(operands, &buffer_device/1) || Enum.find_value(operands, &any_device/1) ||
        default_device()
    end

    def device(%T{data: %B{ref: ref, device: device}}, _) when ref != nil, do: device
    def device(a, b), do: buffer_device(b) || any_device(a) || any_device(b) || default_device()

    defp buffer_device(%T{data: %B{ref: ref, device: device}}) when ref != nil, do: device
    defp buffer_device(_), do: nil
    defp any_device(%T{data: %B{device: device}}), do: device
    defp any_device(_), do: nil

    defp default_device do
      case Nx.default_backend() do
        {B, opts} -> opts[:device]
        _ -> Nitrox.Device.default()
      end
    end

    @doc """
    An operand of an op, in the type given: a reference, or a constant's type and element. A constant
    is a scalar whatever its shape is: for ops that broadcast.
    """
    def operand(%T{data: %B{constant: element}} = tensor, type, _) when element != nil,
      do: {type, convert(element, tensor.type, type)}

    def operand(tensor, type, device), do: whole(tensor, type, device)

    @doc "As `operand/3`, but in its own shape."
    def whole(%T{type: type, data: %B{ref: ref}}, type, _) when ref != nil, do: ref

    def whole(%T{data: %B{ref: ref}}, type, device) when ref != nil,
      do: call(%Op.Cast{type: type}, [ref], device)

    def whole(%T{data: %B{constant: element}} = tensor, type, device) do
      converted = convert(element, tensor.type, type)
      {_, shape} = spec(%{tensor | type: type})

      cond do
        not Routes.native_type?(type) ->
          upload(tensor, download(tensor, Nx.size(tensor)), device).data.ref

        shape == {} ->
          {type, converted}

        true ->
          call(%Op.Broadcast{shape: Tuple.to_list(shape)}, [{type, converted}], device)
      end
    end

    def whole(%T{} = tensor, type, device), do: tensor |> here(device) |> whole(type, device)

    @doc "A tensor of another backend as one of this."
    def here(%T{data: %B{}} = tensor, _), do: tensor

    def here(tensor, device) do
      case settled(tensor, device) do
        %T{data: %B{}} = constant ->
          constant

        _ ->
          upload(tensor, host_bytes(tensor), device)
      end
    end

    @doc "All elements of a tensor of another backend, as `upload/3` takes them."
    def host_bytes(tensor) do
      host = Nx.backend_copy(tensor, Nx.BinaryBackend)
      padded(Nx.BinaryBackend.to_binary(host, Nx.size(tensor)))
    end

    @doc """
    A tensor of `Nx.BinaryBackend` whose elements are all the same is as good as a constant of ours:
    `Nx.Defn.Evaluator` makes such ones of the numbers that a `defn` broadcasts.
    """
    def settled(%T{data: %Nx.BinaryBackend{}, type: {_, bits}} = tensor, device)
        when rem(bits, 8) == 0 do
      size = Nx.size(tensor)
      element = Nx.BinaryBackend.to_binary(tensor, 1)

      if size == 1 or uniform?(element, Nx.BinaryBackend.to_binary(tensor, size), size),
        do: put_constant(tensor, element, device),
        else: tensor
    end

    def settled(tensor, _), do: tensor

    # The last element is asked first: mostly that is all that is looked at.
    defp uniform?(element, bytes, size) do
      width = byte_size(element)

      binary_part(bytes, byte_size(bytes), -width) == element and
        bytes == :binary.copy(element, size)
    end

    # ── Of ops ────────────────────────────────────────────────────────────────────────────────────

    @doc "Runs an op of one output on operands, and gives its reference."
    def call(op, refs, device) do
      [{ref, _spec}] = outputs(op, refs, device)
      ref
    end

    @doc "Runs an op, and gives each output's reference and spec."
    def outputs(op, refs, {:traced, device}), do: Op.record(op, refs, device)

    def outputs(op, refs, device) do
      Telemetry.span [:nitrox, :op, :run], %{op: Op.name(op), device: device} do
        Native.call(:run, [device, Op.wire(op), refs])
      end
    end

    @doc "A result that the engine has in `type`, in the type of `out`."
    def put_typed(%{type: type} = out, ref, type, device), do: put(out, ref, device)
    def put_typed(out, ref, _, device), do: run(out, %Op.Cast{type: out.type}, [ref], device)

    @doc "As `call/3`, into the tensor given."
    def run(out, op, refs, device), do: put(out, call(op, refs, device), device)
  end
end
