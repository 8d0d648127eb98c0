if Code.ensure_loaded?(Nx.Tensor) do
  defmodule Nitrox.Nx.Routes do
    @moduledoc false
    # Which calls of `Nitrox.Backend` run on the device and which go through the host. The backend
    # takes its clauses from here, and its documentation the table.

    alias Nitrox.Element

    # As the engine has them.
    @max_axes 8
    @types Element.types()

    # What no device runs, whatever its operands are.
    @host [
      {[:reduce, :window_reduce], "they call a function of the caller's for each element"},
      {[:fft, :ifft], "their result is complex"},
      {[:conjugate, :real, :imag], "they are of complex numbers"}
    ]

    @doc "Whether a tensor is of a type and of as many axes as the kernels take."
    defguard is_native(tensor)
             when tensor.type in @types and tuple_size(tensor.shape) <= @max_axes

    def native?(%{type: type, shape: shape}),
      do: type in @types and tuple_size(shape) <= @max_axes

    def native_type?(type), do: type in @types
    def max_axes, do: @max_axes

    @doc "The callbacks that go through the host, each with the reason."
    def host, do: for({names, why} <- @host, name <- names, do: {name, why})

    @doc "Why a call goes through the host, for its telemetry."
    def why(name, tensors) do
      cond do
        why = host()[name] -> why
        Enum.any?(tensors, &(&1.type not in @types)) -> :type
        true -> :axes
      end
    end

    @doc "The table of the documentation."
    def table do
      rows =
        for {names, why} <- @host, do: {Enum.map_join(names, ", ", &"`#{&1}`"), why}

      types = Enum.map_join(@types, " ", fn {kind, bits} -> "#{kind}#{bits}" end)

      rows =
        rows ++
          [
            {"every op on another type than #{types}", "the kernels have no such type"},
            {"every op on more than #{@max_axes} axes", "the kernels take no more"}
          ]

      Enum.join(
        ["| through the host | why |", "|---|---|"] ++
          for({what, why} <- rows, do: "| #{what} | #{why} |"),
        "\n"
      )
    end
  end
end
