defmodule Nitrox.Backbone.Mamba do
  @moduledoc false
  # A block of Mamba (Gu and Dao, 2023) as the `mamba_ssm` package has it, on its normalised input and
  # added to it:
  #
  #     v, z ← norm(x) · in          each E = expand · width wide
  #     v ← silu(conv(v))
  #     dt, b, c ← v · x             `dt_rank`, N and N wide
  #     y ← scan(v, dt · dt.w, …)    with softplus(dt + dt.b), d · v, and the gate silu(z)
  #     x + y · out
  #
  # Its state is the convolution's last frames and the scan's N numbers a channel.
  @behaviour Nitrox.Backbone.Layer

  @impl true
  def params(width, width, %{state: states, dt_rank: rank} = sizes) do
    inner = sizes.expand * width

    [
      {"norm.gamma", {width}, :ones},
      {"in.w", {width, 2 * inner}, {:fan_in, width}},
      {"conv.w", {sizes.conv, inner}, {:fan_in, sizes.conv}},
      {"conv.b", {inner}, {:fan_in, sizes.conv}},
      {"x.w", {inner, rank + 2 * states}, {:fan_in, inner}},
      {"dt.w", {rank, inner}, {:fan_in, rank}},
      {"dt.b", {inner}, :time_steps},
      {"a", {inner, states}, :decays},
      {"d", {inner}, :ones},
      {"out.w", {inner, width}, {:fan_in, inner}}
    ]
  end

  @impl true
  def sizes(matrix) do
    {width, _} = matrix.("in.w")
    {inner, states} = matrix.("a")
    {conv, _} = matrix.("conv.w")
    {rank, _} = matrix.("dt.w")
    {width, width, %{expand: div(inner, width), state: states, conv: conv, dt_rank: rank}}
  end

  @impl true
  def state(width, batch, sizes) do
    inner = sizes.expand * width
    [{{batch, sizes.conv - 1, inner}, :weights}, {{batch, inner, sizes.state}, :f32}]
  end

  @impl true
  def run(p, x, state, _places), do: mix(p, Nitrox.rms_norm(x, p["norm.gamma"]), state, x)

  @doc """
  The block on an input that was normalised already, `x {B, T, width}` → `{y {B, T, width}, state}`. Either
  part of the state may be nil for zeros. `residual` is added last, unless it is nil.

  Beside the parameters of `params/3` there may be `in.b`, `out.b`, as mamba_ssm has them, and the gammas
  of RMS norms of what `x.w` gives, `dt.norm.gamma`, `b.norm.gamma` and `c.norm.gamma`, as Jamba has
  them, with their `epsilon`.
  """
  def mix(p, x, {frames, h}, residual, epsilon \\ 1.0e-5) do
    {inner, states} = Nitrox.shape(p["a"])
    {rank, _} = Nitrox.shape(p["dt.w"])
    [v, z] = x |> Nitrox.dense(p["in.w"], p["in.b"]) |> split([inner, inner])

    {v, frames} =
      Nitrox.causal_conv1d(v, p["conv.w"], p["conv.b"], activation: :silu, state: frames)

    [dt, b, c] =
      v
      |> Nitrox.dense(p["x.w"], nil)
      |> split([rank, states, states])
      |> Enum.zip_with(["dt", "b", "c"], &inner_norm(&1, p["#{&2}.norm.gamma"], epsilon))

    {y, h} =
      Nitrox.selective_scan(v, Nitrox.dense(dt, p["dt.w"], nil), p["a"], b, c,
        dt_bias: p["dt.b"],
        dt_softplus: true,
        d: p["d"],
        z: z,
        state: h
      )

    {Nitrox.dense(y, p["out.w"], p["out.b"], residual: residual), {frames, h}}
  end

  defp inner_norm(x, nil, _epsilon), do: x
  defp inner_norm(x, gamma, epsilon), do: Nitrox.rms_norm(x, gamma, epsilon: epsilon)

  @doc false
  # The parts of the last axis.
  def split(x, lengths) do
    {batch, time, _} = Nitrox.shape(x)

    {parts, _} =
      Enum.map_reduce(lengths, 0, fn length, at ->
        {Nitrox.slice(x, [0, 0, at], [batch, time, length]), at + length}
      end)

    parts
  end
end
