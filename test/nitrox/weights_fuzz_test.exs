defmodule Nitrox.WeightsFuzzTest do
  # Hostile files through the public functions: each is read or refused with a Nitrox.Error, and
  # nothing of it stays.
  use ExUnit.Case, async: false

  alias Nitrox.{Device, Error, TestMemory, Weights}

  @moduletag :tmp_dir
  @files 1_500

  setup do
    :rand.seed(:exsss, ExUnit.configuration()[:seed])
    :ok
  end

  defp file(header, data), do: <<byte_size(header)::little-64, header::binary, data::binary>>

  defp sound do
    file(
      ~s({"__metadata__":{"backbone":"mlp"},) <>
        ~s("w":{"dtype":"F16","shape":[1,2],"data_offsets":[0,4]},) <>
        ~s("b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}),
      :binary.copy(<<7>>, 12)
    )
  end

  defp number do
    borders = [
      2 ** 64 - 1,
      2 ** 64,
      2 ** 63,
      2 ** 63 - 1,
      2 ** 62,
      2 ** 61 - 1,
      2 ** 32,
      2 ** 31,
      -1
    ]

    if one_in(3), do: Enum.random(borders), else: :rand.uniform(20) - 1
  end

  defp entry do
    name =
      Enum.random(["a", "b", "", "__metadata__", "\\u0000", "ω", String.duplicate("n", 5_000)])

    dtype = Enum.random(~w(F32 F16 BF16 U8 BOOL I64 F8_E4M3 F33 f32) ++ [""])
    shape = for _ <- 1..(:rand.uniform(10) - 1)//1, do: number()
    json = Enum.map_join(shape, ",", &to_string/1)
    ~s("#{name}":{"dtype":"#{dtype}","shape":[#{json}],"data_offsets":[#{number()},#{number()}]})
  end

  # One of each kind of lie.
  defp hostile do
    whole = sound()

    case :rand.uniform(7) do
      1 ->
        binary_part(whole, 0, :rand.uniform(byte_size(whole)) - 1)

      2 ->
        flip(whole, :rand.uniform(4))

      3 ->
        <<abs(number())::little-64>> <> binary_part(whole, 8, byte_size(whole) - 8)

      4 ->
        file(
          "{" <> Enum.map_join(1..:rand.uniform(4), ",", fn _ -> entry() end) <> "}",
          :rand.bytes(:rand.uniform(60))
        )

      5 ->
        file(
          String.duplicate(
            Enum.random(["[", "{\"a\":", "{", "\"", "[[],"]),
            :rand.uniform(5_000)
          ),
          "x"
        )

      6 ->
        :rand.bytes(:rand.uniform(300))

      7 ->
        file(:rand.bytes(:rand.uniform(100)), :rand.bytes(20))
    end
  end

  defp flip(bytes, times) do
    for _ <- 1..times, reduce: bytes do
      bytes ->
        at = :rand.uniform(byte_size(bytes)) - 1
        <<before::binary-size(at), _, rest::binary>> = bytes
        <<before::binary, :rand.uniform(256) - 1, rest::binary>>
    end
  end

  # What can be done with it, all of it.
  defp read(path) do
    weights = Weights.open(path)
    assert is_map(Weights.metadata(weights))
    assert inspect(weights) =~ path

    for name <- Weights.names(weights) do
      try do
        tensor = Weights.fetch(weights, name)
        {type, shape} = {Nitrox.type(tensor), Nitrox.shape(tensor)}

        assert byte_size(Nitrox.to_binary(tensor)) ==
                 Tuple.product(shape) * Nitrox.Element.bytes(type)

        :fetched
      rescue
        error in Error -> refused(error)
      end
    end
  rescue
    error in Error -> [refused(error)]
  end

  # No word of an internal error or of a panic, and none that is as long as the file.
  defp refused(%Error{reason: reason, message: message}) do
    assert reason in [:file, :argument, :unsupported, :shape, :type, :out_of_memory]
    assert String.valid?(message) and byte_size(message) < 10_000
    :refused
  end

  test "#{@files} files", %{tmp_dir: dir} do
    Device.open(:cpu)
    path = Path.join(dir, "hostile.safetensors")
    before = TestMemory.settled()

    outcomes =
      Task.async(fn ->
        for _ <- 1..@files do
          File.write!(path, hostile())
          read(path)
        end
      end)
      |> Task.await(:infinity)
      |> List.flatten()
      |> Enum.frequencies()

    # Some are whole enough, most are not.
    assert outcomes.fetched > 0 and outcomes.refused > @files / 2
    assert TestMemory.left(before) == {0, 0}
  end

  test "a shape of millions of axes is no tuple of millions", %{tmp_dir: dir} do
    path = Path.join(dir, "long.safetensors")
    shape = :binary.copy("1,", 999_999) <> "1"
    File.write!(path, file(~s({"a":{"dtype":"U8","shape":[#{shape}],"data_offsets":[0,1]}}), "x"))
    error = assert_raise Error, fn -> Weights.open(path) end
    assert error.message =~ "1000000 axes"
  end

  defp one_in(n), do: :rand.uniform(n) == 1
end
