if Code.ensure_loaded?(Axon) do
  defmodule Nitrox.Axon.Layers do
    @moduledoc false
    # The layers of `Nitrox.Axon`.

    defmacro __using__(_) do
      quote location: :keep, unquote: false do
        alias Nitrox.Axon.Layers

        @doc """
        A Mamba block (Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
        2023), as the package mamba_ssm has it.

        `x {batch, frames, M}` → `{batch, frames, M}`:

            v, z ← x · in                  each D = expand · M wide
            v ← silu(conv(v))              causal, each channel by itself
            dt, b, c ← v · x.w             R, N and N wide
            dt ← softplus(dt · dt.w + dt.b)
            h ← exp(dt · A) · h + dt · b · v
            y ← (c · h + d · v) · silu(z)
            y · out

        With `:norm` it is the block of a stack, `x + block(norm(x))`.

            Axon.input("frames", shape: {nil, nil, 64})
            |> Nitrox.Axon.mamba(norm: :rms_norm)
            |> Nitrox.Axon.mamba(norm: :rms_norm)

        ## Options

          * `:state` - N, numbers a channel, 1 to 256 (default `16`)
          * `:expand` - D is so many times M (default `2`)
          * `:conv` - frames that the convolution sees, 2 to 16 (default `4`)
          * `:dt_rank` - R, or `:auto` for M / 16, rounded up (default `:auto`)
          * `:norm` - `:rms_norm`, `:layer_norm` or nil: normalises x, and adds x to the result (default
            `nil`)
          * `:inner_norm` - RMS norms of dt, b and c, as in Jamba (default `false`)
          * `:epsilon` - of the norms (default `1.0e-5`)
          * `:use_bias` - biases of `in` and `out` (default `false`)
          * `:use_conv_bias` - a bias of the convolution (default `true`)
          * `:dt_min`, `:dt_max`, `:dt_init_floor` - between which the time steps begin, and the least
            one (default `0.001`, `0.1`, `1.0e-4`)
          * `:dt_init` - `:random` or `:constant`, how `dt.w` begins (default `:random`)
          * `:depth` - how many blocks the model has: `out.w` begins smaller by the root of it, as in
            mamba_ssm's language models (default `1`)
          * `:name` - of the layer (default `"mamba_0"` and so on)

        ## Parameters

        | name | shape | first values | of mamba_ssm's |
        |---|---|---|---|
        | `in.w` | `{M, 2D}`: v, z | uniform, ± 1/√M | `in_proj.weight`, transposed |
        | `in.b`, `out.b` | `{2D}`, `{M}` | 0 | `in_proj.bias`, `out_proj.bias` |
        | `conv.w` | `{conv, D}` | uniform, ± 1/√conv | `conv1d.weight`, transposed |
        | `conv.b` | `{D}` | uniform, ± 1/√conv | `conv1d.bias` |
        | `x.w` | `{D, R + 2N}`: dt, b, c | uniform, ± 1/√D | `x_proj.weight`, transposed |
        | `dt.w` | `{R, D}` | uniform, ± 1/√R, or 1/√R | `dt_proj.weight`, transposed |
        | `dt.b` | `{D}` | softplus gives steps from `dt_min` to `dt_max`, even by their logarithm | `dt_proj.bias` |
        | `a_log` | `{D, N}` | log 1, log 2, … log N: A is −exp of it | `A_log` |
        | `d` | `{D}` | 1 | `D` |
        | `out.w` | `{D, M}` | uniform, ± 1/√(D · depth) | `out_proj.weight`, transposed |
        | `norm.gamma`, `norm.beta` | `{M}` | 1, 0 | the norm before the block |
        | `dt.norm.gamma`, `b.norm.gamma`, `c.norm.gamma` | `{R}`, `{N}`, `{N}` | 1 | of Jamba |

        But for `a_log` these are the names of `Nitrox.Import.mamba/2` and of a `Nitrox.Backbone`'s
        layers; `mamba_params/2` makes the parameters of what either has.

        Under a mixed precision policy `a_log`, `d` and `dt.b` are read as they are stored, as mamba_ssm
        keeps them in f32, and the state is f32; all else is of the policy's type.

        Each call begins with the zero state. Policies that answer frame by frame are a
        `Nitrox.Backbone`.
        """
        @doc group: "Layers"
        @spec mamba(Axon.t(), keyword()) :: Axon.t()
        def mamba(x, opts \\ []), do: Layers.Mamba.layer(x, opts)

        @doc """
        The parameters of a `mamba/2` layer, of what `Nitrox.Import.mamba/2` gives, or of one layer of a
        `Nitrox.Backbone`'s parameters, whose names begin with `:prefix`.

            block = Nitrox.Import.mamba(weights, prefix: "mixer.")
            state = Axon.ModelState.new(%{"mamba_0" => Nitrox.Axon.mamba_params(block)})
            {init, predict} = Axon.build(model)
            init.(template, state)

        They lie where the imported ones do, and share their memory but for `a_log`. A bias that is nil is
        left out: give the layer `use_bias: false` or `use_conv_bias: false`.
        """
        @doc group: "Layers"
        @spec mamba_params(%{String.t() => Nitrox.Tensor.t() | nil}, keyword()) :: %{
                String.t() => Nx.Tensor.t()
              }
        def mamba_params(imported, opts \\ []), do: Layers.Mamba.params(imported, opts)

        @doc """
        A layer of attention with several heads (Vaswani et al., "Attention Is All You Need", 2017), on
        `Nitrox.flash_attention/4`.

        `x {batch, frames, M}` → `{batch, frames, M}`, with projections to queries, keys and values
        before and one after it. With `:norm` it is the block of a stack, `x + attention(norm(x))`.

            Nitrox.Axon.flash_attention(x, heads: 8, kv_heads: 2, causal: true, rope: true)

        ## Options

          * `:heads` - of the queries; must be given
          * `:kv_heads` - of the keys and values, of which `:heads` is a multiple (default `:heads`)
          * `:head_dim` - features of a head, at most 256 (default M / heads)
          * `:qkv` - `:separate` projections or one that is `:fused` (default `:separate`)
          * `:causal`, `:window`, `:scale`, `:softcap` - as in `Nitrox.flash_attention/4`
          * `:rope` - `true`, or options of `Nitrox.rope/3` (`[base: 500_000.0, dims: 32]`): queries and
            keys are turned by their positions (default: they are not)
          * `:positions` - a layer `{frames}` or `{batch, frames}` of integers, for `:rope` (default 0, 1,
            2, …)
          * `:qk_norm` - RMS norms of each query's and key's features (default `false`)
          * `:kv` - a layer `{batch, keys, features}` of which keys and values are made (cross attention;
            default x). `:norm` is of x alone
          * `:key_mask` - a layer `{batch, keys}`: a key where it is 0 is hidden
          * `:bias` - a layer that broadcasts to `{batch, heads, frames, keys}`, added to the scores
          * `:norm` - `:rms_norm`, `:layer_norm` or nil: normalises x, and adds x to the result (default
            `nil`)
          * `:epsilon` - of the norms (default `1.0e-5`)
          * `:use_bias`, `:use_output_bias` - biases of the projections before and after (default `true`)
          * `:kernel_initializer` - of the projections (default `:glorot_uniform`; the fused one is drawn as
            the one matrix that it is)
          * `:name` - of the layer (default `"flash_attention_0"` and so on)

        A query that sees no key gives zeros, of which the projection makes its bias. There is no dropout
        of attention weights, which are never kept; drop out of the layer's result. Keys are not kept from
        call to call: policies that answer frame by frame are a `Nitrox.Backbone`.

        ## Parameters

        For H heads of E features and G heads of keys and values: `q.w {M, H·E}`, `k.w` and `v.w {M, G·E}`
        (of `:kv`, its features by G·E), or `qkv.w {M, (H + 2G)·E}` with q, k and v side by side, each
        head by head; `out.w {H·E, M}`; their biases `q.b` and so on; `q.norm.gamma`, `k.norm.gamma {E}`;
        `norm.gamma`, `norm.beta {M}`.
        """
        @doc group: "Layers"
        @spec flash_attention(Axon.t(), keyword()) :: Axon.t()
        def flash_attention(x, opts), do: Layers.Attention.layer(x, opts)

        @doc """
        A feed-forward layer with a gate (Shazeer, "GLU Variants Improve Transformer", 2020), on
        `Nitrox.gated_mlp/5`.

        `x {…, M}` → `{…, M}`, `(activation(x · gate.w) ⊙ (x · up.w)) · down.w`.

        ## Options

          * `:hidden` - F, how wide it is between (default ⅔ · 4M, rounded up to a multiple of 8)
          * `:activation` - `:silu`, `:gelu` or `:gelu_tanh` (default `:silu`)
          * `:norm` - `:rms_norm`, `:layer_norm` or nil: normalises x, and adds x to the result (default
            `nil`)
          * `:epsilon` - of the norm (default `1.0e-5`)
          * `:kernel_initializer` - default `:glorot_uniform`
          * `:name` - of the layer (default `"gated_mlp_0"` and so on)

        ## Parameters

        `gate.w {M, F}`, `up.w {M, F}`, `down.w {F, M}`; `norm.gamma`, `norm.beta {M}`.
        """
        @doc group: "Layers"
        @spec gated_mlp(Axon.t(), keyword()) :: Axon.t()
        def gated_mlp(x, opts \\ []), do: Layers.GatedMlp.layer(x, opts)

        @doc """
        The layers of Jamba (Lieber et al., "Jamba: A Hybrid Transformer-Mamba Language Model", 2024): most
        mix frames by `mamba/2`, some by `flash_attention/2`, and a `gated_mlp/2` follows each.

        `x {batch, frames, M}` → `{batch, frames, M}`. Of each layer

            x ← x + mamba or attention(norm(x))
            x ← x + mlp(norm(x))

        and Axon's own norm after the last. As in the paper attention is causal, without positions and biases, and
        the Mamba blocks normalise dt, b and c. Its mixture of experts is left out: all layers have the
        dense MLP.

            Nitrox.Axon.jamba(x, layers: 6, attention_every: 3, attention: [heads: 4])

        ## Options

          * `:layers` - how many (default `:attention_every`, one block of the paper)
          * `:attention_every` - which n-th layer is one of attention (default `8`)
          * `:attention_offset` - the first of them, counted from 0 (default the middle one,
            `attention_every / 2`)
          * `:mamba`, `:attention`, `:mlp` - options of `mamba/2`, `flash_attention/2` and `gated_mlp/2`,
            but for `:norm`, `:epsilon` and `:name`. Attention needs its `:heads`
          * `:norm` - `:rms_norm` or `:layer_norm`, of all (default `:rms_norm`)
          * `:epsilon` - default `1.0e-5`
          * `:final_norm` - whether there is one after the last layer (default `true`)
          * `:name` - what the names of its layers begin with: `"name.0.mamba"`, `"name.0.mlp"`, …,
            `"name.norm"` (default: Axon's names, `"mamba_0"`, `"gated_mlp_0"`, …, `"rms_norm_0"`)
        """
        @doc group: "Layers"
        @spec jamba(Axon.t(), keyword()) :: Axon.t()
        def jamba(x, opts), do: Layers.Jamba.layer(x, opts)
      end
    end
  end
end
