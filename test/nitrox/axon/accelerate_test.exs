# Axon is not there for the compiler on every machine.
if Code.ensure_loaded?(Axon) do
  defmodule Nitrox.Axon.AccelerateTest do
    # Accelerated models against the plain ones: the same names, parameters and initial values, and the
    # same outputs, by the kernels on Nitrox.Backend and by their references on Nx.BinaryBackend.
    use ExUnit.Case, async: true

    @moduletag :nx
    @moduletag :axon
    @moduletag :telemetry

    import Nitrox.{TestModels, TestNumbers}
    alias Axon.ModelState

    @bound 1.0e-5

    setup do
      :rand.seed(:exsss, ExUnit.configuration()[:seed])
      :ok
    end

    # Gives the ops that ran on the last of the devices.
    defp check(model, inputs, what, opts \\ []) do
      model = if is_struct(model, Axon), do: model, else: Axon.container(model)
      fast = Nitrox.Axon.accelerate(model)
      state = init(model, inputs)
      expected = predict(model, state, inputs, Nx.BinaryBackend)
      bound = opts[:bound] || @bound
      got = predict(fast, state, inputs, Nx.BinaryBackend)
      assert_close(got, expected, bound, "#{what} by the references")

      for backend <- backends() do
        {got, events} =
          Nitrox.TestEvents.all([[:nitrox, :op, :run], [:nitrox, :axon, :fallback]], fn ->
            predict(fast, state, inputs, backend)
          end)

        assert [] == for({[_, :axon, :fallback], details} <- events, do: details), what
        assert_close(got, expected, bound, "#{what} on #{inspect(backend)}")
        Enum.frequencies(for {[_, :op, :run], %{op: op}} <- events, do: op)
      end
      |> List.last()
    end

    defp x(shape), do: %{"x" => random(shape)}
    defp input(shape), do: Axon.input("x", shape: put_elem(shape, 0, nil))

    # ── Recurrent layers ──────────────────────────────────────────────────────────────────────────

    # Batch, frames, features and units. Of a single number that happens to be near zero, a relative error
    # says nothing.
    @shapes [{1, 1, 1, 16}, {16, 1, 1, 1}, {2, 5, 3, 7}, {3, 4, 9, 5}, {5, 17, 33, 19}]

    defp recurrent(:lstm, x, units, opts), do: Axon.lstm(x, units, opts)
    defp recurrent(:gru, x, units, opts), do: Axon.gru(x, units, opts)

    defp recurrent(:lstm, x, state, units, opts), do: Axon.lstm(x, state, units, opts)
    defp recurrent(:gru, x, state, units, opts), do: Axon.gru(x, state, units, opts)

    test "LSTM and GRU, with and without biases, unrolled either way" do
      for kind <- [:lstm, :gru],
          {b, t, i, h} <- @shapes,
          opts <- [[], [unroll: :static], [use_bias: false], [unroll: :static, use_bias: false]] do
        model = recurrent(kind, input({b, t, i}), h, opts)
        what = "#{kind} #{inspect({b, t, i, h})} #{inspect(opts)}"
        ops = check(model, x({b, t, i}), what)
        assert ops[kind] == 1 and not is_map_key(ops, :dot), what
      end
    end

    test "LSTM and GRU with a mask" do
      for kind <- [:lstm, :gru], {b, t, i, h} <- @shapes, unroll <- [:static, :dynamic] do
        mask = Axon.input("ids", shape: {nil, t}) |> Axon.mask(0)
        model = recurrent(kind, input({b, t, i}), h, mask: mask, unroll: unroll)
        ids = for(_ <- 1..(b * t), do: Enum.random(0..1)) |> Nx.tensor() |> Nx.reshape({b, t})
        what = "masked #{kind} #{inspect({b, t, i, h})}"
        assert check(model, Map.put(x({b, t, i}), "ids", ids), what)[kind] == 1
      end
    end

    test "LSTM and GRU with a constant mask and one of a frame" do
      for kind <- [:lstm, :gru],
          mask <- [Axon.constant(1), Axon.input("mask", shape: {nil, 1})] do
        model = recurrent(kind, input({2, 5, 3}), 4, mask: mask)
        inputs = Map.put(x({2, 5, 3}), "mask", Nx.tensor([[1], [0]]))
        assert check(model, inputs, "#{kind} with one mask for all frames")[kind] == 1
      end
    end

    test "LSTM and GRU from a state, stacked" do
      for kind <- [:lstm, :gru], {b, t, i, h} <- @shapes do
        state =
          for name <- if(kind == :lstm, do: ["c", "h"], else: ["h"]),
              do: Axon.input(name, shape: {nil, h})

        {first, state} = recurrent(kind, input({b, t, i}), List.to_tuple(state), h, [])
        model = recurrent(kind, first, state, h, [])
        inputs = Map.merge(x({b, t, i}), %{"c" => random({b, h}), "h" => random({b, h})})
        assert check(model, inputs, "stacked #{kind} #{inspect({b, t, i, h})}")[kind] == 2
      end
    end

    test "LSTM and GRU in both directions, without turning anything around" do
      for kind <- [:lstm, :gru], {b, t, i, h} <- @shapes do
        model =
          Axon.bidirectional(
            input({b, t, i}),
            &{kind |> recurrent(&1, h, []) |> elem(0)},
            &Nx.concatenate([&1, &2], axis: -1)
          )

        ops = check(model, x({b, t, i}), "#{kind} in both directions #{inspect({b, t, i, h})}")
        assert ops[kind] == 2
        assert not is_map_key(ops, :reverse)

        # Axon turns the features of the states around too.
        model = Axon.bidirectional(input({b, t, i}), &recurrent(kind, &1, h, []), &Nx.add/2)
        ops = check(model, x({b, t, i}), "#{kind} and its state in both directions")
        assert ops[kind] == 2
      end
    end

    test "a stack in both directions, the second layer not first in its block" do
      model =
        Axon.bidirectional(
          input({2, 5, 3}),
          fn x -> {x |> Axon.dense(4) |> Axon.lstm(6) |> elem(0) |> Axon.gru(5) |> elem(0)} end,
          &Nx.add/2
        )

      ops = check(model, x({2, 5, 3}), "a block of three layers")
      assert %{dense: 2, lstm: 2, gru: 2} = ops
    end

    # ── Dense layers, norms and sums ──────────────────────────────────────────────────────────────

    test "dense layers with each activation" do
      for shape <- [{1, 1}, {3, 7}, {2, 5, 9}, {2, 3, 2, 17}],
          activation <- [nil, :relu, :silu, :gelu, :tanh, :sigmoid, :mish, :softmax],
          use_bias <- [true, false] do
        model = Axon.dense(input(shape), 11, activation: activation, use_bias: use_bias)
        ops = check(model, x(shape), "dense #{inspect({shape, activation, use_bias})}")
        fused? = activation in [nil, :relu, :silu, :gelu, :tanh, :sigmoid]
        assert ops[:dense] == 1
        if fused?, do: assert(Map.keys(ops) -- [:dense, :broadcast] == [])
      end
    end

    test "norms over the last axis, and over another" do
      for shape <- [{1, 1}, {3, 7}, {2, 5, 9}], epsilon <- [1.0e-12, 1.0e-5, 0.1] do
        model = Axon.layer_norm(input(shape), epsilon: epsilon)
        assert %{layer_norm: 1} == check(model, x(shape), "layer norm #{inspect(shape)}")

        for shift <- [0.0, 1.0], upcast <- [:normalization, :all] do
          opts = [epsilon: epsilon, shift: shift, upcast: upcast]
          model = Axon.rms_norm(input(shape), opts)
          ops = check(model, x(shape), "RMS norm #{inspect({shape, opts})}")
          assert ops[:rms_norm] == 1
        end
      end

      axis = tuple_size({2, 5, 9}) - 1
      model = Axon.layer_norm(input({2, 5, 9}), channel_index: axis)
      assert %{layer_norm: 1} == check(model, x({2, 5, 9}), "the last axis by its number")

      model = Axon.layer_norm(input({2, 5, 9}), channel_index: -2)
      ops = check(model, x({2, 5, 9}), "another axis")
      assert not is_map_key(ops, :layer_norm)
    end

    test "sums around dense layers" do
      x = input({2, 5, 8})
      inputs = x({2, 5, 8})
      dense = Axon.dense(x, 8)

      for {name, model, ops} <- [
            {"after", Axon.add(dense, x), %{dense: 1}},
            {"before", Axon.add(x, dense), %{dense: 1}},
            {"activated", x |> Axon.dense(8, activation: :gelu) |> Axon.add(x), %{dense: 1}},
            {"dropout", dense |> Axon.dropout(rate: 0.5) |> Axon.add(x), %{dense: 1}},
            {"two", Axon.add(dense, Axon.dense(x, 8)), %{dense: 2}},
            {"three", Axon.add([x, x, dense]), %{dense: 1, binary: 1}},
            {"normed", dense |> Axon.add(x) |> Axon.layer_norm(), %{dense: 1, layer_norm: 1}},
            {"broadcast", Axon.add(dense, Axon.dense(Axon.input("r"), 8)),
             %{dense: 2, binary: 1}},
            {"itself", Axon.add(dense, dense), %{dense: 1, binary: 1}},
            {"read twice", {dense, Axon.add(dense, x)}, %{dense: 1, binary: 1}},
            {"relu after", dense |> Axon.add(x) |> Axon.relu(), %{dense: 1, binary: 1}}
          ] do
        inputs = if name == "broadcast", do: Map.put(inputs, "r", random({1, 3})), else: inputs
        got = events_free(model, inputs, name)
        assert Map.take(got, Map.keys(ops)) == ops, "#{name}: #{inspect(got)}"
      end
    end

    test "the names of axes stay" do
      x = input({2, 5, 8})
      t = Nx.rename(random({2, 5, 8}), [:batch, :frames, :features])
      dense = Axon.dense(x, 8, activation: :relu)

      for model <- [dense, Axon.add(dense, x), Axon.layer_norm(x), Axon.rms_norm(x)] do
        state = init(model, t)
        expected = predict(model, state, t, Nx.BinaryBackend)
        got = predict(Nitrox.Axon.accelerate(model), state, t, Nitrox.Backend)
        assert Nx.names(got) == Nx.names(expected)
        assert :frames in Nx.names(got)
        assert_close(got, expected, @bound, "with names")
      end
    end

    test "a norm of a sum that others read gives both" do
      for norm <- [&Axon.layer_norm/1, &Axon.rms_norm/1], shape <- [{3, 8}, {2, 5, 7}] do
        x = input(shape)
        r = Axon.input("r", shape: put_elem(shape, 0, nil))
        inputs = Map.put(x(shape), "r", random(shape))
        width = elem(shape, tuple_size(shape) - 1)

        # Pre-norm blocks whose residual no dense layer adds.
        block = fn h, n ->
          Enum.reduce(1..n, h, fn _, h ->
            normed = norm.(h)
            mixed = normed |> Axon.dense(width) |> Axon.mish()
            Axon.add(h, mixed)
          end)
        end

        model = x |> Axon.add(r) |> block.(3) |> norm.()
        report = Nitrox.Axon.explain(model)
        fused = for %{with: ["add_" <> _]} = layer <- report.layers, do: layer.layer
        assert length(fused) == 4, inspect(report)
        ops = check(model, inputs, "pre-norm #{inspect(shape)}")
        assert 4 == (ops[:layer_norm] || 0) + (ops[:rms_norm] || 0)
        # mish is three ops of Nx; no sum is among those that ran.
        plain =
          ops(fn -> predict(model, init(model, inputs), inputs, Nitrox.Backend) end) |> elem(1)

        assert plain[:binary] > ops[:binary]

        # The same draws, and what else is read of the sum.
        fast = Nitrox.Axon.accelerate(model)
        [a, b] = for m <- [model, fast], do: elem(Axon.build(m, seed: 5), 0)

        assert a.(templates(inputs), ModelState.empty()) ==
                 b.(templates(inputs), ModelState.empty())

        sum = Axon.add(x, r)
        check({norm.(sum), sum, Axon.relu(sum)}, inputs, "three readers")
        check({norm.(sum), norm.(sum)}, inputs, "two norms")
        wide = Map.put(inputs, "r", random(put_elem(shape, 0, 1)))
        check({norm.(sum), Axon.relu(sum)}, wide, "a sum that broadcasts")
      end
    end

    test "a norm of a sum is apart where Axon would number its layers otherwise" do
      x = input({3, 8})
      r = Axon.input("r", shape: {nil, 8})
      sum = Axon.add(x, r)
      # The second norm is reached first, by what reads the sum first.
      model = Axon.add(Axon.multiply(sum, Axon.layer_norm(Axon.tanh(x))), Axon.layer_norm(sum))
      inputs = Map.put(x({3, 8}), "r", random({3, 8}))
      state = init(model, inputs)
      fast = Nitrox.Axon.accelerate(model)
      assert Map.keys(init(fast, inputs).data) == Map.keys(state.data)
      check(model, inputs, "two norms in another order")

      notes = for %{notes: [note]} <- Nitrox.Axon.explain(model).layers, do: note
      assert [note] = notes
      assert note =~ "another order"
    end

    # As `check/3`, where a layer may find at run time that it can't be fused.
    defp events_free(model, inputs, what) do
      model = if is_struct(model, Axon), do: model, else: Axon.container(model)
      fast = Nitrox.Axon.accelerate(model)
      state = init(model, inputs)
      expected = predict(model, state, inputs, Nx.BinaryBackend)

      for backend <- [Nx.BinaryBackend | backends()] do
        {got, ops} = ops(fn -> predict(fast, state, inputs, backend) end)
        assert_close(got, expected, @bound, "#{what} on #{inspect(backend)}")
        ops
      end
      |> List.last()
    end
  end
else
  defmodule Nitrox.Axon.AccelerateTest do
    use ExUnit.Case
    @moduletag :axon
    test "Axon is missing", do: :ok
  end
end
