defmodule Nitrox.Nx.FusedTest do
  # The fused ops on tensors of Nx: the kernel against the body in plain Nx, and its gradient.
  use ExUnit.Case, async: true
  @moduletag :nx

  # Relative L2, as the ops' own tests have it.
  @bounds %{{:f, 32} => 1.0e-5, {:f, 16} => 2.0e-3, {:bf, 16} => 1.0e-2}

  setup do
    :rand.seed(:exsss, ExUnit.configuration()[:seed])
    :ok
  end

  # On Nx.BinaryBackend, whatever the default is.
  defp random(shape, scale \\ 1.0) do
    bytes =
      for _ <- 1..Tuple.product(shape),
          into: <<>>,
          do: <<scale * :rand.normal()::float-32-native>>

    Nx.from_binary(bytes, :f32, backend: Nx.BinaryBackend) |> Nx.reshape(shape)
  end

  defp integers(shape, range) do
    list = for _ <- 1..Tuple.product(shape), do: Enum.random(range)
    Nx.tensor(list, type: :s32, backend: Nx.BinaryBackend) |> Nx.reshape(shape)
  end

  defp mask(shape), do: shape |> integers(0..1) |> Nx.as_type(:u8)

  # Each with the tensors it is called with; the first ones, floats, are what gradients are taken by.
  defp cases do
    r = &random/1
    gamma = fn n -> Nx.add(1, random({n}, 0.1)) end
    sequence = {r.({2, 5, 4}), Nx.abs(random({2, 5, 4}, 0.3)), Nx.negate(Nx.abs(r.({4, 3})))}
    {x, dt, a} = sequence

    [
      dense: {&Nitrox.dense(&1, &2, &3, activation: :gelu), [r.({3, 4}), r.({4, 5}), r.({5})]},
      dense_residual:
        {&Nitrox.dense(&1, &2, nil, activation: :silu, residual: &3),
         [r.({2, 3, 4}), r.({4, 5}), r.({2, 3, 5})]},
      gated_mlp:
        {&Nitrox.gated_mlp(&1, &2, &3, &4),
         [r.({3, 4}), r.({4, 6}), r.({4, 6}), random({6, 4}, 0.4)]},
      layer_norm: {&Nitrox.layer_norm/3, [r.({3, 6}), gamma.(6), random({6}, 0.1)]},
      layer_norm_residual:
        {fn x, g, b, y -> Nitrox.layer_norm(x, g, b, residual: y) end,
         [r.({3, 6}), gamma.(6), random({6}, 0.1), r.({3, 6})]},
      rms_norm: {&Nitrox.rms_norm/2, [r.({3, 6}), gamma.(6)]},
      softmax: {&Nitrox.softmax(&1, axis: 0), [r.({4, 3})]},
      log_softmax: {&Nitrox.log_softmax/1, [r.({4, 3})]},
      embedding: {fn t -> Nitrox.embedding(t, Nx.tensor([[2, 0], [1, 2]])) end, [r.({3, 4})]},
      rope: {fn x -> Nitrox.rope(x, Nx.tensor([3, 4, 5])) end, [r.({2, 3, 2, 4})]},
      rope_interleaved:
        {fn x -> Nitrox.rope(x, Nx.tensor(7), interleaved: true, dims: 2) end, [r.({2, 3, 2, 4})]},
      causal_conv1d:
        {&Nitrox.causal_conv1d(&1, &2, &3, activation: :silu),
         [r.({2, 5, 4}), r.({3, 4}), r.({4})]},
      causal_conv1d_state:
        {&Nitrox.causal_conv1d(&1, &2, nil, state: &3),
         [r.({2, 5, 4}), r.({3, 4}), r.({2, 2, 4})]},
      lstm:
        {&Nitrox.lstm(&1, {&2, &3}, &4, &5, &6),
         [r.({2, 4, 3}), r.({2, 5}), r.({2, 5})] ++
           [random({3, 20}, 0.5), random({5, 20}, 0.4), random({20}, 0.1)]},
      lstm_masked:
        {with_mask(&Nitrox.lstm(&1, nil, &2, &3, nil, mask: &4, reverse: true), {2, 4}),
         [r.({2, 4, 3}), random({3, 20}, 0.5), random({5, 20}, 0.4)]},
      lstm_gates:
        {fn x, i, f, g, o, wh -> Nitrox.lstm(x, nil, {i, f, g, o}, wh, nil) end,
         [r.({2, 4, 3})] ++ for(_ <- 1..4, do: random({3, 5}, 0.5)) ++ [random({5, 20}, 0.4)]},
      gru:
        {&Nitrox.gru(&1, {&2}, &3, &4, &5),
         [
           r.({2, 4, 3}),
           r.({2, 5}),
           random({3, 15}, 0.5),
           random({5, 15}, 0.4),
           random({20}, 0.1)
         ]},
      gru_masked:
        {with_mask(&Nitrox.gru(&1, nil, &2, &3, nil, mask: &4), {2, 4}),
         [r.({2, 4, 3}), random({3, 15}, 0.5), random({5, 15}, 0.4)]},
      selective_scan: {&Nitrox.selective_scan/5, [x, dt, a, r.({2, 5, 3}), r.({2, 5, 3})]},
      selective_scan_full:
        {fn x, dt, a, b, c, d, z, bias, residual, gamma, beta ->
           Nitrox.selective_scan(x, dt, a, b, c,
             d: d,
             z: z,
             dt_bias: bias,
             dt_softplus: true,
             residual: residual,
             norm: {:layer_norm, gamma, beta}
           )
         end,
         [x, dt, a, r.({2, 5, 3}), r.({2, 5, 3}), r.({4}), r.({2, 5, 4}), random({4}, 0.1)] ++
           [r.({2, 5, 4}), gamma.(4), random({4}, 0.1)]},
      flash_attention:
        {&Nitrox.flash_attention(&1, &2, &3, causal: true),
         [r.({2, 5, 4, 8}), r.({2, 7, 2, 8}), r.({2, 7, 2, 8})]},
      flash_attention_full:
        {fn q, k, v, bias ->
           Nitrox.flash_attention(q, k, v,
             bias: bias,
             softcap: 2.0,
             window: {3, 1},
             offset: Nx.tensor([1, 2]),
             kv_len: Nx.tensor([0, 6]),
             lse: true
           )
         end, [r.({2, 5, 4, 8}), r.({2, 7, 2, 8}), r.({2, 7, 2, 8}), r.({1, 4, 5, 7})]}
    ]
  end

  defp with_mask(fun, shape) do
    mask = mask(shape)
    fn a, b, c -> fun.(a, b, c, mask) end
  end

  defp host(container), do: Nx.backend_copy(container, Nx.BinaryBackend)
  defp flat(t) when is_struct(t, Nx.Tensor), do: [t]
  defp flat(tuple), do: tuple |> Tuple.to_list() |> Enum.flat_map(&flat/1)

  # −∞, the lse of a row that sees nothing, must be where it is expected.
  defp assert_close(got, expected, bound, what) do
    for {got, expected} <- Enum.zip(flat(got), flat(expected)) do
      assert {got.shape, got.type} == {expected.shape, expected.type}, what

      [got, expected] =
        for t <- [got, expected], do: t |> host() |> Nx.as_type(:f64) |> Nx.to_flat_list()

      assert Enum.map(got, &is_atom/1) == Enum.map(expected, &is_atom/1), what
      pairs = for {x, y} <- Enum.zip(got, expected), is_number(y), do: {x, y}
      error = :math.sqrt(Enum.sum(for {x, y} <- pairs, do: (x - y) ** 2))
      size = max(:math.sqrt(Enum.sum(for {_, y} <- pairs, do: y * y)), 1.0e-3)
      assert error <= bound * size, "#{what}: relative error #{error / size}"
    end
  end

  defp on(tensors, backend), do: Enum.map(tensors, &Nx.backend_copy(&1, backend))

  defp backends do
    for device <- Application.get_env(:nitrox, :test_devices),
        do: {Nitrox.Backend, device: device}
  end

  test "the kernel agrees with the body in plain Nx, eagerly and in defn" do
    for {name, {fun, tensors}} <- cases(), {type, bound} <- @bounds, backend <- backends() do
      tensors = for t <- tensors, do: Nx.as_type(t, type)
      expected = Nx.with_default_backend(Nx.BinaryBackend, fn -> apply(fun, tensors) end)
      ours = on(tensors, backend)

      Nx.with_default_backend(backend, fn ->
        got = apply(fun, ours)
        for t <- flat(got), do: assert(%{__struct__: Nitrox.Backend} = t.data)
        what = "#{name} #{inspect(type)} on #{inspect(backend)}"
        assert_close(got, expected, bound, what)
        assert_close(Nx.Defn.jit_apply(fun, ours), expected, bound, "#{what} in defn")
      end)
    end
  end

  test "gradients are those of the body" do
    for {name, {fun, tensors}} <- cases(), name != :flash_attention_full do
      loss = fn tensors ->
        for out <- flat(apply(fun, Tuple.to_list(tensors))), reduce: 0 do
          sum -> Nx.add(sum, Nx.sum(Nx.multiply(out, out)))
        end
      end

      grad = fn backend ->
        Nx.with_default_backend(backend, fn ->
          Nx.Defn.grad(tensors |> on(backend) |> List.to_tuple(), loss)
        end)
      end

      expected = grad.(Nx.BinaryBackend)
      for t <- flat(expected), do: assert(Nx.to_number(Nx.all(Nx.is_nan(t))) == 0)

      for backend <- backends() do
        what = "the gradient of #{name} on #{inspect(backend)}"
        assert_close(grad.(backend), expected, 2.0e-4, what)
      end
    end
  end

  test "what is refused" do
    x = Nx.tensor([[1.0]], backend: Nitrox.Backend)

    error =
      assert_raise Nitrox.Error, fn ->
        Nitrox.dense(x, Nitrox.to_nx(Nitrox.tensor([1.0])), nil)
      end

    assert error.reason == :shape

    error = assert_raise Nitrox.Error, fn -> Nitrox.dense(x, Nitrox.tensor([[1.0]]), nil) end
    assert error.message =~ "not both"

    error = assert_raise Nitrox.Error, fn -> Nitrox.softmax(Nx.vectorize(x, :batch)) end
    assert error.message =~ "vectorized"

    error = assert_raise Nitrox.Error, fn -> Nitrox.sample(Nx.tensor([1.0]), Nx.tensor(0)) end
    assert error.op == :sample
  end
end
