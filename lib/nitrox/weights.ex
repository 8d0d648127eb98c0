defmodule Nitrox.Weights do
  @moduledoc """
  Weights in a `.safetensors` file, memory-mapped: opening one reads its header, and a tensor's
  bytes are read when it is fetched, straight to the device.

      weights = Nitrox.Weights.open("model.safetensors")
      Nitrox.Weights.names(weights)
      #=> ["head.b", "head.w", …]
      Nitrox.Weights.fetch(weights, "head.w", shape: {256, 53}, type: {:f, 32}, device: {:cuda, 0})

  The header is checked against the file when it is opened. A damaged or cut file, a name that is
  not there and a shape that is not the expected one are each a `Nitrox.Error` that says so.

  `Nitrox.Import` reads the state dicts of PyTorch's modules out of one.

  A file may be replaced while it is open (by a rename, as editors and downloads do it); to shorten
  it in place is not safe.
  """

  import Nitrox.Options, only: [fail!: 3, fail!: 2]

  alias Nitrox.{Device, Native, Options, Tensor, Template}

  @enforce_keys [:path, :ref, :entries, :metadata]
  defstruct [:path, :ref, :entries, :metadata]

  @type t :: %__MODULE__{
          path: Path.t(),
          ref: reference(),
          entries: %{String.t() => {Tensor.type() | String.t(), tuple()}},
          metadata: %{String.t() => String.t()}
        }

  @doc "Opens a file; reads no tensor yet."
  @spec open(Path.t()) :: t()
  def open(path) do
    if not is_binary(path), do: fail!(:weights, "a path is a string, got #{inspect(path)}")
    {ref, entries, metadata} = Native.call(:weights_open, [path])
    entries = Map.new(entries, fn {name, type, shape} -> {name, {type, shape}} end)
    %__MODULE__{path: path, ref: ref, entries: entries, metadata: Map.new(metadata)}
  end

  @doc "The names of all tensors, sorted."
  @spec names(t()) :: [String.t()]
  def names(weights), do: weights |> entries!() |> Map.keys() |> Enum.sort()

  @doc "The file's own `__metadata__`: strings by name."
  @spec metadata(t()) :: %{String.t() => String.t()}
  def metadata(weights), do: Options.struct!(:weights, weights, __MODULE__).metadata

  @doc "Whether there is a tensor of this name."
  @spec member?(t(), String.t()) :: boolean()
  def member?(weights, name), do: is_map_key(entries!(weights), name)

  @doc "The shape and type of a tensor, as stored."
  @spec template(t(), String.t()) :: Template.t()
  def template(weights, name) do
    case Map.fetch(entries!(weights), name) do
      {:ok, {type, shape}} when is_tuple(type) ->
        Nitrox.template(shape, type)

      {:ok, {stored, _shape}} ->
        fail!(
          :weights,
          "#{weights.path}: #{name} is stored as #{stored}, which Nitrox does not have"
        )

      :error when not is_binary(name) ->
        fail!(:weights, "a tensor's name is a string, got #{inspect(name)}")

      :error ->
        fail!(
          :weights,
          "#{weights.path}: no tensor is named #{inspect(name)}",
          nearest(weights, name)
        )
    end
  end

  @doc """
  Copies a tensor to a device.

  Options:

    * `:shape` - the expected one; another shape is an error
    * `:type` - casts to it, on the device (default: the type stored)
    * `:device` - default: the default device
  """
  @spec fetch(t(), String.t(), keyword()) :: Tensor.t()
  def fetch(weights, name, opts \\ []) do
    opts =
      Options.validate!(:weights, opts,
        shape: {nil, {"a shape", &is_tuple/1}},
        type: {nil, Options.type()},
        device: {nil, Options.device()}
      )

    %Template{shape: shape} = template(weights, name)

    if opts.shape not in [nil, shape] do
      fail!(
        :weights,
        "#{weights.path}: #{name} must be #{inspect(opts.shape)}, got #{inspect(shape)}"
      )
    end

    device = opts.device || Device.default()

    tensor =
      :weights_fetch |> Native.call([weights.ref, name, device]) |> Tensor.from_native(device)

    if opts.type, do: Nitrox.cast(tensor, opts.type), else: tensor
  end

  defp entries!(weights), do: Options.struct!(:weights, weights, __MODULE__).entries

  defp nearest(weights, name) do
    distance = if String.valid?(name), do: &String.jaro_distance(&1, name), else: fn _ -> 0 end
    near = weights |> names() |> Enum.sort_by(distance, :desc) |> Enum.take(3)

    if near == [], do: "the file is empty", else: "the nearest are #{Enum.join(near, ", ")}"
  end

  defimpl Inspect do
    def inspect(weights, _opts) do
      "#Nitrox.Weights<#{weights.path}, #{map_size(weights.entries)} tensors>"
    end
  end
end
