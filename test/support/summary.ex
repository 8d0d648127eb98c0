defmodule Nitrox.TestSummary do
  @moduledoc false
  # ExUnit's own formatter, followed by what was left out and why, the failed tests once more, and the
  # counts in one line. It wraps the formatter, since two formatters side by side print in no fixed
  # order.
  use GenServer

  alias ExUnit.CLIFormatter

  @doc """
  Has a test that finds out on its way that it can't be made here counted as left out; it returns
  then. `context` is the test's own.
  """
  def leave_out(%{module: module, test: test}, why) do
    :persistent_term.put({__MODULE__, module, test}, why)
  end

  @impl true
  def init(opts) do
    {:ok, cli} = CLIFormatter.init(opts)
    {:ok, %{cli: cli, missing: opts[:missing] || [], seed: opts[:seed], results: []}}
  end

  @impl true
  def handle_cast(event, state) do
    {:noreply, cli} = CLIFormatter.handle_cast(event, state.cli)
    state = %{state | cli: cli}

    case event do
      {:test_finished, test} ->
        {:noreply, update_in(state.results, &[result(test, state.missing) | &1])}

      {:suite_finished, _} ->
        print(state.results, state.seed)
        {:noreply, state}

      _ ->
        {:noreply, state}
    end
  end

  defp result(%{state: nil, module: module, name: name}, _) do
    case :persistent_term.get({__MODULE__, module, name}, nil) do
      nil -> :passed
      why -> {:left_out, "ExUnit (#{why})"}
    end
  end

  defp result(%{state: {:skipped, why}}, _), do: {:left_out, "ExUnit (#{why})"}

  defp result(%{state: {:excluded, why}, tags: tags}, missing) do
    case Enum.find(missing, fn {tag, _} -> tags[tag] end) do
      {tag, reason} -> {:left_out, "ExUnit #{inspect(tag)} (#{reason})"}
      nil -> {:left_out, "ExUnit (#{why})"}
    end
  end

  defp result(%{state: {:failed, failures}} = test, _), do: {:failed, place(test, failures)}

  # A setup_all that failed took its tests along.
  defp result(%{state: {:invalid, %{state: {:failed, failures}}}} = test, _),
    do: {:failed, place(test, failures)}

  # `test/nitrox_test.exs:12: test that one is one: expected 1, got 2`
  defp place(%{name: name, tags: tags}, failures) do
    why =
      case failures do
        [{kind, reason, stack} | _] ->
          kind |> Exception.format_banner(reason, stack) |> first_line()

        [] ->
          "no reason given"
      end

    "#{Path.relative_to_cwd(tags.file)}:#{tags.line}: #{name}: #{why}"
  end

  defp first_line(text) do
    text
    |> String.split("\n", trim: true)
    |> Enum.map(&String.trim/1)
    |> Enum.find("", &(&1 not in ["", "** (ExUnit.AssertionError)"]))
    |> String.replace_prefix("** (ExUnit.AssertionError) ", "")
    |> String.slice(0, 200)
  end

  # .ci/test reads these lines.
  defp print(results, seed) do
    failed = for {:failed, place} <- Enum.reverse(results), do: place

    counts =
      Enum.frequencies_by(results, fn
        {:failed, _} -> :failed
        other -> other
      end)

    left_out = for {{:left_out, why}, n} <- Enum.sort(counts), do: {n, why}
    for {n, why} <- left_out, do: IO.puts("left out: #{n} #{why}")
    for place <- failed, do: IO.puts("failed: #{place}")

    IO.puts(
      "ExUnit: #{counts[:passed] || 0} passed, #{counts[:failed] || 0} failed, " <>
        "#{left_out |> Enum.map(&elem(&1, 0)) |> Enum.sum()} left out (seed #{seed})"
    )
  end
end
