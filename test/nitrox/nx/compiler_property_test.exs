defmodule Nitrox.CompilerPropertyTest do
  # Random expressions with loops, branches, hooks and host routes: by Nitrox.Compiler, and by
  # Nx.Defn.Evaluator on this backend, on the CPU bit for bit, since they are the same ops. The seed is
  # ExUnit's, which it prints: `mix test --seed n` draws the same again.
  use ExUnit.Case, async: true
  @moduletag :nx

  if Code.ensure_loaded?(Nx) do
    @rounds 200

    defmodule Control do
      # `while` and `if` around functions that are drawn.
      import Nx.Defn

      defn loop(t, seen, opts \\ []) do
        {_, t, _} =
          while {i = 0, t, seen}, i < opts[:rounds] do
            {i + 1, call(opts[:body], t, seen), seen}
          end

        t
      end

      defn branch(condition, opts \\ []) do
        if condition, do: call(opts[:yes]), else: call(opts[:no])
      end

      deftransformp(call(fun), do: fun.())
      deftransformp(call(fun, t, seen), do: fun.(t, seen))
    end

    setup do
      :rand.seed(:exsss, ExUnit.configuration()[:seed])
      Nx.default_backend(Nx.BinaryBackend)
      :ok
    end

    defp pick(list), do: Enum.random(list)
    defp between(a, b), do: a + :rand.uniform(b - a + 1) - 1

    # Values that stay small whatever is done with them.
    defp tensor(shape, type) do
      values =
        for _ <- 1..Tuple.product(shape)//1 do
          case type do
            {kind, _} when kind in [:s, :u] -> between(0, 5)
            _ -> 2 * :rand.uniform() - 1
          end
        end

      values |> Nx.tensor(type: type, backend: Nx.BinaryBackend) |> Nx.reshape(shape)
    end

    # A program is drawn as data, so that it can be made twice, and shown: a list of steps, each of
    # which adds a value to those there are. A place is that of a value, from the latest back.
    defp program(depth), do: for(_ <- 1..between(1, depth + 1), do: step(depth - 1))

    defp step(depth) do
      kinds = [:unary, :binary, :shape, :reduce, :constant, :index, :dot, :type, :table, :known]
      kinds = if depth > 0, do: kinds ++ [:while, :cond, :hook, :host], else: kinds

      case pick(kinds) do
        kind when kind in [:while, :cond] ->
          {kind, place(), between(0, 3), program(depth), program(depth)}

        kind ->
          {kind, place(), place(), :rand.uniform(1000)}
      end
    end

    defp place, do: between(0, 3)

    defp make(steps, values) do
      Enum.reduce(steps, values, fn step, values ->
        [tame(make_step(step, values)) | values]
      end)
    end

    # Between -1 and 1, and of no more than 64 elements.
    defp tame(t) do
      t = if Nx.size(t) > 64, do: Nx.slice_along_axis(Nx.flatten(t), 0, 64), else: t
      if match?({kind, _} when kind in [:s, :u], t.type), do: Nx.remainder(t, 7), else: Nx.tanh(t)
    end

    defp at(values, place), do: Enum.at(values, rem(place, length(values)))
    defp among(list, n), do: Enum.at(list, rem(n, length(list)))

    defp make_step({:unary, a, _, n}, values),
      do: among([&Nx.exp/1, &Nx.sin/1, &Nx.abs/1, &Nx.negate/1, &Nx.sigmoid/1], n).(at(values, a))

    defp make_step({:binary, a, b, n}, values) do
      [a, b] = same_shape(at(values, a), at(values, b))
      ops = [&Nx.add/2, &Nx.multiply/2, &Nx.subtract/2, &Nx.max/2, &Nx.less/2, &Nx.atan2/2]
      among(ops, n).(a, b)
    end

    defp make_step({:shape, a, _, n}, values) do
      t = at(values, a)

      among(
        [&Nx.transpose/1, &Nx.flatten/1, &Nx.new_axis(&1, 0), &Nx.reverse/1, &Nx.squeeze/1],
        n
      ).(t)
    end

    defp make_step({:reduce, a, _, n}, values) do
      t = Nx.new_axis(at(values, a), 0)
      ops = [&Nx.sum/2, &Nx.mean/2, &Nx.reduce_max/2, &Nx.reduce_min/2, &Nx.product/2]
      among(ops, n).(t, axes: [rem(n, Nx.rank(t))])
    end

    defp make_step({:constant, a, _, n}, values), do: Nx.add(at(values, a), n / 1000)

    defp make_step({:index, a, b, n}, values) do
      t = Nx.flatten(at(values, a))
      index = at(values, b) |> Nx.flatten() |> Nx.abs() |> Nx.multiply(3) |> Nx.as_type(:s32)
      index = Nx.remainder(index, Nx.size(t))

      case rem(n, 4) do
        0 -> Nx.take(t, index)
        1 -> Nx.slice(t, [index[0]], [1])
        2 -> Nx.indexed_add(t, Nx.new_axis(index, 1), Nx.as_type(index, t.type))
        3 -> Nx.sort(t)
      end
    end

    defp make_step({:dot, a, b, _}, values) do
      [a, b] = for p <- [a, b], do: Nx.flatten(at(values, p))
      Nx.outer(a, b)
    end

    defp make_step({:type, a, _, n}, values),
      do: Nx.as_type(at(values, a), among([:f32, :f64, :s32, :u8, :s64], n))

    defp make_step({:table, a, _, n}, values) do
      table = Nx.tensor(Enum.map(1..4, &(&1 * n / 1000)), backend: Nx.BinaryBackend)
      Nx.outer(table, Nx.flatten(at(values, a)))
    end

    # Of the expression alone, whatever the arguments are.
    defp make_step({:known, _, _, n}, _),
      do: Nx.iota({2, 3}) |> Nx.multiply(n / 1000) |> Nx.sum(axes: [rem(n, 2)])

    defp make_step({:hook, a, _, _}, values), do: Nx.io_call(at(values, a), :seen)

    # No kernel does it.
    defp make_step({:host, a, _, _}, values) do
      Nx.reduce(at(values, a), 0.0, [axes: []], fn x, y -> Nx.add(Nx.multiply(x, 0.5), y) end)
    end

    defp make_step({:while, a, rounds, steps, _}, values) do
      t = Nx.as_type(at(values, a), :f32)
      seen = Nx.flatten(at(values, a + 1))

      body = fn t, seen ->
        [latest | _] = make(steps, [t, seen])
        Nx.multiply(t, Nx.sum(Nx.as_type(latest, :f32)) |> Nx.tanh())
      end

      Control.loop(t, seen, rounds: rounds, body: body)
    end

    defp make_step({:cond, a, n, yes, no}, values) do
      t = Nx.as_type(at(values, a), :f32)
      pick = Nx.greater(Nx.sum(t), n / 2 - 1)
      body = fn steps -> Nx.add(t, Nx.mean(hd(make(steps, values)))) |> Nx.as_type(:f32) end
      Control.branch(pick, yes: fn -> body.(yes) end, no: fn -> body.(no) end)
    end

    defp same_shape(a, b) do
      if Nx.compatible?(Nx.as_type(a, :f32), Nx.as_type(b, :f32)),
        do: [a, b],
        else: [a, Nx.reduce_max(b)]
    end

    defp host(tensors), do: Enum.map(tensors, &Nx.backend_copy(&1, Nx.BinaryBackend))

    test "random expressions" do
      for _ <- 1..@rounds do
        steps = program(4)

        arguments =
          for _ <- 1..2,
              do:
                tensor(
                  pick([{}, {3}, {2, 3}, {1, 4, 2}]),
                  pick([{:f, 32}, {:f, 64}, {:s, 32}, {:u, 8}])
                )

        fun = fn a, b -> steps |> make([a, b]) |> Enum.take(3) |> List.to_tuple() end
        run = fn opts -> apply(Nx.Defn.jit(fun, opts), arguments) |> Tuple.to_list() end
        parent = self()
        seen = fn t -> send(parent, {:seen, t.shape}) end

        for device <- Application.get_env(:nitrox, :test_devices) do
          opts = [hooks: %{seen: seen}]
          compiled = run.([compiler: Nitrox.Compiler, device: device] ++ opts) |> host()
          hooks = received()

          # The arguments would be brought to the device by the first op that has one there.
          evaluated =
            Nx.with_default_backend({Nitrox.Backend, device: device}, fn ->
              brought =
                Enum.map(arguments, &Nx.backend_copy(&1, {Nitrox.Backend, device: device}))

              apply(Nx.Defn.jit(fun, [compiler: Nx.Defn.Evaluator] ++ opts), brought)
            end)
            |> Tuple.to_list()
            |> host()

          text =
            "#{inspect(steps, limit: :infinity)} of #{inspect(arguments)} on #{inspect(device)}"

          # Where branches share what a function is called with, it is called once ahead of them; the
          # evaluator calls it in each that is run.
          assert Enum.uniq(received()) -- hooks == [], text

          for {got, expected} <- Enum.zip(compiled, evaluated) do
            assert {got.type, got.shape} == {expected.type, expected.shape}, text

            if device == :cpu,
              do: assert(Nx.to_binary(got) == Nx.to_binary(expected), text),
              else: assert(close?(got, expected), text)
          end
        end
      end
    end

    defp received do
      receive do
        {:seen, shape} -> [shape | received()]
      after
        0 -> []
      end
    end

    defp close?(a, b),
      do: Nx.to_number(Nx.all_close(a, b, atol: 1.0e-4, rtol: 1.0e-4, equal_nan: true)) == 1
  else
    test "random expressions", do: flunk("Nx is not there")
  end
end
