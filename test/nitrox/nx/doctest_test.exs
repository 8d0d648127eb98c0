# The examples of Nx's own documentation on this backend, 1,125 with those of the modules.
#
# Where our floats are others than those of Nx.BinaryBackend, which computes in f64 and rounds once,
# the last digit printed may be another one. The functions where that happens on the CPU are compared
# as text but for the floats, which may be 2 ulp apart; how many needed it is printed.
by_value = [
  {Nx, [acosh: 1, erfc: 1, erf_inv: 1, log1p: 1]},
  {Nx.LinAlg,
   [cholesky: 1, lu: 1, matrix_power: 2, least_squares: 3, pinv: 2, solve: 2] ++
     [triangular_solve: 3]},
  {Nx.Random, [multivariate_normal: 4, normal: 4]}
]

# Examples that are left out, most because what is printed there is further from the true value than 2
# ulp.
left_out = %{
  {Nx, :erf_inv, 1, 2} => "Nx.BinaryBackend's erf_inv has 8 digits, ours all of f64",
  {Nx.LinAlg, :least_squares, 3, 1} => "ill-conditioned: Nx prints 1.0000005 for 1",
  {Nx.LinAlg, :least_squares, 3, 2} => "ill-conditioned: Nx prints 0.95000035 for 0.95",
  {Nx.LinAlg, :triangular_solve, 3, 15} =>
    "singular: ∞ and NaN here, where Nx.BinaryBackend raises",
  {Nx.LinAlg, :pinv, 2, 5} => "ill-conditioned: Nx prints 4.0000577 for 4"
}

on_cuda = %{
  {Nx.Random, :normal, 4, 3} => "by way of erf_inv, which is within 2 ulp itself: 3 ulp"
}

# Without Nx they can't be counted: one test of each device stands for them.
modules = if Code.ensure_loaded?(Nx), do: Keyword.keys(by_value), else: []

# Those that are made of defn are run by Nitrox.Compiler as well.
compiled = modules -- [Nx]

for {device, name, modules, compiler} <- [
      {:cpu, "Cpu", modules, Nx.Defn.Evaluator},
      {:cpu, "CpuCompiled", compiled, Nitrox.Compiler},
      {{:cuda, 0}, "Cuda", modules, Nx.Defn.Evaluator},
      {{:cuda, 0}, "CudaCompiled", compiled, Nitrox.Compiler}
    ] do
  defmodule Module.concat(Nitrox.Nx, "Doctest#{name}Test") do
    use ExUnit.Case, async: device == :cpu

    @moduletag :nx
    if device != :cpu, do: @moduletag(:cuda)
    @device device
    @compiler compiler

    setup_all do
      counter = :counters.new(1, [])

      on_exit(fn ->
        n = :counters.get(counter, 1)

        if n > 0,
          do:
            IO.puts(
              "\nNx's examples on #{inspect(@device)} by #{inspect(@compiler)}: " <>
                "#{n} differ in the last digit"
            )
      end)

      %{counter: counter}
    end

    setup do
      Nx.default_backend({Nitrox.Backend, device: @device})
      Nx.Defn.default_options(compiler: @compiler)
      :ok
    end

    if modules == [] do
      test "Nx's own examples", do: flunk("Nx is not there")
    end

    if device == :cpu do
      for module <- modules, do: doctest(module, except: by_value[module])
    end

    for module <- modules,
        {function, arity} <-
          if(device == :cpu, do: by_value[module], else: Nitrox.ByValue.functions(module)),
        {example, i} <- Enum.with_index(Nitrox.ByValue.tests(module, function, arity), 1) do
      @tag example: example
      left_out = if device == :cpu, do: left_out, else: Map.merge(left_out, on_cuda)
      if why = left_out[{module, function, arity, i}], do: @tag(skip: why)

      test "#{inspect(module)}.#{function}/#{arity} (#{i}), by value", context do
        if Nitrox.ByValue.run(context.example) == :by_value,
          do: :counters.add(context.counter, 1, 1)
      end
    end
  end
end
