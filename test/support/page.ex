defmodule Nitrox.TestPage do
  @moduledoc false
  # Checks the code of a Markdown page, so that it can't rot. In order:
  #
  #   * An ```elixir block is run, with the variables, aliases and modules of those above it. A comment
  #     `#=> …` says what the expression before it gives, as `inspect` shows it, and goes on in lines
  #     that begin with "#   ". `** (Error) message` is what it raises, and … stands for anything.
  #   * A block that begins with `config` is read as a configuration.
  #   * A block whose first line is a comment with a path quotes that file, whatever the language. Its
  #     lines are there in this order, but for indentation; a line with … alone (in a comment or not)
  #     stands for what was left out.
  #   * The set-up cell of a Livebook is not run, since Mix.install/1 refuses to within a project of Mix.
  #     It has to name this checkout, and the versions that are there.
  import ExUnit.Assertions

  @root Path.expand("../..", __DIR__)

  @doc "Fails with the page's name and line. Gives how many blocks were run, read and compared."
  def check(page, text) do
    blocks = text |> String.split("\n") |> Enum.with_index(1) |> blocks([])

    {count, _context} =
      Enum.reduce(blocks, {0, {[], Code.env_for_eval(file: page)}}, fn block, {count, context} ->
        case block(page, block, context) do
          :prose -> {count, context}
          context -> {count + 1, context}
        end
      end)

    count
  end

  defp block(page, {language, line, code}, context) do
    path = quoted(code)

    cond do
      path != nil ->
        check_quote(page, line, path, tl(code))
        context

      language != "elixir" ->
        :prose

      match?(["config " <> _ | _], code) ->
        assert [nitrox: [_ | _]] = Config.Reader.eval!(page, lines(["import Config" | code]))
        context

      match?(["Mix.install(" <> _ | _], code) ->
        check_setup(page, lines(code))
        context

      true ->
        run(page, line, code, context)
    end
  end

  defp check_setup(page, code) do
    {_install, _, [dependencies]} = Code.string_to_quoted!(code)
    {dependencies, _} = Code.eval_quoted(dependencies, [], file: Path.join(@root, page))

    for dependency <- dependencies do
      case dependency do
        {:nitrox, path: path} ->
          assert Path.expand(path) == @root

        {app, requirement} ->
          version = app |> Application.spec(:vsn) |> to_string()

          assert Version.match?(version, requirement),
                 "#{page}: #{app} #{version} is no #{requirement}"
      end
    end
  end

  # ── The blocks of a page: language, first line, lines ──────────────────────────────────────────

  defp blocks([{"```" <> language, n} | rest], blocks) do
    {code, rest} = Enum.split_while(rest, fn {line, _} -> line != "```" end)
    assert rest != [], "line #{n}: this block has no end"
    code = Enum.map(code, &elem(&1, 0))
    blocks(tl(rest), [{language, n + 1, code} | blocks])
  end

  defp blocks([_ | rest], blocks), do: blocks(rest, blocks)
  defp blocks([], blocks), do: Enum.reverse(blocks)

  defp lines(code), do: Enum.join(code, "\n")

  # ── Blocks that are run ────────────────────────────────────────────────────────────────────────

  # In parts, each up to the result that it says.
  defp run(_page, _line, [], context), do: context

  defp run(page, line, code, context) do
    {part, rest} = Enum.split_while(code, &(not String.starts_with?(&1, "#=>")))
    {expected, rest} = result(rest)

    {first, last} =
      part |> lines() |> Code.string_to_quoted!(file: page, line: line) |> expressions()

    context =
      Enum.reduce(first, context, fn quoted, context -> elem(eval(quoted, context), 1) end)

    {got, context} = if expected, do: show(last, context), else: eval(last, context)
    if expected, do: compare("#{page}:#{line}", expected, got)
    run(page, line + length(code) - length(rest), rest, context)
  end

  defp result(["#=>" <> first | rest]) do
    {more, rest} = Enum.split_while(rest, &String.starts_with?(&1, "#   "))
    {lines([first | Enum.map(more, &String.trim_leading(&1, "#"))]) |> String.trim(), rest}
  end

  defp result([]), do: {nil, []}

  # All but the last, and the last: only that one may raise.
  defp expressions({:__block__, _, [_ | _] = all}) do
    {first, [last]} = Enum.split(all, -1)
    {first, last}
  end

  defp expressions(one), do: {[], one}

  defp eval(quoted, {binding, env}) do
    {value, binding, env} = Code.eval_quoted_with_env(quoted, binding, env)
    {value, {binding, env}}
  end

  defp show(quoted, context) do
    {value, context} = eval(quoted, context)
    {inspect(value, charlists: :as_lists, limit: :infinity), context}
  rescue
    error -> {"** (#{inspect(error.__struct__)}) #{Exception.message(error)}", context}
  end

  defp compare(where, expected, got) do
    [expected, got] = for text <- [expected, got], do: text |> String.split() |> Enum.join(" ")
    pattern = expected |> String.split("…") |> Enum.map_join(".*", &Regex.escape/1)

    assert got =~ Regex.compile!("^#{pattern}$", "us"),
           "#{where}: expected #{expected}, got #{got}"
  end

  # ── Blocks that quote ──────────────────────────────────────────────────────────────────────────

  defp quoted([first | _]) do
    with [_, path] <- Regex.run(~r{^(?://|#) (\S+/\S+\.\w+)$}, first), do: path
  end

  defp quoted([]), do: nil

  defp check_quote(page, line, path, code) do
    elided? = &(&1 =~ ~r{^(//|#)? ?…$})
    pieces = code |> trimmed() |> Enum.chunk_by(elided?) |> Enum.reject(&elided?.(hd(&1)))
    assert pieces != [], "#{page}:#{line}: nothing of #{path} is quoted"
    source = @root |> Path.join(path) |> File.read!() |> String.split("\n") |> trimmed()
    Enum.reduce(pieces, source, &after_piece(&2, &1, "#{page}:#{line}: #{path}"))
  end

  defp trimmed(lines), do: lines |> Enum.map(&String.trim/1) |> Enum.reject(&(&1 == ""))

  defp after_piece(source, piece, where) do
    cond do
      List.starts_with?(source, piece) -> Enum.drop(source, length(piece))
      source == [] -> flunk("#{where} has not, in this order:\n#{lines(piece)}")
      true -> after_piece(tl(source), piece, where)
    end
  end
end
