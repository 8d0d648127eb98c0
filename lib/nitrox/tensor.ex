defmodule Nitrox.Tensor do
  @moduledoc """
  A handle on a buffer of a device, with its type and shape.

  The buffer goes back to the device's memory when no process holds the handle, no program or
  session uses it, and no other tensor shares it (a reshaped one does); or at once, with
  `Nitrox.deallocate/1`. A tensor is never written to again: what seems to change one makes a new
  one.

  The functions on tensors are those of `Nitrox`. What does not fit raises `Nitrox.Error`.
  """

  alias Nitrox.{Device, Element, Error, Native, Telemetry}
  require Telemetry

  defmacrop transfer(direction, device, bytes, do: body) do
    quote do
      Telemetry.span [:nitrox, :tensor, :transfer],
                     %{device: unquote(device), direction: unquote(direction)},
                     bytes: unquote(bytes) do
        unquote(body)
      end
    end
  end

  @typedoc "Nx's types, but for complex numbers and those of fewer than 8 bits and 8-bit floats."
  @type type ::
          {:u, 8 | 16 | 32 | 64} | {:s, 8 | 16 | 32 | 64} | {:f, 16 | 32 | 64} | {:bf, 16}

  @typedoc "At most 8 axes."
  @type shape :: tuple()

  @type t :: %__MODULE__{ref: reference(), type: type(), shape: shape(), device: Device.t()}
  @enforce_keys [:ref, :type, :shape, :device]
  defstruct [:ref, :type, :shape, :device]

  @doc """
  A tensor of a number or of nested lists of numbers.

  `:nan`, `:infinity` and `:neg_infinity` may stand for the floats that are no numbers.

  ## Options

    * `:type` — by default `{:f, 32}` where there is a float, else `{:s, 32}`
    * `:device` — by default `Nitrox.Device.default/0`

  ## Examples

      iex> Nitrox.Tensor.tensor([[1, 2, 3], [4, 5, 6]], type: {:f, 32})
      #Nitrox.Tensor<
        f32[2][3] on :cpu
        [
          [1.0, 2.0, 3.0],
          [4.0, 5.0, 6.0]
        ]
      >
  """
  @spec tensor(number() | atom() | list(), type: type(), device: Device.t()) :: t()
  def tensor(data, options \\ []) do
    options = Nitrox.Options.known!(:tensor, options, [:type, device: Device.default()])
    axes = axes(data)
    type = options[:type] || if(float?(data), do: {:f, 32}, else: {:s, 32})
    shape = List.to_tuple(axes)
    check_spec!(:tensor, type, shape)
    bytes = data |> encode(axes, type) |> IO.iodata_to_binary()
    from_binary(bytes, type, shape, device: options[:device])
  end

  defp axes([first | _] = list), do: [proper_length(list) | axes(first)]
  defp axes([]), do: [0]
  defp axes(_), do: []

  defp proper_length(list) do
    if List.improper?(list), do: raise(Error.argument(:tensor, "a list is improper"))
    length(list)
  end

  defp float?(list) when is_list(list), do: Enum.any?(list, &float?/1)
  defp float?(x), do: not is_integer(x)

  defp encode(list, [n | axes], type) when is_list(list) do
    if List.improper?(list) or length(list) != n do
      raise Error.argument(:tensor, "the lists of an axis must be of one length, here #{n}")
    end

    Enum.map(list, &encode(&1, axes, type))
  end

  defp encode(x, [], type) do
    case Element.encode(x, type) do
      :error ->
        raise Error.argument(:tensor, "#{Kernel.inspect(x)} is no #{Kernel.inspect(type)}")

      bytes ->
        bytes
    end
  end

  defp encode(x, [_ | _], _) do
    raise Error.argument(:tensor, "a list was expected beside lists, got #{Kernel.inspect(x)}")
  end

  @doc """
  A tensor of the bytes of its elements, row-major and native-endian.

      iex> Nitrox.Tensor.from_binary(<<1, 2, 3, 4>>, {:u, 8}, {2, 2}) |> Nitrox.Tensor.to_list()
      [[1, 2], [3, 4]]
  """
  @spec from_binary(binary(), type(), shape(), device: Device.t()) :: t()
  def from_binary(binary, type, shape, options \\ []) do
    options = Nitrox.Options.known!(:from_binary, options, device: Device.default())
    device = options[:device]
    axes = axes_of(:from_binary, shape)

    transfer :to_device, device, byte_size(binary) do
      ref = Native.call(:from_binary, [device, {type, axes}, binary])
      %__MODULE__{ref: ref, type: type, shape: shape, device: device}
    end
  end

  defp axes_of(_, shape) when is_tuple(shape), do: Tuple.to_list(shape)

  defp axes_of(op, shape) do
    raise Error.argument(op, "a shape is a tuple, got #{Kernel.inspect(shape)}")
  end

  @doc """
  The bytes of a tensor's elements, row-major and native-endian, once the work that makes them is
  done.
  """
  @spec to_binary(t()) :: binary()
  def to_binary(tensor), do: to_binary(ours!(:to_binary, tensor), nil)

  @doc false
  # The first `limit` bytes, all where it is nil.
  def to_binary(%__MODULE__{ref: ref} = tensor, limit) do
    bytes = bytes(tensor)

    transfer :to_host, tensor.device, if(limit, do: min(limit, bytes), else: bytes) do
      Native.call(:to_binary, [ref, limit])
    end
  end

  @doc """
  A tensor's elements as nested lists; a number where there are no axes.

      iex> Nitrox.Tensor.tensor([[0.5], [:infinity]]) |> Nitrox.Tensor.to_list()
      [[0.5], [:infinity]]
  """
  @spec to_list(t()) :: list() | number() | atom()
  def to_list(tensor) do
    %{type: type, shape: shape} = ours!(:to_list, tensor)
    axes = Tuple.to_list(shape)

    if 0 in axes do
      empty(axes)
    else
      elements = Element.decode(type, to_binary(tensor))

      # Chunks from the last axis up to the second: the outermost list is that of all chunks.
      case axes do
        [] -> hd(elements)
        [_ | inner] -> inner |> Enum.reverse() |> Enum.reduce(elements, &Enum.chunk_every(&2, &1))
      end
    end
  end

  defp empty([0 | _]), do: []
  defp empty([n | axes]), do: List.duplicate(empty(axes), n)

  @doc """
  The one element of a tensor.

      iex> Nitrox.Tensor.tensor([[7]]) |> Nitrox.Tensor.to_number()
      7
  """
  @spec to_number(t()) :: number() | atom()
  def to_number(tensor) do
    case Tuple.product(ours!(:to_number, tensor).shape) do
      1 -> hd(Element.decode(tensor.type, to_binary(tensor)))
      n -> raise Error.argument(:to_number, "one element expected, #{spec_text(tensor)} has #{n}")
    end
  end

  @doc """
  A copy with memory of its own, on the device given or on its own.
  """
  @spec copy(t(), Device.t() | nil) :: t()
  def copy(tensor, device \\ nil) do
    %{ref: ref} = ours!(:copy, tensor)
    device = device || tensor.device

    transfer :copy, device, bytes(tensor) do
      %{tensor | ref: Native.call(:copy, [ref, device]), device: device}
    end
  end

  defp bytes(%{type: type, shape: shape}), do: Tuple.product(shape) * Element.bytes(type)

  @doc """
  Gives the handle up at once. Each later use of it raises an error of the reason `:deallocated`.

  Programs that were given the tensor, and tensors that share its buffer, keep the buffer.
  """
  @spec deallocate(t()) :: :ok
  def deallocate(tensor), do: Native.call(:deallocate, [ours!(:deallocate, tensor).ref])

  @doc "The type of a tensor, a template or a value in a traced function."
  @spec type(t() | Nitrox.Template.t() | Nitrox.Value.t()) :: type()
  def type(tensor), do: described!(:type, tensor).type

  @doc "The shape of a tensor, a template or a value in a traced function."
  @spec shape(t() | Nitrox.Template.t() | Nitrox.Value.t()) :: shape()
  def shape(tensor), do: described!(:shape, tensor).shape

  @doc "The device a tensor lies on."
  @spec device(t()) :: Device.t()
  def device(tensor), do: ours!(:device, tensor).device

  defp ours!(_, %__MODULE__{} = tensor), do: tensor

  defp ours!(op, other) do
    hint =
      case other do
        %Nitrox.Value{} -> "what is traced has no elements yet: return it as an output"
        %{__struct__: Nx.Tensor} -> "use the function of Nx, or Nitrox.from_nx/1"
        _ -> nil
      end

    raise Error.argument(op, "expected a Nitrox.Tensor, got #{Kernel.inspect(other)}", hint)
  end

  defp described!(_, %module{} = tensor)
       when module in [__MODULE__, Nitrox.Template, Nitrox.Value],
       do: tensor

  defp described!(op, other), do: ours!(op, other)

  @doc false
  def from_native({ref, {type, shape}}, device) do
    %__MODULE__{ref: ref, type: type, shape: shape, device: device}
  end

  @doc false
  # What the library takes for a spec.
  def to_spec(%{type: type, shape: shape}), do: {type, Tuple.to_list(shape)}

  @doc false
  # For what is only sent to the library later. Sizes are its own to check.
  def check_spec!(op, type, shape) do
    unless Element.type?(type) do
      known = Enum.map_join(Element.types(), ", ", &Kernel.inspect/1)
      message = "unknown type #{Kernel.inspect(type)}, expected one of #{known}"
      raise Error.argument(op, message)
    end

    axes = axes_of(op, shape)

    unless Enum.all?(axes, &(is_integer(&1) and &1 >= 0)) do
      raise Error.argument(op, "axes are non-negative integers, got #{Kernel.inspect(shape)}")
    end
  end

  @doc false
  # `f32[1][288]`, as Nx has it.
  def spec_text(%{type: {kind, bits}, shape: shape}) do
    "#{kind}#{bits}" <> Enum.map_join(Tuple.to_list(shape), &"[#{&1}]")
  end

  defimpl Inspect do
    import Inspect.Algebra
    alias Nitrox.{Element, Error, Tensor}

    def inspect(tensor, opts) do
      title = "#{Tensor.spec_text(tensor)} on #{Kernel.inspect(tensor.device)}"

      nest(concat(["#Nitrox.Tensor<", line(), title, line(), content(tensor, opts)]), 2)
      |> concat(line())
      |> concat(">")
      |> force_unfit()
    end

    # Only the elements that are shown are read.
    defp content(%{type: type, shape: shape} = tensor, opts) do
      count = Tuple.product(shape)
      shown = if opts.limit == :infinity, do: count, else: min(count, opts.limit)
      bytes = Tensor.to_binary(tensor, shown * Element.bytes(type))

      if count == 0,
        do: "[]",
        else: elem(axis(Tuple.to_list(shape), Element.decode(type, bytes), opts), 0)
    rescue
      error in Error -> "(#{error.message})"
    end

    # Each gives the elements that are left to show.
    defp axis(_, [], _), do: {"...", []}
    defp axis([], [x | rest], opts), do: {to_doc(x, opts), rest}

    defp axis([n], elements, opts) do
      {docs, rest} = part(n, [], elements, opts, [])
      docs = Enum.intersperse(docs, concat(",", flex_break()))
      {group(nest(concat(["[", concat(docs), "]"]), 1)), rest}
    end

    defp axis([n | axes], elements, opts) do
      {docs, rest} = part(n, axes, elements, opts, [])
      docs = Enum.intersperse(docs, concat(",", line()))
      {concat([nest(concat(["[", line(), concat(docs)]), 2), line(), "]"]), rest}
    end

    defp part(0, _, elements, _, docs), do: {Enum.reverse(docs), elements}
    defp part(_, _, [], _, docs), do: {Enum.reverse(["..." | docs]), []}

    defp part(n, axes, elements, opts, docs) do
      {doc, rest} = axis(axes, elements, opts)
      part(n - 1, axes, rest, opts, [doc | docs])
    end
  end
end
