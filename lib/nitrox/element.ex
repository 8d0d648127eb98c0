defmodule Nitrox.Element do
  @moduledoc false
  # Numbers as the bytes of a tensor's elements, native-endian, and back.

  @types [
    {:u, 8},
    {:u, 16},
    {:u, 32},
    {:u, 64},
    {:s, 8},
    {:s, 16},
    {:s, 32},
    {:s, 64},
    {:f, 16},
    {:bf, 16},
    {:f, 32},
    {:f, 64}
  ]
  @bytes Map.new(@types, fn {_, bits} = type -> {type, div(bits, 8)} end)

  # What an IEEE float can be beside a number.
  @specials [:nan, :infinity, :neg_infinity]

  defguardp is_float_type(type) when elem(type, 0) in [:f, :bf]

  @doc "All types: unsigned, signed, floats, each the narrowest first."
  def types, do: @types

  def bytes(type), do: Map.fetch!(@bytes, type)
  def type?(type), do: is_map_key(@bytes, type)

  @doc "An element's bytes, or `:error` where the type can't hold the number."
  def encode(x, {:bf, 16}) when is_number(x), do: bf16(x)

  def encode(x, {:f, bits}) when is_number(x) do
    <<x::float-size(bits)-native>>
  rescue
    # An integer beyond any float.
    ArgumentError -> encode(if(x > 0, do: :infinity, else: :neg_infinity), {:f, bits})
  end

  def encode(x, type) when x in @specials and is_float_type(type), do: special(x, type)

  def encode(x, {:u, bits}) when is_integer(x) and x >= 0 and x < Bitwise.bsl(1, bits),
    do: <<x::size(bits)-native>>

  def encode(x, {:s, bits})
      when is_integer(x) and x >= -Bitwise.bsl(1, bits - 1) and x < Bitwise.bsl(1, bits - 1),
      do: <<x::size(bits)-native>>

  def encode(_, _), do: :error

  # To the nearest, ties to even.
  defp bf16(x) do
    <<bits::32-native>> = encode(x, {:f, 32})

    if Bitwise.band(bits, 0x7FFFFFFF) > 0x7F7FFFFF do
      <<Bitwise.bsr(bits, 16)::16-native>>
    else
      odd = Bitwise.band(Bitwise.bsr(bits, 16), 1)
      <<Bitwise.bsr(bits + 0x7FFF + odd, 16)::16-native>>
    end
  end

  defp special(:nan, {:f, 16}), do: <<0x7E00::16-native>>
  defp special(:nan, {:bf, 16}), do: <<0x7FC0::16-native>>
  defp special(:nan, {:f, 32}), do: <<0x7FC00000::32-native>>
  defp special(:nan, {:f, 64}), do: <<0x7FF8000000000000::64-native>>
  defp special(:infinity, {:f, 16}), do: <<0x7C00::16-native>>
  defp special(:infinity, {:bf, 16}), do: <<0x7F80::16-native>>
  defp special(:infinity, {:f, 32}), do: <<0x7F800000::32-native>>
  defp special(:infinity, {:f, 64}), do: <<0x7FF0000000000000::64-native>>
  defp special(:neg_infinity, {:f, 16}), do: <<0xFC00::16-native>>
  defp special(:neg_infinity, {:bf, 16}), do: <<0xFF80::16-native>>
  defp special(:neg_infinity, {:f, 32}), do: <<0xFF800000::32-native>>
  defp special(:neg_infinity, {:f, 64}), do: <<0xFFF0000000000000::64-native>>

  @doc "The elements of a binary, as numbers, `:nan`, `:infinity` and `:neg_infinity`."
  def decode({:u, bits}, binary), do: for(<<x::unsigned-size(bits)-native <- binary>>, do: x)
  def decode({:s, bits}, binary), do: for(<<x::signed-size(bits)-native <- binary>>, do: x)

  def decode({:bf, 16}, binary) do
    for <<x::16-native <- binary>>, do: float(<<x::16, 0::16>>, 32)
  end

  # What is no number does not match a float, so each element is taken by its bits.
  def decode({:f, bits}, binary) do
    for <<x::size(bits)-native <- binary>>, do: float(<<x::size(bits)>>, bits)
  end

  defp float(bytes, bits) do
    case bytes do
      <<x::float-size(bits)>> -> x
      <<sign::1, rest::bitstring>> -> not_a_number(sign, rest, bits)
    end
  end

  defp not_a_number(sign, rest, bits) do
    exponent = %{16 => 5, 32 => 8, 64 => 11}[bits]
    <<_::size(exponent), mantissa::size(bits - 1 - exponent)>> = rest

    cond do
      mantissa != 0 -> :nan
      sign == 0 -> :infinity
      true -> :neg_infinity
    end
  end
end
