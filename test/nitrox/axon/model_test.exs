defmodule Nitrox.Axon.ModelTest do
  # What an accelerated model keeps: names, parameters, initial values, hooks, policies, gradients;
  # packing, and what is told of it.
  use ExUnit.Case, async: true

  @moduletag :nx
  @moduletag :axon
  @moduletag :telemetry

  if Code.ensure_loaded?(Axon) do
    import Nitrox.TestNumbers
    alias Axon.ModelState

    @fallback [[:nitrox, :axon, :fallback]]

    setup do
      :rand.seed(:exsss, ExUnit.configuration()[:seed])
      :ok
    end

    defp input(shape \\ {nil, 6, 8}), do: Axon.input("x", shape: shape)

    # A model with every kind of layer that is replaced, some that are not, and shared ones.
    defp everything do
      x = input()
      {seq, {_, h}} = Axon.lstm(x, 8)
      {turned, {g}} = Axon.gru(seq, 8, name: "turn")
      shared = Axon.block(fn x -> x |> Axon.dense(8, activation: :relu) |> Axon.layer_norm() end)
      mid = turned |> Axon.dense(8, activation: :gelu) |> Axon.dropout(rate: 0.2) |> Axon.add(x)

      {both, _} =
        Axon.bidirectional(mid, &Axon.gru(&1, 4), &Nx.concatenate([&1, &2], axis: -1))
        |> then(&{Axon.nx(&1, fn {seq, _} -> seq end), nil})

      out =
        mid
        |> shared.()
        |> Axon.add(both)
        |> Axon.rms_norm()
        |> then(&Axon.add(shared.(&1), Axon.dense(&1, 8)))
        |> Axon.batch_norm()
        |> Axon.dense(3, activation: :softmax)

      Axon.container(%{out: out, states: {h, g}})
    end

    defp init(model, opts \\ []) do
      {init, _} = Axon.build(model, [seed: 11] ++ opts)
      init.(Nx.template({2, 6, 8}, :f32), ModelState.empty())
    end

    # Blocks draw by the clock, in Axon too.
    defp without_blocks(%ModelState{} = state),
      do: update_in(state.data, &Map.reject(&1, fn {name, _} -> name =~ "block" end))

    defp predict(model, state, x, backend, opts \\ []) do
      {_, predict} = Axon.build(model, opts)
      state = %{state | data: on(state.data, backend)}
      Nx.with_default_backend(backend, fn -> predict.(state, on(x, backend)) end)
    end

    describe "names and parameters" do
      test "are those of the plain model, with the same initial values, in both modes" do
        model = everything()
        fast = Nitrox.Axon.accelerate(model)

        for mode <- [:inference, :train] do
          [plain, ours] = for m <- [model, fast], do: init(m, mode: mode)
          assert Map.drop(ours, [:data]) == Map.drop(plain, [:data])
          assert Nx.compatible?(ours.data, plain.data)
          assert without_blocks(ours) == without_blocks(plain)
        end

        assert ~w(batch_norm_0 block_0 block_1 dense_0 dense_1 dense_2 lstm_0 turn) --
                 Map.keys(init(fast).data) == []
      end

      test "a state of the one, also through a file, is one of the other" do
        model = everything()
        fast = Nitrox.Axon.accelerate(model)
        x = random({2, 6, 8})
        state = init(model)
        state = %{state | data: state.data |> Nx.serialize() |> Nx.deserialize()}
        expected = predict(model, state, x, Nx.BinaryBackend)

        for backend <- [Nx.BinaryBackend | backends()],
            do: assert_close(predict(fast, state, x, backend), expected, 1.0e-5, "everything")
      end

      test "can be frozen" do
        model = input({nil, 8}) |> Axon.dense(8, activation: :tanh) |> Axon.dense(3)
        # Axon calls it deprecated, and has nothing else that lasts until a training step.
        frozen = apply(Axon, :freeze, [model, [down: 3]])
        {x, y} = {random({2, 8}), random({2, 3})}
        state = init_for(model, x)
        loss = fn y, p -> Axon.Losses.mean_squared_error(y, p, reduction: :mean) end

        step = fn model ->
          {init, step} =
            Axon.Loop.train_step(model, loss, Polaris.Optimizers.sgd(learning_rate: 0.1))

          step.({x, y}, init.({x, y}, state)).model_state
        end

        expected = step.(frozen)
        got = step.(Nitrox.Axon.accelerate(frozen))
        assert got.frozen_parameters == expected.frozen_parameters
        assert %{"dense_0" => _} = got.frozen_parameters
        assert got.data["dense_0"] == state.data["dense_0"]
        assert got.data["dense_1"] != state.data["dense_1"]
        assert_close(got.data, expected.data, 1.0e-5, "a step with frozen parameters")
      end

      test "stay when it is done twice, or kind by kind" do
        model = everything()
        once = Nitrox.Axon.accelerate(model)
        twice = Nitrox.Axon.accelerate(once)
        parts = model |> Nitrox.Axon.accelerate(only: [:lstm, :gru]) |> Nitrox.Axon.accelerate()
        layers = Nitrox.Axon.explain(once).layers
        assert Nitrox.Axon.explain(twice).layers == layers
        strip = fn layers -> Enum.map(layers, &Map.take(&1, [:layer, :op])) end
        assert strip.(Nitrox.Axon.explain(parts).layers) == strip.(layers)

        x = random({2, 6, 8})
        state = init(model)
        expected = predict(model, state, x, Nx.BinaryBackend)

        for fast <- [twice, parts],
            do: assert_close(predict(fast, state, x, Nitrox.Backend), expected, 1.0e-5, "twice")
      end
    end

    describe "what comes out" do
      test "of several outputs, one of them inside of what was fused" do
        dense = Axon.dense(input({nil, 8}), 8)
        relu = Axon.relu(dense)
        sum = Axon.add(relu, input({nil, 8}))
        x = random({3, 8})

        for model <- [Axon.container({dense, sum}), Axon.container(%{a: relu, b: {sum}})] do
          state = init_for(model, x)
          expected = predict(model, state, x, Nx.BinaryBackend)
          fast = Nitrox.Axon.accelerate(model)
          assert_close(predict(fast, state, x, Nitrox.Backend), expected, 1.0e-5, "outputs")
          assert %{layers: [%{layer: "dense_0", notes: [_]}]} = Nitrox.Axon.explain(fast)
        end

        # A container that Axon has not seen: each a model of its own, no layer computed twice.
        {fast, {also}} = Nitrox.Axon.accelerate({dense, {sum}})
        state = init_for(sum, x)

        assert_close(
          predict(fast, state, x, Nitrox.Backend),
          predict(dense, state, x, Nx.BinaryBackend),
          1.0e-5,
          "a container's model"
        )

        assert_close(
          predict(also, state, x, Nitrox.Backend),
          predict(sum, state, x, Nx.BinaryBackend),
          1.0e-5,
          "a container's other model"
        )
      end

      test "of a model that is taken apart afterwards" do
        model = input({nil, 8}) |> Axon.dense(8, activation: :relu) |> Axon.dense(4)
        x = random({3, 8})
        state = init_for(model, x)
        {_, [relu]} = model |> Nitrox.Axon.accelerate() |> Axon.pop_node()
        {_, [dense]} = Axon.pop_node(relu)
        {_, [plain]} = model |> Axon.pop_node() |> elem(1) |> hd() |> Axon.pop_node()
        expected = predict(plain, state, x, Nx.BinaryBackend)
        assert_close(predict(dense, state, x, Nitrox.Backend), expected, 1.0e-5, "the middle")

        # And one that is read twice since then.
        model = Axon.add(relu, dense)
        {out, ops} = ops(fn -> predict(model, state, x, Nitrox.Backend) end)
        sum = Nx.add(expected, Nx.max(expected, 0))
        assert_close(out, sum, 1.0e-5, "read twice")
        assert ops[:dense] == 2
      end

      test "of optional inputs that are not given" do
        optional = Axon.input("r", shape: {nil, 8}, optional: true)
        model = Axon.add(Axon.dense(input({nil, 8}), 8), Axon.dense(optional, 8))
        model = Axon.container({Axon.optional(model), Axon.dense(input({nil, 8}), 2)})
        x = %{"x" => random({3, 8})}
        state = init_for(model, x)
        fast = Nitrox.Axon.accelerate(model)
        assert {%Axon.None{}, got} = predict(fast, state, x, Nitrox.Backend)
        {_, expected} = predict(model, state, x, Nx.BinaryBackend)
        assert_close(got, expected, 1.0e-5, "the other output")
      end
    end

    defp init_for(model, inputs, mode \\ :inference) do
      {init, _} = Axon.build(model, seed: 3, mode: mode)
      state = init.(inputs, ModelState.empty())

      update_in(state.data, fn data ->
        Nx.Defn.Composite.traverse(data, fn
          %{type: {:f, 32}} = t -> Nx.add(t, random(t.shape, 0.1))
          t -> t
        end)
      end)
    end

    test "hooks are called with what they were called with" do
      parent = self()

      hook = fn model, name, on ->
        Axon.attach_hook(model, &send(parent, {name, Nx.backend_copy(&1, Nx.BinaryBackend)}),
          on: on
        )
      end

      model =
        input()
        |> Axon.lstm(8)
        |> elem(0)
        |> hook.(:sequence, :forward)
        |> Axon.dense(8)
        |> hook.(:dense, :forward)
        |> Axon.relu()
        |> hook.(:relu, :pre_forward)
        |> hook.(:relu_out, :forward)
        |> Axon.dense(8)
        |> Axon.tanh()
        |> hook.(:tanh, :pre_forward)
        |> Axon.layer_norm()
        |> hook.(:norm, :forward)

      x = random({2, 6, 8})
      state = init_for(model, x)
      expected = predict(model, state, x, Nx.BinaryBackend)
      seen = hooked([])
      assert length(seen) == 6
      fast = Nitrox.Axon.accelerate(model)
      {got, ops} = ops(fn -> predict(fast, state, x, Nitrox.Backend) end)
      assert_close(got, expected, 1.0e-5, "with hooks")
      assert %{lstm: 1, dense: 2, layer_norm: 1} = ops

      for {{name, got}, {name, expected}} <-
            Enum.zip(Enum.sort_by(hooked([]), &key/1), Enum.sort_by(seen, &key/1)),
          do: assert_close(got, expected, 1.0e-5, "the hook #{name}")

      notes = for layer <- Nitrox.Axon.explain(fast).layers, note <- layer.notes, do: note
      assert Enum.count(notes, &(&1 =~ "hook")) == 2
    end

    defp key({name, tensor}), do: {name, Nx.to_number(Nx.sum(tensor)) |> Float.round(2)}

    defp hooked(seen) do
      receive do
        {name, %Nx.Tensor{} = t} when is_atom(name) -> hooked([{name, t} | seen])
      after
        0 -> Enum.reverse(seen)
      end
    end

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
          state = init_for(model, x)
          state = update_in(state.data, &round_to(&1, type))
          exact = predict(model, state, x, Nx.BinaryBackend)
          plain = predict(mixed, state, x, Nx.BinaryBackend)
          fast = Nitrox.Axon.accelerate(mixed)
          what = "#{name} by #{inspect(policy)}"

          for backend <- backends() do
            {got, events} =
              events([[:nitrox, :op, :run] | @fallback], fn ->
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
          state = init_for(model, random({2, 6, 8}))
          state = update_in(state.data, &wide/1)
          expected = predict(model, state, x, Nx.BinaryBackend)
          fast = Nitrox.Axon.accelerate(model)
          {got, events} = events(@fallback, fn -> predict(fast, state, x, Nitrox.Backend) end)
          # Axon's own RMS norm is computed in f32.
          bound = if name in [:rms_norm, :upcast], do: 1.0e-7, else: 1.0e-12
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
        state = update_in(init_for(model, x).data, &round_to(&1, {:bf, 16}))
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
        state = init_for(model, x, :train)

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

    defp host_state(state), do: update_in(state.data, &host/1)

    describe "pack/2" do
      test "puts the gates side by side once, in place of once a call" do
        model = everything()
        fast = Nitrox.Axon.accelerate(model)
        x = random({2, 6, 8})
        state = init_for(model, x)
        expected = predict(model, state, x, Nx.BinaryBackend)

        for backend <- backends() do
          on_device = %{state | data: on(state.data, backend)}
          {_, predict} = Axon.build(fast)
          x = on(x, backend)

          run = fn state ->
            ops(fn -> Nx.with_default_backend(backend, fn -> predict.(state, x) end) end)
          end

          {packed, packing} = ops(fn -> Nitrox.Axon.pack(fast, on_device) end)
          # Three tensors of each of three layers, the third in a block.
          assert packing[:concatenate] == 9
          {_, each_time} = run.(on_device)

          for _ <- 1..2 do
            {got, ops} = run.(packed)
            assert_close(got, expected, 1.0e-5, "packed")
            assert each_time[:concatenate] - (ops[:concatenate] || 0) == 12
            assert %{lstm: 1, gru: 3} = ops
          end

          assert %Nx.Tensor{shape: {8, 32}} = packed.data["lstm_0"]["input_kernel"]
          assert %Nx.Tensor{shape: {32}} = packed.data["turn"]["bias"]
          assert packed.data["dense_0"] == on_device.data["dense_0"]
          assert Nitrox.Axon.pack(fast, packed) == packed
          assert host_state(Nitrox.Axon.unpack(fast, packed)) == host_state(state)
          assert Nitrox.Axon.unpack(fast, on_device) == on_device
        end

        packed = Nitrox.Axon.pack(fast, state)
        assert_close(predict(fast, packed, x, Nx.BinaryBackend), expected, 1.0e-5, "elsewhere")
      end

      test "is undone where a layer has to be Axon's own after all" do
        for layer <- [&Axon.lstm/3, &Axon.gru/3] do
          model = Axon.container(layer.(input(), 5, unroll: :static))
          fast = Nitrox.Axon.accelerate(model)
          x = random({2, 6, 8}) |> Nx.as_type(:f64)
          state = update_in(init_for(model, x).data, &wide/1)
          expected = predict(model, state, x, Nx.BinaryBackend)
          got = predict(fast, Nitrox.Axon.pack(fast, state), x, Nx.BinaryBackend)
          assert_close(got, expected, 1.0e-12, "packed and in f64")
        end
      end

      test "refuses what it can't pack" do
        model = input() |> Axon.lstm(8) |> elem(0)
        state = init(model)
        error = assert_raise Nitrox.Error, fn -> Nitrox.Axon.pack(model, state) end
        assert error.message =~ "accelerated" and error.hint =~ "accelerate/2"
        fast = Nitrox.Axon.accelerate(model)
        error = assert_raise Nitrox.Error, fn -> Nitrox.Axon.pack(fast, ModelState.empty()) end
        assert error.message =~ ~s("lstm_0")
        error = assert_raise Nitrox.Error, fn -> Nitrox.Axon.pack(fast, state.data) end
        assert error.message =~ "ModelState"
      end
    end

    describe "options" do
      test "choose the kinds" do
        model = everything()

        kinds = fn opts ->
          for %{op: op} <- Nitrox.Axon.explain(Nitrox.Axon.accelerate(model, opts)).layers,
              op != nil,
              uniq: true,
              do: op
        end

        assert kinds.(only: [:lstm]) == [:lstm]
        assert kinds.(only: []) == []
        assert :lstm not in kinds.(except: [:lstm]) and :gru in kinds.(except: [:lstm])
        assert Enum.sort(kinds.([])) == [:dense, :gru, :layer_norm, :lstm, :rms_norm]

        plain = Nitrox.Axon.explain(Nitrox.Axon.accelerate(model, only: [:dense]))
        assert %{with: [], op: :dense} = Enum.find(plain.layers, &(&1.layer == "dense_0"))
        assert %{why: "left out by the options"} = Enum.find(plain.layers, &(&1.kind == :lstm))
      end

      test "that there are not, and what is no model, are errors" do
        model = input()

        for {arguments, part} <- [
              {[model, [onyl: [:lstm]]], "unknown option :onyl"},
              {[model, [only: [:conv]]], ":lstm, :gru"},
              {[model, [except: :lstm]], "except: expected a list"},
              {[model, :all], "keyword list"},
              {[:model, []], "expected an Axon model"},
              {[{model, 1}, []], "expected an Axon model"}
            ] do
          error = assert_raise Nitrox.Error, fn -> apply(Nitrox.Axon, :accelerate, arguments) end
          assert error.reason == :argument and Exception.message(error) =~ part
        end
      end
    end

    test "explain/1 tells what became what, and why the rest did not" do
      x = input()

      model =
        [
          Axon.lstm(x, 8, activation: :relu) |> elem(0),
          Axon.gru(x, 8, gate: :hard_sigmoid) |> elem(0),
          Axon.dense(x, 8, activation: :mish),
          x |> Axon.dense(8) |> Axon.activation(fn x, _ -> Nx.sin(x) end),
          x |> Axon.dense(8, activation: :sigmoid) |> Axon.add(x) |> Axon.layer_norm(),
          Axon.add(x, Axon.tanh(x)) |> Axon.layer_norm(name: "sum"),
          Axon.layer_norm(x, channel_index: -2),
          Axon.batch_norm(x)
        ]
        |> List.to_tuple()
        |> Axon.container()

      plain = Nitrox.Axon.explain(model)
      fast = model |> Nitrox.Axon.accelerate() |> Nitrox.Axon.explain()
      assert plain.layers == fast.layers and fast.accelerated and not plain.accelerated
      by_name = Map.new(fast.layers, &{&1.layer, &1})
      assert by_name["lstm_0"].why =~ "relu, not tanh"
      assert by_name["gru_0"].why =~ "hard_sigmoid, not sigmoid"
      assert by_name["dense_0"].notes == ["mish_0 stays apart: no kernel has mish"]
      assert [function] = by_name["dense_1"].notes
      assert function =~ "custom_0" and function =~ "a function of its own"
      assert %{op: :dense, with: ["sigmoid_0", "add_0"], notes: [_]} = by_name["dense_2"]
      assert %{op: :layer_norm, with: ["add_1"]} = by_name["sum"]
      assert by_name["layer_norm_2"].why =~ "axis -2"
      assert by_name["batch_norm_0"].why == "no kind of accelerate/2 is for it"

      text = to_string(fast)
      assert text =~ ~r/^replaced:/
      assert text =~ ~r/dense_2 +Nitrox.dense \+ sigmoid_0 \+ add_0; /
      assert text =~ ~r/as they are:\n(  .*\n)*  lstm_0 +its activation/
      assert to_string(plain) =~ ~r/^accelerate\/2 would replace:/

      assert inspect(fast) ==
               "#Nitrox.Axon.Report<\n  " <> String.replace(text, "\n", "\n  ") <> "\n>"

      assert to_string(Nitrox.Axon.explain(x)) =~ "no layers"
    end
  else
    test "Axon is missing", do: :ok
  end
end
