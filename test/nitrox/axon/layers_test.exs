defmodule Nitrox.Axon.LayersTest do
  # What the layers of Nitrox.Axon compute, against the same in f64 by plain Nx and PyTorch's results,
  # and their first values.
  use ExUnit.Case, async: false

  @moduletag :nx
  @moduletag :axon
  @moduletag :telemetry
  @moduletag timeout: 300_000

  # Axon is not there for the compiler on every machine.
  if Code.ensure_loaded?(Axon) do
    alias Nitrox.{Import, Weights}
    alias Nitrox.Axon, as: Layers
    import Nitrox.TestLayers

    @fixtures Path.expand("../../fixtures", __DIR__)
    @types %{f32: {:f, 32}, f16: {:f, 16}, bf16: {:bf, 16}}
    @bounds %{{:f, 32} => 1.0e-5, {:f, 16} => 2.0e-3, {:bf, 16} => 1.0e-2}

    setup do
      :rand.seed(:exsss, ExUnit.configuration()[:seed])
      :ok
    end

    # ── Mamba ─────────────────────────────────────────────────────────────────────────────────────

    @mambas [
      {[], {2, 5, 8}},
      {[state: 1, expand: 1, conv: 2, dt_rank: 1], {1, 1, 1}},
      {[state: 3, expand: 3, conv: 3, dt_rank: 5, norm: :rms_norm], {3, 2, 7}},
      {[state: 5, use_bias: true, use_conv_bias: false, norm: :layer_norm], {1, 11, 17}},
      # All that a block may have.
      {[state: 2, use_bias: true, inner_norm: true, dt_rank: 3, norm: :layer_norm], {2, 3, 5}},
      {[state: 7, inner_norm: true, norm: :rms_norm, conv: 16], {2, 19, 33}}
    ]

    describe "mamba" do
      test "is the paper's block" do
        for {opts, {_, _, width} = shape} <- @mambas do
          model = Layers.mamba(input(width), opts)
          inputs = %{"x" => random(shape)}
          state = init(model, inputs)
          expected = mamba64(state.data["mamba_0"], inputs["x"])
          assert_everywhere("mamba #{inspect(opts)}", model, state, inputs, expected)
        end
      end

      for kind <- Map.keys(@types),
          {case, opts} <- [
            {"mamba", [state: 4, dt_rank: 3]},
            {"mamba_bias", [state: 3, conv: 3, dt_rank: 2, use_bias: true, use_conv_bias: false]}
          ] do
        test "gives what PyTorch gives: #{kind}, #{case}" do
          type = @types[unquote(kind)]
          weights = Weights.open(Path.join(@fixtures, "torch_#{unquote(kind)}.safetensors"))
          golden = &Nitrox.to_nx(Weights.fetch(weights, "golden.#{unquote(case)}.#{&1}"))
          params = weights |> Import.mamba(prefix: "#{unquote(case)}.") |> Layers.mamba_params()
          model = Layers.mamba(input(5), unquote(opts))
          template = init(model, %{"x" => host(golden.("x"))}).data["mamba_0"]
          shapes = &Map.new(&1, fn {name, t} -> {name, t.shape} end)
          assert shapes.(params) == shapes.(template)
          state = Axon.ModelState.new(%{"mamba_0" => params})

          # Nx.BinaryBackend cuts bf16 off where it should round, and is out of bounds for that.
          reference = if type == {:bf, 16}, do: [], else: [Nx.BinaryBackend]

          for backend <- reference ++ backends() do
            y = predict(model, state, %{"x" => golden.("x")}, backend)
            assert y.type == type
            error = distance(y, golden.("y"))
            assert error <= @bounds[type], "#{inspect(backend)}: #{error}"
          end
        end
      end

      test "gives what PyTorch's language model gives" do
        weights = Weights.open(Path.join(@fixtures, "torch_f32.safetensors"))
        golden = &Nitrox.to_nx(Weights.fetch(weights, "golden.mamba_lm.#{&1}"))
        {config, params} = Import.mamba_lm(weights, prefix: "mamba_lm.")
        {:tokens, vocabulary, width} = config[:input]
        opts = [norm: :rms_norm] ++ Keyword.take(config, [:state, :expand, :conv, :dt_rank])

        model =
          Axon.input("tokens", shape: {nil, nil})
          |> Axon.embedding(vocabulary, width)
          |> Layers.mamba(opts)
          |> Layers.mamba(opts)
          |> Axon.rms_norm(epsilon: 1.0e-5)
          |> Axon.dense(vocabulary)

        nx = &Nitrox.to_nx(params[&1])

        state =
          Axon.ModelState.new(%{
            "embedding_0" => %{"kernel" => nx.("embedding.table")},
            "mamba_0" => Layers.mamba_params(params, prefix: "layers.0."),
            "mamba_1" => Layers.mamba_params(params, prefix: "layers.1."),
            "rms_norm_0" => %{"gamma" => nx.("norm.gamma")},
            "dense_0" => %{"kernel" => nx.("head.w"), "bias" => nx.("head.b")}
          })

        # Given as initial parameters they are those that the model begins with.
        {init, _} = Axon.build(model)
        template = %{"tokens" => Nx.to_template(golden.("x"))}
        merged = Nx.with_default_backend(Nitrox.Backend, fn -> init.(template, state) end)
        assert_everywhere("mamba_lm", model, merged, %{"tokens" => golden.("x")}, golden.("y"))
      end

      test "is that of a backbone of the same weights" do
        backbone =
          Nitrox.Backbone.init(:mamba, input: {:features, 6}, hidden: [10], outputs: 3, state: 5)

        p = backbone.params
        nx = &Nitrox.to_nx(p[&1])

        model =
          input(6)
          |> Axon.dense(10)
          |> Layers.mamba(state: 5, norm: :rms_norm)
          |> Axon.rms_norm(epsilon: 1.0e-5)
          |> Axon.dense(3)

        state =
          Axon.ModelState.new(%{
            "dense_0" => %{"kernel" => nx.("input.w"), "bias" => nx.("input.b")},
            "mamba_0" => Layers.mamba_params(p, prefix: "layers.0."),
            "rms_norm_0" => %{"gamma" => nx.("norm.gamma")},
            "dense_1" => %{"kernel" => nx.("head.w"), "bias" => nx.("head.b")}
          })

        x = random({2, 7, 6})
        window = on(x, Nitrox.Backend) |> Nitrox.from_nx()

        {logits, _} =
          Nitrox.Backbone.window(backbone, window, Nitrox.Backbone.initial_state(backbone, 2))

        assert_everywhere("backbone", model, state, %{"x" => x}, Nitrox.to_nx(logits))
      end

      test "begins as mamba_ssm does" do
        opts = [state: 6, dt_rank: 8, dt_min: 0.002, dt_max: 0.2, use_bias: true, depth: 4]
        {width, inner} = {128, 256}
        {init, _} = Axon.build(input(width) |> Layers.mamba(opts) |> Layers.mamba(opts), seed: 3)
        state = init.(%{"x" => Nx.template({1, 2, width}, :f32)}, Axon.ModelState.empty())
        p = state.data["mamba_0"]
        range = fn t -> {Nx.to_number(Nx.reduce_min(t)), Nx.to_number(Nx.reduce_max(t))} end

        for {name, bound} <- [
              {"in.w", 1 / :math.sqrt(width)},
              {"conv.w", 0.5},
              {"conv.b", 0.5},
              {"x.w", 1 / :math.sqrt(inner)},
              {"dt.w", 1 / :math.sqrt(8)},
              {"out.w", 1 / :math.sqrt(inner * 4)}
            ] do
          {low, high} = range.(p[name])
          assert low >= -bound and high <= bound, name
          assert low < -0.9 * bound and high > 0.9 * bound, name
          # Uniform: mean 0, deviation a third of the root of the bound's square.
          size = Nx.size(p[name])
          assert abs(Nx.to_number(Nx.mean(p[name]))) < 5 * bound / :math.sqrt(3 * size), name
          deviation = Nx.to_number(Nx.standard_deviation(p[name]))
          assert_in_delta deviation, bound / :math.sqrt(3), 3 * bound / :math.sqrt(size), name
          # Another layer draws other numbers.
          refute Nx.to_binary(p[name]) == Nx.to_binary(state.data["mamba_1"][name])
        end

        a = p["a_log"] |> Nx.exp() |> Nx.round()
        assert Nx.to_list(a) == List.duplicate([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], inner)
        assert range.(p["d"]) == {1.0, 1.0}
        for name <- ["in.b", "out.b"], do: assert(range.(p[name]) == {0.0, 0.0})

        # Softplus of the bias is even by its logarithm.
        steps = p["dt.b"] |> Nx.as_type(:f64) |> Nx.exp() |> Nx.log1p()
        {low, high} = range.(steps)
        assert low >= 0.002 * 0.999 and low < 0.0025 and high <= 0.2 * 1.001 and high > 0.16
        middle = steps |> Nx.log() |> Nx.mean() |> Nx.to_number()
        assert_in_delta middle, (:math.log(0.002) + :math.log(0.2)) / 2, 0.4

        # The floor, and the constant.
        model = Layers.mamba(input(16), dt_init_floor: 0.05, dt_max: 0.051, dt_init: :constant)
        {init, _} = Axon.build(model)
        state = init.(%{"x" => Nx.template({1, 2, 16}, :f32)}, Axon.ModelState.empty())
        %{"mamba_0" => p} = state.data
        {low, high} = p["dt.b"] |> Nx.as_type(:f64) |> Nx.exp() |> Nx.log1p() |> range.()
        assert low >= 0.0499 and high <= 0.0511
        assert range.(p["dt.w"]) == {1.0, 1.0}
      end

      test "reads the scan's own parameters as they are stored under a policy" do
        for type <- [{:bf, 16}, {:f, 16}], backend <- backends() do
          policy = Axon.MixedPrecision.create_policy(compute: type)
          model = Layers.mamba(input(9), state: 4)
          inputs = %{"x" => random({2, 6, 9})}
          state = init(model, inputs)

          got =
            model |> Axon.MixedPrecision.apply_policy(policy) |> predict(state, inputs, backend)

          assert got.type == type

          # The others and x are numbers of that type.
          rounded = &(&1 |> on(backend) |> Nx.as_type(type) |> Nx.as_type(:f32) |> host())

          p =
            Map.new(state.data["mamba_0"], fn {name, t} ->
              {name, if(name in ~w(a_log d dt.b), do: t, else: rounded.(t))}
            end)

          expected = mamba64(p, rounded.(inputs["x"]))
          error = distance(got, expected)
          assert error <= @bounds[type], "#{inspect(type)}: #{error}"

          # By a parameter that a rounding to that type would change: exactly the ops' own result.
          ops =
            Nx.with_default_backend(backend, fn ->
              p = on(state.data["mamba_0"], backend)

              kept =
                Map.new(p, fn {n, t} ->
                  {n, if(n in ~w(a_log d dt.b), do: t, else: Nx.as_type(t, type))}
                end)

              kept = Map.put(kept, "a", Nx.negate(Nx.exp(p["a_log"])))
              x = inputs["x"] |> on(backend) |> Nx.as_type(type)
              {y, _} = Nitrox.Backbone.Mamba.mix(kept, x, {nil, nil}, nil)
              Nx.to_binary(y)
            end)

          assert Nx.to_binary(got) == ops
        end
      end
    end

    # ── Attention ─────────────────────────────────────────────────────────────────────────────────

    # Options, the shape of x, and the other inputs.
    defp attentions do
      [
        {[heads: 1], {1, 1, 1}, %{}},
        {[heads: 3, causal: true, use_bias: false], {2, 5, 9}, %{}},
        {[
           heads: 4,
           kv_heads: 2,
           qkv: :fused,
           head_dim: 6,
           causal: true,
           rope: true,
           norm: :rms_norm
         ], {2, 7, 10}, %{}},
        {[heads: 6, kv_heads: 1, head_dim: 5, window: {2, 1}, softcap: 1.5, scale: 0.7],
         {1, 11, 13}, %{}},
        {[
           heads: 2,
           head_dim: 8,
           causal: true,
           qk_norm: true,
           rope: [base: 500.0, dims: 4, scale: 0.5]
         ], {3, 6, 7}, %{"positions" => Nx.tensor([3, 4, 9, 10, 11, 20])}},
        {[heads: 2, rope: [interleaved: true], causal: true, norm: :layer_norm], {2, 5, 12},
         %{
           "positions" => integers({2, 5}, 0..30),
           "key_mask" => Nx.tensor([[1, 1, 0, 1, 0], [0, 0, 1, 1, 1]])
         }},
        {[heads: 2], {2, 4, 6},
         %{
           "bias" => random({1, 2, 4, 4}),
           # As floats, and a row that sees nothing.
           "key_mask" => Nx.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
         }},
        {[heads: 3, kv_heads: 3, use_output_bias: false, norm: :rms_norm], {2, 4, 12},
         %{"kv" => random({2, 9, 5}), "key_mask" => integers({2, 9}, 0..1)}},
        {[heads: 2, causal: true, window: {3, nil}], {1, 3, 8}, %{"kv" => random({1, 7, 8})}}
      ]
    end

    defp attention({opts, {_, _, width} = shape, others}) do
      shapes = %{"kv" => fn %{shape: {_, _, f}} -> {nil, nil, f} end}

      inputs =
        for {name, t} <- others do
          shape = Map.get(shapes, name, fn t -> Tuple.duplicate(nil, tuple_size(t.shape)) end)
          {String.to_atom(name), Axon.input(name, shape: shape.(t))}
        end

      {Layers.flash_attention(input(width), opts ++ inputs), Map.put(others, "x", random(shape))}
    end

    describe "flash_attention" do
      test "is the paper's layer" do
        for {opts, _, _} = one <- attentions() do
          {model, inputs} = attention(one)
          state = init(model, inputs)
          expected = attention64(state.data["flash_attention_0"], inputs, opts)
          assert_everywhere("attention #{inspect(opts)}", model, state, inputs, expected)
        end
      end

      test "a fused projection is the three side by side" do
        [fused, separate] =
          for qkv <- [:fused, :separate],
              do: Layers.flash_attention(input(10), heads: 4, kv_heads: 2, head_dim: 6, qkv: qkv)

        inputs = %{"x" => random({2, 7, 10})}
        state = init(separate, inputs)
        p = state.data["flash_attention_0"]
        join = fn s -> Nx.concatenate(for(n <- ~w(q k v), do: p[n <> s]), axis: -1) end

        joined =
          p
          |> Map.drop(~w(q.w k.w v.w q.b k.b v.b))
          |> Map.merge(%{"qkv.w" => join.(".w"), "qkv.b" => join.(".b")})

        expected = predict(separate, state, inputs)
        state = Axon.ModelState.new(%{"flash_attention_0" => joined})
        assert_everywhere("fused", fused, state, inputs, expected)
      end

      test "begins with Axon's glorot, zeros and ones" do
        model =
          Layers.flash_attention(input(64),
            heads: 4,
            kv_heads: 2,
            norm: :layer_norm,
            qk_norm: true
          )

        {init, _} = Axon.build(model, seed: 5)

        %{data: %{"flash_attention_0" => p}} =
          init.(%{"x" => Nx.template({1, 2, 64}, :f32)}, Axon.ModelState.empty())

        for {name, {rows, columns}} <- [{"q.w", {64, 64}}, {"k.w", {64, 32}}, {"out.w", {64, 64}}] do
          assert p[name].shape == {rows, columns}
          bound = :math.sqrt(6 / (rows + columns))
          most = p[name] |> Nx.abs() |> Nx.reduce_max() |> Nx.to_number()
          assert most <= bound and most > 0.95 * bound, name
        end

        for {name, value} <- [
              {"q.b", 0.0},
              {"out.b", 0.0},
              {"norm.beta", 0.0},
              {"norm.gamma", 1.0},
              {"q.norm.gamma", 1.0}
            ],
            do: assert(Enum.uniq(Nx.to_flat_list(p[name])) == [value], name)

        model = Layers.flash_attention(input(8), heads: 2, kernel_initializer: :ones)
        {init, _} = Axon.build(model)

        %{data: %{"flash_attention_0" => p}} =
          init.(%{"x" => Nx.template({1, 2, 8}, :f32)}, Axon.ModelState.empty())

        assert Enum.uniq(Nx.to_flat_list(p["k.w"])) == [1.0]
      end
    end

    # ── The others ────────────────────────────────────────────────────────────────────────────────

    test "gated_mlp is the paper's layer" do
      for {opts, shape, hidden} <- [
            {[], {2, 3, 7}, 24},
            {[], {4, 12}, 32},
            {[hidden: 5, norm: :rms_norm], {1, 1, 1}, 5},
            {[hidden: 11, norm: :layer_norm], {2, 2, 3, 6}, 11}
          ] do
        width = elem(shape, tuple_size(shape) - 1)

        x =
          Axon.input("x",
            shape: put_elem(Tuple.duplicate(nil, tuple_size(shape)), tuple_size(shape) - 1, width)
          )

        model = Layers.gated_mlp(x, opts)
        inputs = %{"x" => random(shape)}
        state = init(model, inputs)
        p = state.data["gated_mlp_0"]
        assert {p["gate.w"].shape, p["down.w"].shape} == {{width, hidden}, {hidden, width}}
        assert_everywhere("gated_mlp", model, state, inputs, mlp64(p, inputs["x"]))
      end

      # The other activations are those of the op.
      for activation <- [:gelu, :gelu_tanh] do
        model = Layers.gated_mlp(input(3), activation: activation, hidden: 4)
        inputs = %{"x" => random({1, 2, 3})}
        state = init(model, inputs)
        p = state.data["gated_mlp_0"]
        names = ~w(gate.w up.w down.w)

        expected =
          apply(
            Nitrox,
            :gated_mlp,
            [inputs["x"] | Enum.map(names, &p[&1])] ++ [[activation: activation]]
          )

        assert_everywhere("#{activation}", model, state, inputs, expected)
      end
    end

    describe "jamba" do
      @jamba [
        layers: 5,
        attention_every: 3,
        mamba: [state: 4],
        attention: [heads: 4, kv_heads: 2],
        mlp: [hidden: 9]
      ]

      test "is layers of Mamba, attention and MLPs" do
        for {opts, attending} <- [
              {@jamba, [1, 4]},
              {[attention_offset: 2] ++ @jamba, [2]},
              {[attention_offset: 0, norm: :layer_norm] ++ @jamba, [0, 3]},
              {[final_norm: false] ++ @jamba, [1, 4]}
            ] do
          model = Layers.jamba(input(8), [name: "net"] ++ opts)
          inputs = %{"x" => random({2, 6, 8})}
          state = init(model, inputs)

          names =
            for n <- 0..4,
                part <- [if(n in attending, do: "attention", else: "mamba"), "mlp"],
                do: "net.#{n}.#{part}"

          last = if opts[:final_norm] == false, do: [], else: ["net.norm"]
          assert Enum.sort(Map.keys(state.data)) == Enum.sort(names ++ last)

          expected =
            for name <- names, reduce: inputs["x"] do
              x ->
                case {state.data[name], String.split(name, ".")} do
                  {p, [_, _, "mamba"]} ->
                    assert p["b.norm.gamma"].shape == {4}
                    mamba64(p, x)

                  {p, [_, _, "attention"]} ->
                    refute is_map_key(p, "q.b") or is_map_key(p, "out.b")
                    attention64(p, %{"x" => x}, heads: 4, kv_heads: 2, causal: true)

                  {p, [_, _, "mlp"]} ->
                    mlp64(p, x)
                end
            end

          p = state.data["net.norm"]
          expected = if p, do: normed(expected, p["gamma"], p["beta"]), else: expected
          assert_everywhere("jamba #{inspect(opts)}", model, state, inputs, expected)
        end
      end

      test "is one block of the paper by default, with Axon's names" do
        model = Layers.jamba(input(4), attention: [heads: 2])
        counts = Axon.get_op_counts(model)
        assert counts == %{input: 1, mamba: 7, flash_attention: 1, gated_mlp: 8, rms_norm: 1}
        state = init(model, %{"x" => random({1, 2, 4})})

        assert Enum.sort(Map.keys(state.data)) ==
                 Enum.sort(
                   ["flash_attention_0", "rms_norm_0"] ++
                     for(n <- 0..6, do: "mamba_#{n}") ++ for(n <- 0..7, do: "gated_mlp_#{n}")
                 )

        # The fifth of the eight attends: what is before it are the other layers' outputs alone.
        order =
          Axon.reduce_nodes(model, [], fn %{op_name: op, id: id}, all -> [{id, op} | all] end)
          |> Enum.sort()
          |> Enum.map(&elem(&1, 1))
          |> Enum.filter(&(&1 in [:mamba, :flash_attention]))

        assert Enum.find_index(order, &(&1 == :flash_attention)) == 4
      end
    end
  else
    test "Axon is missing", do: :ok
  end
end
