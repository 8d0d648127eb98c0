if Code.ensure_loaded?(Axon) do
  defmodule Nitrox.Axon.Layers.Attention do
    @moduledoc false
    # `Nitrox.Axon.flash_attention/2`.

    import Nitrox.Axon.Layers.Node
    import Nitrox.Options, only: [boolean: 0, fail!: 2, number: 0]

    alias Nitrox.Options
    alias Nitrox.Backbone.Mamba

    @op :flash_attention

    def layer(x, opts) do
      input!(@op, x)
      opts = @op |> Options.validate!(opts, schema()) |> checked!()
      {inputs, opts} = Map.split(opts, [:kv, :key_mask, :bias, :positions])
      inputs = [{:x, x} | Enum.sort(inputs)]
      opts = Map.put(opts, :cross?, inputs[:kv] != nil)
      build(@op, opts, inputs, params(opts), &run(&1, opts))
    end

    defp schema do
      [
        heads: {nil, Options.integer(1)},
        kv_heads: {nil, Options.integer(1)},
        head_dim: {nil, integer(1, 256)},
        qkv: {:separate, Options.one_of([:separate, :fused])},
        causal: {false, boolean()},
        window: {nil, {"{left, right}, numbers of keys or nil", &window?/1}},
        scale: {nil, number()},
        softcap: {nil, positive()},
        rope: {nil, {"true or a keyword list of Nitrox.rope/3's options", &rope?/1}},
        qk_norm: {false, boolean()},
        use_bias: {true, boolean()},
        use_output_bias: {true, boolean()},
        kernel_initializer: {:glorot_uniform, initializer()},
        kv: {nil, layer()},
        key_mask: {nil, layer()},
        bias: {nil, layer()},
        positions: {nil, layer()},
        name: {nil, name()}
      ] ++ norm_schema()
    end

    defp window?({left, right}),
      do: Enum.all?([left, right], &(is_nil(&1) or (is_integer(&1) and &1 >= 0)))

    defp window?(_), do: false

    defp rope?(rope), do: rope in [true, false] or Keyword.keyword?(rope)

    defp checked!(%{heads: nil}),
      do: fail!(@op, "the option heads: is needed, the number of heads")

    defp checked!(%{heads: heads} = opts) do
      kv_heads = opts.kv_heads || heads

      rope =
        case opts.rope do
          true -> []
          none when none in [nil, false] -> nil
          rope -> Options.known!(@op, rope, [:base, :scale, :dims, :interleaved])
        end

      cond do
        rem(heads, kv_heads) != 0 ->
          fail!(@op, "kv_heads: #{heads} heads are no multiple of #{kv_heads}")

        opts.kv && opts.qkv == :fused ->
          fail!(@op, "qkv: :fused is for keys and values of x itself, not of another layer (kv:)")

        opts.kv && rope ->
          fail!(
            @op,
            "rope: positions are those of one sequence, and keys come from another (kv:)"
          )

        opts.positions && !rope ->
          fail!(@op, "positions: they are for rope:, which is not given")

        true ->
          %{opts | kv_heads: kv_heads, rope: rope}
      end
    end

    defp params(%{heads: heads, kv_heads: kv_heads} = opts) do
      width = &width!(@op, "x", &1.x)
      source = if opts.cross?, do: &width!(@op, "kv", &1.kv), else: width
      size = &head_dim!(opts, width.(&1))
      of = fn count -> &(count * size.(&1)) end

      projections =
        case opts.qkv do
          :fused ->
            [{"qkv", width, of.(heads + 2 * kv_heads)}]

          _ ->
            [{"q", width, of.(heads)}, {"k", source, of.(kv_heads)}, {"v", source, of.(kv_heads)}]
        end

      head_norm = if opts.qk_norm, do: {&{size.(&1)}, :ones}

      norm_params(opts, width) ++
        Enum.flat_map(projections, &projection(&1, opts.use_bias, opts)) ++
        [{"q.norm.gamma", head_norm}, {"k.norm.gamma", head_norm}] ++
        projection({"out", of.(heads), width}, opts.use_output_bias, opts)
    end

    defp projection({name, inputs, outputs}, bias?, opts) do
      [
        {"#{name}.w", {&{inputs.(&1), outputs.(&1)}, opts.kernel_initializer}},
        {"#{name}.b", bias? && {&{outputs.(&1)}, :zeros}}
      ]
    end

    defp head_dim!(%{head_dim: nil, heads: heads}, width) do
      if rem(width, heads) != 0 do
        fail!(
          @op,
          "heads: #{heads} heads do not divide the #{width} features of x; give head_dim:"
        )
      end

      div(width, heads)
    end

    defp head_dim!(%{head_dim: size}, _width), do: size

    defp run(%{x: %{shape: shape, type: type}} = p, opts) do
      width!(@op, "x", shape)
      p = typed(p)
      {x, residual} = enter(opts, p)

      [q, k, v] =
        x
        |> project(p, opts)
        |> Enum.zip_with([opts.heads, opts.kv_heads, opts.kv_heads], &heads/2)

      [q, k] =
        for {tensor, gamma} <- [{q, p["q.norm.gamma"]}, {k, p["k.norm.gamma"]}],
            do: tensor |> normed(gamma, opts) |> turned(p, opts)

      options = [
        causal: opts.causal,
        window: opts.window,
        scale: opts.scale,
        softcap: opts.softcap,
        key_mask: p[:key_mask] && Nx.not_equal(p.key_mask, 0),
        bias: p[:bias] && bias(p.bias, type)
      ]

      q
      |> Nitrox.flash_attention(k, v, options)
      |> Nitrox.reshape(put_elem(shape, 2, :auto))
      |> Nitrox.dense(p["out.w"], p["out.b"], residual: residual)
    end

    defp project(x, %{"qkv.w" => w} = p, %{heads: heads, kv_heads: kv_heads}) do
      size = div(Nx.axis_size(w, 1), heads + 2 * kv_heads)

      x
      |> Nitrox.dense(w, p["qkv.b"])
      |> Mamba.split(for n <- [heads, kv_heads, kv_heads], do: n * size)
    end

    defp project(x, p, _opts) do
      source = if p[:kv], do: Nx.as_type(p.kv, x.type), else: x

      for {from, name} <- [{x, "q"}, {source, "k"}, {source, "v"}],
          do: Nitrox.dense(from, p[name <> ".w"], p[name <> ".b"])
    end

    defp heads(%{shape: {batch, frames, _}} = x, count),
      do: Nitrox.reshape(x, {batch, frames, count, :auto})

    defp normed(x, nil, _opts), do: x
    defp normed(x, gamma, opts), do: Nitrox.rms_norm(x, gamma, epsilon: opts.epsilon)

    defp turned(x, _p, %{rope: nil}), do: x

    defp turned(x, p, %{rope: rope}) do
      positions = if p[:positions], do: Nx.as_type(p.positions, :s32), else: Nx.s32(0)
      Nitrox.rope(x, positions, rope)
    end

    defp bias(bias, type), do: if(bias.type == {:f, 32}, do: bias, else: Nx.as_type(bias, type))
  end
end
