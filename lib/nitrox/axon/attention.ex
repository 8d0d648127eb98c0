if Code.ensure_loaded?(Axon) do
  defmodule Nitrox.Axon.Attention do
    @moduledoc false
    # Attention from what Bumblebee computes its weights of, by `Nitrox.flash_attention/4`.

    import Nitrox.Axon.Fused, only: [cast: 2, common_type: 1, fits: 2, shapes: 1]

    alias Nx.Tensor, as: T

    @doc "The layer's result, `{:ok, out}`, or `{:plain, why}`."
    def run([query, key, key_mask, head_mask, bias, offset], value, opts) do
      [key_mask, head_mask, bias, offset] =
        for input <- [key_mask, head_mask, bias, offset],
            do: if(is_struct(input, T), do: input)

      tensors = [query, key, value]

      others = Enum.filter([bias, head_mask], & &1)

      with {:ok, type} <- common_type(tensors),
           {:ok, wide} <- common_type(tensors ++ others),
           :ok <- fits(attention?(tensors), "attention of shapes #{shapes(tensors)}"),
           {:ok, rule} <- rule(opts, offset),
           {:ok, hidden} <- hidden(key_mask, bias && cast(bias, wide), key) do
        [q, k, v] = for t <- tensors, do: cast(t, type)
        out = Nitrox.flash_attention(q, k, v, rule ++ hidden) |> cast(wide)

        if head_mask,
          do: {:ok, Nx.multiply(out, Nx.reshape(head_mask, {1, 1, :auto, 1}))},
          else: {:ok, out}
      end
    end

    def run(_, _, _), do: {:plain, "it has other inputs than Bumblebee gives it"}

    defp attention?([query, key, value]) do
      Nx.rank(query) == 4 and Nx.rank(key) == 4 and key.shape == value.shape and
        Nx.axis_size(query, 2) == Nx.axis_size(key, 2)
    end

    # Where there is no cache, query i stands at key i; with one, at i + offset.
    defp rule(opts, offset) do
      window = opts[:window_size]
      scale = opts[:scale]
      causal? = opts[:causal] || false

      cond do
        not (is_nil(scale) or is_number(scale)) ->
          {:plain, "a scale that is no number"}

        not (is_nil(window) or match?({l, r} when is_integer(l) and is_integer(r), window)) ->
          {:plain, "a window of other than two integers"}

        not (is_nil(offset) or offset.shape == {}) ->
          {:plain, "an offset of shape #{shapes([offset])}"}

        true ->
          offset = if offset, do: Nx.as_type(offset, :s32), else: 0
          {:ok, [scale: scale, causal: causal?, window: window, offset: offset]}
      end
    end

    # What hides keys. Only a mask of rows, or none, is one for the kernel; a mask of single scores
    # goes into the bias, where a row of nothing else is uniform, as Bumblebee has it.
    defp hidden(nil, bias, _), do: {:ok, [bias: bias]}

    defp hidden(%T{shape: {n, keys}} = mask, bias, key) do
      batch = Nx.axis_size(key, 0)

      if keys == Nx.axis_size(key, 1) and n in [1, batch],
        do: {:ok, [bias: bias, key_mask: Nx.broadcast(Nx.not_equal(mask, 0), {batch, keys})]},
        else: {:plain, "a mask of shape #{shapes([mask])}"}
    end

    defp hidden(%T{shape: {_, _, _, _}} = mask, bias, key) do
      bias = bias || Nx.tensor(0, type: key.type)
      shape = Nx.add(mask, bias).shape
      least = Nx.Constants.min_finite(bias.type)
      {:ok, [bias: Nx.select(Nx.broadcast(Nx.not_equal(mask, 0), shape), bias, least)]}
    end

    defp hidden(mask, _, _), do: {:plain, "a mask of shape #{shapes([mask])}"}
  end
end
