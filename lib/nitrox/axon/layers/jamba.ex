if Code.ensure_loaded?(Axon) do
  defmodule Nitrox.Axon.Layers.GatedMlp do
    @moduledoc false
    # `Nitrox.Axon.gated_mlp/2`.

    import Nitrox.Axon.Layers.Node

    alias Nitrox.Options

    def layer(x, opts) do
      input!(:gated_mlp, x)

      opts =
        Options.validate!(
          :gated_mlp,
          opts,
          [
            hidden: {nil, Options.integer(1)},
            activation: {:silu, Options.one_of([:silu, :gelu, :gelu_tanh])},
            kernel_initializer: {:glorot_uniform, initializer()},
            name: {nil, name()}
          ] ++ norm_schema()
        )

      build(:gated_mlp, opts, [x: x], params(opts), &run(&1, opts))
    end

    defp params(%{kernel_initializer: drawn} = opts) do
      width = &last!(&1.x)
      hidden = if opts.hidden, do: fn _ -> opts.hidden end, else: &default(width.(&1))

      norm_params(opts, width) ++
        [
          {"gate.w", {&{width.(&1), hidden.(&1)}, drawn}},
          {"up.w", {&{width.(&1), hidden.(&1)}, drawn}},
          {"down.w", {&{hidden.(&1), width.(&1)}, drawn}}
        ]
    end

    defp last!({}), do: Options.fail!(:gated_mlp, "x: expected at least one axis, got {}")
    defp last!(shape), do: elem(shape, tuple_size(shape) - 1)

    # Two thirds of 4 · width, a multiple of 8.
    defp default(width), do: div(div(8 * width, 3) + 7, 8) * 8

    defp run(p, opts) do
      p = typed(p)
      {x, residual} = enter(opts, p)

      Nitrox.gated_mlp(x, p["gate.w"], p["up.w"], p["down.w"],
        activation: opts.activation,
        residual: residual
      )
    end
  end

  defmodule Nitrox.Axon.Layers.Jamba do
    @moduledoc false
    # `Nitrox.Axon.jamba/2`: Mamba, attention and gated layers behind one another.

    import Nitrox.Axon.Layers.Node
    import Nitrox.Options, only: [boolean: 0, fail!: 2]

    alias Nitrox.Axon.Layers.{Attention, GatedMlp, Mamba}
    alias Nitrox.Options

    # Jamba's attention has no positions and no biases, and its Mamba blocks normalise dt, b and c.
    @attention [use_bias: false, use_output_bias: false, causal: true]
    @mamba [inner_norm: true]

    def layer(x, opts) do
      input!(:jamba, x)
      parts = {"a keyword list", &Keyword.keyword?/1}

      opts =
        Options.validate!(
          :jamba,
          opts,
          [
            layers: {nil, Options.integer(1)},
            attention_every: {8, Options.integer(1)},
            attention_offset: {nil, Options.integer(0)},
            mamba: {[], parts},
            attention: {[], parts},
            mlp: {[], parts},
            final_norm: {true, boolean()},
            name: {nil, name()}
          ] ++ Keyword.merge(norm_schema(), norm: {:rms_norm, elem(norm_schema()[:norm], 1)})
        )

      offset = opts.attention_offset || div(opts.attention_every, 2)
      layers = opts.layers || opts.attention_every

      if offset >= opts.attention_every do
        fail!(
          :jamba,
          "attention_offset: expected less than attention_every, #{opts.attention_every}, got #{offset}"
        )
      end

      x =
        for n <- 0..(layers - 1), reduce: x do
          x -> layer(x, n, rem(n, opts.attention_every) == offset, opts)
        end

      if opts.final_norm, do: norm(x, opts), else: x
    end

    defp layer(x, n, attention?, opts) do
      mixed =
        if attention?,
          do: Attention.layer(x, part(opts, :attention, n, @attention)),
          else: Mamba.layer(x, part(opts, :mamba, n, @mamba))

      GatedMlp.layer(mixed, part(opts, :mlp, n, []))
    end

    # What the caller says of one kind of layer, over what Jamba's are.
    defp part(opts, kind, n, defaults) do
      for {name, why} <- [
            norm: "jamba's own norm: is that of all",
            epsilon: "jamba's own epsilon: is that of all",
            name: "jamba's own name: begins all names"
          ],
          Keyword.has_key?(opts[kind], name) do
        fail!(:jamba, "#{kind}: takes no #{name}:, since #{why}")
      end

      defaults
      |> Keyword.merge(opts[kind])
      |> Keyword.merge(norm: opts.norm, epsilon: opts.epsilon)
      |> then(&if opts.name, do: [{:name, "#{opts.name}.#{n}.#{kind}"} | &1], else: &1)
    end

    defp norm(x, opts) do
      common = [epsilon: opts.epsilon, name: opts.name && opts.name <> ".norm"]

      case opts.norm do
        :rms_norm -> Axon.rms_norm(x, common)
        :layer_norm -> Axon.layer_norm(x, [gamma_initializer: :ones] ++ common)
      end
    end
  end
end
