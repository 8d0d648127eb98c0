# Axon is not there for the compiler on every machine.
if Code.ensure_loaded?(Axon) do
  defmodule Nitrox.Axon.TrainingTest do
    # Accelerated models under policies of every type, in f64, and in training.
    use ExUnit.Case, async: true

    @moduletag :nx
    @moduletag :axon
    @moduletag :telemetry

    import Nitrox.{TestModels, TestNumbers}
    alias Axon.ModelState

    @fallback [[:nitrox, :axon, :fallback]]

    setup do
      :rand.seed(:exsss, ExUnit.configuration()[:seed])
      :ok
    end

    defp input(shape \\ {nil, 6, 8}), do: Axon.input("x", shape: shape)
    defp host_state(state), do: update_in(state.data, &host/1)

    describe "policies" do
      @bounds %{{:f, 32} => 1.0e-5, {:f, 16} => 2.0e-3, {:bf, 16} => 1.0e-2}

      defp layers do
        x = input()

        [
          lstm: Axon.container(Axon.lstm(x, 8)),
          unrolled: Axon.container(Axon.lstm(x, 8, unroll: :static)),
          gru: Axon.container(Axon.gru(x, 8)),
          dense: Axon.dense(x, 8, activation: :gelu),
          residual: x |> Axon.dense(8, activation: :silu) |> Axon.add(x),
          layer_norm: Axon.layer_norm(x),
          rms_norm: Axon.rms_norm(x),
          upcast: Axon.rms_norm(x, upcast: :all)
        ]
      end

      test "of every type are kept to, and what comes out is of the type that it was" do
        for {name, model} <- layers(),
            {type, bound} <- @bounds,
            output <- [nil, type, {:f, 32}] do
          policy = Axon.MixedPrecision.create_policy(compute: type, output: output)

          mixed =
            Axon.MixedPrecision.apply_policy(model, policy, fn node -> node.op != :input end)

          x = random({2, 6, 8}) |> Nx.as_type(type) |> Nx.as_type(:f32)
          state = init(model, x)
          state = update_in(state.data, &round_to(&1, type))
          exact = predict(model, state, x, Nx.BinaryBackend)
          plain = predict(mixed, state, x, Nx.BinaryBackend)
          fast = Nitrox.Axon.accelerate(mixed)
          what = "#{name} by #{inspect(policy)}"

          for backend <- backends() do
            {got, events} =
              Nitrox.TestEvents.all([[:nitrox, :op, :run] | @fallback], fn ->
                predict(fast, state, x, backend)
              end)

            assert Nx.compatible?(got, plain), what
            wide = Nx.Defn.Composite.traverse(host(got), &Nx.as_type(&1, :f32))
            assert_close(wide, exact, bound, what)
            assert [] == for({@fallback, details} <- events, do: details)
            ran = for {[_, :op, :run], %{op: op}} <- events, do: op
            fused = %{unrolled: :lstm, residual: :dense, upcast: :rms_norm}[name] || name
            assert Enum.count(ran, &(&1 == fused)) == 1, "#{what}: #{inspect(ran)}"
          end
        end
      end

      defp round_to(data, type) do
        Nx.Defn.Composite.traverse(data, fn
          %{type: {:f, 32}} = t -> t |> Nx.as_type(type) |> Nx.as_type(:f32)
          t -> t
        end)
      end

      test "of f64 stay with Axon, and f64 inputs too" do
        policy = Axon.MixedPrecision.create_policy(compute: {:f, 64}, output: {:f, 64})

        # The one that is not unrolled is no layer of f64 in Axon either.
        for {name, model} <- Keyword.drop(layers(), [:lstm, :gru]) do
          mixed =
            Axon.MixedPrecision.apply_policy(model, policy, fn node -> node.op != :input end)

          report = mixed |> Nitrox.Axon.accelerate() |> Nitrox.Axon.explain()
          assert %{layers: [%{op: nil, why: why}]} = report
          assert why =~ "f64", "#{name}: #{why}"

          x = random({2, 6, 8}) |> Nx.as_type(:f64)
          state = init(model, random({2, 6, 8}))
          state = update_in(state.data, &wide/1)
          expected = predict(model, state, x, Nx.BinaryBackend)
          fast = Nitrox.Axon.accelerate(model)

          {got, events} =
            Nitrox.TestEvents.all(@fallback, fn -> predict(fast, state, x, Nitrox.Backend) end)

          # Axon's own RMS norm is computed in f32: half a dozen roundings of up to 6e-8 on either side.
          bound = if name in [:rms_norm, :upcast], do: 5.0e-7, else: 1.0e-12
          assert_close(got, expected, bound, "#{name} in f64")
          assert [{_, %{layer: layer, why: why}} | _] = events
          assert is_binary(layer) and why =~ "f64"
        end
      end

      defp wide(data) do
        Nx.Defn.Composite.traverse(data, fn
          %{type: {:f, 32}} = t -> Nx.as_type(t, :f64)
          t -> t
        end)
      end

      test "that differ from one layer to the next keep them apart" do
        policy = Axon.MixedPrecision.create_policy(compute: {:bf, 16}, output: {:f, 32})
        model = input() |> Axon.dense(8) |> Axon.relu()
        mixed = Axon.MixedPrecision.apply_policy(model, policy, only: [:dense])
        fast = Nitrox.Axon.accelerate(mixed)
        assert %{layers: [%{with: [], notes: [note]}]} = Nitrox.Axon.explain(fast)
        assert note =~ "type"
        x = random({2, 6, 8}) |> round_to({:bf, 16})
        state = update_in(init(model, x).data, &round_to(&1, {:bf, 16}))
        {got, ops} = ops(fn -> predict(fast, state, x, Nitrox.Backend) end)
        assert_close(got, predict(model, state, x, Nx.BinaryBackend), 1.0e-2, "apart")
        assert ops[:dense] == 1 and is_map_key(ops, :binary)
      end
    end

    test "gradients are those of the plain model" do
      x = random({2, 6, 8})
      labels = Nx.tensor([[1.0], [0.0]])

      models =
        [
          lstm: input() |> Axon.lstm(8) |> elem(0),
          gru: input() |> Axon.gru(8, unroll: :static) |> elem(0),
          both:
            Axon.bidirectional(input(), &Axon.lstm(&1, 5), &Nx.add/2) |> Axon.nx(&elem(&1, 0)),
          dense: Axon.dense(input(), 8, activation: :gelu),
          residual: input() |> Axon.dense(8, activation: :silu) |> Axon.add(input()),
          dropout:
            input()
            |> Axon.dense(8)
            |> Axon.dropout(rate: 0.0)
            |> Axon.add(input())
            |> Axon.layer_norm(),
          sum: Axon.add(input(), Axon.tanh(input())) |> Axon.rms_norm(),
          layer_norm: Axon.layer_norm(input()),
          sigmoid: input() |> Axon.flatten() |> Axon.dense(1, activation: :sigmoid)
        ]

      for {name, model} <- models do
        state = init(model, x, mode: :train)

        loss = fn predict, data, x ->
          %{prediction: p} = predict.(%{state | data: data}, x)

          if name == :sigmoid,
            do: Axon.Losses.binary_cross_entropy(labels, p, reduction: :mean),
            else: Nx.sum(Nx.multiply(p, p))
        end

        grad = fn model, backend ->
          {_, predict} = Axon.build(model, mode: :train)

          Nx.with_default_backend(backend, fn ->
            {data, x} = on({state.data, x}, backend)
            Nx.Defn.value_and_grad({data, x}, fn {data, x} -> loss.(predict, data, x) end)
          end)
        end

        expected = grad.(model, Nx.BinaryBackend)
        fast = Nitrox.Axon.accelerate(model)

        for backend <- [Nx.BinaryBackend | backends()] do
          {value, {data, x}} = grad.(fast, backend)
          {plain_value, {plain_data, plain_x}} = expected
          what = "the gradient of #{name} on #{inspect(backend)}"
          assert_close({value, x}, {plain_value, plain_x}, 2.0e-4, what)
          # A key is no float and has no gradient.
          for {{path, a}, {path, b}} <- Enum.zip(floats(data), floats(plain_data)),
              do: assert_close(a, b, 2.0e-4, "#{what} by #{path}")
        end
      end
    end

    defp floats(data, path \\ "") do
      Enum.flat_map(Enum.sort(data), fn
        {key, %Nx.Tensor{type: {:u, _}}} when is_binary(key) -> []
        {key, %Nx.Tensor{} = t} -> [{path <> "." <> key, t}]
        {key, nested} -> floats(nested, path <> "." <> key)
      end)
    end

    test "trains in a loop of Axon, and the plain model takes what it learned" do
      model =
        input({nil, 6, 8})
        |> Axon.lstm(8)
        |> elem(0)
        |> Axon.flatten()
        |> Axon.dense(16, activation: :relu)
        |> Axon.dropout(rate: 0.1)
        |> Axon.dense(3, activation: :softmax)

      x = random({8, 6, 8})
      y = Nx.remainder(Nx.iota({8, 1}), 3) |> Nx.equal(Nx.iota({1, 3}))
      fast = Nitrox.Axon.accelerate(model)
      parent = self()

      state =
        fast
        |> Axon.Loop.trainer(:categorical_cross_entropy, :adam, log: 0)
        |> Axon.Loop.handle_event(:iteration_completed, fn state ->
          send(parent, {:loss, Nx.to_number(state.step_state[:loss])})
          {:continue, state}
        end)
        |> Axon.Loop.run(Stream.repeatedly(fn -> {x, y} end), ModelState.empty(),
          epochs: 1,
          iterations: 15
        )

      losses = for _ <- 1..15, do: assert_receive({:loss, loss}) && loss
      assert List.last(losses) < hd(losses)
      expected = predict(model, host_state(state), x, Nx.BinaryBackend)
      assert_close(predict(fast, state, x, Nitrox.Backend), expected, 1.0e-5, "trained")
    end

    test "a packed state where a layer has to be Axon's own after all" do
      for layer <- [&Axon.lstm/3, &Axon.gru/3] do
        model = Axon.container(layer.(input(), 5, unroll: :static))
        fast = Nitrox.Axon.accelerate(model)
        x = random({2, 6, 8}) |> Nx.as_type(:f64)
        state = update_in(init(model, x).data, &wide/1)
        expected = predict(model, state, x, Nx.BinaryBackend)
        got = predict(fast, Nitrox.Axon.pack(fast, state), x, Nx.BinaryBackend)
        assert_close(got, expected, 1.0e-12, "packed and in f64")
      end
    end
  end
else
  defmodule Nitrox.Axon.TrainingTest do
    use ExUnit.Case
    @moduletag :axon
    test "Axon is missing", do: :ok
  end
end
