if Code.ensure_loaded?(Axon) do
  defmodule Nitrox.Axon.Layers.Mamba do
    @moduledoc false
    # `Nitrox.Axon.mamba/2`. What the block computes is in `Nitrox.Backbone.Mamba`.

    import Nitrox.Axon.Layers.Node
    import Nitrox.Options, only: [boolean: 0, fail!: 2]

    alias Nitrox.{Backbone, Options}

    # What mamba_ssm keeps in f32 whatever the rest is.
    @scan ~w(a_log d dt.b)

    def layer(x, opts) do
      input!(:mamba, x)
      opts = Options.validate!(:mamba, opts, schema())

      if opts.dt_min > opts.dt_max do
        fail!(:mamba, "dt_min: expected at most dt_max, #{opts.dt_max}, got #{opts.dt_min}")
      end

      build(:mamba, opts, [x: x], params(opts), &run(&1, opts))
    end

    defp schema do
      [
        state: {16, integer(1, 256)},
        expand: {2, Options.integer(1)},
        # With one tap there are no frames to keep, which is nothing a tensor of Nx can hold.
        conv: {4, integer(2, 16)},
        dt_rank: {:auto, {":auto or an integer of at least 1", &rank?/1}},
        dt_min: {0.001, positive()},
        dt_max: {0.1, positive()},
        dt_init_floor: {1.0e-4, positive()},
        dt_init: {:random, Options.one_of([:random, :constant])},
        use_bias: {false, boolean()},
        use_conv_bias: {true, boolean()},
        inner_norm: {false, boolean()},
        depth: {1, Options.integer(1)},
        name: {nil, name()}
      ] ++ norm_schema()
    end

    defp rank?(rank), do: rank == :auto or (is_integer(rank) and rank > 0)

    defp params(%{state: states, conv: taps} = opts) do
      width = &width!(:mamba, "x", &1.x)
      inner = &(opts.expand * width.(&1))

      rank =
        if opts.dt_rank == :auto, do: &div(width.(&1) + 15, 16), else: fn _ -> opts.dt_rank end

      dt = if opts.dt_init == :random, do: fan_in(), else: &constant/2
      inner_norm = fn length -> if opts.inner_norm, do: {&{length.(&1)}, :ones} end

      norm_params(opts, width) ++
        [
          {"in.w", {&{width.(&1), 2 * inner.(&1)}, fan_in()}},
          {"in.b", opts.use_bias && {&{2 * inner.(&1)}, :zeros}},
          {"conv.w", {&{taps, inner.(&1)}, fan_in()}},
          {"conv.b",
           opts.use_conv_bias &&
             {&{inner.(&1)}, &uniform(&3, 1 / :math.sqrt(taps), &1, &2)}},
          {"x.w", {&{inner.(&1), rank.(&1) + 2 * states}, fan_in()}},
          {"dt.norm.gamma", inner_norm.(rank)},
          {"b.norm.gamma", inner_norm.(fn _ -> states end)},
          {"c.norm.gamma", inner_norm.(fn _ -> states end)},
          {"dt.w", {&{rank.(&1), inner.(&1)}, dt}},
          {"dt.b", {&{inner.(&1)}, &time_steps(opts, &1, &2, &3)}},
          {"a_log", {&{inner.(&1), states}, &decays/2}},
          {"d", {&{inner.(&1)}, :ones}},
          {"out.w", {&{inner.(&1), width.(&1)}, fan_in(1 / :math.sqrt(opts.depth))}},
          {"out.b", opts.use_bias && {&{width.(&1)}, :zeros}}
        ]
    end

    # ── First values ──────────────────────────────────────────────────────────────────────────────

    # The logarithms of 1 to N in each channel: A is −1, −2, … −N.
    defp decays(shape, type),
      do: shape |> Nx.iota(axis: 1) |> Nx.add(1) |> Nx.log() |> Nx.as_type(type)

    defp constant({rank, _} = shape, type),
      do: Nx.broadcast(Nx.tensor(1 / :math.sqrt(rank), type: type), shape)

    # What softplus gives steps for that are even by their logarithm.
    defp time_steps(opts, shape, type, key) do
      [low, high] = for t <- [opts.dt_min, opts.dt_max], do: :math.log(t)
      {drawn, _} = Nx.Random.uniform(key, low, high, shape: shape, type: :f32)
      steps = drawn |> Nx.exp() |> Nx.max(opts.dt_init_floor)
      # The inverse of softplus, without the exponential of t that a large one would need.
      steps
      |> Nx.negate()
      |> Nx.expm1()
      |> Nx.negate()
      |> Nx.log()
      |> Nx.add(steps)
      |> Nx.as_type(type)
    end

    # ── The layer ─────────────────────────────────────────────────────────────────────────────────

    defp run(p, opts) do
      width!(:mamba, "x", p.x.shape)
      p = typed(p, @scan)
      {x, residual} = enter(opts, p)
      p = Map.put(p, "a", p["a_log"] |> Nx.as_type(:f32) |> Nx.exp() |> Nx.negate())
      {y, _state} = Backbone.Mamba.mix(p, x, {nil, nil}, residual, opts.epsilon)
      y
    end

    # ── Weights from elsewhere ────────────────────────────────────────────────────────────────────

    def params(imported, opts) do
      opts = Options.validate!(:mamba_params, opts, prefix: {"", {"a string", &is_binary/1}})

      if not is_map(imported) or is_struct(imported) do
        fail!(:mamba_params, "expected a map of tensors by name, got #{inspect(imported)}")
      end

      params =
        for {name, %Nitrox.Tensor{} = tensor} <- imported,
            String.starts_with?(name, opts.prefix),
            into: %{} do
          case String.replace_prefix(name, opts.prefix, "") do
            "a" -> {"a_log", tensor |> Nitrox.negate() |> Nitrox.log() |> Nitrox.to_nx()}
            name -> {name, Nitrox.to_nx(tensor)}
          end
        end

      if not is_map_key(params, "a_log") do
        fail!(
          :mamba_params,
          "expected the parameters of a Mamba block, as Nitrox.Import.mamba/2 gives them, " <>
            "got no #{inspect(opts.prefix <> "a")} among #{inspect(Enum.sort(Map.keys(imported)))}"
        )
      end

      params
    end
  end
end
