defmodule Nitrox.Axon.LayersInAxonTest do
  # The layers of Nitrox.Axon in models: what runs, policies, gradients, training, and what is refused.
  use ExUnit.Case, async: false

  @moduletag :nx
  @moduletag :axon
  @moduletag :telemetry
  @moduletag timeout: 300_000

  # Axon is not there for the compiler on every machine.
  if Code.ensure_loaded?(Axon) do
    alias Nitrox.Axon, as: Layers
    alias Nitrox.TestEvents
    import Nitrox.TestLayers

    @bounds %{{:f, 32} => 1.0e-5, {:f, 16} => 2.0e-3, {:bf, 16} => 1.0e-2}

    setup do
      :rand.seed(:exsss, ExUnit.configuration()[:seed])
      :ok
    end

    # With how many numbers the parameters have, by hand, for 6 features.
    defp all do
      x = input(6)
      mamba = 6 * 24 + 4 * 12 + 12 + 12 * (1 + 6) + 12 + 12 + 12 * 3 + 12 + 12 * 6
      # The RMS norm of a dt of one number would be its sign, which is no function to differ.
      ranked = mamba + 2 * 12 * 3 + 4 + 3 + 3
      attention = 6 * 6 + 6 + 2 * (6 * 2 + 2) + 6 * 6 + 6
      mlp = 3 * 6 * 16

      [
        mamba: {Layers.mamba(x, state: 3), mamba, [:causal_conv1d, :dense, :selective_scan]},
        mamba_norm:
          {Layers.mamba(x, state: 3, dt_rank: 4, norm: :rms_norm, inner_norm: true), ranked + 6,
           [:causal_conv1d, :dense, :rms_norm, :selective_scan]},
        flash_attention:
          {Layers.flash_attention(x,
             heads: 3,
             kv_heads: 1,
             rope: true,
             causal: true,
             norm: :layer_norm
           ), attention + 12, [:dense, :flash_attention, :layer_norm, :rope]},
        gated_mlp: {Layers.gated_mlp(x, norm: :rms_norm), mlp + 6, [:gated_mlp, :rms_norm]},
        jamba:
          {Layers.jamba(x,
             layers: 2,
             attention_every: 2,
             mamba: [state: 3, dt_rank: 4],
             attention: [heads: 3, kv_heads: 1]
           ), ranked + (attention - 6 - 4 - 6) + 2 * mlp + 5 * 6,
           [:causal_conv1d, :dense, :flash_attention, :gated_mlp, :rms_norm, :selective_scan]}
      ]
    end

    # Heads of two features, so that rope can turn them.
    test "parameters are counted" do
      for {name, {model, count, _}} <- all() do
        data = init(model, %{"x" => random({1, 2, 6})}).data
        sizes = for {_, params} <- data, {_, t} <- params, do: Nx.size(t)
        assert Enum.sum(sizes) == count, "#{name}"
      end
    end

    test "each layer draws its own first values, the same for the same seed" do
      x = input(6)

      # What differs is what Axon tells functions apart by.
      model =
        x
        |> Layers.mamba()
        |> Layers.mamba()
        |> Layers.mamba(epsilon: 1.0e-6)
        |> Layers.mamba(norm: :rms_norm)
        |> Layers.gated_mlp(hidden: 6)
        |> Layers.flash_attention(heads: 2)
        |> Layers.flash_attention(heads: 3)
        |> Layers.gated_mlp(hidden: 6, norm: :rms_norm)
        |> Layers.mamba(name: "last")

      drawn = fn seed ->
        {init, _} = Axon.build(model, seed: seed)
        init.(%{"x" => Nx.template({1, 2, 6}, :f32)}, Axon.ModelState.empty()).data
      end

      data = drawn.(1)
      assert Enum.count(data) == 9

      random =
        for {layer, params} <- data,
            {name, t} <- params,
            name in ~w(in.w conv.w x.w dt.b q.w k.w v.w gate.w up.w down.w out.w),
            do: {layer, name, Nx.to_binary(t)}

      assert random == Enum.uniq_by(random, &elem(&1, 2))
      assert drawn.(1) == data
      assert drawn.(2)["mamba_0"]["in.w"] != data["mamba_0"]["in.w"]
    end

    @fused ~w(causal_conv1d dense flash_attention gated_mlp layer_norm rms_norm rope selective_scan)a

    test "the native ops run, and nothing comes to the host" do
      for {name, {model, _, ops}} <- all(), backend <- backends(), mode <- [:inference, :train] do
        x = random({2, 5, 6})
        state = init(model, %{"x" => x})
        state = %{state | data: on(state.data, backend)}
        {_, predict} = Axon.build(model, mode: mode)

        events = [
          [:nitrox, :op, :run],
          [:nitrox, :op, :fallback],
          [:nitrox, :fallback],
          [:nitrox, :tensor, :transfer]
        ]

        Nx.with_default_backend(backend, fn ->
          run = fn -> predict.(state, %{"x" => Nx.backend_copy(x, backend)}) end
          # On a GPU the first use of a number in a kernel's arguments copies it there.
          run.()

          {y, events} =
            TestEvents.during(events, fn ->
              case run.() do
                %{prediction: y} -> Nx.to_binary(y)
                y -> Nx.to_binary(y)
              end
            end)

          ran = for {:run, %{op: op}} <- events, op in @fused, uniq: true, do: op
          assert Enum.sort(ran) == ops, "#{name}"
          assert [] == for({:fallback, event} <- events, do: event)

          assert [{:to_device, Nx.byte_size(x)}, {:to_host, byte_size(y)}] ==
                   for({:transfer, event} <- events, do: {event.direction, event.bytes})
        end)
      end
    end

    test "any batch and any number of frames" do
      for {name, {model, _, _}} <- all(), backend <- backends() do
        x = random({3, 7, 6})
        state = init(model, %{"x" => x})
        whole = model |> predict(state, %{"x" => x}, backend) |> host()

        for b <- 0..2 do
          one = predict(model, state, %{"x" => x[b..b]}, backend)
          assert distance(one, whole[b..b]) < 1.0e-5, "#{name}"
        end

        # All of them look back alone, and so the first frames are what they are without the rest.
        for frames <- [1, 4] do
          part = [0..2, 0..(frames - 1)]

          assert distance(predict(model, state, %{"x" => x[part]}, backend), whole[part]) <
                   1.0e-5,
                 "#{name}"
        end
      end
    end

    # Inputs and parameters, and what the model makes of them. Where a norm is of numbers near zero, the
    # rounding of these alone moves a frame's result by more than the bound, in f32 too, and there is
    # nothing to compare: so about one draw of jamba in four, for bf16. Another one is made then.
    defp conditioned(model, type, tries \\ 20) do
      inputs = %{"x" => random({2, 5, 6})}
      state = init(model, inputs)
      exact = predict(model, state, inputs)

      moved =
        for _ <- 1..4 do
          [inputs, data] = for c <- [inputs, state.data], do: noise(c, @bounds[type] / 5)
          model |> predict(%{state | data: data}, inputs) |> distance(exact)
        end

      cond do
        Enum.max(moved) < @bounds[type] -> {inputs, state, exact}
        tries > 1 -> conditioned(model, type, tries - 1)
        true -> flunk("rounding alone moves this model: #{inspect(moved)}")
      end
    end

    defp noise(container, size) do
      Nx.Defn.Composite.traverse(container, fn t ->
        Nx.multiply(t, Nx.add(1, random(t.shape, size)))
      end)
    end

    test "mixed precision" do
      for {name, {model, _, _}} <- all(), backend <- backends(), type <- [{:bf, 16}, {:f, 16}] do
        {inputs, state, exact} = conditioned(model, type)

        for {policy, stored, out} <- [
              {[compute: type], {:f, 32}, type},
              {[compute: type, output: {:f, 32}], {:f, 32}, {:f, 32}},
              {[params: type, compute: type], type, type},
              # What is computed in f32 of parameters in 16 bits.
              {[params: type], type, {:f, 32}}
            ] do
          model =
            Axon.MixedPrecision.apply_policy(model, Axon.MixedPrecision.create_policy(policy))

          {init, _} = Axon.build(model)
          drawn = init.(%{"x" => Nx.to_template(inputs["x"])}, Axon.ModelState.empty())
          for {_, params} <- drawn.data, {_, t} <- params, do: assert(t.type == stored)

          data =
            for {layer, params} <- state.data,
                into: %{},
                do: {layer, Map.new(params, fn {n, t} -> {n, Nx.as_type(t, stored)} end)}

          y = predict(model, %{state | data: data}, inputs, backend)
          assert y.type == out
          # Of inputs and parameters that are rounded too.
          error = distance(y, exact)
          assert error < 5 * @bounds[type], "#{name} #{inspect(policy)}: #{error}"
        end
      end
    end

    defp loss(model, state) do
      {_, predict} = Axon.build(model, mode: :train)

      fn data, x ->
        %{prediction: y} = predict.(%{state | data: data}, %{"x" => x})
        # Not the same for all outputs.
        y |> Nx.multiply(Nx.sin(Nx.iota(Nx.shape(y), type: :f32))) |> Nx.sum()
      end
    end

    test "gradients are those of Nx.BinaryBackend, and of differences" do
      for {name, {model, _, _}} <- all() do
        x = random({2, 4, 6})
        state = init(model, %{"x" => x})
        loss = loss(model, state)

        grad = fn backend ->
          Nx.with_default_backend(backend, fn ->
            Nx.Defn.grad(on({state.data, x}, backend), fn {data, x} -> loss.(data, x) end)
          end)
          |> host()
        end

        leaves = fn {data, x} ->
          [{"x", x}] ++
            for {layer, params} <- Enum.sort(data),
                {name, t} <- Enum.sort(params),
                do: {"#{layer} #{name}", t}
        end

        expected = grad.(Nx.BinaryBackend)

        for {leaf, t} <- leaves.(expected) do
          assert Nx.to_number(Nx.any(Nx.is_nan(t))) == 0 and
                   Nx.to_number(Nx.any(Nx.is_infinity(t))) == 0

          assert Nx.to_number(Nx.any(Nx.not_equal(t, 0))) == 1, "#{name}: no gradient for #{leaf}"
        end

        for backend <- backends(),
            {{leaf, got}, {leaf, expected}} <-
              Enum.zip(leaves.(grad.(backend)), leaves.(expected)) do
          assert distance(got, expected) < 2.0e-4, "#{name}: #{leaf}"
        end

        # Along a random direction.
        direction = fn t -> random(t.shape) end
        ways = for {leaf, t} <- leaves.({state.data, x}), into: %{}, do: {leaf, direction.(t)}
        step = 1.0e-3

        moved = fn by ->
          move = &Nx.add(&2, Nx.multiply(ways[&1], by))

          data =
            for {layer, params} <- state.data, into: %{} do
              {layer, Map.new(params, fn {n, t} -> {n, move.("#{layer} #{n}", t)} end)}
            end

          Nx.to_number(Nx.Defn.jit_apply(loss, [data, move.("x", x)]))
        end

        measured = (moved.(step) - moved.(-step)) / (2 * step)

        along =
          for {leaf, g} <- leaves.(expected), reduce: 0 do
            sum -> sum + Nx.to_number(Nx.sum(Nx.multiply(g, ways[leaf])))
          end

        assert_in_delta measured,
                        along,
                        0.02 * abs(along) + 0.02,
                        "#{name}: #{measured} and #{along}"
      end
    end

    test "training lowers the loss" do
      for {name, {layer, _, _}} <- all(),
          backend <- backends(),
          policy <- [[], [compute: {:bf, 16}, output: {:f, 32}]] do
        model = Axon.dense(layer, 2)
        model = Axon.MixedPrecision.apply_policy(model, Axon.MixedPrecision.create_policy(policy))
        # The sum of what was seen so far, which only a layer that looks back can tell.
        x = random({8, 5, 6})

        y =
          x
          |> Nx.cumulative_sum(axis: 1)
          |> Nx.slice_along_axis(0, 2, axis: 2)
          |> Nx.multiply(0.3)

        losses =
          Nx.with_default_backend(backend, fn ->
            {init, predict} = Axon.build(model, mode: :train, seed: 11)
            {optimizer, update} = Polaris.Optimizers.adam(learning_rate: 0.02)
            state = init.(%{"x" => Nx.to_template(x)}, Axon.ModelState.empty())

            step =
              Nx.Defn.jit(fn data, moments, x, y ->
                {loss, gradient} =
                  Nx.Defn.value_and_grad(data, fn data ->
                    %{prediction: p} = predict.(%{state | data: data}, %{"x" => x})
                    Axon.Losses.mean_squared_error(y, p, reduction: :mean)
                  end)

                {updates, moments} = update.(gradient, moments, data)
                {loss, Polaris.Updates.apply_updates(data, updates), moments}
              end)

            [x, y] = for t <- [x, y], do: Nx.backend_copy(t, backend)

            {losses, _} =
              Enum.map_reduce(1..12, {state.data, optimizer.(state.data)}, fn _,
                                                                              {data, moments} ->
                {loss, data, moments} = step.(data, moments, x, y)
                {Nx.to_number(loss), {data, moments}}
              end)

            losses
          end)

        assert Enum.all?(losses, &is_float/1)

        assert List.last(losses) < 0.8 * hd(losses),
               "#{name} #{inspect(policy)}: #{inspect(losses)}"
      end
    end

    test "a loop of Axon trains them" do
      x = random({8, 4, 6})

      model =
        Axon.input("x", shape: {nil, nil, 6})
        |> Layers.mamba(state: 2, norm: :rms_norm)
        |> Axon.dense(1)

      data = Stream.repeatedly(fn -> {%{"x" => x}, Nx.sum(x, axes: [2], keep_axes: true)} end)

      state =
        model
        |> Axon.Loop.trainer(:mean_squared_error, Polaris.Optimizers.adam(learning_rate: 0.01),
          log: 0
        )
        |> Axon.Loop.run(data, Axon.ModelState.empty(), epochs: 1, iterations: 3)

      assert %Axon.ModelState{} = state
      assert predict(model, state, %{"x" => x}).shape == {8, 4, 1}
    end

    # ── What is refused ───────────────────────────────────────────────────────────────────────────

    defp refusal(fun), do: Exception.message(assert_raise(Nitrox.Error, fun))

    test "options that are none" do
      x = input(6)

      for {fun, text} <- [
            {fn -> Layers.mamba(x, states: 3) end, "unknown option :states; known are :state"},
            {fn -> Layers.mamba(x, state: 257) end,
             "state: expected an integer from 1 to 256, got 257"},
            {fn -> Layers.mamba(x, conv: 1) end, "conv: expected an integer from 2 to 16, got 1"},
            {fn -> Layers.mamba(x, dt_rank: 0) end, "dt_rank: expected :auto or an integer"},
            {fn -> Layers.mamba(x, dt_min: 1, dt_max: 0.5) end,
             "dt_min: expected at most dt_max, 0.5, got 1"},
            {fn -> Layers.mamba(x, dt_min: 0) end, "dt_min: expected a number above 0"},
            {fn -> Layers.mamba(x, norm: :batch_norm) end,
             "norm: expected one of :rms_norm, :layer_norm"},
            {fn -> Layers.mamba(x, name: :a) end, "name: expected a string, got :a"},
            {fn -> Layers.mamba(Nx.tensor(1), []) end, "x: expected a layer of Axon, got"},
            {fn -> Layers.mamba(x, 3) end, "options must be a keyword list, got 3"},
            {fn -> Layers.flash_attention(x, []) end, "the option heads: is needed"},
            {fn -> Layers.flash_attention(x, heads: 4, kv_heads: 3) end,
             "4 heads are no multiple of 3"},
            {fn -> Layers.flash_attention(x, heads: 2, head_dim: 257) end,
             "head_dim: expected an integer from 1 to 256"},
            {fn -> Layers.flash_attention(x, heads: 2, window: 3) end,
             "window: expected {left, right}"},
            {fn -> Layers.flash_attention(x, heads: 2, softcap: 0) end,
             "softcap: expected a number above 0"},
            {fn -> Layers.flash_attention(x, heads: 2, rope: [theta: 3]) end,
             "unknown option :theta; known are :base"},
            {fn -> Layers.flash_attention(x, heads: 2, key_mask: Nx.tensor([1])) end,
             "key_mask: expected a layer of Axon"},
            {fn -> Layers.flash_attention(x, heads: 2, kv: x, qkv: :fused) end,
             "qkv: :fused is for keys and values of x"},
            {fn -> Layers.flash_attention(x, heads: 2, kv: x, rope: true) end,
             "rope: positions are those of one sequence"},
            {fn -> Layers.flash_attention(x, heads: 2, positions: x) end,
             "positions: they are for rope:"},
            {fn -> Layers.flash_attention(x, heads: 2, kernel_initializer: :glorot) end,
             "kernel_initializer: expected the name of one of Axon.Initializers"},
            {fn -> Layers.gated_mlp(x, hidden: 0) end,
             "hidden: expected an integer of at least 1, got 0"},
            {fn -> Layers.gated_mlp(x, activation: :relu) end,
             "activation: expected one of :silu"},
            {fn -> Layers.jamba(x, []) end, "the option heads: is needed"},
            {fn -> Layers.jamba(x, norm: nil, attention: [heads: 2]) end,
             "norm: expected one of"},
            {fn -> Layers.jamba(x, attention_every: 2, attention_offset: 2) end,
             "attention_offset: expected less than attention_every, 2, got 2"},
            {fn -> Layers.jamba(x, attention: [heads: 2], mlp: [norm: :rms_norm]) end,
             "mlp: takes no norm:"},
            {fn -> Layers.jamba(x, attention: 2) end,
             "attention: expected a keyword list, got 2"},
            {fn -> Layers.mamba_params([]) end, "expected a map of tensors by name, got []"},
            {fn -> Layers.mamba_params(%{"in.w" => nil}) end, ~s(got no "a" among ["in.w"])}
          ] do
        assert refusal(fun) =~ text
      end
    end

    test "inputs that do not fit" do
      init = fn model, shape, type ->
        {init, _} = Axon.build(model)
        fn -> init.(%{"x" => Nx.template(shape, type)}, Axon.ModelState.empty()) end
      end

      any = Axon.input("x")

      for {model, shape, text} <- [
            {Layers.mamba(any), {3, 6},
             "mamba: x: expected {batch, frames, features}, got {3, 6}"},
            {Layers.flash_attention(any, heads: 2), {3},
             "x: expected {batch, frames, features}, got {3}"},
            {Layers.flash_attention(any, heads: 4), {1, 2, 6},
             "4 heads do not divide the 6 features of x; give head_dim:"},
            {Layers.gated_mlp(any), {}, "x: expected at least one axis"}
          ] do
        assert refusal(init.(model, shape, :f32)) =~ text
      end

      # Axon says in which layer.
      for {model, type} <- [{Layers.mamba(any), :f64}, {Layers.gated_mlp(any), :s64}] do
        error = assert_raise Axon.CompileError, init.(model, {1, 2, 6}, type)
        assert %Nitrox.Error{reason: :type} = error.exception
        assert error.exception.message =~ "x has type"
      end

      model = Layers.flash_attention(any, heads: 3, rope: true)
      error = assert_raise Axon.CompileError, init.(model, {1, 2, 9}, :f32)
      assert error.exception.message =~ "dims must be even and at most the 3 features"
    end
  else
    test "Axon is missing", do: :ok
  end
end
