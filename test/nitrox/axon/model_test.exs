# Axon is not there for the compiler on every machine.
if Code.ensure_loaded?(Axon) do
  defmodule Nitrox.Axon.ModelTest do
    # What an accelerated model keeps: names, parameters, initial values, outputs, hooks; packing, options,
    # and what is told of it.
    use ExUnit.Case, async: true

    @moduletag :nx
    @moduletag :axon
    @moduletag :telemetry

    import Nitrox.{TestModels, TestNumbers}
    alias Axon.ModelState

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

    # As Axon draws it.
    defp drawn(model, opts \\ []) do
      {init, _} = Axon.build(model, [seed: 11] ++ opts)
      init.(Nx.template({2, 6, 8}, :f32), ModelState.empty())
    end

    # Blocks draw by the clock, in Axon too.
    defp without_blocks(%ModelState{} = state),
      do: update_in(state.data, &Map.reject(&1, fn {name, _} -> name =~ "block" end))

    describe "names and parameters" do
      test "are those of the plain model, with the same initial values, in both modes" do
        model = everything()
        fast = Nitrox.Axon.accelerate(model)

        for mode <- [:inference, :train] do
          [plain, ours] = for m <- [model, fast], do: drawn(m, mode: mode)
          assert Map.drop(ours, [:data]) == Map.drop(plain, [:data])
          assert Nx.compatible?(ours.data, plain.data)
          assert without_blocks(ours) == without_blocks(plain)
        end

        assert ~w(batch_norm_0 block_0 block_1 dense_0 dense_1 dense_2 lstm_0 turn) --
                 Map.keys(drawn(fast).data) == []
      end

      test "a state of the one, also through a file, is one of the other" do
        model = everything()
        fast = Nitrox.Axon.accelerate(model)
        x = random({2, 6, 8})
        state = drawn(model)
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
        state = init(model, x)
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
        state = drawn(model)
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
          state = init(model, x)
          expected = predict(model, state, x, Nx.BinaryBackend)
          fast = Nitrox.Axon.accelerate(model)
          assert_close(predict(fast, state, x, Nitrox.Backend), expected, 1.0e-5, "outputs")
          assert %{layers: [%{layer: "dense_0", notes: [_]}]} = Nitrox.Axon.explain(fast)
        end

        # A container that Axon has not seen: each a model of its own, no layer computed twice.
        {fast, {also}} = Nitrox.Axon.accelerate({dense, {sum}})
        state = init(sum, x)

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
        state = init(model, x)
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
        state = init(model, x)
        fast = Nitrox.Axon.accelerate(model)
        assert {%Axon.None{}, got} = predict(fast, state, x, Nitrox.Backend)
        {_, expected} = predict(model, state, x, Nx.BinaryBackend)
        assert_close(got, expected, 1.0e-5, "the other output")
      end
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
      state = init(model, x)
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

    defp host_state(state), do: update_in(state.data, &host/1)

    describe "pack/2" do
      test "puts the gates side by side once, in place of once a call" do
        model = everything()
        fast = Nitrox.Axon.accelerate(model)
        x = random({2, 6, 8})
        state = init(model, x)
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

      test "refuses what it can't pack" do
        model = input() |> Axon.lstm(8) |> elem(0)
        state = drawn(model)
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
      assert %{op: :dense, with: ["sigmoid_0", "add_0"], notes: [note]} = by_name["dense_2"]
      assert note =~ "in training, for the losses"

      dropped =
        x |> Axon.dense(8) |> Axon.dropout(rate: 0.5) |> Axon.add(x) |> Nitrox.Axon.explain()

      assert [%{with: ["add_0"], notes: [note]}] = dropped.layers
      assert note == "dropout_0 keeps add_0 apart in training"
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

    test "explain/1 tells of recurrent layers one upon the other" do
      x = input({nil, 6, 8})
      lstm = &elem(Axon.lstm(&1, 8), 0)
      layer = &elem(Axon.gru(&1, 8), 0)
      upper = fn model -> List.last(Nitrox.Axon.explain(model).layers).notes end
      hook = &Axon.attach_hook(&1, fn _ -> :ok end)

      may = "may be one launch with gru_0, in a program of a GPU that holds their weights"
      assert x |> layer.() |> layer.() |> upper.() == [may]
      assert x |> layer.() |> Axon.layer_norm() |> layer.() |> upper.() == [may]

      for {model, why} <- [
            {x |> lstm.() |> layer.(), "lstm_0 below is apart: it is another kind of layer"},
            {x |> layer.() |> hook.() |> layer.(),
             "gru_0 below is apart: there is a hook between them"}
          ],
          do: assert(upper.(model) == [why])

      below = layer.(x)
      assert upper.({below, layer.(below)}) == ["gru_0 below is apart: others read it too"]
      # Something else in between is another layer's input, and nothing to be told of.
      assert x |> layer.() |> Axon.dropout() |> layer.() |> upper.() == []
      assert x |> Axon.gru(8, gate: :hard_sigmoid) |> elem(0) |> layer.() |> upper.() == []
    end
  end
else
  defmodule Nitrox.Axon.ModelTest do
    use ExUnit.Case
    @moduletag :axon
    test "Axon is missing", do: :ok
  end
end
