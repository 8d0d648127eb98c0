defmodule Nitrox.OpExamples do
  @moduledoc false
  # Attributes and inputs that the ops accept, found by asking them: so that a new op is fuzzed as
  # soon as its struct is there.
  #
  # An op's rule checks one thing after the other, and its refusal says what it is at. So a candidate
  # whose refusal reads like none before is a step ahead, and is kept to be changed further; the
  # shapes, types and words that a refusal names are tried in its place.

  alias Nitrox.{Native, Op}

  @type example :: {{atom(), map()}, [{tuple(), [non_neg_integer()]} | nil]}

  # Calls for one op, at most until the first that is accepted, and then for more of its kind.
  @first 60_000
  @more 3_000
  @most 40

  @types [{:f, 32}, {:u, 8}, {:s, 32}, {:bf, 16}, {:f, 64}, {:s, 64}]
  @values [nil, true, false, 0, 1, 2, -1, 0.5, 1.0, [], [0], [1], [0, 1], [1, 1], {:f, 32}]

  @doc "The modules of the ops."
  @spec modules() :: [module()]
  def modules do
    {:ok, modules} = :application.get_key(:nitrox, :modules)
    for m <- modules, match?(["Nitrox", "Op", _], Module.split(m)), struct?(m), do: m
  end

  defp struct?(module) do
    Code.ensure_loaded?(module) and function_exported?(module, :__struct__, 0)
  end

  @doc "What the ops accept; searched for once, by a seed that does not change."
  @spec all() :: [example()]
  def all do
    with nil <- :persistent_term.get(__MODULE__, nil) do
      found =
        modules()
        |> Task.async_stream(&search/1, timeout: :infinity)
        |> Enum.flat_map(fn {:ok, found} -> found end)

      :persistent_term.put(__MODULE__, found)
      found
    end
  end

  # Where the search begins; for lists of lists it would take too long from nothing.
  @starts %{
    conv:
      {%{strides: [1], padding: [[1, 0]], input_dilation: [1], kernel_dilation: [2]},
       [{{:f, 32}, [2, 3, 8]}, {{:f, 32}, [4, 3, 2]}]},
    dot:
      {%{contract_a: [2], batch_a: [0], contract_b: [1], batch_b: [0]},
       [{{:f, 32}, [2, 3, 4]}, {{:f, 32}, [2, 4, 3]}]},
    window_reduce:
      {%{
         kind: :sum,
         window: [2, 2],
         strides: [1, 2],
         padding: [[0, 1], [0, 0]],
         dilations: [1, 1]
       }, [{{:f, 32}, [3, 4]}]},
    window_scatter:
      {%{min: false, window: [2, 2], strides: [2, 2], padding: [[0, 0], [0, 0]]},
       [{{:f, 32}, [4, 4]}, {{:f, 32}, [2, 2]}, {{:f, 32}, []}]}
  }

  defp search(module) do
    name = Op.name(struct(module))
    :rand.seed(:exsss, {1, 2, :erlang.phash2(name)})
    {given, specs} = Map.get(@starts, name, {%{}, [{{:f, 32}, [2, 3]}]})
    start = {Map.merge(Map.from_struct(struct(module)), given), specs}

    case ask(name, start) do
      :yes -> more(name, keep(%{}, start), @more)
      no -> first(name, [{start, hints(no)}], MapSet.new([signature(no)]), @first)
    end
  end

  defp first(_, _, _, 0), do: []

  defp first(name, population, seen, calls) do
    {candidate, hints} = Enum.random(population)
    changed = change(candidate, hints)

    case ask(name, changed) do
      :yes ->
        more(name, keep(%{}, changed), @more)

      no ->
        signature = signature(no)

        if signature in seen,
          do: first(name, population, seen, calls - 1),
          else:
            first(
              name,
              [{changed, hints(no)} | population],
              MapSet.put(seen, signature),
              calls - 1
            )
    end
  end

  # Others that are accepted: with inputs left out, with other types, with other attributes.
  defp more(name, found, calls) when calls == 0 or map_size(found) >= @most do
    for {attributes, specs} <- found |> Map.values() |> Enum.uniq(),
        do: {{name, attributes}, specs}
  end

  defp more(name, found, calls) do
    {_, candidate} = Enum.random(found)
    changed = change(candidate, no_hints())

    case ask(name, changed) do
      :yes ->
        more(name, keep(found, changed), calls - 1)

      # One more change, by what was said.
      no ->
        changed = change(changed, hints(no))
        found = if ask(name, changed) == :yes, do: keep(found, changed), else: found
        more(name, found, calls - 1)
    end
  end

  # The first of its kind, by attributes or by inputs.
  defp keep(found, {attributes, specs} = candidate) do
    inputs = Enum.map(specs, &(&1 && elem(&1, 0)))
    found |> Map.put_new(attributes, candidate) |> Map.put_new(inputs, candidate)
  end

  # Small ones only: they are run ten thousands of times.
  defp ask(name, {attributes, specs}) do
    case Native.infer({name, attributes}, specs) do
      {:ok, outputs} ->
        sizes = for {_, shape} <- outputs, do: Tuple.product(shape)

        if Enum.sum(sizes) in 1..500,
          do: :yes,
          else: "#{length(outputs)} outputs too large or empty"

      {:error, {_, _, message, _}} ->
        message
    end
  end

  defp signature(message), do: String.replace(message, ~r/[\d.-]+/, "")

  defp no_hints, do: %{shapes: [], types: [], words: [], counts: []}

  # What a refusal names.
  defp hints(message) do
    numbers = fn text ->
      text |> String.split(", ", trim: true) |> Enum.map(&String.to_integer/1)
    end

    scan = fn pattern -> Regex.scan(pattern, message, capture: :all_but_first) end

    %{
      shapes: for([axes] <- scan.(~r/\{((?:\d+(?:, \d+)*)?)\}/), do: numbers.(axes)),
      types:
        for(
          [kind, bits] <- scan.(~r/\{:(\w+), (\d+)\}/),
          do: {String.to_atom(kind), String.to_integer(bits)}
        ),
      words:
        for(
          [words] <- scan.(~r/one of (.+)/),
          word <- String.split(words, ", "),
          do: String.to_atom(word)
        ),
      counts:
        for(
          counts <- scan.(~r/takes (\d+)(?: to (\d+))? inputs/),
          n <- counts,
          n != "",
          do: String.to_integer(n)
        )
    }
  end

  defp change({attributes, specs}, hints) do
    case :rand.uniform(10) do
      n when n <= 3 and map_size(attributes) > 0 -> {change_attribute(attributes, hints), specs}
      4 when map_size(attributes) > 1 -> {a_value_an_axis(attributes, specs), specs}
      5 -> {attributes, resize(specs, hints)}
      n when n <= 8 and specs != [] -> {attributes, change_one(specs, hints)}
      _ -> {attributes, resize(change_one(specs, hints), hints)}
    end
  end

  defp change_attribute(attributes, hints) do
    rank = Enum.random(1..4)
    axes = Enum.to_list(0..(rank - 1))
    lists = [axes, Enum.reverse(axes), List.duplicate(0, rank), List.duplicate(1, rank)]
    values = hints.words ++ hints.words ++ hints.shapes ++ hints.types ++ lists ++ @values
    Map.replace!(attributes, Enum.random(Map.keys(attributes)), Enum.random(values))
  end

  # Lists that go together.
  defp a_value_an_axis(attributes, specs) do
    rank = with [{_, shape} | _] <- specs, do: length(shape), else: (_ -> 1)

    Map.new(attributes, fn {name, value} ->
      if is_nil(value) or is_list(value),
        do: {name, List.duplicate(Enum.random([0, 1]), rank)},
        else: {name, value}
    end)
  end

  defp resize(specs, hints) do
    count = Enum.random(hints.counts ++ [length(specs) + 1, max(length(specs) - 1, 0)])
    Enum.take(specs ++ for(_ <- 1..count//1, do: spec(specs)), count)
  end

  defp change_one([], _), do: []

  defp change_one(specs, hints) do
    List.update_at(specs, Enum.random(0..(length(specs) - 1)), fn spec ->
      {type, shape} = spec || spec(specs)

      case :rand.uniform(6) do
        n when n <= 2 and hints.shapes != [] -> {type, Enum.random(hints.shapes)}
        3 when hints.types != [] -> {Enum.random(hints.types), shape}
        4 -> {Enum.random(@types), shape}
        5 -> if :rand.uniform(2) == 1, do: nil, else: {type, shape}
        _ -> {type, elem(spec(specs), 1)}
      end
    end)
  end

  # Of lengths that are there already, mostly.
  defp spec(specs) do
    lengths = [1, 2, 3, 4, 8] ++ for({_, shape} <- specs, n <- shape, n < 100, do: n)
    rank = Enum.random([0, 1, 1, 2, 2, 3, 4])
    {Enum.random([{:f, 32}, {:f, 32} | @types]), for(_ <- 1..rank//1, do: Enum.random(lengths))}
  end
end
