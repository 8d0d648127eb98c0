defmodule Nitrox.Import.StateDict do
  @moduledoc false
  # The tensors of a file that begin with a prefix: the state dict of one PyTorch module.

  alias Nitrox.{Error, Options, Weights}

  @enforce_keys [:weights, :prefix, :names, :fetch]
  defstruct @enforce_keys

  @type t :: %__MODULE__{
          weights: Weights.t(),
          prefix: String.t(),
          names: [String.t()],
          fetch: keyword()
        }

  @doc "`names` are those that begin with the prefix, without it."
  @spec new(Weights.t(), keyword()) :: t()
  def new(weights, opts) do
    Options.struct!(:import, weights, Weights)

    opts =
      Options.validate!(:import, opts,
        prefix: {"", {"a string", &(is_binary(&1) and String.valid?(&1))}},
        type: {nil, Options.type()},
        device: {nil, Options.device()}
      )

    at(
      %__MODULE__{
        weights: weights,
        prefix: "",
        names: Weights.names(weights),
        fetch: [type: opts.type, device: opts.device]
      },
      opts.prefix
    )
  end

  @doc "The part of a dict under one more prefix."
  @spec at(t(), String.t()) :: t()
  def at(%__MODULE__{prefix: outer} = dict, prefix) do
    size = byte_size(prefix)

    names =
      for name <- dict.names, String.starts_with?(name, prefix) do
        binary_part(name, size, byte_size(name) - size)
      end

    %{dict | prefix: outer <> prefix, names: names}
  end

  @spec member?(t(), String.t()) :: boolean()
  def member?(dict, name), do: name in dict.names

  @doc "Refuses a dict that lacks one of `expected`, or has names beyond it and `optional`."
  @spec check_names!(t(), String.t(), [String.t()], [String.t()]) :: :ok
  def check_names!(dict, what, expected, optional \\ []) do
    missing = expected -- dict.names
    unknown = dict.names -- (expected ++ optional)
    full = &(dict.prefix <> &1)
    list = fn names -> names |> Enum.map(full) |> some() end

    cond do
      missing != [] and unknown != [] ->
        fail!(
          dict,
          "#{what} needs #{list.(missing)}, and has no #{list.(unknown)}",
          prefix_hint(dict)
        )

      missing != [] ->
        fail!(dict, "#{what} needs #{list.(missing)}", prefix_hint(dict))

      unknown != [] ->
        fail!(dict, "#{what} has no #{list.(unknown)}", "it has #{list.(expected ++ optional)}")

      true ->
        :ok
    end
  end

  defp some(names) do
    case Enum.split(names, 6) do
      {names, []} -> Enum.join(names, ", ")
      {names, more} -> Enum.join(names, ", ") <> " and #{length(more)} more"
    end
  end

  defp prefix_hint(%{names: [], prefix: prefix} = dict) do
    case Weights.names(dict.weights) do
      [] -> "the file is empty"
      names -> "no name begins with prefix #{inspect(prefix)}; there are #{some(names)}"
    end
  end

  defp prefix_hint(%{prefix: ""}), do: "a module inside of another one needs prefix:"
  defp prefix_hint(_), do: nil

  @doc "A tensor of exactly this shape."
  @spec fetch(t(), String.t(), tuple()) :: Nitrox.Tensor.t()
  def fetch(dict, name, shape) do
    Weights.fetch(dict.weights, dict.prefix <> name, [shape: shape] ++ dict.fetch)
  end

  @doc "The same in f32, whatever type is asked for."
  @spec fetch_f32(t(), String.t(), tuple()) :: Nitrox.Tensor.t()
  def fetch_f32(dict, name, shape) do
    opts = [shape: shape, type: {:f, 32}, device: dict.fetch[:device]]
    Weights.fetch(dict.weights, dict.prefix <> name, opts)
  end

  @doc "The shape of a tensor, which must have `axes` axes."
  @spec shape!(t(), String.t(), pos_integer()) :: tuple()
  def shape!(dict, name, axes) do
    case Weights.template(dict.weights, dict.prefix <> name).shape do
      shape when tuple_size(shape) == axes ->
        shape

      shape ->
        fail!(dict, "#{dict.prefix}#{name} must have #{axes} axes, got #{inspect(shape)}")
    end
  end

  @spec fail!(t(), String.t(), String.t() | nil) :: no_return()
  def fail!(dict, message, hint \\ nil) do
    raise Error.argument(:import, "#{dict.weights.path}: #{message}", hint)
  end
end
