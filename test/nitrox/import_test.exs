# The same tests on each device.
for {name, device, tags} <- [{:CPU, :cpu, []}, {:CUDA, {:cuda, 0}, [cuda: true]}] do
  defmodule Module.concat(Nitrox.ImportTest, name) do
    use ExUnit.Case, async: true
    alias Nitrox.{Backbone, Import, Weights}

    @moduletag tags
    @device device

    @fixtures Path.expand("../fixtures", __DIR__)
    @types %{f32: {:f, 32}, f16: {:f, 16}, bf16: {:bf, 16}}
    @bounds %{f32: 1.0e-5, f16: 2.0e-3, bf16: 1.0e-2}

    defp file(kind), do: Weights.open(Path.join(@fixtures, "torch_#{kind}.safetensors"))

    # PyTorch's output of a case, computed in float64, against ours; in the file's type and in f32.
    defp golden(kind, case, import, run) do
      weights = file(kind)
      fetch = &Weights.fetch(weights, "golden.#{case}.#{&1}", device: @device)
      opts = [prefix: "#{case}.", device: @device]

      stored = run.(import.(weights, opts), fetch.("x"))
      assert Nitrox.type(stored) == @types[kind]
      assert distance(stored, fetch.("y")) <= @bounds[kind]

      wide = run.(import.(weights, [type: {:f, 32}] ++ opts), wide(fetch.("x")))
      assert distance(wide, fetch.("y")) <= @bounds.f32
    end

    # Tokens stay what they are.
    defp wide(%{type: {:s, 32}} = x), do: x
    defp wide(x), do: Nitrox.cast(x, {:f, 32})

    defp distance(a, b) do
      assert Nitrox.shape(a) == Nitrox.shape(b)

      [a, b] =
        for x <- [a, b], do: x |> Nitrox.cast({:f, 32}) |> Nitrox.to_list() |> List.flatten()

      off = Enum.zip_reduce(a, b, 0.0, fn x, y, sum -> sum + (x - y) * (x - y) end)
      size = Enum.reduce(b, 0.0, &(&2 + &1 * &1))
      assert size > 0.1
      :math.sqrt(off / size)
    end

    defp stack(layers, x, cell) do
      for directions <- layers, reduce: x do
        x ->
          for {{wi, wh, b}, reverse} <- Enum.zip(directions, [false, true]) do
            {seq, _state} = cell.(x, nil, wi, wh, b, reverse: reverse)
            seq
          end
          |> Nitrox.concatenate(axis: -1)
      end
    end

    for kind <- Map.keys(@types),
        {case, directions, bias?} <- [{"", 1, true}, {"_both", 2, true}, {"_bare", 2, false}] do
      test "nn.LSTM, two layers: #{kind}#{case}" do
        golden(
          unquote(kind),
          "lstm" <> unquote(case),
          &Import.lstm/2,
          fn layers, x ->
            assert Enum.map(layers, &length/1) == [unquote(directions), unquote(directions)]

            for {_, _, b} <- Enum.concat(layers), do: assert(is_struct(b) == unquote(bias?))

            stack(layers, x, &Nitrox.lstm/6)
          end
        )
      end

      test "nn.GRU, two layers: #{kind}#{case}" do
        golden(
          unquote(kind),
          "gru" <> unquote(case),
          &Import.gru/2,
          fn layers, x ->
            assert Enum.map(layers, &length/1) == [unquote(directions), unquote(directions)]
            stack(layers, x, &Nitrox.gru/6)
          end
        )
      end
    end

    defp mamba(p, x) do
      [channels, states] = p["a"] |> Nitrox.shape() |> Tuple.to_list()
      {rank, _} = Nitrox.shape(p["dt.w"])

      part = fn x, from, size ->
        {batch, time, _} = Nitrox.shape(x)
        Nitrox.slice(x, [0, 0, from], [batch, time, size])
      end

      xz = Nitrox.dense(x, p["in.w"], p["in.b"])
      {x, z} = {part.(xz, 0, channels), part.(xz, channels, channels)}
      {x, _} = Nitrox.causal_conv1d(x, p["conv.w"], p["conv.b"], activation: :silu)
      dbc = Nitrox.dense(x, p["x.w"], nil)
      dt = Nitrox.dense(part.(dbc, 0, rank), p["dt.w"], nil)
      {b, c} = {part.(dbc, rank, states), part.(dbc, rank + states, states)}
      opts = [dt_bias: p["dt.b"], dt_softplus: true, d: p["d"], z: z]
      {y, _} = Nitrox.selective_scan(x, dt, p["a"], b, c, opts)
      Nitrox.dense(y, p["out.w"], p["out.b"])
    end

    for kind <- Map.keys(@types), {case, conv?} <- [{"mamba", true}, {"mamba_bias", false}] do
      test "mamba_ssm's block: #{kind}, #{case}" do
        golden(
          unquote(kind),
          unquote(case),
          &Import.mamba/2,
          fn p, x ->
            assert is_struct(p["conv.b"]) == unquote(conv?)
            for name <- ["in.b", "out.b"], do: assert(is_nil(p[name]) == unquote(conv?))
            for name <- ["a", "d", "dt.b"], do: assert(Nitrox.type(p[name]) == {:f, 32})
            mamba(p, x)
          end
        )
      end
    end

    for kind <- Map.keys(@types) do
      test "mamba_ssm's language model is a backbone: #{kind}" do
        golden(
          unquote(kind),
          "mamba_lm",
          &Import.mamba_lm/2,
          fn {config, params}, tokens ->
            backbone = Backbone.new(:mamba, config, params)
            state = Backbone.initial_state(backbone, 2)
            {logits, _state} = Backbone.window(backbone, tokens, state)
            logits
          end
        )
      end
    end
  end
end

defmodule Nitrox.ImportTest do
  use ExUnit.Case, async: true
  alias Nitrox.{Import, Weights}

  describe "refused:" do
    @describetag :tmp_dir

    # A safetensors file of zeros: name → shape.
    defp write(dir, tensors) do
      {entries, size} =
        Enum.map_reduce(Enum.sort(tensors), 0, fn {name, shape}, at ->
          size = 4 * Tuple.product(shape)
          axes = shape |> Tuple.to_list() |> Enum.join(",")
          offsets = "[#{at},#{at + size}]"
          entry = ~s("#{name}":{"dtype":"F32","shape":[#{axes}],"data_offsets":#{offsets}})
          {entry, at + size}
        end)

      header = "{#{Enum.join(entries, ",")}}"
      path = Path.join(dir, "model.safetensors")
      File.write!(path, [<<byte_size(header)::little-64>>, header, <<0::size(size)-unit(8)>>])
      Weights.open(path)
    end

    defp rnn(gates, layers) do
      for n <- 0..(layers - 1), side <- ["ih", "hh"], into: %{} do
        {"weight_#{side}_l#{n}", {gates * 3, if(side == "ih" and n == 0, do: 2, else: 3)}}
      end
    end

    @block %{
      "in_proj.weight" => {16, 4},
      "conv1d.weight" => {8, 1, 4},
      "conv1d.bias" => {8},
      "x_proj.weight" => {7, 8},
      "dt_proj.weight" => {8, 1},
      "dt_proj.bias" => {8},
      "A_log" => {8, 3},
      "D" => {8},
      "out_proj.weight" => {4, 8}
    }

    defp refusal(fun), do: Exception.message(assert_raise(Nitrox.Error, fun))

    test "the files of these tests are sound without their mistakes", %{tmp_dir: dir} do
      assert [[{wi, wh, nil}], [_]] = Import.lstm(write(dir, rnn(4, 2)))
      assert {Nitrox.shape(wi), Nitrox.shape(wh)} == {{2, 12}, {3, 12}}
      assert [[_]] = Import.gru(write(dir, rnn(3, 1)))
      assert Nitrox.shape(Import.mamba(write(dir, @block))["in.w"]) == {4, 16}
    end

    test "a missing name", %{tmp_dir: dir} do
      for {tensors, missing} <- [
            {Map.delete(rnn(4, 3), "weight_hh_l1"), "weight_hh_l1"},
            {Map.drop(rnn(4, 3), ["weight_ih_l1", "weight_hh_l1"]), "weight_ih_l1, weight_hh_l1"},
            {Map.put(rnn(4, 1), "bias_ih_l0", {12}), "bias_hh_l0"},
            {Map.put(rnn(4, 1), "weight_ih_l0_reverse", {12, 2}), "weight_hh_l0_reverse"}
          ] do
        weights = write(dir, tensors)
        message = refusal(fn -> Import.lstm(weights) end)
        assert message =~ "model.safetensors: an nn.LSTM needs #{missing}"
      end

      for name <- Map.keys(@block) -- ["conv1d.bias"] do
        weights = write(dir, Map.delete(@block, name))
        assert refusal(fn -> Import.mamba(weights) end) =~ "a Mamba block needs #{name}"
      end
    end

    test "a name that is not the module's own", %{tmp_dir: dir} do
      weights = write(dir, Map.put(rnn(4, 1), "head.weight", {3, 3}))
      message = refusal(fn -> Import.lstm(weights) end)
      assert message =~ "an nn.LSTM has no head.weight"
      assert message =~ "it has weight_ih_l0, weight_hh_l0"

      # As numbers that are written in another way, or never end.
      for name <- ["weight_ih_l01", "weight_ih_l-1", "weight_ih_l99999", "weight_ih_l0_reversed"] do
        weights = write(dir, Map.put(rnn(3, 1), name, {9, 3}))
        assert refusal(fn -> Import.gru(weights) end) =~ "an nn.GRU has no #{name}"
      end

      weights = write(dir, Map.merge(@block, %{"dt_bias" => {8}, "norm.weight" => {8}}))
      assert refusal(fn -> Import.mamba(weights) end) =~ "has no dt_bias, norm.weight"
    end

    test "a prefix that nothing begins with, or a file that needs one", %{tmp_dir: dir} do
      tensors = Map.new(rnn(4, 1), fn {name, shape} -> {"lstm." <> name, shape} end)
      weights = write(dir, Map.put(tensors, "head.weight", {3, 3}))
      assert [[_]] = Import.lstm(weights, prefix: "lstm.")

      message = refusal(fn -> Import.lstm(weights, prefix: "rnn.") end)
      assert message =~ "needs rnn.weight_ih_l0, rnn.weight_hh_l0"
      assert message =~ ~s(no name begins with prefix "rnn."; there are head.weight, lstm.weight)

      assert refusal(fn -> Import.lstm(weights) end) =~
               "a module inside of another one needs prefix"

      message = refusal(fn -> Import.gru(weights, prefix: "lstm.") end)
      assert message =~ "lstm.weight_ih_l0 must be {9, 2}, got {12, 2}"
    end

    @language_model Map.merge(
                      for n <- 0..1, {name, shape} <- @block, into: %{} do
                        {"backbone.layers.#{n}.mixer.#{name}", shape}
                      end,
                      %{
                        "backbone.embedding.weight" => {6, 4},
                        "backbone.layers.0.norm.weight" => {4},
                        "backbone.layers.1.norm.weight" => {4},
                        "backbone.norm_f.weight" => {4}
                      }
                    )

    test "a language model that is not one", %{tmp_dir: dir} do
      plural = %{
        "backbone.embeddings.weight" => {6, 4},
        "lm_head.weight" => {6, 4}
      }

      model = Map.delete(@language_model, "backbone.embedding.weight")
      assert {config, params} = Import.mamba_lm(write(dir, Map.merge(model, plural)))
      assert config[:hidden] == [4, 4] and config[:input] == {:tokens, 6, 4}
      assert Nitrox.shape(params["head.w"]) == {4, 6}

      for name <- Map.keys(@language_model), not String.ends_with?(name, "conv1d.bias") do
        weights = write(dir, Map.delete(@language_model, name))
        assert refusal(fn -> Import.mamba_lm(weights) end) =~ "MambaLMHeadModel needs #{name}"
      end

      for name <- ["norm.bias", "mixer.in_proj.bias", "mixer.dt_bias"] do
        name = "backbone.layers.1.#{name}"
        weights = write(dir, Map.put(@language_model, name, {4}))
        assert refusal(fn -> Import.mamba_lm(weights) end) =~ "MambaLMHeadModel has no #{name}"
      end

      weights = write(dir, Map.put(@language_model, "lm_head.weight", {7, 4}))
      message = refusal(fn -> Import.mamba_lm(weights) end)
      assert message =~ "lm_head.weight must be {6, 4}, got {7, 4}"
    end

    test "a shape that does not fit the others", %{tmp_dir: dir} do
      for {name, shape, expected} <- [
            {"weight_hh_l0", {12}, "must have 2 axes, got {12}"},
            {"weight_hh_l0", {12, 4}, "must be {16, 2}, got {12, 2}"},
            {"weight_ih_l1", {12, 2}, "weight_ih_l1 must be {12, 3}, got {12, 2}"}
          ] do
        weights = write(dir, Map.put(rnn(4, 2), name, shape))
        assert refusal(fn -> Import.lstm(weights) end) =~ expected
      end

      # Four of the shapes say what the sizes are, and the rest is held to them.
      for {name, shape} <- @block do
        weights = write(dir, Map.put(@block, name, put_elem(shape, 0, elem(shape, 0) + 1)))
        assert refusal(fn -> Import.mamba(weights) end) =~ ~r/ must be \{.*\}, got \{/
      end
    end

    test "proj_size, options that are none, and what is no file", %{tmp_dir: dir} do
      weights = write(dir, Map.put(rnn(4, 1), "weight_hr_l0", {2, 3}))
      assert refusal(fn -> Import.lstm(weights) end) =~ "has a proj_size (weight_hr_l0)"
      assert refusal(fn -> Import.lstm(weights, prefx: "") end) =~ ":prefx; known are :prefix"
      assert refusal(fn -> Import.gru(weights, prefix: :a) end) =~ "prefix: expected a string"

      assert refusal(fn -> Import.mamba("model") end) =~
               ~s(expected a Nitrox.Weights, got "model")
    end
  end
end
