if Code.ensure_loaded?(Nx) do
  defmodule Nitrox.Compiled do
    @moduledoc false
    # Functions of defn for the tests of Nitrox.Compiler, and what these compare and count by.
    import ExUnit.Assertions

    defmodule Functions do
      @moduledoc false
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

    @events [
      [:nitrox, :compile],
      [:nitrox, :program, :compile],
      [:nitrox, :program, :run],
      [:nitrox, :op, :run],
      [:nitrox, :fallback],
      [:nitrox, :tensor, :transfer]
    ]

    # What a function gives, and how many events of each kind it made, by the last words.
    def counted(fun) do
      {result, events} = Nitrox.TestEvents.all(@events, fun)
      {result, Enum.frequencies(for {[:nitrox | name], _} <- events, do: name)}
    end

    def devices, do: Application.get_env(:nitrox, :test_devices)

    def compiled(fun, device, opts \\ []),
      do: Nx.Defn.jit(fun, [compiler: Nitrox.Compiler, device: device] ++ opts)

    def host(container),
      do: Nx.Defn.Composite.traverse(container, &Nx.backend_copy(&1, Nx.BinaryBackend))

    def on(container, device) do
      Nx.Defn.Composite.traverse(container, fn t ->
        t |> Nx.to_tensor() |> Nx.backend_copy({Nitrox.Backend, device: device})
      end)
    end

    # The same by both, with arguments on the host, on the device, and as constants.
    def same!(fun, args, bound \\ 1.0e-5, opts \\ []) do
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

    def t(values, opts \\ []), do: Nx.tensor(values, [backend: Nx.BinaryBackend] ++ opts)
  end
end
