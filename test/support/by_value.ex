defmodule Nitrox.ByValue do
  @moduledoc false
  # Doctests whose floats may differ in the last digit printed: what `iex>` gives in a function's
  # documentation, compared as text but for the floats, which may be 2 ulp apart.

  import ExUnit.Assertions

  @ulp 2

  @doc "The functions of a module whose documentation has examples, and `:moduledoc`."
  def functions(module) do
    for {{name, arity}, doc} <- docs(module), doc =~ "iex>", do: {name, arity}
  end

  @doc "The tests in the documentation of a function: each a list of `{expression, expected}`."
  def tests(module, name, arity) do
    {_, doc} = List.keyfind(docs(module), {name, arity}, 0)
    doc |> String.split("\n") |> Enum.map(&String.trim_leading/1) |> parse([], [])
  end

  defp docs(module) do
    {:docs_v1, _, _, _, moduledoc, _, docs} = Code.fetch_docs(module)

    for {{_, name, arity}, %{"en" => doc}} <-
          [{{:module, :moduledoc, 0}, moduledoc} | Enum.map(docs, &{elem(&1, 0), elem(&1, 3)})],
        do: {{name, arity}, doc}
  end

  # Examples that follow on one another without an empty line are one test.
  defp parse([], test, tests), do: Enum.reverse(close(test, tests))

  defp parse(["iex>" <> first | lines], test, tests) do
    {more, lines} = Enum.split_while(lines, &String.starts_with?(&1, "...>"))

    {expected, lines} =
      Enum.split_while(lines, &(&1 != "" and not String.starts_with?(&1, ["iex>", "```"])))

    code = Enum.map_join([first | more], "\n", &String.replace_prefix(&1, "...>", ""))
    parse(lines, [{code, Enum.join(expected, "\n")} | test], tests)
  end

  defp parse([_ | lines], test, tests), do: parse(lines, [], close(test, tests))

  defp close([], tests), do: tests
  defp close(test, tests), do: [Enum.reverse(test) | tests]

  @doc "Runs a test. Whether all was as printed, or only by value."
  def run(test) do
    # The environment goes along too: an example may import what the next one needs.
    {_, _, results} =
      Enum.reduce(test, {[], __ENV__, []}, fn
        {code, "** (" <> expected}, {binding, env, results} ->
          [name, message] = String.split(expected, ") ", parts: 2)
          error = assert_raise Module.concat([name]), fn -> eval(code, binding, env) end
          assert plain(Exception.message(error)) == plain(message)
          {binding, env, results}

        {code, expected}, {binding, env, results} ->
          {value, binding, env} = eval(code, binding, env)
          {binding, env, [compare(value, expected, code) | results]}
      end)

    if :by_value in results, do: :by_value, else: :as_printed
  end

  defp eval(code, binding, env),
    do: code |> Code.string_to_quoted!() |> Code.eval_quoted_with_env(binding, env)

  # Without the indentation, which the documentation's text is without as well.
  defp plain(text), do: text |> String.split("\n") |> Enum.map_join("\n", &String.trim/1)

  defp compare(_, "", _), do: :as_printed

  defp compare(value, "#" <> _ = expected, code) do
    got = value |> inspect() |> plain()
    if got == expected, do: :as_printed, else: close!(got, expected, code)
  end

  defp compare(value, expected, code) do
    {wanted, _} = Code.eval_string(expected)
    if value === wanted, do: :as_printed, else: close!(inspect(value), inspect(wanted), code)
  end

  @float ~r/[-+]?\d+\.\d+(?:e[-+]?\d+)?/

  defp close!(got, expected, code) do
    message = "#{code}\n\nexpected\n\n#{expected}\n\ngot\n\n#{got}"
    assert Regex.replace(@float, got, "·") == Regex.replace(@float, expected, "·"), message

    Enum.zip(floats(got), floats(expected))
    |> Enum.each(fn {{x, type}, {y, type}} ->
      assert abs(place(x, type) - place(y, type)) <= @ulp, message
    end)

    :by_value
  end

  # Each float with the type of the tensor it stands in.
  defp floats(text) do
    Regex.scan(~r/\b(bf16|f16|f32|f64|c64|c128)\b|#{@float.source}/, text)
    |> Enum.map_reduce("f32", fn
      [_, type], _ -> {nil, type}
      [float], type -> {{String.to_float(String.replace_prefix(float, "+", "")), type}, type}
    end)
    |> elem(0)
    |> Enum.reject(&is_nil/1)
  end

  # The number of a float among all of its type, in order.
  defp place(x, "f16"), do: <<x::float-16>> |> ordered()
  defp place(x, type) when type in ["f64", "c128"], do: <<x::float-64>> |> ordered()

  defp place(x, "bf16") do
    <<upper::binary-size(2), _::binary>> = <<x::float-32>>
    ordered(upper)
  end

  defp place(x, _), do: <<x::float-32>> |> ordered()

  defp ordered(<<0::1, magnitude::bitstring>>), do: integer(magnitude)
  defp ordered(<<1::1, magnitude::bitstring>>), do: -integer(magnitude)

  defp integer(bits) do
    size = bit_size(bits)
    <<n::size(^size)>> = bits
    n
  end
end
