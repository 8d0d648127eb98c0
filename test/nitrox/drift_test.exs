defmodule Nitrox.DriftTest do
  use ExUnit.Case, async: true

  alias Nitrox.{Backbone, Session, Weights}
  alias Nitrox.Demo.CharacterModel

  # Eight minutes at 60 a second; as in bench/torch_goldens.py.
  @frames 28_800

  defp load(name, device) do
    Backbone.load(Application.app_dir(:nitrox, "priv/demo/#{name}.safetensors"), device: device)
  end

  describe "after eight minutes of play the state is that of float64" do
    for name <- CharacterModel.names() -- ["mlp"],
        {device, tags} <- [cpu: [], cuda: [cuda: true]] do
      @tag tags
      test "#{name} on #{device}" do
        device = if unquote(device) == :cpu, do: :cpu, else: {:cuda, 0}
        drift(unquote(name), device)
      end
    end
  end

  defp drift(name, device) do
    backbone = load(name, device)
    session = Backbone.session(backbone)
    golden = CharacterModel.golden().tokens |> Enum.take(2000)
    tokens = golden |> Stream.cycle() |> Stream.map(&<<&1::signed-32-native>>)
    tokens |> Stream.take(@frames) |> Enum.each(&Session.step(session, [&1]))

    expected = Weights.open("test/fixtures/drift.safetensors")
    # The frame's program keeps the sampler's counter beside the network's state.
    tensors = Session.snapshot(session).tensors
    parts = Enum.map(Backbone.initial_state(backbone).layers, &tuple_size/1)
    at = Enum.find_index(tensors, &(tuple_size(&1.shape) > 1))

    {layers, _} = Enum.map_reduce(parts, Enum.drop(tensors, at), &Enum.split(&2, &1))

    for {parts, n} <- Enum.with_index(layers),
        {part, k} <- parts |> Enum.flat_map(&apart/1) |> Enum.with_index() do
      expected = Weights.fetch(expected, "#{name}.#{n}.#{k}", device: device)
      error = error(part, expected)
      assert error <= 1.0e-4, "#{name}, layer #{n}, part #{k}: #{error}"
    end
  end

  # Of a ring of 60 frames, keys and values of the last 59: as many frames as there were are a multiple
  # of 60, so they lie in order.
  defp apart(%{shape: {2, 1, 60, heads, size}} = ring) do
    for half <- [0, 1] do
      ring
      |> Nitrox.slice([half, 0, 1, 0, 0], [1, 1, 59, heads, size])
      |> Nitrox.reshape({1, 59, heads, size})
    end
  end

  defp apart(part), do: [part]

  defp error(a, b) do
    assert Nitrox.shape(a) == Nitrox.shape(b)

    square = fn x ->
      x |> Nitrox.cast({:f, 64}) |> then(&Nitrox.multiply(&1, &1)) |> Nitrox.sum()
    end

    [distance, size] = Enum.map([Nitrox.subtract(a, b), b], &Nitrox.to_number(square.(&1)))
    assert size > 0
    :math.sqrt(distance / size)
  end
end
