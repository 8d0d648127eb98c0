defmodule Nitrox.TestLayers do
  @moduledoc false
  # What the tests of Nitrox.Axon's layers share: tensors, models on each backend, and the layers in
  # f64, in the words of their papers.

  import ExUnit.Assertions

  # Only where they are.
  @compile {:no_warn_undefined, [Axon, Axon.ModelState, Nx, Nx.Defn.Composite]}

  # ── Tensors ───────────────────────────────────────────────────────────────────────────────────

  defdelegate random(shape, scale \\ 1.0), to: Nitrox.TestNumbers
  defdelegate host(container), to: Nitrox.TestNumbers
  defdelegate on(container, backend), to: Nitrox.TestNumbers
  defdelegate backends, to: Nitrox.TestNumbers

  def integers(shape, range) do
    list = for _ <- 1..Tuple.product(shape), do: Enum.random(range)
    Nx.tensor(list, type: :s64, backend: Nx.BinaryBackend) |> Nx.reshape(shape)
  end

  # Relative L2.
  def distance(got, expected) do
    assert Nx.shape(got) == Nx.shape(expected)
    [got, expected] = for t <- [got, expected], do: t |> host() |> Nx.as_type(:f64)
    norm = fn t -> t |> Nx.multiply(t) |> Nx.sum() |> Nx.to_number() |> :math.sqrt() end
    assert is_float(Nx.to_number(Nx.sum(expected))), "no numbers are expected"
    assert is_float(Nx.to_number(Nx.sum(got))), "these are no numbers"
    norm.(Nx.subtract(got, expected)) / max(norm.(expected), 1.0e-6)
  end

  # ── Models ────────────────────────────────────────────────────────────────────────────────────

  def input(features, name \\ "x"), do: Axon.input(name, shape: {nil, nil, features})

  # The parameters with some noise, so that no bias is zero and no gamma one.
  def init(model, inputs, noise \\ 0.2) do
    {init, _} = Axon.build(model, seed: 7)

    state =
      init.(Map.new(inputs, fn {k, t} -> {k, Nx.to_template(t)} end), Axon.ModelState.empty())

    data = for {layer, params} <- host(state.data), into: %{}, do: {layer, noisy(params, noise)}
    %{state | data: data}
  end

  def noisy(params, noise) do
    Map.new(params, fn {name, t} -> {name, Nx.add(t, random(t.shape, noise))} end)
  end

  def predict(model, state, inputs, backend \\ Nx.BinaryBackend) do
    {_, predict} = Axon.build(model)

    Nx.with_default_backend(backend, fn ->
      predict.(%{state | data: on(state.data, backend)}, on(inputs, backend))
    end)
  end

  # What each layer gives on every backend is what `expected` is.
  def assert_everywhere(what, model, state, inputs, expected, bound \\ 1.0e-5) do
    for backend <- [Nx.BinaryBackend | backends()] do
      error = model |> predict(state, inputs, backend) |> distance(expected)
      assert error <= bound, "#{what} on #{inspect(backend)}: #{error}"
    end
  end

  # ── The same in f64, in the words of the papers ───────────────────────────────────────────────

  def wide(t), do: t |> Nx.as_type(:f64)
  def linear(x, w, nil), do: Nx.dot(x, [-1], wide(w), [0])
  def linear(x, w, b), do: Nx.add(linear(x, w, nil), wide(b))
  def silu(x), do: Nx.divide(x, Nx.add(1, Nx.exp(Nx.negate(x))))

  def normed(x, nil, _), do: x

  def normed(x, gamma, nil) do
    size = Nx.sqrt(Nx.add(Nx.mean(Nx.multiply(x, x), axes: [-1], keep_axes: true), 1.0e-5))
    x |> Nx.divide(size) |> Nx.multiply(wide(gamma))
  end

  def normed(x, gamma, beta) do
    x = Nx.subtract(x, Nx.mean(x, axes: [-1], keep_axes: true))
    Nx.add(normed(x, gamma, nil), wide(beta))
  end

  def residual(x, p, block) do
    y = block.(normed(x, p["norm.gamma"], p["norm.beta"]))
    if p["norm.gamma"], do: Nx.add(x, y), else: y
  end

  def mamba64(p, x) do
    residual(wide(x), p, fn x ->
      {batch, frames, _} = x.shape
      {inner, states} = p["a_log"].shape
      {taps, _} = p["conv.w"].shape
      xz = linear(x, p["in.w"], p["in.b"])
      part = fn t, from, length -> Nx.slice_along_axis(t, from, length, axis: 2) end
      {v, z} = {part.(xz, 0, inner), part.(xz, inner, inner)}
      padded = Nx.pad(v, 0.0, [{0, 0, 0}, {taps - 1, 0, 0}, {0, 0, 0}])

      v =
        for k <- 0..(taps - 1), reduce: wide(p["conv.b"] || Nx.tensor(0)) do
          sum ->
            frame = Nx.slice_along_axis(padded, k, frames, axis: 1)
            Nx.add(sum, Nx.multiply(frame, wide(p["conv.w"][k])))
        end
        |> silu()

      rank = elem(p["dt.w"].shape, 0)
      dbc = linear(v, p["x.w"], nil)

      [dt, b, c] =
        for {name, from, length} <- [
              {"dt", 0, rank},
              {"b", rank, states},
              {"c", rank + states, states}
            ],
            do: normed(part.(dbc, from, length), p["#{name}.norm.gamma"], nil)

      dt = Nx.log(Nx.add(1, Nx.exp(linear(dt, p["dt.w"], p["dt.b"]))))
      a = Nx.negate(Nx.exp(wide(p["a_log"])))

      {ys, _h} =
        Enum.map_reduce(0..(frames - 1), Nx.broadcast(Nx.f64(0), {batch, inner, states}), fn t,
                                                                                             h ->
          [v, dt, b, c] = for s <- [v, dt, b, c], do: s[[0..(batch - 1), t]]
          decay = Nx.exp(Nx.multiply(Nx.new_axis(dt, 2), a))
          add = Nx.multiply(Nx.new_axis(Nx.multiply(dt, v), 2), Nx.new_axis(b, 1))
          h = Nx.add(Nx.multiply(decay, h), add)
          y = Nx.sum(Nx.multiply(h, Nx.new_axis(c, 1)), axes: [2])
          {Nx.add(y, Nx.multiply(v, wide(p["d"]))), h}
        end)

      ys |> Nx.stack(axis: 1) |> Nx.multiply(silu(z)) |> linear(p["out.w"], p["out.b"])
    end)
  end

  # Query by query and head by head.
  def attention64(p, %{"x" => x} = inputs, opts) do
    residual(wide(x), p, fn x ->
      {batch, frames, _} = x.shape
      heads = opts[:heads]
      kv_heads = opts[:kv_heads] || heads
      source = if inputs["kv"], do: wide(inputs["kv"]), else: x
      keys = Nx.axis_size(source, 1)

      [q, k, v] =
        if p["qkv.w"] do
          size = div(Nx.axis_size(p["qkv.w"], 1), heads + 2 * kv_heads)
          qkv = linear(x, p["qkv.w"], p["qkv.b"])

          at = fn from, count ->
            Nx.slice_along_axis(qkv, from * size, count * size, axis: 2)
          end

          [at.(0, heads), at.(heads, kv_heads), at.(heads + kv_heads, kv_heads)]
        else
          for {from, name} <- [{x, "q"}, {source, "k"}, {source, "v"}],
              do: linear(from, p["#{name}.w"], p["#{name}.b"])
        end

      size = div(Nx.axis_size(q, 2), heads)

      head = fn t, gamma, b, h ->
        t[b] |> Nx.slice_along_axis(h * size, size, axis: 1) |> normed(gamma, nil)
      end

      for b <- 0..(batch - 1) do
        for h <- 0..(heads - 1) do
          g = div(h, div(heads, kv_heads))
          turned = &turned64(&1, inputs["positions"], b, opts[:rope])
          q = head.(q, p["q.norm.gamma"], b, h) |> turned.()
          k = head.(k, p["k.norm.gamma"], b, g) |> turned.()
          v = head.(v, nil, b, g)
          scores = Nx.multiply(Nx.dot(q, [1], k, [1]), opts[:scale] || 1 / :math.sqrt(size))
          cap = opts[:softcap]
          scores = if cap, do: Nx.multiply(cap, Nx.tanh(Nx.divide(scores, cap))), else: scores
          bias = inputs["bias"]

          scores =
            if bias,
              do: Nx.add(scores, wide(bias[rem(b, Nx.axis_size(bias, 0))][h])),
              else: scores

          seen =
            for i <- 0..(frames - 1) do
              for j <- 0..(keys - 1),
                  do: if(seen?(i, j, b, inputs, opts, keys - frames), do: 1, else: 0)
            end
            |> Nx.tensor()

          powers = Nx.multiply(Nx.exp(scores), seen)
          sum = Nx.sum(powers, axes: [1], keep_axes: true)
          Nx.dot(Nx.divide(powers, Nx.max(sum, Nx.f64(1.0e-300))), v)
        end
        |> Nx.concatenate(axis: 1)
      end
      |> Nx.stack()
      |> linear(p["out.w"], p["out.b"])
    end)
  end

  def seen?(i, j, b, inputs, opts, offset) do
    {left, right} = opts[:window] || {nil, nil}
    place = i + offset
    mask = inputs["key_mask"]

    (not (opts[:causal] || false) or j <= place) and (left == nil or j >= place - left) and
      (right == nil or j <= place + right) and (mask == nil or Nx.to_number(mask[b][j]) != 0)
  end

  def turned64(x, _positions, _b, nil), do: x
  def turned64(x, positions, b, true), do: turned64(x, positions, b, [])

  def turned64(x, positions, b, rope) do
    {frames, size} = x.shape
    dims = rope[:dims] || size

    for t <- 0..(frames - 1) do
      position =
        case positions do
          nil -> t
          %{shape: {_}} -> Nx.to_number(positions[t])
          %{shape: {_, _}} -> Nx.to_number(positions[b][t])
        end

      row = Nx.to_flat_list(x[t])
      half = div(dims, 2)

      pairs =
        for i <- 0..(half - 1), into: %{} do
          {j, k} = if rope[:interleaved], do: {2 * i, 2 * i + 1}, else: {i, i + half}

          angle =
            position * (rope[:scale] || 1) * :math.pow(rope[:base] || 10_000, -2 * i / dims)

          {x, y} = {Enum.at(row, j), Enum.at(row, k)}
          {cos, sin} = {:math.cos(angle), :math.sin(angle)}
          {j, {k, x * cos - y * sin, x * sin + y * cos}}
        end

      turned = for {j, {k, a, b}} <- pairs, at <- [{j, a}, {k, b}], into: %{}, do: at
      for {x, i} <- Enum.with_index(row), do: Map.get(turned, i, x)
    end
    |> Nx.tensor(type: :f64)
  end

  def mlp64(p, x) do
    residual(wide(x), p, fn x ->
      gate = silu(linear(x, p["gate.w"], nil))
      gate |> Nx.multiply(linear(x, p["up.w"], nil)) |> linear(p["down.w"], nil)
    end)
  end
end
