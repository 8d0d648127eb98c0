defmodule Nitrox.Functions.Sequences do
  @moduledoc false
  # The layers on sequences: recurrent ones, convolution and scan, positions, attention.

  alias Nitrox.{Op, Options}

  defmacro __using__(_) do
    quote location: :keep, unquote: false do
      @doc """
      A window of an LSTM layer in one call. See `Nitrox.Op.Lstm`.

      `x {B, T, I}`, the state `{c0 {B, H}, h0 {B, H}}`, `wi {I, 4H}`, `wh {H, 4H}`, `b {4H}` or nil →
      `{seq {B, T, H}, {c {B, H}, h {B, H}}}`. Gates are in the order i f g o. One frame is a window of
      T = 1. The state, or either half of it, may be nil for zeros.

      A weight may also be the tuple of its four gates, as Axon keeps them. They are packed side by
      side; in a program that is done once, when it is compiled.

      Options:

        * `:mask` - `{B, T}`, `{:u, 8}`: where it is not zero the old state is kept
        * `:reverse` - from the last frame to the first; `seq` keeps the order of `x` (default `false`)

      ## Examples

          iex> [wi, wh] = [Nitrox.tensor([[0.0, 0.0, 1.0, 9.0]]), Nitrox.tensor([[0.0, 0.0, 0.0, 0.0]])]
          iex> x = Nitrox.tensor([[[1.0], [1.0]]])
          iex> {seq, {_c, h}} = Nitrox.lstm(x, nil, wi, wh, nil)
          iex> {Nitrox.shape(seq), Nitrox.shape(h)}
          {{1, 2, 1}, {1, 1}}
      """
      @doc group: "Layers"
      @spec lstm(
              t(),
              {t() | nil, t() | nil} | nil,
              t() | tuple(),
              t() | tuple(),
              t() | tuple() | nil,
              keyword()
            ) ::
              {t(), {t(), t()}}
      def lstm(x, state, wi, wh, b, opts \\ []) do
        opts = recurrent_options(:lstm, opts)

        {c0, h0} =
          case state do
            nil -> {nil, nil}
            {_, _} -> state
            other -> fail!(:lstm, "state: expected {c0, h0} or nil, got #{inspect(other)}")
          end

        [wi, wh, b] = [gates(:lstm, :wi, wi, 4), gates(:lstm, :wh, wh, 4), gates(:lstm, :b, b, 4)]
        [seq, c, h] = Op.apply(%Op.Lstm{reverse: opts.reverse}, [x, c0, h0, wi, wh, b, opts.mask])
        {seq, {c, h}}
      end

      @doc """
      A window of a GRU layer in one call. See `Nitrox.Op.Gru`.

      `x {B, T, I}`, the state `{h0 {B, H}}`, `wi {I, 3H}`, `wh {H, 3H}`, `b {4H}` or nil →
      `{seq {B, T, H}, {h {B, H}}}`. Gates are in the order r z n, the bias is r, z, n and the recurrent
      n. The state may be nil for zeros.

      A weight may also be the tuple of its gates (three, and four of the bias), as in `lstm/6`, whose
      options these are.
      """
      @doc group: "Layers"
      @spec gru(
              t(),
              {t() | nil} | nil,
              t() | tuple(),
              t() | tuple(),
              t() | tuple() | nil,
              keyword()
            ) ::
              {t(), {t()}}
      def gru(x, state, wi, wh, b, opts \\ []) do
        opts = recurrent_options(:gru, opts)

        h0 =
          case state do
            nil -> nil
            {h0} -> h0
            other -> fail!(:gru, "state: expected {h0} or nil, got #{inspect(other)}")
          end

        [wi, wh, b] = [gates(:gru, :wi, wi, 3), gates(:gru, :wh, wh, 3), gates(:gru, :b, b, 4)]
        [seq, h] = Op.apply(%Op.Gru{reverse: opts.reverse}, [x, h0, wi, wh, b, opts.mask])
        {seq, {h}}
      end

      defp recurrent_options(op, opts) do
        Options.validate!(op, opts, mask: {nil, tensor()}, reverse: {false, boolean()})
      end

      defp gates(_op, _name, weight, count)
           when is_tuple(weight) and tuple_size(weight) == count do
        concatenate(Tuple.to_list(weight), axis: -1)
      end

      defp gates(op, name, weight, count) when is_tuple(weight) do
        fail!(
          op,
          "#{name}: expected a tensor or a tuple of #{count} gates, got #{tuple_size(weight)}"
        )
      end

      defp gates(_op, _name, weight, _count), do: weight

      @doc """
      A causal convolution along time, each channel by itself. See `Nitrox.Op.CausalConv1d`.

      `x {B, L, D}`, `w {K, D}` with `w[K − 1]` on the newest frame, `b {D}` or nil →
      `{y {B, L, D}, state {B, K − 1, D}}`. The state is the last K − 1 frames: given to the next call,
      windows follow on one another, and one frame is a window of L = 1. K is at most 16.

      Options:

        * `:activation` - `:none` or `:silu` (default `:none`)
        * `:state` - `{B, K − 1, D}`, what came before (default: zeros)

      ## Examples

          iex> x = Nitrox.tensor([[[1.0], [2.0], [3.0]]])
          iex> {y, state} = Nitrox.causal_conv1d(x, Nitrox.tensor([[10.0], [1.0]]), nil)
          iex> {Nitrox.to_list(y), Nitrox.to_list(state)}
          {[[[1.0], [12.0], [23.0]]], [[[3.0]]]}
      """
      @doc group: "Layers"
      @spec causal_conv1d(t(), t(), t() | nil, keyword()) :: {t(), t()}
      def causal_conv1d(x, w, b, opts \\ []) do
        opts =
          Options.validate!(:causal_conv1d, opts,
            activation: {:none, one_of([:none, :silu])},
            state: {nil, tensor()}
          )

        [y, state] =
          Op.apply(%Op.CausalConv1d{activation: opts.activation}, [x, w, b, opts.state])

        {y, state}
      end

      @doc """
      The selective scan of Mamba. See `Nitrox.Op.SelectiveScan`.

      `x`, `dt {B, L, D}`, `a {D, N}` (A itself, which is negative, and not its logarithm),
      `b`, `c {B, L, N}` → `{y {B, L, D}, h {B, D, N}}`, or with a norm `{normed, sum, h}`. One frame is
      a window of L = 1. `a`, `:d` and `:dt_bias` may be `{:f, 32}` whatever the others are; `h` and
      `:state` are.

      Options:

        * `:dt_bias` - `{D}`, added to dt first
        * `:dt_softplus` - whether dt then takes the softplus (default `false`)
        * `:dt_clamp` - `{low, high}`, between which dt is kept then
        * `:d` - `{D}`, adds `d · x`
        * `:z` - `{B, L, D}`, gates by `silu(z)`
        * `:state` - `{B, D, N}`, the `h` of the window before (default: zeros)
        * `:residual` - `{B, L, D}`, added last
        * `:norm` - `{:layer_norm, gamma, beta}` or `{:rms_norm, gamma, nil}`: what comes out is
          normalised over D, and the result is `{normed, sum, h}`
        * `:epsilon` - of the norm (default `1.0e-5`)

      ## Examples

          iex> [x, dt] = [Nitrox.tensor([[[2.0], [2.0]]]), Nitrox.tensor([[[0.5], [0.5]]])]
          iex> [b, c] = [Nitrox.tensor([[[1.0], [1.0]]]), Nitrox.tensor([[[1.0], [3.0]]])]
          iex> {y, h} = Nitrox.selective_scan(x, dt, Nitrox.tensor([[0.0]]), b, c)
          iex> {Nitrox.to_list(y), Nitrox.to_list(h)}
          {[[[1.0], [6.0]]], [[[2.0]]]}
      """
      @doc group: "Layers"
      @spec selective_scan(t(), t(), t(), t(), t(), keyword()) :: {t(), t()} | {t(), t(), t()}
      def selective_scan(x, dt, a, b, c, opts \\ []) do
        opts =
          Options.validate!(:selective_scan, opts,
            dt_bias: {nil, tensor()},
            dt_softplus: {false, boolean()},
            dt_clamp: {nil, range()},
            d: {nil, tensor()},
            z: {nil, tensor()},
            state: {nil, tensor()},
            residual: {nil, tensor()},
            norm: {nil, norm()},
            epsilon: {1.0e-5, not_negative()}
          )

        {norm, gamma, beta} = opts.norm || {nil, nil, nil}

        op = %Op.SelectiveScan{
          dt_softplus: opts.dt_softplus,
          dt_clamp: opts.dt_clamp,
          norm: norm,
          epsilon: opts.epsilon * 1.0
        }

        inputs = [x, dt, a, b, c, opts.d, opts.z, opts.dt_bias, opts.state, opts.residual]
        List.to_tuple(Op.apply(op, inputs ++ [gamma, beta]))
      end

      @doc """
      Rotary positions. See `Nitrox.Op.Rope`.

      `x {B, S, H, D}`, `positions` of `{:s, 32}`: `{B, S}`, `{S}`, or `{}`, the position of the first
      frame → `{B, S, H, D}`. D is even, or `:dims` says how many features turn.

      Options:

        * `:base` - of the frequencies (default `10_000.0`)
        * `:scale` - by which positions are multiplied (default `1.0`)
        * `:dims` - how many of the first features turn, an even number (default: all)
        * `:interleaved` - neighbours make a pair, as in GPT-J, and not the two halves (default `false`)

      ## Examples

          iex> x = Nitrox.tensor([[[[1.0, 2.0]]]])
          iex> Nitrox.rope(x, Nitrox.tensor([0])) |> Nitrox.to_list()
          [[[[1.0, 2.0]]]]
      """
      @doc group: "Layers"
      @spec rope(t(), t(), keyword()) :: t()
      def rope(x, positions, opts \\ []) do
        opts =
          Options.validate!(:rope, opts,
            base: {10_000.0, number()},
            scale: {1.0, number()},
            dims: {nil, integer(0)},
            interleaved: {false, boolean()}
          )

        op = %Op.Rope{
          base: opts.base * 1.0,
          scale: opts.scale * 1.0,
          dims: opts.dims,
          interleaved: opts.interleaved
        }

        one(op, [x, positions])
      end

      @doc """
      Attention that never keeps its scores (FlashAttention-2). See `Nitrox.Op.FlashAttention`.

      `q {B, Sq, Hq, D}`, `k` and `v` `{B, Sk, Hkv, D}`, Hq a multiple of Hkv, D at most 256 →
      `{B, Sq, Hq, D}`; with `lse: true` it is `{out, lse {B, Hq, Sq}}`. A row with nothing to attend to
      is zeros, and its lse −∞.

      Options:

        * `:scale` - what q · k is multiplied with (default 1/√D)
        * `:softcap` - a number c: scores become c · tanh(score / c)
        * `:bias` - a tensor added to the scores; its shape broadcasts to `{B, Hq, Sq, Sk}`
        * `:causal` - query i sees no keys after i + offset (default `false`)
        * `:window` - `{left, right}`: query i sees the keys from i + offset − left to i + offset + right;
          `nil` for either sets no bound there
        * `:offset` - a number, or a tensor `{}` or `{B}` of type `{:s, 32}` (default Sk − Sq)
        * `:kv_len` - a tensor `{B}` of type `{:s, 32}`: keys from there on are hidden
        * `:key_mask` - a tensor `{B, Sk}` of type `{:u, 8}`: 1 keeps the key, 0 hides it
        * `:lse` - also give the logarithm of the sum of the scores' exponentials (default `false`)

      ## Examples

          iex> q = Nitrox.tensor([[[[1.0]], [[1.0]]]])
          iex> v = Nitrox.tensor([[[[2.0]], [[4.0]]]])
          iex> Nitrox.flash_attention(q, q, v) |> Nitrox.to_list()
          [[[[3.0]], [[3.0]]]]
          iex> Nitrox.flash_attention(q, q, v, causal: true) |> Nitrox.to_list()
          [[[[2.0]], [[3.0]]]]
      """
      @doc group: "Layers"
      @spec flash_attention(t(), t(), t(), keyword()) :: t() | {t(), t()}
      def flash_attention(q, k, v, opts \\ []) do
        number = {"a number", &is_number/1}
        place = {"an integer or a tensor", &(is_integer(&1) or tensor?(&1))}

        opts =
          Options.validate!(:flash_attention, opts,
            scale: {nil, number},
            softcap: {nil, number},
            bias: {nil, tensor()},
            causal: {false, boolean()},
            window: {nil, {"{left, right}, numbers of keys or nil", &window?/1}},
            offset: {nil, place},
            kv_len: {nil, tensor()},
            key_mask: {nil, tensor()},
            lse: {false, boolean()}
          )

        {left, right} = opts.window || {nil, nil}

        {offset, offset_tensor} =
          if tensor?(opts.offset), do: {nil, opts.offset}, else: {opts.offset, nil}

        op = %Op.FlashAttention{
          scale: opts.scale && opts.scale * 1.0,
          causal: opts.causal,
          left: left,
          right: right,
          softcap: opts.softcap && opts.softcap * 1.0,
          offset: offset,
          lse: opts.lse
        }

        inputs = [q, k, v, opts.bias, opts.key_mask, opts.kv_len, offset_tensor]

        case Op.apply(op, inputs) do
          [out] -> out
          [out, lse] -> {out, lse}
        end
      end

      defp window?({left, right}) do
        Enum.all?([left, right], &(is_nil(&1) or (is_integer(&1) and &1 >= 0)))
      end

      defp window?(_), do: false
    end
  end
end
