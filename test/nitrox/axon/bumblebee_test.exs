# Bumblebee is not there for the compiler on every machine.
if Code.ensure_loaded?(Bumblebee) do
  defmodule Nitrox.Axon.BumblebeeTest do
    # Models of Bumblebee, small and with parameters drawn by chance, accelerated against plain.
    use ExUnit.Case, async: true

    @moduletag :nx
    @moduletag :axon
    @moduletag :telemetry
    @moduletag :bumblebee
    @moduletag timeout: 300_000

    import Nitrox.{TestModels, TestNumbers}
    alias Bumblebee.Text

    @bound 1.0e-5

    setup do
      :rand.seed(:exsss, ExUnit.configuration()[:seed])
      :ok
    end

    @small [vocab_size: 50, hidden_size: 16, num_attention_heads: 4, intermediate_size: 24] ++
             [max_positions: 32, num_blocks: 2]
    @language [architecture: :for_causal_language_modeling]

    defp spec(:bert), do: Bumblebee.configure(Text.Bert, @small)
    defp spec(:roberta), do: Bumblebee.configure(Text.Roberta, @small)
    defp spec(:distilbert), do: Bumblebee.configure(Text.Distilbert, @small)
    defp spec(:gpt2), do: Bumblebee.configure(Text.Gpt2, @language ++ @small)

    defp spec(:gpt_neo_x) do
      own = [rotary_embedding_percentage: 0.5] ++ Keyword.delete(@small, :max_positions)
      Bumblebee.configure(Text.GptNeoX, @language ++ own)
    end

    defp spec(:llama),
      do: Bumblebee.configure(Text.Llama, @language ++ [num_key_value_heads: 2] ++ @small)

    defp spec(:mistral) do
      own = [num_key_value_heads: 2, attention_window_size: 3]
      Bumblebee.configure(Text.Mistral, @language ++ own ++ @small)
    end

    defp spec(:qwen3) do
      own = [num_key_value_heads: 2, attention_head_size: 6]
      Bumblebee.configure(Text.Qwen3, @language ++ own ++ @small)
    end

    defp spec(:modernbert) do
      own = [local_attention_window: 4, layer_types: [:full_attention, :sliding_attention]]
      Bumblebee.configure(Text.ModernBert, own ++ @small)
    end

    defp spec(:t5) do
      own =
        [vocab_size: 50, hidden_size: 16, encoder_num_blocks: 2, decoder_num_blocks: 2] ++
          [attention_head_size: 4, encoder_num_attention_heads: 4, decoder_num_attention_heads: 4] ++
          [intermediate_size: 24, relative_attention_num_buckets: 8, initializer_scale: 0.02]

      Bumblebee.configure(Text.T5, own)
    end

    defp ids({b, t} = shape) do
      for(_ <- 1..(b * t), do: Enum.random(3..49)) |> Nx.tensor() |> Nx.reshape(shape)
    end

    # Attention that tells its keys apart.
    defp state(model, inputs, opts \\ []), do: init(model, inputs, [scale: 0.3] ++ opts)

    @outputs [:hidden_state, :pooled_state, :logits]

    # What comes out where there is no padding: there a query of a window may see hidden keys alone.
    defp outputs(result, inputs) do
      for key <- @outputs, %Nx.Tensor{} = value <- [result[key]] do
        case {inputs["attention_mask"], host(value)} do
          {%{shape: {b, t}} = mask, %{shape: {b, t, _}} = value} ->
            Nx.multiply(value, Nx.new_axis(mask, -1))

          {_, value} ->
            value
        end
      end
    end

    defp check(name, model, state, inputs, opts \\ []) do
      {own, opts} = Keyword.split(opts, [:weights])
      expected = predict(model, state, inputs, Nx.BinaryBackend, opts)
      fast = Nitrox.Axon.accelerate(model, own)

      for backend <- [Nx.BinaryBackend | backends()] do
        names = [[:nitrox, :op, :run], [:nitrox, :axon, :fallback], [:nitrox, :fallback]]

        {got, events} =
          Nitrox.TestEvents.all(names, fn -> predict(fast, state, inputs, backend, opts) end)

        assert [] == for({[_, :fallback], details} <- events, do: details)

        [got, expected] = for result <- [got, expected], do: outputs(result, inputs)
        assert [_ | _] = expected

        for {got, expected} <- Enum.zip(got, expected),
            do: assert_close(got, expected, @bound, "#{name} on #{inspect(backend)}")

        fallbacks = for {[_, :axon, :fallback], details} <- events, do: details
        {fallbacks, Enum.frequencies(for {[_, :op, :run], %{op: op}} <- events, do: op)}
      end
      |> List.last()
    end

    @models [
      :bert,
      :roberta,
      :distilbert,
      :gpt2,
      :gpt_neo_x,
      :llama,
      :mistral,
      :qwen3,
      :modernbert
    ]

    for name <- @models do
      test "#{name}, with rows of several lengths" do
        name = unquote(name)
        model = Bumblebee.build_model(spec(name))
        mask = Nx.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]])

        for inputs <- [
              %{"input_ids" => ids({2, 7}), "attention_mask" => mask},
              %{"input_ids" => ids({3, 5})},
              %{"input_ids" => ids({1, 1})}
            ] do
          state = state(model, inputs)
          {fallbacks, ops} = check(name, model, state, inputs)
          assert fallbacks == []
          assert ops[:flash_attention] == 2
          # All that is left is the head of a language model, whose kernel is transposed.
          assert (ops[:dot] || 0) <= 1
          norms = (ops[:layer_norm] || 0) + (ops[:rms_norm] || 0)
          assert norms == norms(model), "#{name}: #{inspect(ops)}"
        end
      end
    end

    # ModernBERT's norm is a function of its own.
    defp norms(model) do
      layers = Nitrox.Axon.explain(model).layers
      kept = for %{op: nil, kind: kind} <- layers, kind in [:layer_norm, :rms_norm], do: kind
      done = for %{op: op} <- layers, op in [:layer_norm, :rms_norm], do: op
      assert kept == [] or done == []
      length(done)
    end

    test "T5, with a bias by distance and attention to the encoder" do
      model = Bumblebee.build_model(spec(:t5))
      mask = Nx.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])

      inputs = %{
        "input_ids" => ids({2, 5}),
        "attention_mask" => mask,
        "decoder_input_ids" => ids({2, 3})
      }

      state = state(model, inputs)
      {[], ops} = check(:t5, model, state, inputs)
      assert not is_map_key(ops, :flash_attention)
      {[], ops} = check(:t5, model, state, inputs, weights: :beside)
      assert ops[:flash_attention] == 6

      # The weights of all layers are outputs of this model.
      expected = predict(model, state, inputs, Nx.BinaryBackend)
      fast = Nitrox.Axon.accelerate(model, weights: :beside)
      got = predict(fast, state, inputs, Nitrox.Backend)
      assert {_, _} = got.cross_attentions
      assert_close(got.cross_attentions, expected.cross_attentions, @bound, "the weights")
      assert ["its weights are an output of the model; weights: :beside takes it"] == whys(model)
    end

    defp whys(model) do
      for %{kind: :attention, why: why} <- Nitrox.Axon.explain(model).layers, uniq: true, do: why
    end

    test "a mask of heads, and one for each query" do
      model = Bumblebee.build_model(spec(:bert))
      ids = ids({2, 5})
      heads = Nx.tensor([[1, 0, 1, 1], [0, 1, 1, 1]]) |> Nx.as_type(:f32)
      inputs = %{"input_ids" => ids, "attention_head_mask" => heads}
      state = state(model, inputs)
      {[], %{flash_attention: 2}} = check(:bert, model, state, inputs)
    end

    # ── Decoding ──────────────────────────────────────────────────────────────────────────────────

    defp with_cache(spec, inputs, length) do
      cache =
        spec.__struct__.init_cache(spec, Nx.axis_size(inputs["input_ids"], 0), length, inputs)

      Map.put(inputs, "cache", cache)
    end

    # A prompt at once and then token by token: each call's inputs, made from the cache of the last.
    defp decode(predict, inputs, tokens, positions?) do
      {results, _} =
        Enum.map_reduce(0..tokens, inputs, fn n, inputs ->
          result = predict.(inputs)
          {batch, _} = inputs["input_ids"].shape
          next = Nx.add(Nx.iota({batch, 1}), n + 3)

          next = %{
            "input_ids" => next,
            "attention_mask" => Nx.broadcast(1, {batch, 1}),
            "cache" => result.cache
          }

          position = Nx.broadcast(7 + n, {batch, 1})
          {result.logits, if(positions?, do: Map.put(next, "position_ids", position), else: next)}
        end)

      results
    end

    for name <- [:gpt2, :llama, :mistral] do
      test "#{name} decodes with a cache, whose offset is on the device" do
        spec = spec(unquote(name))
        model = Bumblebee.build_model(spec)
        prompt = %{"input_ids" => ids({2, 7}), "attention_mask" => Nx.broadcast(1, {2, 7})}
        prompt = with_cache(spec, prompt, 12)
        state = state(model, prompt)

        run = fn model, backend, inputs ->
          decode(&predict(model, state, &1, backend), inputs, 4, true)
        end

        expected = run.(model, Nx.BinaryBackend, prompt)
        fast = Nitrox.Axon.accelerate(model)

        for backend <- [Nx.BinaryBackend | backends()] do
          {got, events} =
            Nitrox.TestEvents.all(
              [[:nitrox, :op, :run], [:nitrox, :axon, :fallback], [:nitrox, :tensor, :transfer]],
              fn -> run.(fast, backend, prompt) end
            )

          for {got, expected} <- Enum.zip(got, expected),
              do: assert_close(got, expected, @bound, "#{unquote(name)} on #{inspect(backend)}")

          assert [] == for({[_, :axon, :fallback], details} <- events, do: details)
          assert [] == for({_, %{direction: :to_host}} = event <- events, do: event)

          if backend != Nx.BinaryBackend,
            do: assert(10 == Enum.count(events, &match?({_, %{op: :flash_attention}}, &1)))
        end
      end
    end

    test "Bumblebee's own loop generates the same tokens" do
      for {name, opts} <- [gpt2: [], llama: [], t5: [weights: :beside]] do
        spec = spec(name)
        model = Bumblebee.build_model(generating(spec))
        fast = Nitrox.Axon.accelerate(model, opts)
        config = %Text.GenerationConfig{max_new_tokens: 6, pad_token_id: 1, bos_token_id: 2}
        config = %{config | eos_token_id: 99, decoder_start_token_id: if(name == :t5, do: 2)}
        ids = ids({2, 5})
        inputs = %{"input_ids" => ids, "attention_mask" => Nx.broadcast(1, {2, 5})}
        decoder = if name == :t5, do: %{"decoder_input_ids" => ids({2, 1})}, else: %{}
        state = state(model, Map.merge(inputs, decoder))
        inputs = Map.put(inputs, "seed", Nx.tensor([1, 2]))

        generate = fn model, backend ->
          fun = Text.Generation.build_generate(model, generating(spec), config)

          [state, inputs] =
            for c <- [%{state | data: on(state.data, backend)}, on(inputs, backend)], do: c

          Nx.with_default_backend(backend, fn -> Nx.Defn.jit_apply(fun, [state, inputs]) end)
        end

        expected = generate.(model, Nx.BinaryBackend)

        for backend <- backends() do
          {got, ops} = ops(fn -> generate.(fast, backend) end)
          assert host(got.token_ids) == expected.token_ids, "#{name}"
          # Each step, each layer, and T5's encoder and attention to it.
          assert ops[:flash_attention] >= 12
        end
      end
    end

    # With a head, where the spec has none.
    defp generating(%Text.T5{} = spec), do: %{spec | architecture: :for_conditional_generation}
    defp generating(spec), do: spec

    test "rows that may attend to nothing are zeros here, and the others what they were" do
      model = Bumblebee.build_model(spec(:gpt2))
      # Padded on the left: the first queries see hidden keys alone.
      mask = Nx.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
      inputs = %{"input_ids" => ids({2, 5}), "attention_mask" => mask}
      state = state(model, inputs)

      [expected, got] =
        for {model, backend} <- [
              {model, Nx.BinaryBackend},
              {Nitrox.Axon.accelerate(model), Nitrox.Backend}
            ],
            do: host(predict(model, state, inputs, backend).logits)

      assert_close(got[1], expected[1], @bound, "the row without padding")
      assert_close(got[0][2..4], expected[0][2..4], @bound, "behind the padding")
      difference = Nx.subtract(got[0][0], expected[0][0]) |> Nx.abs() |> Nx.reduce_max()
      assert Nx.to_number(difference) > 1.0e-3
    end

    # ── What keeps it from being fused ────────────────────────────────────────────────────────────

    test "where the weights are asked for, they are there, and attention is plain" do
      model = Bumblebee.build_model(spec(:llama))
      inputs = %{"input_ids" => ids({2, 5})}
      state = state(model, inputs)
      opts = [global_layer_options: [output_attentions: true, output_hidden_states: true]]
      {fallbacks, ops} = check(:llama, model, state, inputs, opts)
      assert [%{op: :attention, why: "its weights are asked for"} | _] = fallbacks
      assert not is_map_key(ops, :flash_attention)

      fast = Nitrox.Axon.accelerate(model)
      got = predict(fast, state, inputs, Nitrox.Backend, opts)
      expected = predict(model, state, inputs, Nx.BinaryBackend, opts)
      take = &Map.take(&1, [:attentions, :hidden_states])
      assert_close(take.(got), take.(expected), @bound, "the weights and the states")

      opts = [global_layer_options: [output_hidden_states: true]]
      {got, ops} = ops(fn -> predict(fast, state, inputs, Nitrox.Backend, opts) end)
      assert %{attentions: %Axon.None{}} = got
      assert_close(got.hidden_states, expected.hidden_states, @bound, "the states alone")
      assert ops[:flash_attention] == 2
    end

    test "weights that are always put out, hooks on them, and a policy" do
      model = Bumblebee.build_model(spec(:llama))

      weights = fn model, fun ->
        Axon.map_nodes(model, fn node ->
          if is_function(node.op) and inspect(node.op) =~ "attention_weights",
            do: fun.(node),
            else: node
        end)
      end

      assert [nil] == whys(model)
      hooked = weights.(model, &Axon.attach_hook(&1, fn t -> t end))
      assert ["there is a hook on its weights"] == whys(hooked)

      policy = Axon.MixedPrecision.create_policy(compute: {:f, 16})
      mixed = weights.(model, &%{&1 | policy: policy})
      assert [why] = whys(mixed)
      assert why =~ "another type"

      {_, id} =
        Axon.reduce_nodes(model, {0, nil}, fn node, {n, found} ->
          if is_function(node.op) and inspect(node.op) =~ "attention_weights",
            do: {n + 1, node.id},
            else: {n, found}
        end)

      out = Axon.container({model, %{model | output: id}})

      assert [nil, "its weights are an output of the model; weights: :beside takes it"] ==
               Enum.sort(whys(out))
    end

    test "a policy of bf16, and one of f16" do
      for type <- [{:bf, 16}, {:f, 16}] do
        policy = Axon.MixedPrecision.create_policy(compute: type, output: type)
        model = Bumblebee.build_model(spec(:llama))
        mixed = Axon.MixedPrecision.apply_policy(model, policy, fn node -> node.op != :input end)
        fast = Nitrox.Axon.accelerate(mixed)

        # As near as what is rounded after each op of Nx, half as much aside. Either error is a sum of
        # roundings, and that of one model's may be twice the other's by chance: so it is the mean of many
        # models (geometric, as each is as well conditioned as it happens to be).
        ratios =
          for _ <- 1..16 do
            inputs = %{"input_ids" => ids({2, 5})}
            state = state(model, inputs)
            exact = predict(model, state, inputs, Nx.BinaryBackend).logits

            error = fn model, backend ->
              {result, ops} = ops(fn -> predict(model, state, inputs, backend) end)
              got = host(result.logits)
              assert got.type == type
              {relative(got, exact), ops}
            end

            {plain, _} = error.(mixed, Nx.BinaryBackend)
            {ours, ops} = error.(fast, Nitrox.Backend)
            assert ops[:flash_attention] == 2
            ours / plain
          end

        mean = :math.exp(Enum.sum(Enum.map(ratios, &:math.log/1)) / length(ratios))
        assert mean <= 1.5, "#{inspect(type)}: #{mean} of plain's error, #{inspect(ratios)}"
      end
    end

    defp relative(got, expected) do
      size(Nx.subtract(Nx.as_type(got, :f32), expected)) / size(expected)
    end

    defp size(t), do: t |> Nx.multiply(t) |> Nx.sum() |> Nx.sqrt() |> Nx.to_number()

    test "trains as the plain model does, by the references" do
      for name <- [:llama, :gpt2] do
        model = Bumblebee.build_model(spec(name))
        inputs = %{"input_ids" => ids({2, 4})}
        state = state(model, inputs, mode: :train)

        grad = fn model, backend ->
          {_, predict} = Axon.build(model, mode: :train)

          Nx.with_default_backend(backend, fn ->
            loss = fn data, inputs ->
              %{prediction: %{logits: logits}} = predict.(%{state | data: data}, inputs)
              Nx.sum(Nx.multiply(logits, logits))
            end

            fun = fn data, inputs -> Nx.Defn.grad(data, &loss.(&1, inputs)) end
            Nx.Defn.jit_apply(fun, [on(state.data, backend), on(inputs, backend)])
          end)
        end

        expected = grad.(model, Nx.BinaryBackend)
        fast = Nitrox.Axon.accelerate(model)

        for backend <- [Nx.BinaryBackend | backends()] do
          got = grad.(fast, backend)

          # Some are zero but for rounding, such as that of a bias of all scores of a row.
          all = Nx.Defn.Composite.reduce(expected, 0, &max(&2, size(&1)))

          for {layer, parameters} <- expected,
              {parameter, %{type: {:f, _}} = value} <- parameters do
            error = size(Nx.subtract(host(got[layer][parameter]), value))
            assert error <= 1.0e-4 * max(size(value), 1.0e-3 * all), "#{layer}.#{parameter}"
          end
        end
      end
    end
  end
else
  defmodule Nitrox.Axon.BumblebeeTest do
    use ExUnit.Case
    @moduletag :bumblebee
    test "Bumblebee is missing", do: :ok
  end
end
