# A defn by Nx.Defn.Evaluator, op by op, and by Nitrox.Compiler, on one device: an MLP's forward pass,
# an Adam step of its training, a chain of small ops, and a loop.
#
#     mix run bench/compiler.exs
#     NITROX_DEVICE=cuda:0 mix run bench/compiler.exs
#
# The least and the median of 60 blocks of calls, the two in turn, so that a slow moment of the machine
# falls on both; blocks are short, so that on a busy machine some run alone. Each call ends when its
# result is there.
{:ok, _} = Application.ensure_all_started(:nx)

device =
  case System.get_env("NITROX_DEVICE", "cpu") do
    "cpu" -> :cpu
    "cuda:" <> n -> {:cuda, String.to_integer(n)}
  end

Nx.global_default_backend({Nitrox.Backend, device: device})

defmodule Bench do
  import Nx.Defn

  defn forward(params, x) do
    x
    |> layer(params.one)
    |> Nx.max(0)
    |> layer(params.two)
    |> Nx.max(0)
    |> layer(params.three)
    |> softmax()
  end

  defnp(layer(x, %{w: w, b: b}), do: Nx.dot(x, w) + b)

  defnp softmax(x) do
    e = Nx.exp(x - Nx.reduce_max(x, axes: [-1], keep_axes: true))
    e / Nx.sum(e, axes: [-1], keep_axes: true)
  end

  defn(loss(params, x, y),
    do: -Nx.mean(Nx.sum(y * Nx.log(forward(params, x) + 1.0e-7), axes: [-1]))
  )

  defn adam({params, m, v, step}, x, y) do
    {loss, g} = value_and_grad(params, &loss(&1, x, y))
    step = step + 1
    m = each(m, g, fn m, g -> 0.9 * m + 0.1 * g end)
    v = each(v, g, fn v, g -> 0.999 * v + 0.001 * g * g end)
    rate = 1.0e-3 * Nx.sqrt(1 - Nx.pow(0.999, step)) / (1 - Nx.pow(0.9, step))
    update = each(m, v, fn m, v -> m / (Nx.sqrt(v) + 1.0e-8) end)
    {loss, {each(params, update, fn p, u -> p - rate * u end), m, v, step}}
  end

  deftransformp each(a, b, fun) do
    {result, []} =
      Nx.Defn.Composite.traverse(a, Nx.Defn.Composite.flatten_list([b]), fn x, [y | rest] ->
        {fun.(x, y), rest}
      end)

    result
  end

  defn chain(x) do
    x = Nx.tanh(x * 0.5 + 0.1)
    x = Nx.sigmoid(x - 0.2) * x
    x = Nx.exp(-x) + Nx.sqrt(Nx.abs(x))
    x = Nx.select(x > 1, x, x * x)
    Nx.sum(Nx.cos(x) * Nx.sin(x))
  end

  defn loop(x) do
    {_, x} =
      while {i = 0, x}, i < 50 do
        {i + 1, Nx.tanh(x * 1.01 + 0.01)}
      end

    x
  end

  def params(sizes) do
    key = Nx.Random.key(1)

    [:one, :two, :three]
    |> Enum.zip(Enum.chunk_every(sizes, 2, 1, :discard))
    |> Map.new(fn {name, [from, to]} ->
      {w, _} = Nx.Random.normal(key, 0.0, 1 / :math.sqrt(from), shape: {from, to})
      {name, %{w: w, b: Nx.broadcast(0.0, {to}) |> Nx.add(w[0]) |> Nx.multiply(0)}}
    end)
  end

  def read(result) do
    result
    |> List.wrap()
    |> Nx.Defn.Composite.flatten_list()
    |> hd()
    |> Nx.sum()
    |> Nx.to_number()
  end

  def block(fun, calls) do
    {time, _} = :timer.tc(fn -> for _ <- 1..calls, do: read(fun.()) end)
    time / calls
  end

  def median(times), do: times |> Enum.sort() |> Enum.at(div(length(times), 2))
end

normal = fn shape ->
  {x, _} = Nx.Random.normal(Nx.Random.key(2), shape: shape)
  x
end

small = Bench.params([64, 128, 128, 10])
large = Bench.params([784, 1024, 1024, 10])
zeros = &Nx.Defn.Composite.traverse(&1, fn t -> Nx.multiply(t, 0) end)
state = fn params -> {params, zeros.(params), zeros.(params), Nx.tensor(0)} end
target = fn rows -> Nx.broadcast(0.1, {rows, 10}) |> Nx.add(Nx.iota({rows, 1})) end

cases = [
  {"chain of 14 small ops, {64}", &Bench.chain/1, [normal.({64})], 10},
  {"loop of 50 rounds, {64}", &Bench.loop/1, [normal.({64})], 1},
  {"MLP 64-128-128-10, 1 row", &Bench.forward/2, [small, normal.({1, 64})], 10},
  {"MLP 64-128-128-10, 64 rows", &Bench.forward/2, [small, normal.({64, 64})], 5},
  {"Adam step of it, 64 rows", &Bench.adam/3, [state.(small), normal.({64, 64}), target.(64)],
   10},
  {"MLP 784-1024-1024-10, 1 row", &Bench.forward/2, [large, normal.({1, 784})], 2},
  {"MLP 784-1024-1024-10, 64 rows", &Bench.forward/2, [large, normal.({64, 784})], 1},
  {"Adam step of it, 64 rows", &Bench.adam/3, [state.(large), normal.({64, 784}), target.(64)], 1}
]

IO.puts("#{inspect(device)}, microseconds a call: the least (the median)\n")

IO.puts(
  "| | evaluator | compiler | times as fast | programs | steps |\n|---|---|---|---|---|---|"
)

for {name, fun, args, calls} <- cases do
  explained = Nitrox.Compiler.explain(fun, args, device: device)
  evaluated = Nx.Defn.jit(fun, compiler: Nx.Defn.Evaluator)
  compiled = Nx.Defn.jit(fun, compiler: Nitrox.Compiler, device: device)
  both = for f <- [evaluated, compiled], do: fn -> apply(f, args) end
  Enum.each(both, &Bench.block(&1, 2))

  [{e, e_median}, {c, c_median}] =
    for(_ <- 1..60, do: Enum.map(both, &Bench.block(&1, calls)))
    |> Enum.zip_with(&{Enum.min(&1), Bench.median(&1)})

  number = &:erlang.float_to_binary(&1 / 1, decimals: if(&1 < 100, do: 1, else: 0))

  IO.puts(
    "| #{name} | #{number.(e)} (#{number.(e_median)}) | #{number.(c)} (#{number.(c_median)}) | " <>
      "#{:erlang.float_to_binary(e / c, decimals: 2)} | #{explained.programs} | #{explained.steps} |"
  )
end
