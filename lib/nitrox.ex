defmodule Nitrox do
  @moduledoc """
  Tensors that stay on the device, and the functions on them.

  A tensor is a handle on device memory, with a shape and a type. `tensor/2` and `from_binary/4`
  make one from host data, `to_list/1` and `to_binary/1` bring one back; in between nothing leaves
  the device. When the last handle is collected, the memory returns to the device's pool.

      iex> x = Nitrox.tensor([[1.0, 2.0], [3.0, 4.0]])
      iex> Nitrox.shape(x)
      {2, 2}
      iex> x |> Nitrox.multiply(10) |> Nitrox.sum(axes: [1]) |> Nitrox.to_list()
      [30.0, 70.0]

  The same functions take the symbolic values inside a function given to `Nitrox.Program.compile/3`:
  there they are traced, and the whole function becomes one program (on CUDA: one graph, one launch).

  ## What goes for all of them

    * Shapes are tuples and types are Nx's: `{:f, 32}`, `{:bf, 16}`, `{:f, 16}`, `{:f, 64}`,
      `{:s, n}` and `{:u, n}` for `n` of 8, 16, 32 and 64. Nothing is converted in silence: operands
      are of one type, or `cast/2` makes them so.
    * A number among the operands becomes a scalar of the first tensor's type.
    * Negative axes count from the last.
    * Tensors of one call live on one device, and so does the result.
    * What does not fit raises `Nitrox.Error`, whose message says what was expected and what came.
    * The op behind a function, with its formula, types and source, is in its `Nitrox.Op` module.
  """

  import Kernel, except: [abs: 1, ceil: 1, floor: 1, max: 2, min: 2, round: 1]
  import Nitrox.Options, except: [validate!: 3]

  alias Nitrox.{Device, Op, Template, Tensor, Value}

  @typedoc "A tensor on a device, or a value in a function that is being traced."
  @type t :: Tensor.t() | Value.t()

  @typedoc "A tensor, or a number that becomes a scalar of the other operand's type."
  @type operand :: t() | number()

  @type shape :: tuple()
  @type type :: Tensor.type()

  # Only where Nx is.
  @compile {:no_warn_undefined, Nitrox.Nx.Transfer}

  # ── Handles ────────────────────────────────────────────────────────────────────────────────────

  @doc """
  A tensor of a number or of nested lists of numbers.

  Floats give `{:f, 32}` and integers `{:s, 32}`, unless `type:` says otherwise. `device:` is the
  default device (`config :nitrox, default_device: …`, or `:cpu`) unless given.

      iex> Nitrox.tensor([[1, 2, 3]]) |> Nitrox.type()
      {:s, 32}
  """
  @doc group: "Handles"
  @spec tensor(number() | list(), keyword()) :: Tensor.t()
  defdelegate tensor(data, opts \\ []), to: Tensor

  @doc """
  A tensor of a binary: the elements in row-major order and native byte order.

      iex> Nitrox.from_binary(<<1.0::float-32-native, 2.0::float-32-native>>, {:f, 32}, {2})
      ...> |> Nitrox.to_list()
      [1.0, 2.0]
  """
  @doc group: "Handles"
  @spec from_binary(binary(), type(), shape(), keyword()) :: Tensor.t()
  defdelegate from_binary(binary, type, shape, opts \\ []), to: Tensor

  @doc "The elements as a binary, once all work that writes them is done."
  @doc group: "Handles"
  @spec to_binary(Tensor.t()) :: binary()
  defdelegate to_binary(tensor), to: Tensor

  @doc """
  The elements as nested lists; those of a scalar as a number. What JSON and Erlang have no number
  for comes as `:nan`, `:infinity` or `:neg_infinity`.
  """
  @doc group: "Handles"
  @spec to_list(Tensor.t()) :: list() | number() | atom()
  defdelegate to_list(tensor), to: Tensor

  @doc """
  The element of a tensor that has just one.

      iex> Nitrox.tensor([1.0, 2.0]) |> Nitrox.sum() |> Nitrox.to_number()
      3.0
  """
  @doc group: "Handles"
  @spec to_number(Tensor.t()) :: number() | atom()
  defdelegate to_number(tensor), to: Tensor

  @doc "A shape and a type with no elements: what `Nitrox.Program.compile/3` traces a function on."
  @doc group: "Handles"
  @spec template(shape(), type()) :: Nitrox.Template.t()
  defdelegate template(shape, type), to: Template, as: :new

  @doc "A copy with memory of its own, on the device given or on its own."
  @doc group: "Handles"
  @spec copy(Tensor.t(), Device.t() | nil) :: Tensor.t()
  defdelegate copy(tensor, device \\ nil), to: Tensor

  @doc "The shape, a tuple of lengths."
  @doc group: "Handles"
  @spec shape(t()) :: shape()
  def shape(tensor), do: tensor!(:shape, tensor).shape

  @doc "The type of the elements."
  @doc group: "Handles"
  @spec type(t()) :: type()
  def type(tensor), do: tensor!(:type, tensor).type

  @doc "The device that the elements lie on."
  @doc group: "Handles"
  @spec device(Tensor.t()) :: Device.t()
  defdelegate device(tensor), to: Tensor

  @doc """
  Returns the memory to the pool now instead of when the handle is collected. Later uses of the
  tensor are errors.
  """
  @doc group: "Handles"
  @spec deallocate(Tensor.t()) :: :ok
  defdelegate deallocate(tensor), to: Tensor

  @doc """
  The tensor behind one of Nx's, without a copy where that is on `Nitrox.Backend`; others are copied
  to the default device first. Both are handles on one buffer: to deallocate one is to lose the other.
  """
  @doc group: "Handles"
  @spec from_nx(struct()) :: Tensor.t()
  def from_nx(tensor) do
    nx!(:from_nx)
    Nitrox.Nx.Transfer.from_nx(tensor)
  end

  @doc """
  The same buffer as a tensor of Nx, on `Nitrox.Backend`, without a copy.

      iex> if Code.ensure_loaded?(Nx), do: Nitrox.tensor([1, 2]) |> Nitrox.to_nx() |> Nx.shape(), else: {2}
      {2}
  """
  @doc group: "Handles"
  @spec to_nx(Tensor.t()) :: struct()
  def to_nx(tensor) do
    nx!(:to_nx)
    Nitrox.Nx.Transfer.to_nx(tensor)
  end

  defp nx!(op) do
    if not Code.ensure_loaded?(Nitrox.Nx.Transfer),
      do: fail!(op, "Nx is not there", "add :nx to the dependencies, and compile Nitrox again")
  end

  @doc "The devices of this machine: `:cpu`, and `{:cuda, n}` for each GPU that can be used."
  @doc group: "Handles"
  @spec devices() :: [map()]
  defdelegate devices(), to: Device, as: :list

  @doc "What a device's memory pool holds: bytes in use, peak, reserved, fragmentation and so on."
  @doc group: "Handles"
  @spec memory_stats(Device.t()) :: Device.stats()
  defdelegate memory_stats(device \\ Device.default()), to: Device

  @doc "Waits for all work queued on a device."
  @doc group: "Handles"
  @spec synchronize(Device.t()) :: :ok
  defdelegate synchronize(device \\ Device.default()), to: Device

  @doc """
  Which kernel an op would use on inputs like these, and why. Templates serve as inputs too.

      Nitrox.explain(%Nitrox.Op.Dense{activation: :relu}, [x, w, b, nil])

  `launches` is the number of kernels, 0 on the CPU. `:device` asks for another device than the
  tensors'.
  """
  @doc group: "Handles"
  @spec explain(struct(), [t() | Template.t() | nil], keyword()) :: %{
          variant: String.t(),
          why: String.t(),
          launches: non_neg_integer()
        }
  defdelegate explain(op, inputs, opts \\ []), to: Op

  # ── Functions on tensors ───────────────────────────────────────────────────────────────────────

  # A group is a file of lib/nitrox/functions/ with the functions that it defines here, under this
  # module's name and in its documentation. They share the private functions below.
  handles = Module.definitions_in(__MODULE__, :def)
  use Nitrox.Functions.Layers
  use Nitrox.Functions.Sequences
  use Nitrox.Functions.Choosing
  use Nitrox.Functions.Elementwise
  use Nitrox.Functions.Shape
  use Nitrox.Functions.Reductions

  # By these names a `defn` calls the functions of other modules.
  for {name, arity} <- Module.definitions_in(__MODULE__, :def) -- handles do
    arguments = Macro.generate_arguments(arity, __MODULE__)
    @doc false
    def unquote(:"__defn:#{name}__")(unquote_splicing(arguments)),
      do: unquote(name)(unquote_splicing(arguments))
  end

  # ── ────────────────────────────────────────────────────────────────────────────────────────────

  defp one(op, inputs) do
    [output] = Op.apply(op, inputs)
    output
  end

  defp tensor!(op, x) do
    if tensor?(x), do: x, else: fail!(op, "expected a tensor, got #{inspect(x)}")
  end

  defp size(x), do: Tuple.product(x.shape)

  defp from_start(axis, rank) when axis < 0, do: axis + rank
  defp from_start(axis, _rank), do: axis

  defp shape!(op, shape) do
    axes = if is_tuple(shape), do: Tuple.to_list(shape), else: [nil]

    if Enum.all?(axes, &(is_integer(&1) and &1 >= 0)) do
      axes
    else
      fail!(op, "expected a shape, a tuple of lengths, got #{inspect(shape)}")
    end
  end
end
