defmodule NitroxTest do
  use ExUnit.Case, async: true
  doctest Nitrox

  defp tensor(data, type \\ {:f, 32}), do: Nitrox.tensor(data, type: type)
  defp list(tensor), do: Nitrox.to_list(tensor)

  defp refusal(fun) do
    error = assert_raise Nitrox.Error, fun
    Exception.message(error)
  end

  describe "options" do
    test "an unknown one names the known ones" do
      x = tensor([[1.0]])
      message = refusal(fn -> Nitrox.dense(x, x, nil, activatoin: :relu) end)
      assert message == "dense: unknown option :activatoin; known are :activation, :residual"
    end

    test "a wrong value says what was expected and what came" do
      x = tensor([[1.0]])
      one = tensor([1.0])

      for {fun, parts} <- [
            {fn -> Nitrox.dense(x, x, nil, activation: :rleu) end,
             ["activation", ":relu", ":rleu"]},
            {fn -> Nitrox.dense(x, x, nil, residual: 1) end, ["residual", "a tensor", "got 1"]},
            {fn -> Nitrox.layer_norm(x, one, one, epsilon: -1) end,
             ["epsilon", "not negative", "-1"]},
            {fn -> Nitrox.rms_norm(x, one, epsilon: "a") end, ["rms_norm", "epsilon", ~s("a")]},
            {fn -> Nitrox.lstm(x, x, x, x, x) end, ["lstm", "{c0, h0}"]},
            {fn -> Nitrox.gru(x, {x, x}, x, x, x) end, ["gru", "{h0}"]},
            {fn -> Nitrox.gru(x, nil, {x, x}, x, x) end, ["wi", "3 gates", "got 2"]},
            {fn -> Nitrox.lstm(x, nil, x, x, {x, x, x}) end, ["b:", "4 gates", "got 3"]},
            {fn -> Nitrox.sample(x, x, top_k: 0) end, ["top_k", "at least 1", "got 0"]},
            {fn -> Nitrox.sample(x, x, top_p: 1.5) end, ["top_p", "at most 1", "1.5"]},
            {fn -> Nitrox.sample(x, x, seed: -1) end, ["seed", "2^64", "-1"]},
            {fn -> Nitrox.sample(x, x, temperature: -0.5) end, ["temperature", "-0.5"]},
            {fn -> Nitrox.causal_conv1d(x, x, nil, activation: :gelu) end,
             ["activation", "one of :none, :silu", ":gelu"]},
            {fn -> Nitrox.selective_scan(x, x, x, x, x, dt_clamp: {1, 0}) end,
             ["dt_clamp", "in order", "{1, 0}"]},
            {fn -> Nitrox.selective_scan(x, x, x, x, x, norm: {:rms_norm, nil, nil}) end,
             ["norm", "{:rms_norm, gamma, nil}"]},
            {fn -> Nitrox.selective_scan(x, x, x, x, x, norm: {:layer_norm, one, nil}) end,
             ["norm", "{:layer_norm, gamma, beta}"]},
            {fn -> Nitrox.rope(x, one, base: "a") end, ["base", "a number", ~s("a")]},
            {fn -> Nitrox.rope(x, one, dims: -2) end, ["dims", "at least 0", "-2"]},
            {fn -> Nitrox.gated_mlp(x, x, x, x, activation: :relu) end, ["gelu_tanh", ":relu"]},
            {fn -> Nitrox.softmax(x, axis: :last) end, ["axis", "an integer", ":last"]},
            {fn -> Nitrox.argmax(x, keep_axis: true) end, ["keep_axis", "axis"]},
            {fn -> Nitrox.sum(x, axes: []) end, ["axes", "at least one", "[]"]},
            {fn -> Nitrox.sum(x, axes: 1) end, ["axes", "a list", "got 1"]},
            {fn -> Nitrox.slice(x, 0, 1) end, ["slice", "lists"]},
            {fn -> Nitrox.slice(x, [0, 0], [1, 1], wrap: 1) end, ["wrap", "true or false"]},
            {fn -> Nitrox.clip(x, 2, 1) end, ["clip", "2 and 1"]},
            {fn -> Nitrox.reshape(x, [1]) end, ["reshape", "a tuple of lengths", "[1]"]},
            {fn -> Nitrox.reshape(x, {-1}) end, ["reshape", "a tuple of lengths", "{-1}"]},
            {fn -> Nitrox.reshape(x, {:auto, 2}) end, ["reshape", "{:auto, 2}", "1 elements"]},
            {fn -> Nitrox.concatenate([]) end, ["concatenate", "at least one"]},
            {fn -> Nitrox.stack([one], axis: 2) end, ["stack", "axis 2", "2 axes"]},
            {fn -> Nitrox.cast(1, {:f, 32}) end, ["cast", "a tensor", "got 1"]},
            {fn -> Nitrox.dense(x, x, nil, [1]) end, ["dense", "keyword list"]}
          ] do
        message = refusal(fun)

        for part <- parts,
            do: assert(message =~ part, "#{inspect(part)} is not in #{inspect(message)}")
      end
    end

    test "the engine's own refusals come through" do
      assert refusal(fn -> Nitrox.add(tensor([1.0]), tensor([1], {:s, 32})) end) =~ "cast"

      assert refusal(fn -> Nitrox.add(tensor([1.0, 2.0]), tensor([1.0, 2.0, 3.0])) end) =~
               "broadcast"

      assert refusal(fn -> Nitrox.divide(tensor(1, {:s, 32}), 2) end) =~ "quotient"
      assert refusal(fn -> Nitrox.add(1, 2) end) =~ "tensor"
    end
  end

  describe "functions of one tensor" do
    test "give what the host's own functions give" do
      points = [-2.5, -1.0, -0.5, 0.5, 1.0, 2.5]
      sigmoid = fn x -> 1 / (1 + :math.exp(-x)) end
      sqrt_2_pi = :math.sqrt(2 / :math.pi())

      for {name, host} <- [
            negate: &(-&1),
            abs: &Kernel.abs/1,
            sign: fn x -> if x > 0, do: 1.0, else: -1.0 end,
            exp: &:math.exp/1,
            expm1: &(:math.exp(&1) - 1),
            reciprocal: &(1 / &1),
            sin: &:math.sin/1,
            cos: &:math.cos/1,
            tanh: &:math.tanh/1,
            erf: &:math.erf/1,
            floor: &:math.floor/1,
            ceil: &:math.ceil/1,
            round: &(Kernel.round(&1) * 1.0),
            sigmoid: sigmoid,
            relu: &Kernel.max(&1, 0.0),
            silu: &(&1 * sigmoid.(&1)),
            gelu: &(&1 * 0.5 * (1 + :math.erf(&1 / :math.sqrt(2)))),
            gelu_tanh: &(0.5 * &1 * (1 + :math.tanh(sqrt_2_pi * (&1 + 0.044715 * &1 * &1 * &1)))),
            softplus: &:math.log(1 + :math.exp(&1))
          ] do
        assert_close(apply(Nitrox, name, [tensor(points)]), Enum.map(points, host), name)
      end

      for {name, host} <- [
            log: &:math.log/1,
            log1p: &:math.log(1 + &1),
            sqrt: &:math.sqrt/1,
            rsqrt: &(1 / :math.sqrt(&1))
          ] do
        points = [0.25, 1.0, 7.0]
        assert_close(apply(Nitrox, name, [tensor(points)]), Enum.map(points, host), name)
      end

      assert list(Nitrox.logical_not(tensor([0.0, 2.0]))) == [1, 0]
    end
  end

  describe "functions of two tensors" do
    test "give what the host's own functions give" do
      for {name, expected} <- [
            add: [9.0, -1.0, 4.0],
            subtract: [5.0, -5.0, 0.0],
            multiply: [14.0, -6.0, 4.0],
            divide: [3.5, -1.5, 1.0],
            remainder: [1.0, -1.0, 0.0],
            max: [7.0, 2.0, 2.0],
            min: [2.0, -3.0, 2.0],
            pow: [49.0, 9.0, 4.0],
            equal: [0, 0, 1],
            not_equal: [1, 1, 0],
            less: [0, 1, 0],
            less_equal: [0, 1, 1],
            greater: [1, 0, 0],
            greater_equal: [1, 0, 1],
            logical_and: [1, 1, 1],
            logical_or: [1, 1, 1],
            logical_xor: [0, 0, 0]
          ] do
        a = tensor([7.0, -3.0, 2.0])
        assert list(apply(Nitrox, name, [a, 2])) == expected, "#{name}"
        assert list(apply(Nitrox, name, [a, tensor([2.0, 2.0, 2.0])])) == expected, "#{name}"
      end

      assert list(Nitrox.quotient(tensor([7, -7, 7], {:s, 32}), tensor([2, 2, 0], {:s, 32}))) == [
               3,
               -3,
               0
             ]

      assert list(Nitrox.subtract(1, tensor([0.25]))) == [0.75]
    end

    test "broadcast" do
      column = tensor([[1.0], [2.0]])
      row = tensor([[10.0, 20.0]])
      assert list(Nitrox.add(column, row)) == [[11.0, 21.0], [12.0, 22.0]]

      assert list(Nitrox.select(Nitrox.less(column, 2), row, column)) == [
               [10.0, 20.0],
               [2.0, 2.0]
             ]
    end
  end

  describe "layers" do
    test "dense applies bias, activation and residual in that order" do
      x = tensor([[1.0, 2.0]])
      w = tensor([[1.0, 0.0], [0.0, -1.0]])
      b = tensor([0.5, 0.5])
      assert list(Nitrox.dense(x, w, b)) == [[1.5, -1.5]]
      assert list(Nitrox.dense(x, w, b, activation: :relu, residual: x)) == [[2.5, 2.0]]
    end

    test "norms give the sum beside the result where there is a residual" do
      [x, r] = [tensor([[1.0, 3.0]]), tensor([[1.0, 1.0]])]
      [gamma, beta] = [tensor([2.0, 2.0]), tensor([1.0, 1.0])]
      {normed, sum} = Nitrox.layer_norm(x, gamma, beta, residual: r, epsilon: 0)
      assert {list(normed), list(sum)} == {[[-1.0, 3.0]], [[2.0, 4.0]]}
      {normed, sum} = Nitrox.rms_norm(x, gamma, residual: r, epsilon: 0.0)
      assert list(sum) == [[2.0, 4.0]]
      assert_close(normed, Enum.map([2, 4], &(&1 / :math.sqrt(10) * 2)), :rms_norm)
    end

    test "a weight may be the tuple of its gates" do
      {rows, rand} = numbers(4 * 3 * 2 + 4 * 2 * 2 + 4 * 2, :rand.seed_s(:exsss, 1))
      {x, _} = numbers(1 * 5 * 3, rand)
      x = Nitrox.reshape(tensor(x), {1, 5, 3})
      {wi, rest} = Enum.split(rows, 24)
      {wh, b} = Enum.split(rest, 16)
      # Gate k of a packed weight is columns 2k and 2k + 1.
      wi = Nitrox.reshape(tensor(wi), {3, 8})
      wh = Nitrox.reshape(tensor(wh), {2, 8})
      b = tensor(b)
      parts = fn w, gates -> List.to_tuple(for k <- 0..(gates - 1), do: gate(w, k)) end

      {seq, {c, h}} = Nitrox.lstm(x, nil, wi, wh, b)
      {seq2, {c2, h2}} = Nitrox.lstm(x, {nil, nil}, parts.(wi, 4), parts.(wh, 4), parts.(b, 4))
      assert {list(seq), list(c), list(h)} == {list(seq2), list(c2), list(h2)}

      [wi3, wh3] =
        for w <- [wi, wh], do: Nitrox.concatenate(for(k <- 0..2, do: gate(w, k)), axis: 1)

      {seq, {h}} = Nitrox.gru(x, nil, wi3, wh3, b)
      {seq2, {h2}} = Nitrox.gru(x, {nil}, parts.(wi, 3), parts.(wh, 3), parts.(b, 4))
      assert {list(seq), list(h)} == {list(seq2), list(h2)}
    end

    test "a mask keeps the state, and reverse reads from the end" do
      x = tensor([[[1.0], [2.0], [3.0]]])
      wi = tensor([[0.3, 0.1, 0.7, 0.2]])
      wh = tensor([[0.1, 0.2, 0.3, 0.4]])
      all = Nitrox.tensor([[1, 1, 1]], type: {:u, 8})
      h0 = tensor([[0.25]])
      {seq, {_c, h}} = Nitrox.lstm(x, {h0, h0}, wi, wh, nil, mask: all)
      assert {list(seq), list(h)} == {[[[0.25], [0.25], [0.25]]], [[0.25]]}

      {forward, _} = Nitrox.lstm(x, nil, wi, wh, nil)

      {reversed, _} =
        Nitrox.lstm(tensor([[[3.0], [2.0], [1.0]]]), nil, wi, wh, nil, reverse: true)

      [forward] = list(forward)
      assert list(reversed) == [Enum.reverse(forward)]
    end

    test "a window of a convolution or a scan is its frames one after the other" do
      random = fn shape, seed ->
        count = Tuple.product(shape)
        values = for i <- 1..count, do: :math.sin(i * 1.7 + seed)
        Nitrox.reshape(tensor(values), shape)
      end

      [x, dt, z] = for seed <- 1..3, do: random.({1, 3, 4}, seed)
      [b, c] = for seed <- 4..5, do: random.({1, 3, 2}, seed)
      [a, d] = [Nitrox.subtract(random.({4, 2}, 6), 1.5), random.({4}, 7)]
      frame = &Nitrox.slice(&1, [0, &2, 0], [1, 1, elem(&1.shape, 2)])
      close = fn left, right -> left |> Nitrox.subtract(right) |> Nitrox.abs() |> Nitrox.sum() end

      w = random.({3, 4}, 8)
      {y, state} = Nitrox.causal_conv1d(x, w, d, activation: :silu)

      {frames, last} =
        Enum.map_reduce(0..2, nil, fn t, state ->
          Nitrox.causal_conv1d(frame.(x, t), w, d, activation: :silu, state: state)
        end)

      assert Nitrox.to_number(close.(y, Nitrox.concatenate(frames, axis: 1))) < 1.0e-5
      assert list(last) == list(state)

      opts = [dt_softplus: true, d: d, dt_bias: d]
      {y, h} = Nitrox.selective_scan(x, dt, a, b, c, [z: z] ++ opts)

      {frames, last} =
        Enum.map_reduce(0..2, nil, fn t, h ->
          [x, dt, b, c, z] = for v <- [x, dt, b, c, z], do: frame.(v, t)
          Nitrox.selective_scan(x, dt, a, b, c, [z: z, state: h] ++ opts)
        end)

      assert Nitrox.to_number(close.(y, Nitrox.concatenate(frames, axis: 1))) < 1.0e-5
      assert Nitrox.to_number(close.(h, last)) < 1.0e-5

      norm = {:rms_norm, d, nil}
      {normed, sum, _h} = Nitrox.selective_scan(x, dt, a, b, c, [z: z, norm: norm] ++ opts)
      assert Nitrox.to_number(close.(y, sum)) < 1.0e-5
      assert Nitrox.to_number(close.(normed, Nitrox.rms_norm(y, d))) < 1.0e-4
    end

    test "a product of rotated vectors knows only how far apart they are" do
      [q, k] = for _ <- 1..2, do: Nitrox.tensor([[[[0.3, -1.2, 0.7, 0.9]]]])
      at = &Nitrox.tensor([&1])

      for opts <- [[], [interleaved: true], [dims: 2], [base: 50, scale: 0.5]] do
        dot = fn i, j ->
          Nitrox.rope(q, at.(i), opts)
          |> Nitrox.multiply(Nitrox.rope(k, at.(j), opts))
          |> Nitrox.sum()
          |> Nitrox.to_number()
        end

        assert_in_delta dot.(5, 2), dot.(1_000_005, 1_000_002), 1.0e-5
        assert abs(dot.(5, 2) - dot.(5, 3)) > 1.0e-3
      end
    end

    test "a gated MLP is its three products" do
      [x, gate, up] = [[[1.0, -2.0]], [[0.5], [0.25]], [[2.0], [1.0]]] |> Enum.map(&tensor/1)
      down = tensor([[1.0, 3.0]])
      # x · gate = 0 and x · up = 0; with another x 1 and 4.
      assert list(Nitrox.gated_mlp(x, gate, up, down)) == [[0.0, 0.0]]
      x = tensor([[2.0, 0.0]])
      [[one, three]] = list(Nitrox.gated_mlp(x, gate, up, down, activation: :gelu, residual: x))
      gelu = 0.5 * (1 + :math.erf(1 / :math.sqrt(2)))
      assert_in_delta one, 4 * gelu + 2, 1.0e-5
      assert_in_delta three, 12 * gelu, 1.0e-5
    end

    test "an id outside of the table is a row of NaN" do
      table = tensor([[1.0], [2.0]])

      assert list(Nitrox.embedding(table, tensor([-1, 1, 2], {:s, 32}))) == [
               [:nan],
               [2.0],
               [:nan]
             ]
    end
  end

  describe "sample" do
    test "is a function of seed and counter" do
      logits = tensor([List.duplicate(0.0, 50), List.duplicate(0.0, 50)])

      draw = fn counter, opts ->
        elem(Nitrox.sample(logits, Nitrox.tensor(counter), opts), 0) |> list()
      end

      draws = for counter <- 0..20, do: draw.(counter, seed: 3)
      assert draws == for(counter <- 0..20, do: draw.(counter, seed: 3))
      assert length(Enum.uniq(draws)) > 15
      assert draws != for(counter <- 0..20, do: draw.(counter, seed: 4))
      {_, next} = Nitrox.sample(logits, Nitrox.tensor(41))
      assert Nitrox.to_number(next) == 42
    end

    test "keeps to top_k and top_p" do
      logits = tensor([[0.0, 3.0, 2.0, 1.0]])

      drawn = fn opts ->
        for counter <- 0..200, uniq: true do
          {ids, _} = Nitrox.sample(logits, Nitrox.tensor(counter), [temperature: 5] ++ opts)
          hd(list(ids))
        end
        |> Enum.sort()
      end

      assert drawn.([]) == [0, 1, 2, 3]
      assert drawn.(top_k: 2) == [1, 2]
      assert drawn.(top_p: 0.1) == [1]
      assert drawn.(top_k: 1, top_p: 1) == [1]
    end
  end

  describe "shape and type" do
    test "cast to the same type is the same tensor" do
      x = tensor([1.0])
      assert Nitrox.cast(x, {:f, 32}) == x
      assert Nitrox.type(Nitrox.cast(x, {:bf, 16})) == {:bf, 16}
    end

    test "transpose, with negative axes too" do
      x = Nitrox.reshape(tensor(Enum.to_list(1..6), {:s, 32}), {1, 2, 3})
      assert Nitrox.shape(Nitrox.transpose(x)) == {3, 2, 1}
      assert list(Nitrox.transpose(x, axes: [0, -1, -2])) == [[[1, 4], [2, 5], [3, 6]]]
    end

    test "slices with strides, positions and rings" do
      x = tensor([[0, 1, 2, 3], [4, 5, 6, 7]], {:s, 32})
      assert list(Nitrox.slice(x, [0, 1], [2, 2], strides: [1, 2])) == [[1, 3], [5, 7]]
      assert list(Nitrox.slice(x, [0, 0], [1, 2], strides: 2)) == [[0, 2]]

      at = fn n, opts ->
        Nitrox.slice(x, [0, 0], [1, 3], [axis: 1, position: Nitrox.tensor(n)] ++ opts)
      end

      # A start that runs over the end moves back; on a ring it goes on at the beginning.
      assert list(at.(3, [])) == [[1, 2, 3]]
      assert list(at.(3, wrap: true)) == [[3, 0, 1]]

      new = tensor([[8, 9]], {:s, 32})

      put = fn n, opts ->
        Nitrox.put_slice(x, [1, 0], new, [axis: 1, position: Nitrox.tensor(n)] ++ opts)
      end

      assert list(put.(3, [])) == [[0, 1, 2, 3], [4, 5, 8, 9]]
      assert list(put.(3, wrap: true)) == [[0, 1, 2, 3], [9, 5, 6, 8]]
    end

    test "stack and concatenate on each axis" do
      [a, b] = [tensor([[1, 2]], {:s, 32}), tensor([[3, 4]], {:s, 32})]
      assert list(Nitrox.concatenate([a, b])) == [[1, 2], [3, 4]]
      assert list(Nitrox.concatenate([a, b], axis: -1)) == [[1, 2, 3, 4]]
      assert list(Nitrox.stack([a, b])) == [[[1, 2]], [[3, 4]]]
      assert list(Nitrox.stack([a, b], axis: -1)) == [[[1, 3], [2, 4]]]
    end
  end

  test "reductions" do
    x = tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 9.0]])

    for {name, whole, rows} <- [
          {:sum, 24.0, [6.0, 18.0]},
          {:mean, 4.0, [2.0, 6.0]},
          {:product, 1080.0, [6.0, 180.0]},
          {:reduce_max, 9.0, [3.0, 9.0]},
          {:reduce_min, 1.0, [1.0, 4.0]}
        ] do
      assert Nitrox.to_number(apply(Nitrox, name, [x])) == whole
      assert list(apply(Nitrox, name, [x, [axes: [-1]]])) == rows
      kept = apply(Nitrox, name, [x, [axes: [1], keep_axes: true]])
      assert {Nitrox.shape(kept), list(kept)} == {{2, 1}, Enum.map(rows, &[&1])}
    end
  end

  # Columns 2k and 2k + 1 of a packed weight.
  defp gate(w, k) do
    case Nitrox.shape(w) do
      {rows, _} -> Nitrox.slice(w, [0, 2 * k], [rows, 2])
      {_} -> Nitrox.slice(w, [2 * k], [2])
    end
  end

  defp numbers(count, rand), do: Enum.map_reduce(1..count, rand, fn _, r -> :rand.normal_s(r) end)

  defp assert_close(tensor, expected, name) do
    for {x, y} <- Enum.zip(List.flatten(list(tensor)), expected) do
      assert_in_delta x, y, 2.0e-6 * Kernel.max(1, Kernel.abs(y)), "#{name}"
    end
  end

  test "an option that nobody knows is refused by every function that takes options" do
    x = Nitrox.tensor([1.0])

    for fun <- [
          fn -> Nitrox.tensor(1, devise: :cpu) end,
          fn -> Nitrox.from_binary(<<0::32>>, {:f, 32}, {}, devise: :cpu) end,
          fn -> Nitrox.Program.compile(& &1, [x], devise: :cpu) end,
          fn -> Nitrox.Device.open(:cpu, devise: :cpu) end,
          fn -> Nitrox.Op.explain(%Nitrox.Op.Unary{kind: :exp}, [x], devise: :cpu) end
        ] do
      error = assert_raise Nitrox.Error, fun
      assert error.reason == :argument
      assert error.message =~ "unknown option :devise; known are"
    end
  end
end
