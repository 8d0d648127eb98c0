# Nx is not there for the compiler on every machine.
if Code.ensure_loaded?(Nx) do
  defmodule Nitrox.CompilerTest do
    # Functions of defn by Nitrox.Compiler, against Nx.Defn.Evaluator on Nx.BinaryBackend.
    use ExUnit.Case, async: false
    @moduletag :nx
    @moduletag :telemetry

    import Nitrox.Compiled
    alias Nitrox.Compiled.Functions

    setup do
      Nx.default_backend(Nx.BinaryBackend)
      Nitrox.Compiler.clear()
      :ok
    end

    # ── One program ─────────────────────────────────────────────────────────────────────────────

    test "a function is one program, which is one run and no op" do
      for device <- devices() do
        x = on(t([[1.0, 2.0], [3.0, 4.0]]), device)
        fun = compiled(&Functions.plain/1, device)

        {first, events} = counted(fn -> fun.(x) end)
        assert %{[:compile] => 1, [:program, :compile] => 1, [:program, :run] => 1} = events

        {second, events} = counted(fn -> fun.(x) end)
        assert events == %{[:program, :run] => 1}
        assert host(first) == host(second)
      end
    end

    test "arguments on the host go over with the run" do
      for device <- devices() do
        fun = compiled(&Nx.add/2, device)
        {_, events} = counted(fn -> fun.(t([1, 2]), 3) end)
        refute is_map_key(events, [:op, :run])
        refute is_map_key(events, [:tensor, :transfer])
      end
    end

    test "constants of the host fill an argument's shape" do
      for device <- devices() do
        Nx.default_backend({Nitrox.Backend, device: device})
        small = Nx.broadcast(2.0, {3})
        large = Nx.broadcast(2.0, {200, 200})
        fun = compiled(&Nx.sum(Nx.exp(Nx.multiply(&1, 0))), device)
        assert Nx.to_number(fun.(small)) == 3.0
        assert Nx.to_number(fun.(large)) == 40_000.0
      end
    end

    test "containers, options, names and types" do
      m = %{a: t([[1.0, 2.0]], names: [:r, :c]), b: {t([[1.0], [2.0]]), t([1, 2], type: :u8)}}
      same!(&Functions.everything/1, [m])
      same!(&Functions.everything(&1, scale: 2.5), [m])
      same!(fn x -> Nx.as_type(x, :bf16) end, [t([1.0, 2.5])])
      same!(fn x -> Nx.bitcast(x, :u32) end, [t([1.0, 2.5])])
    end

    test "outputs that are arguments, constants, one value twice, and nothing" do
      same!(fn x -> {x, x, Nx.tensor([1, 2, 3]), 5, Nx.add(x, 0), {}} end, [t([1.0, 2.0])])
      twice = fn y -> {y, %{again: y}, Nx.reshape(y, {1, 2})} end
      same!(fn x -> twice.(Nx.exp(x)) end, [t([1.0, 2.0])])
      same!(fn -> Nx.iota({2, 2}) end, [])
      same!(fn _ -> Nx.broadcast(0.0, {3, 2}) end, [t(1)])
      same!(fn _, y -> y end, [t(1), t(2.0)])
      same!(fn x, y -> {y, x} end, [1, 2.0])
      for device <- devices(), do: assert(compiled(fn _ -> {} end, device).(t(1)) == {})
    end

    test "tensors by closure are parameters, and what depends on them alone is computed once" do
      w = Nx.iota({4, 3}, type: :f32, backend: Nx.BinaryBackend)
      fun = fn x -> Nx.dot(x, Nx.transpose(Nx.exp(Nx.multiply(w, 0.1)))) end
      same!(fun, [Nx.iota({2, 3}, type: :f32, backend: Nx.BinaryBackend)])

      for device <- devices() do
        template = Nx.template({2, 3}, :f32)
        assert %{steps: 1} = explained = Nitrox.Compiler.explain(fun, [template], device: device)
        assert explained.parameter_bytes == 48
        compiled = Nx.Defn.compile(fun, [template], compiler: Nitrox.Compiler, device: device)
        x = on(Nx.iota({2, 3}, type: :f32, backend: Nx.BinaryBackend), device)
        {_, events} = counted(fn -> compiled.(x) end)
        assert events == %{[:program, :run] => 1}
      end
    end

    test "giving an output up leaves the program what it holds" do
      for device <- devices() do
        fun = compiled(fn x -> {Nx.tensor([1, 2, 3]), Nx.add(x, 1)} end, device)
        {table, _} = fun.(t(1))
        assert Nx.backend_deallocate(table) == :ok
        {table, _} = fun.(t(1))
        assert Nx.to_flat_list(table) == [1, 2, 3]
      end
    end

    test "a later run leaves earlier results as they were" do
      for device <- devices() do
        fun = compiled(&{Nx.multiply(&1, 2), Nx.sum(&1)}, device)
        large = Nx.iota({100, 100}, type: :f32, backend: {Nitrox.Backend, device: device})
        results = for i <- 1..5, do: {i, fun.(Nx.add(large, i))}

        for {i, {doubled, sum}} <- results do
          assert Nx.to_number(sum) == 49_995_000 + 10_000 * i
          assert Nx.to_number(doubled[[99, 99]]) == 2 * (9999 + i)
        end
      end
    end

    test "what nobody reads is not asked for" do
      for device <- devices() do
        vars = for i <- 0..1, do: Nx.Defn.Expr.parameter(Nx.template({}, :s32), :root, i)

        fun =
          Nitrox.Compiler.__compile__(nil, vars, fn [_, y] -> Nx.add(y, y) end, device: device)

        assert [result] = fun.([[fn -> flunk("was asked for") end, fn -> t(1) end]])
        assert Nx.to_number(result) == 2
      end
    end

    test "vectorized tensors" do
      x = t([[1.0, 2.0], [3.0, 4.0]], names: [nil, :cols]) |> Nx.vectorize(:rows)
      same!(&Functions.rows/2, [x, t([1.0, 10.0], names: [:cols])])
      same!(&Nx.cumulative_sum/1, [x])
      same!(&Functions.above/1, [x])
    end

    test "types and shapes beyond the engine's" do
      same!(fn x, y -> {Nx.add(x, y), Nx.real(x)} end, [t([Complex.new(1, 2)]), t([2.0])])
      same!(fn x -> Nx.add(x, 1) end, [t([1, 2, 3], type: :u4)])
      deep = Nx.iota({1, 2, 1, 2, 1, 1, 1, 1, 2}, backend: Nx.BinaryBackend)
      same!(fn x -> Nx.add(x, 1) |> Nx.sum(axes: [1]) end, [deep])
    end

    test "gradients" do
      same!(&Functions.gradients/2, [t([[1.0, 2.0], [0.5, -1.0]]), t([[0.1, 0.2], [0.3, -0.4]])])
      same!(&Functions.through_loop/1, [t([0.3, 0.7])])

      for device <- devices() do
        Nx.Defn.default_options(compiler: Nitrox.Compiler, device: device)
        assert_in_delta Nx.to_number(Nx.Defn.grad(t(2.0), &Nx.pow(&1, 3))), 12.0, 1.0e-4
        Nx.Defn.default_options(compiler: Nx.Defn.Evaluator)
      end
    end

    test "fused ops are one step of the program" do
      q = Nx.iota({1, 4, 2, 8}, type: :f32, backend: Nx.BinaryBackend) |> Nx.multiply(0.01)
      fun = fn q -> Nitrox.flash_attention(q, q, q, causal: true) end
      same!(fun, [q])

      for device <- devices(),
          do: assert(%{steps: 1} = Nitrox.Compiler.explain(fun, [q], device: device))
    end

    # ── Several programs ────────────────────────────────────────────────────────────────────────

    test "loops" do
      for n <- [0, 1, 7], do: same!(&Functions.double_up/2, [t([1.0, 2.0]), n])
      same!(&Functions.nested/2, [t([1.0, 2.0, 3.0]), 3])
      same!(&Functions.powers/1, [t([1.0, 2.0])])
      same!(&Functions.never/1, [t([1.0, 2.0])])
    end

    test "a loop is a program a round" do
      for device <- devices() do
        x = on(t([1.0, 2.0]), device)
        fun = compiled(&Functions.double_up/2, device)
        fun.(x, 3)
        {_, events} = counted(fn -> fun.(x, 6) end)
        # The first condition is asked before the first round.
        assert events[[:program, :run]] == 7
        refute is_map_key(events, [:op, :run])
      end
    end

    test "a loop of few rounds that are known is unrolled" do
      explain = &Nitrox.Compiler.explain(&1, [Nx.template({2}, :f32)], device: :cpu)
      assert %{programs: 1, host: []} = explain.(&Functions.powers/1)
      assert %{programs: 1, host: []} = explain.(&Functions.rounds(&1, to: 32))
      assert %{programs: 1, host: [%{op: :while}]} = explain.(&Functions.rounds(&1, to: 33))
      for n <- [0, 1, 32, 33], do: same!(&Functions.rounds(&1, to: n), [t([1.0, 2.0])])
      key = Nx.Random.key(1) |> Nx.to_template()
      random = Nitrox.Compiler.explain(&Nx.Random.normal_split(&1, 0.0, 1.0, shape: {8}), [key])
      assert %{programs: 1, host: []} = random
    end

    test "branches" do
      for x <- [[1.0, 2.0], [3.0, 3.0], [4.0, 9.0]], do: same!(&Functions.branch/1, [t(x)])
      for up <- [1, 0], do: same!(&Functions.known(&1, up: up), [t(1)])
    end

    test "a condition that is known costs nothing" do
      for device <- devices() do
        explained = Nitrox.Compiler.explain(&Functions.known/1, [t(1)], device: device)
        assert %{programs: 1, host: []} = explained
      end
    end

    test "a loop in a condition waits for the conditions before it" do
      for x <- [2.0, -1.0, 0.0], do: same!(&Functions.guarded/1, [t(x)])
      parent = self()
      hooks = %{round: fn _ -> send(parent, :round) end}

      for device <- devices() do
        fun = compiled(&Functions.guarded/1, device, hooks: hooks)
        fun.(t(2.0))
        refute_received :round
        fun.(t(-1.0))
        for _ <- 1..5, do: assert_received(:round)
        refute_received :round
      end
    end

    test "what goes through the host, with its event" do
      same!(&Functions.spectrum/1, [t([1.0, 2.0, 3.0, 4.0])], 1.0e-4)
      same!(&Functions.folded/1, [t([1, 2, 3])])

      for device <- devices() do
        fun = compiled(&Functions.spectrum/1, device)
        x = t([1.0, 2.0, 3.0])
        fun.(x)
        {_, events} = counted(fn -> fun.(x) end)
        assert %{[:fallback] => fallbacks, [:program, :run] => programs} = events

        assert %{programs: ^programs, host: host} =
                 Nitrox.Compiler.explain(&Functions.spectrum/1, [x], device: device)

        assert length(host) == fallbacks
        assert %{op: :fft, why: "their result is complex"} in host
      end
    end

    test "linear algebra, random numbers and blocks" do
      a = t([[4.0, 1.0, 2.0], [1.0, 3.0, 0.5], [2.0, 0.5, 5.0]])

      for fun <- [
            &Nx.LinAlg.qr/1,
            &Nx.LinAlg.cholesky/1,
            &Nx.LinAlg.invert/1,
            &Nx.LinAlg.determinant/1
          ],
          do: same!(fun, [a], 1.0e-4)

      same!(&Nx.LinAlg.solve/2, [a, t([1.0, 2.0, 3.0])], 1.0e-4)
      same!(&Nx.LinAlg.eigh/1, [a], 1.0e-3)
      same!(&Functions.drawn/1, [Nx.Random.key(42) |> Nx.backend_copy(Nx.BinaryBackend)], 1.0e-4)
      same!(&Nx.top_k(&1, k: 2), [t([3.0, 1.0, 2.0])])
      same!(&Nx.cumulative_sum(&1, axis: 1), [a])
      same!(&Nx.take_along_axis(&1, Nx.tensor([[2, 0, 1]]), axis: 0), [a])
    end

    test "hooks get their tensors, in order, and split nothing" do
      parent = self()
      hooks = for name <- [:first, :second], into: %{}, do: {name, &send(parent, {name, &1})}

      for device <- devices() do
        fun = compiled(&Functions.seen/1, device, hooks: hooks)
        {result, events} = counted(fn -> fun.(t([1.0, 2.0])) end)
        assert events[[:program, :run]] == 1
        assert Nx.to_flat_list(result) == [12.0, 13.0]
        assert_received {:first, first}
        assert_received {:second, {second, x}}
        assert Nx.to_flat_list(first) == [2.0, 3.0]
        assert Nx.to_flat_list(second) == [4.0, 6.0]
        assert Nx.to_flat_list(x) == [1.0, 2.0]

        # Nobody listens: nothing is there for it.
        quiet = compiled(&Functions.seen/1, device)
        assert Nx.to_flat_list(quiet.(t([1.0, 2.0]))) == [12.0, 13.0]

        assert %{host: []} =
                 Nitrox.Compiler.explain(&Functions.seen/1, [t([1.0, 2.0])], device: device)

        refute_received _
      end
    end

    test "hooks in branches, printed values, and functions called in between" do
      parent = self()
      hooks = for name <- [:positive, :negative], into: %{}, do: {name, &send(parent, {name, &1})}

      for device <- devices() do
        fun = compiled(&Functions.seen_in_branch/1, device, hooks: hooks)
        assert Nx.to_flat_list(fun.(t([-1.0]))) == [-3.0]
        assert_received {:negative, _}
        refute_received {:positive, _}

        printed =
          ExUnit.CaptureIO.capture_io(fn -> compiled(&Functions.printed/1, device).(t([1.0])) end)

        assert printed =~ "x: #Nx.Tensor"
        assert printed =~ "[1.0]"
      end

      same!(&Functions.called/1, [t([1.0, 2.0])])
    end

    test "a function that is called in between gives what it said" do
      for device <- devices() do
        fun = fn x ->
          Nx.runtime_call(Nx.template({2}, :f32), x, [], fn _, _ -> Nx.tensor(1) end)
        end

        assert_raise Nitrox.Error, ~r/must give/, fn -> compiled(fun, device).(t([1.0, 2.0])) end
      end
    end

    test "explain" do
      explain = &Nitrox.Compiler.explain(&1, &2, device: :cpu)
      one = explain.(&Nx.exp(Nx.add(&1, 1)), [Nx.template({3}, :f32)])
      assert %{device: :cpu, programs: 1, steps: 2, kernels: 0, host: []} = one
      assert one.arena_bytes > 0
      looped = explain.(&Functions.nested/2, [Nx.template({3}, :f32), 3])
      assert Enum.map(looped.host, & &1.op) == [:while, :cond, :cond]
      assert Enum.all?(looped.host, &is_binary(&1.why))
      assert Nitrox.Nx.Cache.size() == 0
    end
  end
else
  defmodule Nitrox.CompilerTest do
    use ExUnit.Case, async: true
    @moduletag :nx

    test "defn by this compiler", do: flunk("Nx is not there")
  end
end
