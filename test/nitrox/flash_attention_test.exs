defmodule Nitrox.FlashAttentionTest do
  use ExUnit.Case, async: true

  alias Nitrox.Program

  @heads 4
  @key_heads 2
  @size 8

  defp random(shape, seed) do
    :rand.seed(:exsss, seed)
    values = for _ <- 1..Tuple.product(shape), do: :rand.normal()
    Nitrox.tensor(values) |> Nitrox.reshape(shape)
  end

  defp qkv(batch, queries, keys) do
    {random({batch, queries, @heads, @size}, 1), random({batch, keys, @key_heads, @size}, 2),
     random({batch, keys, @key_heads, @size}, 3)}
  end

  # By the definition, with `score.(score, b, head, i, j)` as what is done to a score; nil hides it.
  defp reference(q, k, v, score) do
    [q, k, v] = Enum.map([q, k, v], &Nitrox.to_list/1)

    for {{q, k, v}, b} <- Enum.with_index(Enum.zip([q, k, v])) do
      for {heads, i} <- Enum.with_index(q) do
        for {query, head} <- Enum.with_index(heads) do
          of = div(head * @key_heads, @heads)

          weights =
            for {{k, v}, j} <- Enum.with_index(Enum.zip(k, v)),
                s = score.(dot(query, Enum.at(k, of)) / :math.sqrt(@size), b, head, i, j) do
              {:math.exp(s), Enum.at(v, of)}
            end

          sum = weights |> Enum.map(&elem(&1, 0)) |> Enum.sum()

          for d <- 0..(@size - 1) do
            if weights == [],
              do: 0.0,
              else: Enum.sum(for {w, v} <- weights, do: w * Enum.at(v, d)) / sum
          end
        end
      end
    end
  end

  defp dot(a, b), do: Enum.zip_reduce(a, b, 0.0, fn a, b, sum -> sum + a * b end)

  defp assert_close(tensor, expected) do
    got = List.flatten(Nitrox.to_list(tensor))
    expected = List.flatten(expected)
    assert length(got) == length(expected)
    for {got, expected} <- Enum.zip(got, expected), do: assert_in_delta(got, expected, 1.0e-5)
  end

  test "every query sees every key" do
    {q, k, v} = qkv(2, 5, 7)
    out = Nitrox.flash_attention(q, k, v)
    assert Nitrox.shape(out) == {2, 5, @heads, @size}
    assert_close(out, reference(q, k, v, fn s, _, _, _, _ -> s end))
  end

  test "causal, with the last query at the last key" do
    {q, k, v} = qkv(1, 5, 7)
    expected = reference(q, k, v, fn s, _, _, i, j -> if j <= i + 2, do: s end)
    assert_close(Nitrox.flash_attention(q, k, v, causal: true), expected)
  end

  test "a window counts from the query's own place, which an offset moves" do
    {q, k, v} = qkv(2, 5, 9)
    offset = Nitrox.tensor([1, 3])
    expected = reference(q, k, v, fn s, b, _, i, j -> if abs(i + 1 + 2 * b - j) <= 1, do: s end)
    assert_close(Nitrox.flash_attention(q, k, v, window: {1, 1}, offset: offset), expected)

    expected = reference(q, k, v, fn s, _, _, i, j -> if j in (i - 3)..(i - 1)//1, do: s end)
    options = [window: {2, nil}, causal: true, offset: -1]
    assert_close(Nitrox.flash_attention(q, k, v, options), expected)
  end

  test "scale, soft cap, bias and both masks together, and the lse" do
    {q, k, v} = qkv(2, 3, 6)
    bias = random({@heads, 1, 6}, 4)
    mask = Nitrox.tensor([[1, 0, 1, 1, 1, 1], [0, 1, 1, 0, 1, 1]], type: {:u, 8})
    [biases, masks] = Enum.map([bias, mask], &Nitrox.to_list/1)

    score = fn s, b, head, _, j ->
      if j < Enum.at([6, 4], b) and at(masks, [b, j]) == 1 do
        2.0 * :math.tanh(s * :math.sqrt(@size) * 0.5 / 2.0) + at(biases, [head, 0, j])
      end
    end

    {out, lse} =
      Nitrox.flash_attention(q, k, v,
        scale: 0.5,
        softcap: 2,
        bias: bias,
        key_mask: mask,
        kv_len: Nitrox.tensor([6, 4]),
        lse: true
      )

    assert_close(out, reference(q, k, v, score))
    assert Nitrox.shape(lse) == {2, @heads, 3}
    assert Nitrox.type(lse) == {:f, 32}
    # One key, one query: its lse is its score.
    [q, k] = [Nitrox.tensor([[[[2.0]]]]), Nitrox.tensor([[[[3.0]]]])]
    assert {_, one} = Nitrox.flash_attention(q, k, k, scale: 0.5, lse: true)
    assert Nitrox.to_list(one) == [[[3.0]]]
  end

  defp at(list, path), do: Enum.reduce(path, list, &Enum.at(&2, &1))

  test "a row with nothing to attend to is zeros" do
    {q, k, v} = qkv(1, 2, 3)
    none = Nitrox.tensor([0])
    {out, lse} = Nitrox.flash_attention(q, k, v, kv_len: none, lse: true)
    assert out |> Nitrox.to_list() |> List.flatten() |> Enum.uniq() == [0.0]
    assert lse |> Nitrox.to_list() |> List.flatten() |> Enum.uniq() == [:neg_infinity]
  end

  test "in a program, lengths and offsets stay inputs" do
    {q, k, v} = qkv(1, 2, 6)

    program =
      Program.compile(
        fn q, k, v, length, offset ->
          Nitrox.flash_attention(q, k, v, causal: true, kv_len: length, offset: offset)
        end,
        [q, k, v, Nitrox.template({1}, {:s, 32}), Nitrox.template({}, {:s, 32})]
      )

    for {length, offset} <- [{4, 2}, {6, 4}, {1, 0}] do
      inputs = [q, k, v, Nitrox.tensor([length]), Nitrox.tensor(offset)]

      expected =
        reference(q, k, v, fn s, _, _, i, j -> if j <= i + offset and j < length, do: s end)

      assert_close(Program.run(program, inputs), expected)
    end
  end

  test "the 16-bit types" do
    {q, k, v} = qkv(1, 4, 9)

    for type <- [{:f, 16}, {:bf, 16}] do
      [q, k, v] = Enum.map([q, k, v], &Nitrox.cast(&1, type))
      out = Nitrox.flash_attention(q, k, v)
      assert Nitrox.type(out) == type
      exact = Enum.map([q, k, v], &Nitrox.cast(&1, {:f, 32}))

      difference =
        Nitrox.subtract(Nitrox.cast(out, {:f, 32}), apply(Nitrox, :flash_attention, exact))

      assert Nitrox.to_number(Nitrox.reduce_max(Nitrox.abs(difference))) < 2.0e-2
    end
  end

  # In a VM of its own, as what counts is the most that the process ever held.
  test "the scores are never kept: 16,384 frames see one another in some megabytes" do
    script = """
    {:ok, _} = Application.ensure_all_started(:nitrox)

    most = fn ->
      [_, kilobytes] = Regex.run(~r/VmHWM:\\s+(\\d+) kB/, File.read!("/proc/self/status"))
      String.to_integer(kilobytes) * 1024
    end

    attend = fn frames ->
      x = Nitrox.broadcast_to(Nitrox.tensor(0.5), {1, frames, 1, 8})
      {out, _lse} = Nitrox.flash_attention(x, x, x, causal: true, lse: true)
      Nitrox.to_number(Nitrox.mean(out))
    end

    attend.(64)
    before = most.()
    IO.inspect({attend.(16_384), most.() - before})
    """

    {out, status} = Nitrox.TestVM.run(script)
    assert status == 0, out
    assert [_, grown] = Regex.run(~r/\{0\.5, (\d+)\}/, out), out
    # The scores would be a gigabyte.
    assert String.to_integer(grown) < 64 * 1024 ** 2
  end

  test "what does not fit is refused" do
    {q, k, v} = qkv(1, 2, 3)

    for {fun, part} <- [
          {fn -> Nitrox.flash_attention(q, k, q) end, "v must be"},
          {fn -> Nitrox.flash_attention(q, k, v, window: 3) end, "{left, right}"},
          {fn -> Nitrox.flash_attention(q, k, v, window: {-1, nil}) end, "{left, right}"},
          {fn -> Nitrox.flash_attention(q, k, v, softcap: 0) end, "softcap"},
          {fn -> Nitrox.flash_attention(q, k, v, offset: 1.5) end, "offset"},
          {fn -> Nitrox.flash_attention(q, k, v, kv_len: 3) end, "kv_len"},
          {fn -> Nitrox.flash_attention(q, k, v, bias: random({5}, 1)) end, "broadcast"},
          {fn -> Nitrox.flash_attention(q, k, v, casual: true) end, ":causal"}
        ] do
      error = assert_raise Nitrox.Error, fun
      assert Exception.message(error) =~ part
    end
  end
end
