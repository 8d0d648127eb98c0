defmodule Nitrox.WeightsTest do
  use ExUnit.Case, async: true
  alias Nitrox.Weights

  @moduletag :tmp_dir

  # A safetensors file: a length, a header, the bytes.
  defp write(dir, header, data) do
    path = Path.join(dir, "weights.safetensors")
    File.write!(path, [<<byte_size(header)::little-64>>, header, data])
    path
  end

  defp sound(dir) do
    write(
      dir,
      ~s({"__metadata__":{"backbone":"mlp"},) <>
        ~s("head.w":{"dtype":"F16","shape":[1,2],"data_offsets":[0,4]},) <>
        ~s("head.b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]},) <>
        ~s("odd":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[12,14]}}),
      <<1.5::float-16-little, -2.0::float-16-little, 3.0::float-32-little, 4.0::float-32-little,
        7, 0>>
    )
  end

  defp refusal(fun), do: Exception.message(assert_raise(Nitrox.Error, fun))

  test "names, metadata, shapes and types", %{tmp_dir: dir} do
    weights = Weights.open(sound(dir))
    assert Weights.names(weights) == ["head.b", "head.w", "odd"]
    assert Weights.metadata(weights) == %{"backbone" => "mlp"}
    assert Weights.template(weights, "head.w") == Nitrox.template({1, 2}, {:f, 16})
    assert Weights.member?(weights, "head.w") and not Weights.member?(weights, "head")
    assert inspect(weights) =~ "3 tensors"
  end

  test "fetches as stored, or cast", %{tmp_dir: dir} do
    weights = Weights.open(sound(dir))
    stored = Weights.fetch(weights, "head.w")
    assert {Nitrox.type(stored), Nitrox.to_list(stored)} == {{:f, 16}, [[1.5, -2.0]]}
    cast = Weights.fetch(weights, "head.w", type: {:f, 32}, shape: {1, 2}, device: :cpu)
    assert {Nitrox.type(cast), Nitrox.to_list(cast)} == {{:f, 32}, [[1.5, -2.0]]}
    assert Nitrox.to_list(Weights.fetch(weights, "head.b")) == [3.0, 4.0]
  end

  test "a missing name is refused with those nearest to it", %{tmp_dir: dir} do
    path = sound(dir)
    message = refusal(fn -> Weights.fetch(Weights.open(path), "head.x") end)
    assert message =~ path and message =~ ~s("head.x") and message =~ "nearest are head."
  end

  test "another shape, a foreign type and an unknown option are refused", %{tmp_dir: dir} do
    weights = Weights.open(sound(dir))
    message = refusal(fn -> Weights.fetch(weights, "head.w", shape: {2, 1}) end)
    assert message =~ "head.w must be {2, 1}, got {1, 2}"
    assert refusal(fn -> Weights.fetch(weights, "odd") end) =~ "stored as F8_E4M3"
    assert refusal(fn -> Weights.fetch(weights, "head.w", typ: 1) end) =~ ":typ; known are :shape"
  end

  test "what is no whole file is refused with its path", %{tmp_dir: dir} do
    whole = File.read!(sound(dir))
    path = Path.join(dir, "damaged")

    damaged = [
      "",
      "what?",
      binary_part(whole, 0, byte_size(whole) - 1),
      whole <> "x",
      String.replace(whole, "F16", "F61"),
      String.replace(whole, "[0,4]", "[0,6]"),
      String.replace(whole, "[1,2]", "[9,9]"),
      String.replace(whole, "{", "[")
    ]

    for bytes <- damaged do
      File.write!(path, bytes)
      error = assert_raise Nitrox.Error, fn -> Weights.open(path) end
      assert error.reason == :file and error.message =~ path
    end

    assert refusal(fn -> Weights.open(:weights) end) =~ "a path is a string, got :weights"

    for bad <- [dir, Path.join(dir, "nothing"), dir <> <<0>> <> "x"] do
      assert assert_raise(Nitrox.Error, fn -> Weights.open(bad) end).message =~ bad
    end
  end
end
