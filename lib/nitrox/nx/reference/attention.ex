if Code.ensure_loaded?(Nx.Tensor) do
  defmodule Nitrox.Nx.Reference.Attention do
    @moduledoc false
    # `Nitrox.Op.FlashAttention` with all its scores at once.

    import Nitrox.Nx.Reference, only: [f32: 1, plus: 2]

    def run(op, [q, k, v | rest]) do
      [bias, key_mask, kv_len, offset] = for i <- 0..3, do: Enum.at(rest, i)
      {batch, queries, heads, width} = q.shape
      {_, keys, key_heads, _} = k.shape
      group = div(heads, key_heads)

      # {B, Hkv, group · Sq, D}: the query heads that read a key head side by side.
      grouped =
        f32(q)
        |> Nx.transpose(axes: [0, 2, 1, 3])
        |> Nx.reshape({batch, key_heads, group * queries, width})

      [k, v] = for t <- [k, v], do: Nx.transpose(f32(t), axes: [0, 2, 1, 3])

      scores =
        grouped
        |> Nx.dot([3], [0, 1], k, [3], [0, 1])
        |> Nx.reshape({batch, heads, queries, keys})
        |> Nx.multiply(op.scale || 1 / :math.sqrt(width))
        |> soft_cap(op.softcap)
        |> plus(bias)

      seen = seen(op, offset, kv_len, key_mask, {batch, queries, keys})
      seen = Nx.broadcast(seen, scores.shape)

      # A row that sees nothing has no greatest score, and needs none.
      greatest =
        Nx.select(seen, scores, Nx.Constants.min_finite(:f32))
        |> Nx.reduce_max(axes: [3], keep_axes: true)

      powers =
        Nx.select(seen, Nx.exp(Nx.subtract(Nx.select(seen, scores, greatest), greatest)), 0.0)

      sum = Nx.sum(powers, axes: [3], keep_axes: true)
      any = Nx.greater(sum, 0)
      weights = Nx.divide(powers, Nx.select(any, sum, 1.0))

      out =
        weights
        |> Nx.reshape({batch, key_heads, group * queries, keys})
        |> Nx.dot([3], [0, 1], v, [2], [0, 1])
        |> Nx.reshape({batch, heads, queries, width})
        |> Nx.transpose(axes: [0, 2, 1, 3])
        |> Nx.as_type(q.type)

      if op.lse do
        total = Nx.add(greatest, Nx.log(Nx.select(any, sum, 1.0)))
        {out, Nx.select(any, total, Nx.Constants.neg_infinity(:f32)) |> Nx.squeeze(axes: [3])}
      else
        out
      end
    end

    defp soft_cap(scores, nil), do: scores

    defp soft_cap(scores, cap),
      do: Nx.multiply(Nx.tanh(Nx.divide(scores, cap)), cap)

    # {B or 1, 1, Sq, Sk}
    defp seen(op, offset, kv_len, key_mask, {batch, queries, keys}) do
      key = Nx.iota({1, 1, 1, keys}, axis: 3)
      # How far a key lies behind the query's own place.
      place = Nx.add(Nx.iota({1, 1, queries, 1}, axis: 2), place(op, offset, queries, keys))
      distance = Nx.subtract(key, place)
      right = if op.causal, do: 0, else: op.right

      [
        right && Nx.less_equal(distance, right),
        op.left && Nx.greater_equal(distance, -op.left),
        kv_len && Nx.less(key, Nx.reshape(kv_len, {batch, 1, 1, 1})),
        key_mask && Nx.not_equal(Nx.reshape(key_mask, {batch, 1, 1, keys}), 0)
      ]
      |> Enum.filter(& &1)
      |> Enum.reduce(Nx.broadcast(Nx.u8(1), {1, 1, queries, keys}), &Nx.logical_and/2)
    end

    defp place(op, nil, queries, keys), do: op.offset || keys - queries
    defp place(_, %{shape: {}} = offset, _, _), do: offset
    defp place(_, %{shape: {n}} = offset, _, _), do: Nx.reshape(offset, {n, 1, 1, 1})
  end
end
