defmodule Nitrox.CompilerTest do
  # Functions of defn by Nitrox.Compiler, against Nx.Defn.Evaluator on Nx.BinaryBackend.
  use ExUnit.Case, async: false
  @moduletag :nx
  @moduletag :telemetry

  # Nx is not there for the compiler on every machine.
  if Code.ensure_loaded?(Nx) do
    defmodule Functions do
      import Nx.Defn

      defn plain(x) do
        y = Nx.sum(Nx.tanh(Nx.dot(x, x) * 0.5 + Nx.iota({2})))
        {y + 1, Nx.exp(x)}
      end

      defn double_up(x, n) do
        {_, x, _} =
          while {i = 0, x, n}, i < n do
            {i + 1, x * 2 + i, n}
          end

        x
      end

      # A loop in a loop, and a branch in it.
      defn nested(x, n) do
        {_, x, _} =
          while {i = 0, x, n}, i < n do
            {_, x} =
              while {j = 0, x}, j < 2 do
                x = if Nx.sum(x) > 20, do: x - 5, else: x + j + 1
                {j + 1, x}
              end

            {i + 1, x * 1.5, n}
          end

        x
      end

      defn(powers(x), do: while(x, i <- 1..4, do: x * i - 1))

      defn rounds(x, opts \\ []) do
        {_, x} =
          while {i = 0, x}, i < opts[:to] do
            {i + 1, x * 0.5 + i}
          end

        x
      end

      defn(never(x), do: while(x, Nx.greater(Nx.sum(x), 1.0e9), do: x + 1))

      defn branch(x) do
        y = Nx.sum(x)
        shared = Nx.exp(x / 10)

        a =
          cond do
            y > 10 -> shared + y
            y > 5 -> shared - y
            true -> x * 0
          end

        b = if y < 7, do: {shared * 2, y}, else: {x, y + 1}
        {a, b}
      end

      # The second condition has a loop, which is not to be run before the first one is known.
      defn guarded(x) do
        cond do
          x > 0 -> x
          looped(x) > 3 -> x * 2
          true -> x * 3
        end
      end

      defnp looped(x) do
        {_, y} =
          while {i = 0, y = x}, i < 5 do
            {i + 1, io_call(y - 1, :round)}
          end

        Nx.negate(y)
      end

      defn(above(x), do: if(Nx.sum(x) > 4, do: x, else: -1.0))

      defn known(x, opts \\ []) do
        opts = keyword!(opts, up: 1)
        if Nx.sum(Nx.iota({3})) * opts[:up] > 0, do: x + 1, else: x - 1
      end

      defn seen(x) do
        y = io_call(x + 1, :first)
        z = io_call({y * 2, x}, :second)
        Nx.sum(elem(z, 0)) + y
      end

      defn seen_in_branch(x) do
        if Nx.sum(x) > 0, do: io_call(x * 2, :positive), else: io_call(x * 3, :negative)
      end

      defn(printed(x), do: Nx.exp(print_value(x, label: "x")))

      defn called(x) do
        y = x * 2

        {a, b} = Nx.runtime_call({y, y}, {y, Nx.sum(y)}, [offset: 3], &between/2)
        {a + 1, b * x}
      end

      def between({a, b}, opts) do
        {Nx.add(Nx.multiply(a, b), opts[:offset]), Nx.backend_copy(a, Nx.BinaryBackend)}
      end

      defn(spectrum(x), do: x |> Nx.multiply(2) |> Nx.fft() |> Nx.abs() |> Nx.sum())
      defn(folded(x), do: Nx.reduce(x * 2, 1, fn a, b -> a + b * 2 end))

      defn drawn(key) do
        {a, key} = Nx.Random.normal(key, shape: {3, 4})
        {b, _} = Nx.Random.randint(key, 0, 100, shape: {5})
        {c, _} = Nx.Random.shuffle(key, Nx.iota({6}))
        {a, b, c}
      end

      defn gradients(x, w) do
        value_and_grad({x, w}, fn {x, w} ->
          x |> Nx.dot(w) |> Nx.tanh() |> Nx.logsumexp(axes: [1]) |> Nx.mean()
        end)
      end

      defn through_loop(x) do
        grad(x, fn x ->
          {_, x} =
            while {i = 0, x}, i < 3 do
              {i + 1, Nx.sin(x) * 2}
            end

          Nx.sum(x)
        end)
      end

      defn(rows(x, y), do: Nx.sum(x * y + 1, axes: [:cols]))

      defn everything(m, opts \\ []) do
        opts = keyword!(opts, scale: 1.0)
        %{a: x, b: {y, n}} = m
        %{m | a: Nx.dot(x, y) * opts[:scale], b: {n, Nx.argsort(x, axis: 0)}}
      end
    end

    def handle(event, measurements, metadata, {parent, id}) do
      if self() == parent, do: send(parent, {id, event, Map.merge(measurements, metadata)})
    end

    @events [
      [:nitrox, :compile],
      [:nitrox, :program, :compile],
      [:nitrox, :program, :run],
      [:nitrox, :op, :run],
      [:nitrox, :fallback],
      [:nitrox, :tensor, :transfer]
    ]

    # What a function gives, and how many events of each kind it made, by the last words.
    defp counted(fun) do
      id = make_ref()
      :ok = :telemetry.attach_many(id, @events, &__MODULE__.handle/4, {self(), id})
      result = fun.()
      :telemetry.detach(id)
      {result, received(id, %{})}
    end

    defp received(id, counts) do
      receive do
        {^id, [:nitrox | name], _} -> received(id, Map.update(counts, name, 1, &(&1 + 1)))
      after
        0 -> counts
      end
    end

    defp devices, do: Application.get_env(:nitrox, :test_devices)

    defp compiled(fun, device, opts \\ []),
      do: Nx.Defn.jit(fun, [compiler: Nitrox.Compiler, device: device] ++ opts)

    defp host(container),
      do: Nx.Defn.Composite.traverse(container, &Nx.backend_copy(&1, Nx.BinaryBackend))

    defp on(container, device) do
      Nx.Defn.Composite.traverse(container, fn t ->
        t |> Nx.to_tensor() |> Nx.backend_copy({Nitrox.Backend, device: device})
      end)
    end

    # The same by both, with arguments on the host, on the device, and as constants.
    defp same!(fun, args, bound \\ 1.0e-5, opts \\ []) do
      expected =
        Nx.with_default_backend(Nx.BinaryBackend, fn ->
          apply(Nx.Defn.jit(fun, [compiler: Nx.Defn.Evaluator] ++ opts), args)
        end)

      for device <- devices(), move <- [& &1, &on(&1, device)] do
        got = apply(compiled(fun, device, opts), Enum.map(args, move))
        [a, b] = for c <- [got, expected], do: Nx.Defn.Composite.flatten_list([c])
        assert length(a) == length(b)

        for {got, expected} <- Enum.zip(a, b) do
          assert %{__struct__: Nitrox.Backend, device: ^device} = got.data

          assert {got.type, got.shape, got.names} ==
                   {expected.type, expected.shape, expected.names}

          assert got.vectorized_axes == expected.vectorized_axes
          assert_close(got, expected, bound)
        end

        got
      end
    end

    defp assert_close(got, %{type: {kind, _}} = expected, _) when kind in [:s, :u],
      do: assert(Nx.backend_copy(got, Nx.BinaryBackend) == expected)

    defp assert_close(got, expected, bound) do
      got = Nx.backend_copy(got, Nx.BinaryBackend)

      Nx.with_default_backend(Nx.BinaryBackend, fn ->
        close =
          Nx.all_close(Nx.devectorize(got), Nx.devectorize(expected), atol: bound, rtol: bound)

        assert Nx.to_number(close) == 1, "got #{inspect(got)}, expected #{inspect(expected)}"
      end)
    end

    defp t(values, opts \\ []), do: Nx.tensor(values, [backend: Nx.BinaryBackend] ++ opts)

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

    # ── What is kept ────────────────────────────────────────────────────────────────────────────

    test "a function is compiled once for each type, shape, name and option" do
      for device <- devices() do
        count = fn fun, args ->
          {_, events} = counted(fn -> apply(fun, args) end)
          Map.get(events, [:compile], 0)
        end

        fun = compiled(&Nx.sum/1, device)
        assert count.(fun, [t([1, 2])]) == 1
        assert count.(fun, [t([3, 4])]) == 0
        assert count.(compiled(&Nx.sum/1, device), [t([3, 4])]) == 0
        assert count.(fun, [t([1.0, 2.0])]) == 1
        assert count.(fun, [t([1, 2, 3])]) == 1
        assert count.(fun, [t([1, 2], names: [:x])]) == 1
        assert count.(compiled(&Nx.sum/1, device, instances: 2), [t([1, 2])]) == 1
        assert count.(compiled(&Nx.sum/2, device), [t([1, 2]), [keep_axes: true]]) == 1
        assert count.(compiled(&Nx.sum/2, device), [t([1, 2]), [keep_axes: true]]) == 0
        assert count.(compiled(&Nx.sum/2, device), [t([1, 2]), [keep_axes: false]]) == 1
        Nitrox.Compiler.clear()
        assert count.(fun, [t([1, 2])]) == 1
      end
    end

    test "those used last are kept, and memory of the others comes back" do
      Application.put_env(:nitrox, :compiler_cache, 3)
      on_exit(fn -> Application.delete_env(:nitrox, :compiler_cache) end)
      fun = compiled(&Nx.sum/1, :cpu)
      for n <- 1..3, do: fun.(t(List.duplicate(1, n)))
      fun.(t([1]))
      fun.(t([1, 2, 3, 4]))
      assert Nitrox.Nx.Cache.size() == 3
      {_, events} = counted(fn -> fun.(t([1])) end)
      refute is_map_key(events, [:compile])
      {_, events} = counted(fn -> fun.(t([1, 2])) end)
      assert events[[:compile]] == 1
    end

    test "Nx.Defn.compile/3 holds its program by itself" do
      for device <- devices() do
        opts = [compiler: Nitrox.Compiler, device: device]
        fun = Nx.Defn.compile(&Nx.add/2, [Nx.template({2}, :f32), Nx.template({}, :s32)], opts)
        assert Nitrox.Nx.Cache.size() == 0
        {result, events} = counted(fn -> fun.(t([1.0, 2.0]), 3) end)
        assert Nx.to_flat_list(result) == [4.0, 5.0]
        assert events == %{[:program, :run] => 1}
        assert_raise ArgumentError, fn -> fun.(t([1.0]), 3) end
      end
    end

    test "a function that raises while it is traced is compiled again, and others go on" do
      fun =
        compiled(
          fn x -> if(Process.get(:fail), do: raise("traced"), else: Nx.add(x, 1)) end,
          :cpu
        )

      Process.put(:fail, true)
      assert_raise RuntimeError, "traced", fn -> fun.(1) end
      Process.put(:fail, false)
      assert Nx.to_number(fun.(1)) == 2
    end

    test "64 processes call one function at once, which is compiled once" do
      for device <- devices() do
        id = make_ref()
        counter = :counters.new(1, [])
        :telemetry.attach(id, [:nitrox, :compile], &__MODULE__.count/4, counter)
        fun = compiled(&Functions.double_up/2, device, instances: 2)

        results =
          1..64
          |> Enum.map(fn i -> Task.async(fn -> for _ <- 1..5, do: fun.(t([i * 1.0]), 4) end) end)
          |> Task.await_many(120_000)

        :telemetry.detach(id)
        assert :counters.get(counter, 1) == 1

        for {tensors, i} <- Enum.with_index(results, 1),
            tensor <- tensors,
            do: assert(Nx.to_flat_list(tensor) == [16.0 * i + 11])
      end
    end

    def count(_, _, _, counter), do: :counters.add(counter, 1, 1)

    test "who waits for a function that another one gave up compiles it" do
      parent = self()

      traced = fn x ->
        send(parent, {:traced, self()})

        receive do
          :go -> Nx.add(x, 1)
        end
      end

      fun = compiled(traced, :cpu)
      for _ <- 1..3, do: spawn(fn -> send(parent, {:result, fun.(1)}) end)
      assert_receive {:traced, builder}, 60_000
      Process.exit(builder, :kill)
      assert_receive {:traced, builder}, 60_000
      send(builder, :go)
      for _ <- 1..2, do: assert_receive({:result, _}, 60_000)
      refute_received {:traced, _}
    end

    # ── Options and errors ──────────────────────────────────────────────────────────────────────

    test "options" do
      call = fn opts -> Nx.Defn.jit(&Nx.add(&1, 1), [compiler: Nitrox.Compiler] ++ opts).(1) end

      assert_raise Nitrox.Error, ~r/unknown option :client; known are :device/, fn ->
        call.(client: :host)
      end

      assert_raise Nitrox.Error, ~r/device: expected :cpu or/, fn -> call.(device: :gpu) end
      assert_raise Nitrox.Error, ~r/instances: expected an integer/, fn -> call.(instances: 0) end

      assert Nx.Defn.to_backend(compiler: Nitrox.Compiler, device: :cpu) ==
               {Nitrox.Backend, device: :cpu}
    end

    test "partitions" do
      options = &Nitrox.Compiler.__partitions_options__/1
      assert options.(device: :cpu) == [[device: :cpu]]

      assert options.(device: :cpu, max_concurrency: 2, instances: 3) ==
               List.duplicate([device: :cpu, instances: 3], 2)

      assert options.(devices: [{:cuda, 0}, {:cuda, 1}]) == [
               [device: {:cuda, 0}],
               [device: {:cuda, 1}]
             ]
    end

    test "a serving with partitions" do
      for device <- devices() do
        serving =
          Nx.Serving.jit(&Nx.multiply(&1, 2),
            compiler: Nitrox.Compiler,
            devices: [device, device]
          )

        name = :"compiler_#{System.unique_integer([:positive])}"

        options = [
          serving: serving,
          name: name,
          batch_size: 4,
          batch_timeout: 10,
          partitions: true
        ]

        start_supervised!({Nx.Serving, options}, id: name)

        1..16
        |> Enum.map(fn i ->
          Task.async(fn -> Nx.Serving.batched_run(name, Nx.Batch.stack([t([i, i])])) end)
        end)
        |> Task.await_many(60_000)
        |> Enum.with_index(1)
        |> Enum.each(fn {result, i} -> assert Nx.to_flat_list(result) == [2 * i, 2 * i] end)
      end
    end

    test "an argument on another device, and an expression for one" do
      elsewhere = %{(t([1.0]) |> on(:cpu)).data | device: {:cuda, 63}}
      tensor = %{t([1.0]) | data: elsewhere}
      message = ~r/argument 2 is on \{:cuda, 63\}, and the function is compiled for :cpu/
      assert_raise Nitrox.Error, message, fn -> compiled(&Nx.add/2, :cpu).(1, tensor) end

      expr = Nx.Defn.debug_expr(&Nx.add(&1, 1)).(t([1.0]))

      assert_raise Nitrox.Error, ~r/a tensor expression is no argument/, fn ->
        compiled(&Nx.exp/1, :cpu).(expr)
      end
    end

    test "what Nx refuses stays refused, and is an error of Nx" do
      assert_raise ArgumentError, fn -> compiled(&Nx.add/2, :cpu).(t([1, 2]), t([1, 2, 3])) end
      assert_raise Protocol.UndefinedError, fn -> compiled(fn -> :ok end, :cpu).() end
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
  else
    test "defn by this compiler", do: flunk("Nx is not there")
  end
end
