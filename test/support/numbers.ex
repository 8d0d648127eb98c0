defmodule Nitrox.TestNumbers do
  @moduledoc false
  # Tensors of Nx drawn by chance, brought from one backend to another and compared; and which ops of
  # Nitrox ran meanwhile.

  @compile {:no_warn_undefined, [Nx, Nx.Defn.Composite, Nx.BinaryBackend]}
  import ExUnit.Assertions

  @doc "A tensor of `Nx.BinaryBackend` from the normal distribution."
  def random(shape, scale \\ 1.0) do
    bytes =
      for _ <- 1..Tuple.product(shape)//1,
          into: <<>>,
          do: <<scale * :rand.normal()::float-32-native>>

    Nx.from_binary(bytes, {:f, 32}, backend: Nx.BinaryBackend) |> Nx.reshape(shape)
  end

  @doc "A container's tensors on another backend."
  def on(container, backend),
    do: Nx.Defn.Composite.traverse(container, &Nx.backend_copy(&1, backend))

  def host(container), do: on(container, Nx.BinaryBackend)

  @doc "The backends of the devices that tests run on."
  def backends do
    for device <- Application.get_env(:nitrox, :test_devices),
        do: {Nitrox.Backend, device: device}
  end

  @doc "Asserts two containers to be of one form, and each tensor within a relative L2 error."
  def assert_close(got, expected, bound, what) do
    assert Nx.compatible?(got, expected), "#{what}: #{inspect(got)} is not #{inspect(expected)}"
    [got, expected] = for container <- [got, expected], do: leaves(container)

    for {got, expected} <- Enum.zip(got, expected) do
      {error, size} = {norm(Nx.subtract(got, expected)), norm(expected)}
      assert is_number(error) and is_number(size), "#{what}: #{inspect({got, expected})}"
      assert error <= bound * max(size, 1.0e-3), "#{what}: an error of #{error} in #{size}"
    end
  end

  defp leaves(container) do
    Nx.Defn.Composite.reduce(container, [], &[&1 | &2])
    |> Enum.map(&(&1 |> host() |> Nx.as_type({:f, 64})))
  end

  defp norm(tensor),
    do: tensor |> Nx.multiply(tensor) |> Nx.sum() |> Nx.sqrt() |> Nx.to_number()

  @doc "What a function gives, and how often each op of Nitrox ran in this process meanwhile."
  def ops(fun) do
    {result, events} = Nitrox.TestEvents.all([[:nitrox, :op, :run]], fun)
    {result, Enum.frequencies(for {_, %{op: op}} <- events, do: op)}
  end
end
