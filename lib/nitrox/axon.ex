if Code.ensure_loaded?(Axon) do
  defmodule Nitrox.Axon do
    @moduledoc """
    Layers of Axon on the fused ops of Nitrox.
    """

    use Nitrox.Axon.Layers
  end
end
