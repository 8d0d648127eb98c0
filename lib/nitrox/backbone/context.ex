defmodule Nitrox.Backbone.Context do
  @moduledoc false
  # The last `length` frames, the newest included: what a network without a state of its own sees.
  #
  # They lie in a ring on the device, `{B, length}` of tokens or `{B, length, F}` of features, with
  # the place of the oldest beside it. A frame writes over the oldest and reads the ring from the
  # place after it on, so that a step moves one frame however long the context is.

  @enforce_keys [:length, :next]
  defstruct [:length, :next]

  @type state :: %{ring: Nitrox.t(), position: Nitrox.t()}

  def new(length, device) do
    # The place after each place. Looking it up is one op where adding and wrapping are two.
    next = for place <- 1..length, do: rem(place, length)
    %__MODULE__{length: length, next: Nitrox.tensor(next, type: {:s, 32}, device: device)}
  end

  @doc "`frame {B}` or `{B, F}` → `{context {B, length} or {B, length, F}, state}`, oldest first."
  def step(context, frame, %{ring: ring, position: position}) do
    [batch | features] = Tuple.to_list(Nitrox.shape(frame))
    starts = Enum.map(Tuple.to_list(Nitrox.shape(ring)), fn _ -> 0 end)
    frame = Nitrox.reshape(frame, List.to_tuple([batch, 1 | features]))
    here = [axis: 1, wrap: true, position: position]

    ring = Nitrox.put_slice(ring, starts, frame, here)
    oldest = List.replace_at(starts, 1, 1)
    window = Nitrox.slice(ring, oldest, Tuple.to_list(Nitrox.shape(ring)), here)
    next = context.next |> Nitrox.slice([0], [1], position: position) |> Nitrox.reshape({})
    {window, %{ring: ring, position: next}}
  end

  @doc "`frames {B, T}` or `{B, T, F}` → `{contexts {B, T, length} or {B, T, length, F}, state}`."
  def window(context, frames, %{ring: ring, position: position}) do
    [batch, time | features] = Tuple.to_list(Nitrox.shape(frames))
    starts = [0, 0 | Enum.map(features, fn _ -> 0 end)]

    at = fn x, start, length ->
      Nitrox.slice(x, List.replace_at(starts, 1, start), [batch, length | features])
    end

    size = Tuple.to_list(Nitrox.shape(ring))
    past = Nitrox.slice(ring, starts, size, axis: 1, wrap: true, position: position)
    all = Nitrox.concatenate([past, frames], axis: 1)
    contexts = for back <- 1..context.length, do: at.(all, back, time)

    # The new ring begins with its oldest frame.
    state = %{ring: at.(all, time, context.length), position: Nitrox.multiply(position, 0)}
    {Nitrox.stack(contexts, axis: 2), state}
  end
end
