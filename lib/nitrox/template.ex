defmodule Nitrox.Template do
  @moduledoc """
  The type and shape of a tensor that is yet to come: what a program is compiled for. Made by `Nitrox.template/2`.
  """

  @type t :: %__MODULE__{type: Nitrox.Tensor.type(), shape: Nitrox.Tensor.shape()}
  @enforce_keys [:type, :shape]
  defstruct [:type, :shape]

  @doc """
  A template.

      iex> Nitrox.Template.new({1, 288}, {:f, 32})
      #Nitrox.Template<f32[1][288]>
  """
  @spec new(Nitrox.Tensor.shape(), Nitrox.Tensor.type()) :: t()
  def new(shape, type) do
    Nitrox.Tensor.check_spec!(:template, type, shape)
    %__MODULE__{type: type, shape: shape}
  end

  defimpl Inspect do
    def inspect(template, _opts) do
      "#Nitrox.Template<#{Nitrox.Tensor.spec_text(template)}>"
    end
  end
end
