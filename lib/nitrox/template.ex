defmodule Nitrox.Template do
  @moduledoc """
  The type and shape of a tensor that is yet to come: what a program is compiled for. Made by `Nitrox.template/2`.
  """

  @type t :: %__MODULE__{type: Nitrox.Tensor.type(), shape: Nitrox.Tensor.shape()}
  @enforce_keys [:type, :shape]
  defstruct [:type, :shape]

  defimpl Inspect do
    def inspect(template, _opts) do
      "#Nitrox.Template<#{Nitrox.Tensor.spec_text(template)}>"
    end
  end
end
