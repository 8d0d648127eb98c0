defmodule Nitrox.TestServing do
  @moduledoc false
  # A program to be served, and what it gives, computed by hand.

  @compile {:no_warn_undefined, [Nx, Nx.Batch]}
  alias Nitrox.Program

  # Small whole numbers, so that each product is exact in f32, in any order.
  @w for i <- 1..4, do: for(j <- 1..3, do: i - 2 * j)

  def devices, do: Application.get_env(:nitrox, :test_devices)

  def product(size, options) do
    device = options[:device] || :cpu
    w = Nitrox.tensor(@w, type: {:f, 32}, device: device)
    fun = fn x -> %{y: Nitrox.dense(x, w, nil), sum: Nitrox.sum(x, axes: [1])} end
    options = Keyword.merge([device: device, outputs: :binary], options)
    Program.compile(fun, [Nitrox.template({size, 4}, {:f, 32})], options)
  end

  # On all devices, and at least two: where there is one, it also stands for another.
  def everywhere(size, options) do
    programs = for d <- devices(), do: product(size, [device: d] ++ options)
    if match?([_], programs), do: programs ++ Enum.map(programs, &elsewhere/1), else: programs
  end

  def elsewhere(program), do: %{program | device: {:cuda, 7}}

  def expected(rows) do
    columns = Enum.zip_with(@w, &Function.identity/1)

    y =
      for row <- rows, do: for(c <- columns, do: Enum.zip_with(row, c, &(&1 * &2)) |> Enum.sum())

    {y, Enum.map(rows, &Enum.sum/1)}
  end

  def rows(n), do: for(_ <- 1..n, do: for(_ <- 1..4, do: :rand.uniform(19) - 10))
  def tensor(rows, opts \\ []), do: Nx.tensor(rows, [type: :f32] ++ opts)
  def batch(rows, opts \\ []), do: Nx.Batch.concatenate([tensor(rows, opts)])

  def answer(%{y: y, sum: sum}) do
    {y |> Nx.as_type(:s32) |> Nx.to_list(), sum |> Nx.as_type(:s32) |> Nx.to_list()}
  end
end
