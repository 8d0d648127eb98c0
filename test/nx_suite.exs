# Nx's own test files on Nitrox.Backend, from a checkout of Nx beside the project:
#
#   NITROX_NX=../nx/nx make test-nx
#
# NITROX_DEVICE=cuda:0 runs them on a GPU, NITROX_NX_COMPILER=1 has Nitrox.Compiler compile what they
# give to Nx.Defn.Evaluator or to no compiler, and arguments name single files. What is left out tests Nx's
# own backend, its compiler or its processes, and runs no op of ours.

checkout =
  System.get_env("NITROX_NX") ||
    raise "NITROX_NX is to name the folder nx of a checkout of elixir-nx/nx"

device =
  case System.get_env("NITROX_DEVICE", "cpu") do
    "cpu" -> :cpu
    "cuda:" <> n -> {:cuda, String.to_integer(n)}
  end

left_out = ~w(
  nx/backend_documentation_test.exs nx/doctest_test.exs nx/serving_test.exs nx/optional_test.exs
  nx/defn/donation_test.exs nx/floating_test.exs nx/ryu_test.exs nx/type_test.exs nx/shape_test.exs
)

defmodule Nitrox.NxSuite do
  # Nx's tests compare tensors as terms, and ours are references. So both sides of an `==` that is
  # asserted are brought to the host; where they differ by no more than 2 ulp the one is given for
  # the other, and counted.
  @ulp 2
  @counter {__MODULE__, :close}

  def load(file) do
    file
    |> File.read!()
    |> String.split("\n")
    |> Enum.map_join("\n", &compiler/1)
    |> Code.string_to_quoted!(file: file, columns: true)
    |> Macro.postwalk(fn
      {assertion, meta, [{operator, meta2, [a, b]} | rest]}
      when assertion in [:assert, :refute, :unless] and operator in [:==, :!=, :===] ->
        quote do
          {left, right} = Nitrox.NxSuite.pair(unquote(a), unquote(b))

          unquote(
            {assertion, meta,
             [
               {operator, meta2, [Macro.var(:left, __MODULE__), Macro.var(:right, __MODULE__)]}
               | rest
             ]}
          )
        end

      other ->
        other
    end)
    |> Code.compile_quoted(file)
  end

  @compiler? System.get_env("NITROX_NX_COMPILER") == "1"
  def compiler?, do: @compiler?

  # A line that names Nx's own compiler, with ours in its place.
  defp compiler(line) do
    if @compiler? and not (line =~ ~r/^\s*(alias|doctest) /),
      do: String.replace(line, ~r/(Nx\.Defn\.)?\bEvaluator\b/, "Nitrox.Compiler"),
      else: line
  end

  def compiled(_, _, _, counter), do: :counters.add(counter, 1, 1)

  def close, do: :counters.get(:persistent_term.get(@counter), 1)
  def start, do: :persistent_term.put(@counter, :counters.new(1, []))

  def pair(a, b) do
    [a, b] = [host(a), host(b)]

    if a != b and close?(a, b) do
      :counters.add(:persistent_term.get(@counter), 1, 1)
      {a, a}
    else
      {a, b}
    end
  end

  defp close?(%Nx.Tensor{type: {kind, bits} = type} = a, %Nx.Tensor{type: type} = b)
       when kind in [:f, :bf, :c] and bits > 8 do
    {_, width} = element = if kind == :c, do: {:f, div(bits, 2)}, else: type

    [x, y] =
      for t <- [a, b],
          do: for(<<e::size(^width)-native <- Nx.to_binary(t)>>, do: place(e, element))

    {a.shape, a.names, a.vectorized_axes} == {b.shape, b.names, b.vectorized_axes} and
      Enum.zip_with(x, y, &abs(&1 - &2)) |> Enum.all?(&(&1 <= @ulp))
  end

  defp close?(_, _), do: false

  @infinity %{
    {:f, 16} => 0x7C00,
    {:bf, 16} => 0x7F80,
    {:f, 32} => 0x7F800000,
    {:f, 64} => 0x7FF0000000000000
  }

  # The number of a float among all of its type, in order; all NaN are one.
  defp place(bits, {_, width} = type) do
    sign = Bitwise.bsl(1, width - 1)
    magnitude = Bitwise.band(bits, sign - 1)

    cond do
      magnitude > @infinity[type] -> 2 * sign
      bits >= sign -> -magnitude
      true -> magnitude
    end
  end

  defp host(%Nx.Tensor{data: %Nitrox.Backend{}} = tensor),
    do: Nx.backend_copy(tensor, Nx.BinaryBackend)

  defp host(%Nx.Tensor{} = tensor), do: tensor

  defp host(%module{} = struct),
    do: struct |> Map.from_struct() |> host() |> then(&struct(module, &1))

  defp host(map) when is_map(map), do: Map.new(map, fn {k, v} -> {host(k), host(v)} end)
  defp host(tuple) when is_tuple(tuple), do: tuple |> Tuple.to_list() |> host() |> List.to_tuple()
  defp host([head | tail]), do: [host(head) | host(tail)]
  defp host(other), do: other
end

{:ok, _} = Application.ensure_all_started(:nx)
{:ok, _} = Application.ensure_all_started(:nitrox)
Application.put_env(:nitrox, :add_backend_on_inspect, false)
Nitrox.NxSuite.start()
# Its tests name themselves, and read their fixtures, from there.
File.cd!(checkout)

ExUnit.start(
  autorun: false,
  exclude: [:distributed],
  trace: System.get_env("T") != nil,
  timeout: 300_000
)

for file <- Path.wildcard("test/support/*.ex"),
    Path.basename(file) != "distributed_servings.ex",
    do: Nitrox.NxSuite.load(file)

files =
  case System.argv() do
    [] -> Path.wildcard("test/**/*_test.exs") -- Enum.map(left_out, &Path.join("test", &1))
    names -> Enum.map(names, &Path.join("test", &1))
  end

Enum.each(files, &Nitrox.NxSuite.load/1)
# Not before: tensors in module attributes are written into the code.
Nx.global_default_backend({Nitrox.Backend, device: device})

compiled = :counters.new(1, [])

if Nitrox.NxSuite.compiler?() do
  Nx.Defn.global_default_options(compiler: Nitrox.Compiler)

  :telemetry.attach(:suite, [:nitrox, :compile], &Nitrox.NxSuite.compiled/4, compiled)
end

%{failures: failures} = ExUnit.run()
IO.puts("#{Nitrox.NxSuite.close()} comparisons were only equal within 2 ulp")

if Nitrox.NxSuite.compiler?(),
  do: IO.puts("#{:counters.get(compiled, 1)} functions were compiled by Nitrox.Compiler")

if failures > 0, do: System.halt(1)
