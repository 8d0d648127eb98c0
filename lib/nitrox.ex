defmodule Nitrox do
  @moduledoc """
  Tensors that stay on the device, and the functions on them.

  A tensor is a handle on device memory, with a shape and a type. `tensor/2` and `from_binary/4`
  make one from host data, `to_list/1` and `to_binary/1` bring one back; in between nothing leaves
  the device. When the last handle is collected, the memory returns to the device's pool.

      iex> x = Nitrox.tensor([[1.0, 2.0], [3.0, 4.0]])
      iex> Nitrox.shape(x)
      {2, 2}
      iex> x |> Nitrox.multiply(10) |> Nitrox.sum(axes: [1]) |> Nitrox.to_list()
      [30.0, 70.0]

  The same functions take the symbolic values inside a function given to `Nitrox.Program.compile/3`:
  there they are traced, and the whole function becomes one program (on CUDA: one graph, one launch).

  ## What goes for all of them

    * Shapes are tuples and types are Nx's: `{:f, 32}`, `{:bf, 16}`, `{:f, 16}`, `{:f, 64}`,
      `{:s, 32}`, `{:s, 64}`, `{:u, 32}`, `{:u, 8}`. Nothing is converted in silence: operands are of
      one type, or `cast/2` makes them so.
    * A number among the operands becomes a scalar of the first tensor's type.
    * Negative axes count from the last.
    * Tensors of one call live on one device, and so does the result.
    * What does not fit raises `Nitrox.Error`, whose message says what was expected and what came.
    * The op behind a function, with its formula, types and source, is in its `Nitrox.Op` module.
  """

  import Kernel, except: [abs: 1, ceil: 1, floor: 1, max: 2, min: 2, round: 1]
  import Nitrox.Options, except: [validate!: 3]

  alias Nitrox.{Device, Op, Options, Template, Tensor, Value}

  @typedoc "A tensor on a device, or a value in a function that is being traced."
  @type t :: Tensor.t() | Value.t()

  @typedoc "A tensor, or a number that becomes a scalar of the other operand's type."
  @type operand :: t() | number()

  @type shape :: tuple()
  @type type :: Tensor.type()

  @activations [:none, :relu, :silu, :gelu, :gelu_tanh, :tanh, :sigmoid]

  # ── Handles ────────────────────────────────────────────────────────────────────────────────────

  @doc """
  A tensor of a number or of nested lists of numbers.

  Floats give `{:f, 32}` and integers `{:s, 32}`, unless `type:` says otherwise. `device:` is the
  default device (`config :nitrox, default_device: …`, or `:cpu`) unless given.

      iex> Nitrox.tensor([[1, 2, 3]]) |> Nitrox.type()
      {:s, 32}
  """
  @doc group: "Handles"
  @spec tensor(number() | list(), keyword()) :: Tensor.t()
  defdelegate tensor(data, opts \\ []), to: Tensor

  @doc """
  A tensor of a binary: the elements in row-major order and native byte order.

      iex> Nitrox.from_binary(<<1.0::float-32-native, 2.0::float-32-native>>, {:f, 32}, {2})
      ...> |> Nitrox.to_list()
      [1.0, 2.0]
  """
  @doc group: "Handles"
  @spec from_binary(binary(), type(), shape(), keyword()) :: Tensor.t()
  defdelegate from_binary(binary, type, shape, opts \\ []), to: Tensor

  @doc "The elements as a binary, once all work that writes them is done."
  @doc group: "Handles"
  @spec to_binary(Tensor.t()) :: binary()
  defdelegate to_binary(tensor), to: Tensor

  @doc """
  The elements as nested lists; those of a scalar as a number. What JSON and Erlang have no number
  for comes as `:nan`, `:infinity` or `:neg_infinity`.
  """
  @doc group: "Handles"
  @spec to_list(Tensor.t()) :: list() | number() | atom()
  defdelegate to_list(tensor), to: Tensor

  @doc """
  The element of a tensor that has just one.

      iex> Nitrox.tensor([1.0, 2.0]) |> Nitrox.sum() |> Nitrox.to_number()
      3.0
  """
  @doc group: "Handles"
  @spec to_number(Tensor.t()) :: number() | atom()
  defdelegate to_number(tensor), to: Tensor

  @doc "A shape and a type with no elements: what `Nitrox.Program.compile/3` traces a function on."
  @doc group: "Handles"
  @spec template(shape(), type()) :: Nitrox.Template.t()
  defdelegate template(shape, type), to: Template, as: :new

  @doc "A copy with memory of its own, on the device given or on its own."
  @doc group: "Handles"
  @spec copy(Tensor.t(), Device.t() | nil) :: Tensor.t()
  defdelegate copy(tensor, device \\ nil), to: Tensor

  @doc "The shape, a tuple of lengths."
  @doc group: "Handles"
  @spec shape(t()) :: shape()
  def shape(tensor), do: tensor!(:shape, tensor).shape

  @doc "The type of the elements."
  @doc group: "Handles"
  @spec type(t()) :: type()
  def type(tensor), do: tensor!(:type, tensor).type

  @doc "The device that the elements lie on."
  @doc group: "Handles"
  @spec device(Tensor.t()) :: Device.t()
  defdelegate device(tensor), to: Tensor

  @doc """
  Returns the memory to the pool now instead of when the handle is collected. Later uses of the
  tensor are errors.
  """
  @doc group: "Handles"
  @spec deallocate(Tensor.t()) :: :ok
  defdelegate deallocate(tensor), to: Tensor

  @doc "The devices of this machine: `:cpu`, and `{:cuda, n}` for each GPU that can be used."
  @doc group: "Handles"
  @spec devices() :: [map()]
  defdelegate devices(), to: Device, as: :list

  @doc "What a device's memory pool holds: bytes in use, peak, reserved, fragmentation and so on."
  @doc group: "Handles"
  @spec memory_stats(Device.t()) :: Device.stats()
  defdelegate memory_stats(device \\ Device.default()), to: Device

  @doc "Waits for all work queued on a device."
  @doc group: "Handles"
  @spec synchronize(Device.t()) :: :ok
  defdelegate synchronize(device \\ Device.default()), to: Device

  @doc """
  Which kernel an op would use on inputs like these, and why. Templates serve as inputs too.

      Nitrox.explain(%Nitrox.Op.Dense{activation: :relu}, [x, w, b, nil])

  `launches` is the number of kernels, 0 on the CPU. `:device` asks for another device than the
  tensors'.
  """
  @doc group: "Handles"
  @spec explain(struct(), [t() | Template.t() | nil], keyword()) :: %{
          variant: String.t(),
          why: String.t(),
          launches: non_neg_integer()
        }
  defdelegate explain(op, inputs, opts \\ []), to: Op

  # ── Layers ─────────────────────────────────────────────────────────────────────────────────────

  @doc """
  A linear layer, `activation(x · w + b) + residual`. See `Nitrox.Op.Dense`.

  `x {…, in}`, `w {in, out}`, `b {out}` or nil → `{…, out}`.

  Options:

    * `:activation` - #{Enum.map_join(@activations, ", ", &"`#{inspect(&1)}`")} (default `:none`)
    * `:residual` - a tensor `{…, out}`, added last

  ## Examples

      iex> x = Nitrox.tensor([[1.0, -2.0]])
      iex> w = Nitrox.tensor([[1.0, 0.0], [0.0, 1.0]])
      iex> Nitrox.dense(x, w, nil, activation: :relu) |> Nitrox.to_list()
      [[1.0, 0.0]]
  """
  @doc group: "Layers"
  @spec dense(t(), t(), t() | nil, keyword()) :: t()
  def dense(x, w, b, opts \\ []) do
    opts =
      Options.validate!(:dense, opts,
        activation: {:none, one_of(@activations)},
        residual: {nil, tensor()}
      )

    one(%Op.Dense{activation: opts.activation}, [x, w, b, opts.residual])
  end

  @doc """
  Layer normalisation over the last axis. See `Nitrox.Op.LayerNorm`.

  `x {…, D}`, `gamma {D}`, `beta {D}` → `{…, D}`.

  Options:

    * `:epsilon` - added to the variance (default `1.0e-5`)
    * `:residual` - a tensor of `x`'s shape. It is added to `x` first, and the result is
      `{normed, x + residual}`

  ## Examples

      iex> x = Nitrox.tensor([[1.0, 3.0]])
      iex> [one, zero] = [Nitrox.tensor([1.0, 1.0]), Nitrox.tensor([0.0, 0.0])]
      iex> Nitrox.layer_norm(x, one, zero, epsilon: 0) |> Nitrox.to_list()
      [[-1.0, 1.0]]
  """
  @doc group: "Layers"
  @spec layer_norm(t(), t(), t(), keyword()) :: t() | {t(), t()}
  def layer_norm(x, gamma, beta, opts \\ []) do
    opts = norm_options(:layer_norm, opts)
    norm(%Op.LayerNorm{epsilon: opts.epsilon * 1.0}, [x, gamma, beta], opts.residual)
  end

  @doc """
  Normalisation by the root mean square of the last axis. See `Nitrox.Op.RmsNorm`.

  `x {…, D}`, `gamma {D}` → `{…, D}`. Options are those of `layer_norm/4`.
  """
  @doc group: "Layers"
  @spec rms_norm(t(), t(), keyword()) :: t() | {t(), t()}
  def rms_norm(x, gamma, opts \\ []) do
    opts = norm_options(:rms_norm, opts)
    norm(%Op.RmsNorm{epsilon: opts.epsilon * 1.0}, [x, gamma], opts.residual)
  end

  defp norm_options(op, opts) do
    Options.validate!(op, opts, epsilon: {1.0e-5, not_negative()}, residual: {nil, tensor()})
  end

  defp norm(op, inputs, nil), do: one(op, inputs)

  defp norm(op, inputs, residual) do
    [normed, sum] = Op.apply(op, inputs ++ [residual])
    {normed, sum}
  end

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
  @spec gru(t(), {t() | nil} | nil, t() | tuple(), t() | tuple(), t() | tuple() | nil, keyword()) ::
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

  defp gates(_op, _name, weight, count) when is_tuple(weight) and tuple_size(weight) == count do
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

    [y, state] = Op.apply(%Op.CausalConv1d{activation: opts.activation}, [x, w, b, opts.state])
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
  A feed-forward block with a gate, `(activation(x · gate) ⊙ (x · up)) · down`. See
  `Nitrox.Op.GatedMlp`.

  `x {…, D}`, `gate {D, F}`, `up {D, F}`, `down {F, D}` → `{…, D}`.

  Options:

    * `:activation` - `:silu`, `:gelu` (by the error function) or `:gelu_tanh` (default `:silu`)
    * `:residual` - a tensor of x's shape, added last

  ## Examples

      iex> w = Nitrox.tensor([[1.0]])
      iex> y = Nitrox.gated_mlp(Nitrox.tensor([[0.0]]), w, w, w, residual: Nitrox.tensor([[3.0]]))
      iex> Nitrox.to_list(y)
      [[3.0]]
  """
  @doc group: "Layers"
  @spec gated_mlp(t(), t(), t(), t(), keyword()) :: t()
  def gated_mlp(x, gate, up, down, opts \\ []) do
    opts =
      Options.validate!(:gated_mlp, opts,
        activation: {:silu, one_of([:silu, :gelu, :gelu_tanh])},
        residual: {nil, tensor()}
      )

    one(%Op.GatedMlp{activation: opts.activation}, [x, gate, up, down, opts.residual])
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
  Rows of a table, one for each id. See `Nitrox.Op.Embedding`.

  `table {V, E}`, `ids {…}` of an integer type → `{…, E}`. An id outside of the table gives NaN.

      iex> table = Nitrox.tensor([[1.0, 1.5], [2.0, 2.5]])
      iex> Nitrox.embedding(table, Nitrox.tensor([1, 0])) |> Nitrox.to_list()
      [[2.0, 2.5], [1.0, 1.5]]
  """
  @doc group: "Layers"
  @spec embedding(t(), t()) :: t()
  def embedding(table, ids), do: one(%Op.Embedding{}, [table, ids])

  # ── Attention ──────────────────────────────────────────────────────────────────────────────────

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

  # ── Choosing ───────────────────────────────────────────────────────────────────────────────────

  @doc """
  The softmax along `:axis` (default `-1`): `x {…}` → `{…}`. See `Nitrox.Op.Softmax`.

      iex> Nitrox.softmax(Nitrox.tensor([2.0, 2.0])) |> Nitrox.to_list()
      [0.5, 0.5]
  """
  @doc group: "Choosing"
  @spec softmax(t(), keyword()) :: t()
  def softmax(x, opts \\ []) do
    opts = Options.validate!(:softmax, opts, axis: {-1, integer()})
    one(%Op.Softmax{axis: opts.axis, log: false}, [x])
  end

  @doc "The logarithm of `softmax/2`, with its options."
  @doc group: "Choosing"
  @spec log_softmax(t(), keyword()) :: t()
  def log_softmax(x, opts \\ []) do
    opts = Options.validate!(:log_softmax, opts, axis: {-1, integer()})
    one(%Op.Softmax{axis: opts.axis, log: true}, [x])
  end

  @doc """
  The index of the greatest element, `{:s, 32}`. The first of equals wins, and a NaN beats any number.

  Options:

    * `:axis` - along which to look. Without one, the index is that into all elements in order
    * `:keep_axis` - leave the axis there, with length 1 (default `false`)

  ## Examples

      iex> x = Nitrox.tensor([[1.0, 7.0], [8.0, 3.0]])
      iex> Nitrox.argmax(x, axis: -1) |> Nitrox.to_list()
      [1, 0]
      iex> Nitrox.argmax(x) |> Nitrox.to_number()
      2
  """
  @doc group: "Choosing"
  @spec argmax(t(), keyword()) :: t()
  def argmax(x, opts \\ []) do
    opts = Options.validate!(:argmax, opts, axis: {nil, integer()}, keep_axis: {false, boolean()})

    case opts do
      %{axis: nil, keep_axis: true} ->
        fail!(:argmax, "keep_axis: needs an axis to keep")

      %{axis: nil} ->
        one(%Op.Argmax{axis: 0}, [reshape(x, {size(tensor!(:argmax, x))})])

      %{axis: axis, keep_axis: keep_axis} ->
        one(%Op.Argmax{axis: axis, keep_axis: keep_axis}, [x])
    end
  end

  @doc """
  Draws an index from each row of logits, on the device. See `Nitrox.Op.Sample`.

  `logits {…, V}`, `counter {}` of `{:s, 32}` → `{ids {…}, counter + 1}`, both `{:s, 32}`. The draw
  depends on nothing but the seed and the counter: keep the new counter in a session's state, and
  the next call draws anew; give the same one again, and it draws the same.

  Options:

    * `:temperature` - the logits are divided by it; 0 takes the most likely (default `1.0`)
    * `:top_k` - only the k most likely
    * `:top_p` - only the fewest, from the most likely down, whose probabilities sum to at least p
    * `:seed` - default `0`

  ## Examples

      iex> logits = Nitrox.tensor([[0.0, 9.0, 1.0]])
      iex> {ids, counter} = Nitrox.sample(logits, Nitrox.tensor(0), temperature: 0)
      iex> {Nitrox.to_list(ids), Nitrox.to_number(counter)}
      {[1], 1}
  """
  @doc group: "Choosing"
  @spec sample(t(), t(), keyword()) :: {t(), t()}
  def sample(logits, counter, opts \\ []) do
    opts =
      Options.validate!(:sample, opts,
        temperature: {1.0, not_negative()},
        top_k: {nil, integer(1)},
        top_p: {nil, {"a number above 0 and at most 1", &(is_number(&1) and &1 > 0 and &1 <= 1)}},
        seed: {0, {"an integer from 0 to 2^64 - 1", &(&1 in 0..0xFFFFFFFFFFFFFFFF)}}
      )

    top_p = if opts.top_p, do: opts.top_p * 1.0
    op = struct!(Op.Sample, %{opts | temperature: opts.temperature * 1.0, top_p: top_p})
    [ids, counter] = Op.apply(op, [logits, counter])
    {ids, counter}
  end

  # ── Elementwise ────────────────────────────────────────────────────────────────────────────────

  for {name, doc} <- [
        negate: "`−x`.",
        abs: "`|x|`.",
        sign: "−1, 0 or 1.",
        exp: "`eˣ`. Floats.",
        expm1: "`eˣ − 1`, exact near 0. Floats.",
        log: "The natural logarithm. Floats.",
        log1p: "`ln(1 + x)`, exact near 0. Floats.",
        sqrt: "`√x`. Floats.",
        rsqrt: "`1 / √x`. Floats.",
        reciprocal: "`1 / x`. Floats.",
        sin: "The sine. Floats.",
        cos: "The cosine. Floats.",
        tanh: "The hyperbolic tangent. Floats.",
        erf: "The error function. Floats.",
        floor: "The next integer down. Floats.",
        ceil: "The next integer up. Floats.",
        round: "The nearest integer, halves away from zero. Floats.",
        sigmoid: "`1 / (1 + e⁻ˣ)`. Floats.",
        relu: "x where it is positive, 0 elsewhere.",
        silu: "`x · sigmoid(x)`. Floats.",
        gelu: "`x · Φ(x)` by the error function. Floats.",
        gelu_tanh: "`gelu/1` by its approximation with tanh, as in GPT-2. Floats.",
        softplus: "`ln(1 + eˣ)`. Floats.",
        logical_not: "1 where x is 0, 0 elsewhere, as `{:u, 8}`."
      ] do
    @doc "#{doc} `x {…}` → `{…}`."
    @doc group: "Functions of one tensor"
    @spec unquote(name)(t()) :: t()
    def unquote(name)(x), do: one(%Op.Unary{kind: unquote(name)}, [x])
  end

  for {name, doc} <- [
        add: "`a + b`.",
        subtract: "`a − b`.",
        multiply: "`a · b`.",
        divide: "`a / b`. Floats; `quotient/2` divides integers.",
        quotient: "`a / b` of integers, truncated; by zero it gives zero.",
        remainder: "What `a / b` leaves over, with the sign of `a`.",
        max: "The greater one.",
        min: "The lesser one.",
        pow: "`aᵇ`.",
        equal: "1 where `a = b`, else 0, as `{:u, 8}`.",
        not_equal: "1 where `a ≠ b`, else 0, as `{:u, 8}`.",
        less: "1 where `a < b`, else 0, as `{:u, 8}`.",
        less_equal: "1 where `a ≤ b`, else 0, as `{:u, 8}`.",
        greater: "1 where `a > b`, else 0, as `{:u, 8}`.",
        greater_equal: "1 where `a ≥ b`, else 0, as `{:u, 8}`.",
        logical_and: "1 where neither is 0, else 0, as `{:u, 8}`.",
        logical_or: "1 where one of them is not 0, else 0, as `{:u, 8}`.",
        logical_xor: "1 where just one of them is not 0, else 0, as `{:u, 8}`."
      ] do
    @doc """
    #{doc}

    `a` and `b` are of one type and broadcast against each other; one of them may be a number. See
    `Nitrox.Op.Binary`.
    """
    @doc group: "Functions of two tensors"
    @spec unquote(name)(operand(), operand()) :: t()
    def unquote(name)(a, b), do: one(%Op.Binary{kind: unquote(name)}, [a, b])
  end

  @doc """
  `on_true` where the predicate is not zero, `on_false` elsewhere. The predicate is `{:u, 8}`, as
  comparisons give it; the three broadcast.

      iex> x = Nitrox.tensor([-1.0, 2.0])
      iex> x |> Nitrox.less(0) |> Nitrox.select(Nitrox.multiply(x, 0.5), x) |> Nitrox.to_list()
      [-0.5, 2.0]
  """
  @doc group: "Functions of two tensors"
  @spec select(t(), t(), t()) :: t()
  def select(predicate, on_true, on_false), do: one(%Op.Select{}, [predicate, on_true, on_false])

  @doc """
  `x`, but no less than `least` and no more than `most`.

      iex> Nitrox.tensor([-3, 0, 3]) |> Nitrox.clip(-1, 1) |> Nitrox.to_list()
      [-1, 0, 1]
  """
  @doc group: "Functions of two tensors"
  @spec clip(t(), operand(), operand()) :: t()
  def clip(_x, least, most) when is_number(least) and is_number(most) and least > most do
    fail!(:clip, "expected least ≤ most, got #{inspect(least)} and #{inspect(most)}")
  end

  def clip(x, least, most), do: x |> max(least) |> min(most)

  # ── Shape and type ─────────────────────────────────────────────────────────────────────────────

  @doc """
  The same elements in another type. Floats to integers are truncated, and what is out of range
  becomes the nearest end of it. See `Nitrox.Op.Cast`.

      iex> Nitrox.tensor([1.9, -1.9, 300.0]) |> Nitrox.cast({:u, 8}) |> Nitrox.to_list()
      [1, 0, 255]
  """
  @doc group: "Shape and type"
  @spec cast(t(), type()) :: t()
  def cast(x, type) do
    if tensor!(:cast, x).type == type, do: x, else: one(%Op.Cast{type: type}, [x])
  end

  @doc """
  The same elements under another shape; costs nothing. One axis may be `:auto`.

      iex> Nitrox.tensor([[1, 2], [3, 4]]) |> Nitrox.reshape({:auto}) |> Nitrox.to_list()
      [1, 2, 3, 4]
  """
  @doc group: "Shape and type"
  @spec reshape(t(), shape()) :: t()
  def reshape(x, shape) do
    x = tensor!(:reshape, x)
    one(%Op.Reshape{shape: shape!(:reshape, fill(shape, x))}, [x])
  end

  defp fill(shape, x) when is_tuple(shape) do
    {axes, size} = {Tuple.to_list(shape), size(x)}
    known = for axis <- axes, is_integer(axis), reduce: 1, do: (product -> product * axis)

    case Enum.count(axes, &(&1 == :auto)) do
      0 ->
        shape

      1 when known > 0 and rem(size, known) == 0 ->
        axes |> Enum.map(&if(&1 == :auto, do: div(size, known), else: &1)) |> List.to_tuple()

      _ ->
        fail!(
          :reshape,
          "#{inspect(shape)} does not fit the #{size} elements of #{inspect(x.shape)}"
        )
    end
  end

  defp fill(shape, _x), do: shape

  @doc """
  The axes in another order: axis i of the result is axis `axes[i]` of `x`. Without `:axes` the order
  is reversed.

      iex> Nitrox.tensor([[1, 2], [3, 4]]) |> Nitrox.transpose() |> Nitrox.to_list()
      [[1, 3], [2, 4]]
  """
  @doc group: "Shape and type"
  @spec transpose(t(), keyword()) :: t()
  def transpose(x, opts \\ []) do
    opts = Options.validate!(:transpose, opts, axes: {nil, axes()})
    rank = tuple_size(tensor!(:transpose, x).shape)
    axes = opts.axes || Enum.to_list((rank - 1)..0//-1)
    one(%Op.Transpose{axes: Enum.map(axes, &from_start(&1, rank))}, [x])
  end

  @doc """
  `x` repeated to a shape: axes are aligned at the last, and those that are missing or of length 1
  are repeated.

      iex> Nitrox.tensor([1, 2]) |> Nitrox.broadcast_to({2, 2}) |> Nitrox.to_list()
      [[1, 2], [1, 2]]
  """
  @doc group: "Shape and type"
  @spec broadcast_to(t(), shape()) :: t()
  def broadcast_to(x, shape), do: one(%Op.Broadcast{shape: shape!(:broadcast_to, shape)}, [x])

  @doc """
  A part of `x`: `lengths[i]` elements of axis i, from `starts[i]` on. See `Nitrox.Op.Slice`.

  Options:

    * `:strides` - a step for each axis, or one for all (default `1`)
    * `:position` - a scalar of `{:s, 32}` on the device, added to the start on `:axis`
    * `:axis` - default `0`
    * `:wrap` - `:axis` is a ring: the slice goes on at its beginning. Without it, a slice that would
      run over the end is moved back until it fits (default `false`)

  ## Examples

      iex> x = Nitrox.tensor([0, 1, 2, 3])
      iex> Nitrox.slice(x, [1], [2]) |> Nitrox.to_list()
      [1, 2]
      iex> Nitrox.slice(x, [0], [3], position: Nitrox.tensor(2), wrap: true) |> Nitrox.to_list()
      [2, 3, 0]
  """
  @doc group: "Shape and type"
  @spec slice(t(), [integer()], [non_neg_integer()], keyword()) :: t()
  def slice(x, starts, lengths, opts \\ []) do
    opts =
      Options.validate!(
        :slice,
        opts,
        [strides: {1, {"a step or a list of steps", &(is_integer(&1) or is_list(&1))}}] ++ place()
      )

    if not (is_list(starts) and is_list(lengths)) do
      fail!(
        :slice,
        "starts and lengths are lists, got #{inspect(starts)} and #{inspect(lengths)}"
      )
    end

    strides =
      if is_integer(opts.strides),
        do: List.duplicate(opts.strides, length(lengths)),
        else: opts.strides

    op = %Op.Slice{
      starts: starts,
      lengths: lengths,
      strides: strides,
      axis: opts.axis,
      wrap: opts.wrap
    }

    one(op, [x, opts.position])
  end

  @doc """
  `x` with `slice` written over it from `starts` on. See `Nitrox.Op.PutSlice`.

  Options: `:position`, `:axis` and `:wrap` of `slice/4`.

      iex> ring = Nitrox.tensor([0, 0, 0])
      iex> one_two = Nitrox.tensor([1, 2])
      iex> ring |> Nitrox.put_slice([2], one_two, wrap: true) |> Nitrox.to_list()
      [2, 0, 1]
  """
  @doc group: "Shape and type"
  @spec put_slice(t(), [integer()], t(), keyword()) :: t()
  def put_slice(x, starts, slice, opts \\ []) do
    opts = Options.validate!(:put_slice, opts, place())
    op = %Op.PutSlice{starts: starts, axis: opts.axis, wrap: opts.wrap}
    one(op, [x, slice, opts.position])
  end

  defp place, do: [position: {nil, tensor()}, axis: {0, integer()}, wrap: {false, boolean()}]

  @doc """
  Tensors one after the other along `:axis` (default `0`). They agree on every other axis.

      iex> Nitrox.concatenate([Nitrox.tensor([1, 2]), Nitrox.tensor([3])]) |> Nitrox.to_list()
      [1, 2, 3]
  """
  @doc group: "Shape and type"
  @spec concatenate([t()], keyword()) :: t()
  def concatenate(tensors, opts \\ []) do
    opts = Options.validate!(:concatenate, opts, axis: {0, integer()})

    case tensors do
      [_ | _] ->
        one(%Op.Concatenate{axis: opts.axis}, tensors)

      other ->
        fail!(:concatenate, "expected a list of at least one tensor, got #{inspect(other)}")
    end
  end

  @doc """
  Tensors of one shape side by side along a new `:axis` (default `0`).

      iex> Nitrox.stack([Nitrox.tensor([1, 2]), Nitrox.tensor([3, 4])], axis: 1) |> Nitrox.to_list()
      [[1, 3], [2, 4]]
  """
  @doc group: "Shape and type"
  @spec stack([t()], keyword()) :: t()
  def stack(tensors, opts \\ []) do
    opts = Options.validate!(:stack, opts, axis: {0, integer()})

    case tensors do
      [first | _] ->
        rank = tuple_size(tensor!(:stack, first).shape)
        axis = from_start(opts.axis, rank + 1)

        if axis not in 0..rank,
          do: fail!(:stack, "axis #{opts.axis} is out of range for #{rank + 1} axes")

        tensors
        |> Enum.map(&reshape(&1, Tuple.insert_at(tensor!(:stack, &1).shape, axis, 1)))
        |> concatenate(axis: axis)

      other ->
        fail!(:stack, "expected a list of at least one tensor, got #{inspect(other)}")
    end
  end

  # ── Reductions ─────────────────────────────────────────────────────────────────────────────────

  for {name, kind, doc} <- [
        {:sum, :sum, "The sum"},
        {:mean, :mean, "The mean of floats"},
        {:product, :product, "The product"},
        {:reduce_max, :max, "The greatest element"},
        {:reduce_min, :min, "The least element"}
      ] do
    @doc """
    #{doc} over `:axes`, or over all of them. See `Nitrox.Op.Reduce`.

    Options:

      * `:axes` - a list of axes (default: all)
      * `:keep_axes` - leave them there, with length 1 (default `false`)
    """
    @doc group: "Reductions"
    @spec unquote(name)(t(), keyword()) :: t()
    def unquote(name)(x, opts \\ []) do
      opts =
        Options.validate!(unquote(name), opts, axes: {nil, axes()}, keep_axes: {false, boolean()})

      one(%Op.Reduce{kind: unquote(kind), axes: opts.axes || [], keep_axes: opts.keep_axes}, [x])
    end
  end

  # ── ────────────────────────────────────────────────────────────────────────────────────────────

  defp one(op, inputs) do
    [output] = Op.apply(op, inputs)
    output
  end

  defp tensor!(op, x) do
    if tensor?(x), do: x, else: fail!(op, "expected a tensor, got #{inspect(x)}")
  end

  defp size(x), do: Tuple.product(x.shape)

  defp from_start(axis, rank) when axis < 0, do: axis + rank
  defp from_start(axis, _rank), do: axis

  defp shape!(op, shape) do
    axes = if is_tuple(shape), do: Tuple.to_list(shape), else: [nil]

    if Enum.all?(axes, &(is_integer(&1) and &1 >= 0)) do
      axes
    else
      fail!(op, "expected a shape, a tuple of lengths, got #{inspect(shape)}")
    end
  end
end
