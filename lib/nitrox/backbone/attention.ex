defmodule Nitrox.Backbone.Attention do
  @moduledoc false
  # Attention over the last frames, and a feed-forward block, each on its normalised input and added
  # to it:
  #
  #     q, k, v ← norm(x) · qkv       q and k turned by their frame's number (rotary positions)
  #     x ← x + attention(q, k, v) · out
  #     x + gelu(norm(x) · up) · down
  #
  # A frame sees itself and those before it, `context` in all. The state is their keys and values, in
  # one ring {2, B, context, H, D}: frame n lies at n modulo `context`, where a step writes it over the
  # one it no longer sees. Keys are kept as they were turned. What a query makes of one depends on how
  # far apart the two are and not on their numbers, nor on the order in which the keys lie.
  #
  # A window brings its keys in their order: those of the ring, oldest first, and its own behind
  # them, of which each frame sees a band.
  @behaviour Nitrox.Backbone.Layer

  import Nitrox.Backbone.Mamba, only: [split: 2]

  @impl true
  def params(width, width, %{ffn: ffn}) do
    [
      {"norm.gamma", {width}, :ones},
      {"qkv.w", {width, 3 * width}, {:fan_in, width}},
      {"out.w", {width, width}, {:fan_in, width}},
      {"ffn.norm.gamma", {width}, :ones},
      {"up.w", {width, ffn}, {:fan_in, width}},
      {"up.b", {ffn}, {:fan_in, width}},
      {"down.w", {ffn, width}, {:fan_in, ffn}},
      {"down.b", {width}, {:fan_in, ffn}}
    ]
  end

  @impl true
  def sizes(matrix) do
    {width, _} = matrix.("qkv.w")
    {_, ffn} = matrix.("up.w")
    {width, width, %{ffn: ffn}}
  end

  @impl true
  def state(width, batch, %{heads: heads, context: context}) do
    [{{2, batch, context, heads, div(width, heads)}, :weights}]
  end

  @doc """
  Where `time` frames lie, what all layers share. `turns {3}` is how far q, k and v of the first of them
  are turned: twice its number, and 0. It is the state that the number is kept in.
  """
  def places(turns, context, {batch, time}, device) do
    number = Nitrox.reshape(Nitrox.slice(turns, [0], [1]), {})
    places = %{turns: turns, number: number}

    if time == 1,
      do: places,
      else: Map.put(places, :written, written(number, context, batch, time, device))
  end

  @doc "`places/4`'s turns of the frame that comes `time` frames later."
  def turns(turns, time, device) do
    Nitrox.add(turns, Nitrox.tensor([time, time, 0], device: device))
  end

  # Which keys there are, {B, context + T}: of the ring's, oldest first, those that a frame has been
  # written to.
  defp written(number, context, batch, time, device) do
    order = Nitrox.tensor(Enum.to_list(1..context), device: device)
    past = order |> Nitrox.add(number) |> Nitrox.greater(context)
    own = Nitrox.tensor(List.duplicate(1, time), type: {:u, 8}, device: device)

    [past, own]
    |> Nitrox.concatenate()
    |> Nitrox.reshape({1, context + time})
    |> Nitrox.broadcast_to({batch, context + time})
  end

  @impl true
  def run(p, x, {ring}, places) do
    {_, time, width} = Nitrox.shape(x)
    qkv = x |> Nitrox.rms_norm(p["norm.gamma"]) |> Nitrox.dense(p["qkv.w"], nil)
    {seen, ring} = if time == 1, do: step(qkv, ring, places), else: window(qkv, ring, places)

    x = seen |> Nitrox.reshape({:auto, time, width}) |> Nitrox.dense(p["out.w"], nil, residual: x)
    inner = Nitrox.rms_norm(x, p["ffn.norm.gamma"])
    inner = Nitrox.dense(inner, p["up.w"], p["up.b"], activation: :gelu)
    {Nitrox.dense(inner, p["down.w"], p["down.b"], residual: x), {ring}}
  end

  # q, k and v are turned in one op, v by nothing, so that k and v lie side by side as the ring has them.
  defp step(qkv, ring, %{turns: turns, number: number}) do
    {2, batch, _, heads, size} = Nitrox.shape(ring)
    parts = qkv |> Nitrox.reshape({batch, 3, heads, size}) |> Nitrox.rope(turns)

    parts =
      if batch == 1,
        do: Nitrox.reshape(parts, {3, 1, heads, size}),
        else: Nitrox.transpose(parts, axes: [1, 0, 2, 3])

    q = Nitrox.slice(parts, [0, 0, 0, 0], [1, batch, heads, size])
    kv = Nitrox.slice(parts, [1, 0, 0, 0], [2, batch, heads, size])

    ring = put(ring, Nitrox.reshape(kv, {2, batch, 1, heads, size}), number)
    [keys, values] = halves(ring)
    q = Nitrox.reshape(q, {batch, 1, heads, size})
    # Until the ring is full, the places after this frame's are empty.
    {Nitrox.flash_attention(q, keys, values, causal: true, offset: number), ring}
  end

  defp window(qkv, ring, %{number: number, written: written}) do
    {2, batch, context, heads, size} = Nitrox.shape(ring)
    {_, time, _} = Nitrox.shape(qkv)
    width = heads * size

    [q, k, v] =
      for part <- split(qkv, [width, width, width]),
          do: Nitrox.reshape(part, {batch, time, heads, size})

    past = Nitrox.slice(ring, [0, 0, 0, 0, 0], shape(ring), axis: 2, wrap: true, position: number)
    frames = [Nitrox.rope(k, number), v]

    [keys, values] =
      all = Enum.zip_with(halves(past), frames, &Nitrox.concatenate([&1, &2], axis: 1))

    last = Enum.map(all, &Nitrox.slice(&1, [0, time, 0, 0], [batch, context, heads, size]))
    ring = put(ring, Nitrox.stack(last), Nitrox.add(number, time))
    options = [window: {context - 1, 0}, key_mask: written]
    {Nitrox.flash_attention(Nitrox.rope(q, number), keys, values, options), ring}
  end

  # The keys and the values.
  defp halves(ring) do
    {2, batch, context, heads, size} = Nitrox.shape(ring)

    for half <- [0, 1] do
      ring
      |> Nitrox.slice([half, 0, 0, 0, 0], [1, batch, context, heads, size])
      |> Nitrox.reshape({batch, context, heads, size})
    end
  end

  defp put(ring, frames, number) do
    Nitrox.put_slice(ring, [0, 0, 0, 0, 0], frames, axis: 2, wrap: true, position: number)
  end

  defp shape(x), do: Tuple.to_list(Nitrox.shape(x))
end
