defmodule Nitrox.Error do
  @moduledoc """
  What every refusal of Nitrox raises.

    * `:reason` — the kind of error, to match on: `:shape`, `:type`, `:argument`, `:unsupported`,
      `:device`, `:deallocated`, `:unavailable`, `:out_of_memory`, `:driver`, `:poisoned`,
      `:compile`, `:file`, `:internal`
    * `:op` — the op that refused, such as `:layer_norm`, or `nil`
    * `:message` — what was expected and what came
    * `:hint` — what to do about it, or `nil`

  `Nitrox.Device.get/1` is the one function that returns the error instead.
  """

  @type reason ::
          :shape
          | :type
          | :argument
          | :unsupported
          | :device
          | :deallocated
          | :unavailable
          | :out_of_memory
          | :driver
          | :poisoned
          | :compile
          | :file
          | :internal

  @type t :: %__MODULE__{
          reason: reason(),
          op: atom(),
          message: String.t(),
          hint: String.t() | nil
        }

  defexception [:reason, :op, :message, :hint]

  @impl true
  def message(%__MODULE__{message: message, hint: nil}), do: message
  def message(%__MODULE__{message: message, hint: hint}), do: "#{message} (#{hint})"

  @doc false
  # An argument that was refused on this side of the boundary, in the engine's own form.
  def argument(op, message, hint \\ nil) do
    %__MODULE__{reason: :argument, op: op, message: "#{op}: #{message}", hint: hint}
  end

  @doc false
  def from_native({reason, op, message, hint}) do
    %__MODULE__{reason: reason, op: op, message: message, hint: hint}
  end
end
