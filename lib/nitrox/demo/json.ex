defmodule Nitrox.Demo.Json do
  @moduledoc false
  # Writes JSON. An object is a keyword list, so that its keys keep their order.

  @spec encode(term()) :: String.t()
  def encode(term), do: term |> value() |> IO.iodata_to_binary()

  defp value(nil), do: "null"
  defp value(flag) when is_boolean(flag), do: Atom.to_string(flag)
  defp value(number) when is_number(number), do: to_string(number)
  defp value(text) when is_binary(text), do: [?", escape(text), ?"]
  defp value(atom) when is_atom(atom), do: value(Atom.to_string(atom))

  defp value([{key, _} | _] = object) when is_atom(key) do
    pairs = for {key, item} <- object, do: [value(Atom.to_string(key)), ?:, value(item)]
    [?{, Enum.intersperse(pairs, ?,), ?}]
  end

  defp value(list) when is_list(list),
    do: [?[, list |> Enum.map(&value/1) |> Enum.intersperse(?,), ?]]

  defp escape(text) do
    for <<char::utf8 <- text>> do
      case char do
        ?" -> "\\\""
        ?\\ -> "\\\\"
        ?\n -> "\\n"
        c when c < 0x20 -> ["\\u", c |> Integer.to_string(16) |> String.pad_leading(4, "0")]
        c -> <<c::utf8>>
      end
    end
  end
end
