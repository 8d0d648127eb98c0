defmodule Nitrox.Demo.Html do
  @moduledoc false
  # The demo's page: one file with nothing to load. The charts are SVG, drawn here.

  alias Nitrox.Demo.Timing

  # The chart's drawing, in its own units.
  @left 62
  @right 16
  @top 14
  @bottom 34
  @width 880
  @height 250
  @plot_width @width - @left - @right
  @plot_height @height - @top - @bottom

  @spec page([map()], map()) :: iodata()
  def page(results, opts) do
    budget = 1.0e6 / opts.fps
    decades = decades(results, budget)

    [
      """
      <!doctype html>
      <html lang="en">
      <meta charset="utf-8">
      <meta name="viewport" content="width=device-width, initial-scale=1">
      <title>Nitrox: #{opts.fps} frames a second</title>
      <style>#{style()}</style>
      <main>
      <header>
      <h1>Text at #{opts.fps} frames a second</h1>
      <p>Networks trained on the King James Bible read and write it one character a frame, on
      <b>#{escape(inspect(opts.device))}</b>. A frame is timed from the Elixir call to the next
      character on the host, here #{pace(opts)}; its budget is
      <b>#{Timing.text(budget)}</b>.</p>
      </header>
      """,
      table(results),
      Enum.map(results, &card(&1, budget, decades)),
      "</main>\n</html>\n"
    ]
  end

  defp pace(%{paced: true, fps: fps}), do: "paced at #{fps} a second"
  defp pace(_), do: "one right after the other"

  defp table(results) do
    rows =
      for r <- results do
        """
        <tr><th scope="row">#{escape(r.name)}</th>
        <td>#{Timing.text(r.frame_us.p50)}</td><td>#{Timing.text(r.frame_us.p99)}</td>
        <td>#{Timing.text(r.frame_us.max)}</td><td>#{r.over_budget} of #{length(r.times)}</td>
        <td>#{decimals(r.bits_per_character, 4)}</td><td>#{decimals(r.reference_bits_per_character, 4)}</td>
        <td>#{:erlang.float_to_binary(r.max_logit_difference / 1, scientific: 1)}</td>
        <td>#{decimals(r.memory_bytes / 1.0e6, 2)} MB</td></tr>
        """
      end

    """
    <div class="scroll"><table>
    <thead><tr><td></td><th colspan="4">time of a frame</th><th colspan="2">bits per character</th>
    <th>logits</th><th>memory</th></tr>
    <tr><td></td><th>p50</th><th>p99</th><th>max</th><th>over budget</th><th>here</th><th>PyTorch</th>
    <th>differ by</th><th>held</th></tr></thead>
    <tbody>#{rows}</tbody></table></div>
    """
  end

  defp card(r, budget, decades) do
    paced =
      case r.paced do
        nil ->
          ""

        {n, us} ->
          " Paced, over #{n} frames: p50 #{Timing.text(us.p50)}, p99 #{Timing.text(us.p99)}."
      end

    """
    <section>
    <h2>#{escape(r.name)}</h2>
    <p>p50 #{Timing.text(r.frame_us.p50)}, p95 #{Timing.text(r.frame_us.p95)},
    p99 #{Timing.text(r.frame_us.p99)}: at the median a frame takes
    #{share(r.frame_us.p50 / budget)} of its budget.#{paced}</p>
    #{chart(r, budget, decades)}
    <figure><figcaption>What it wrote</figcaption><pre>#{r.text |> String.trim() |> escape()}</pre></figure>
    </section>
    """
  end

  # ── Chart ──────────────────────────────────────────────────────────────────────────────────────

  # All charts share their axis, from the power of ten below the fastest frame to the one above the
  # slowest or the budget.
  defp decades(results, budget) do
    times = Enum.flat_map(results, & &1.times)
    low = times |> Enum.min() |> max(1.0e-3) |> :math.log10() |> floor()
    high = times |> Enum.max() |> max(budget) |> :math.log10() |> ceil()
    {low, max(high, low + 1)}
  end

  defp chart(r, budget, {low, high} = decades) do
    y = &y(&1, decades)
    count = length(r.times)

    grid =
      for decade <- low..high do
        at = y.(:math.pow(10, decade))

        """
        <line class="grid" x1="#{@left}" x2="#{@width - @right}" y1="#{at}" y2="#{at}"/>
        <text class="tick" x="#{@left - 8}" y="#{at + 4}" text-anchor="end">#{power(decade)}</text>
        """
      end

    median = y.(r.frame_us.p50)
    # Below its line, where no frame is, but for where the axis is.
    median_label = if median + 18 < @height - @bottom, do: median + 15, else: median - 6
    over = y.(budget)

    """
    <svg viewBox="0 0 #{@width} #{@height}" role="img"
    aria-label="Time of each of #{count} frames of #{escape(r.name)} on a logarithmic axis">
    #{grid}
    <path class="times" d="#{path(r.times, y)}"/>
    <line class="median" x1="#{@left}" x2="#{@width - @right}" y1="#{median}" y2="#{median}"/>
    <line class="budget" x1="#{@left}" x2="#{@width - @right}" y1="#{over}" y2="#{over}"/>
    <text class="budget-label" x="#{@width - @right - 4}" y="#{over - 6}" text-anchor="end">budget #{Timing.text(budget)}</text>
    <text class="median-label" x="#{@width - @right - 4}" y="#{median_label}" text-anchor="end">p50 #{Timing.text(r.frame_us.p50)}</text>
    <text class="tick" x="#{@left}" y="#{@height - 10}">frame 1</text>
    <text class="tick" x="#{@width - @right}" y="#{@height - 10}" text-anchor="end">frame #{count}</text>
    </svg>
    """
  end

  # A column is as wide as a line, and goes from the fastest of its frames to the slowest: no frame
  # is left out of the picture, the slow ones least of all.
  defp path(times, y) do
    count = length(times)
    columns = min(count, div(@plot_width, 2))

    times
    |> Enum.with_index()
    |> Enum.chunk_by(fn {_, i} -> div(i * columns, count) end)
    |> Enum.with_index()
    |> Enum.map(fn {frames, column} ->
      {fastest, slowest} = frames |> Enum.map(&elem(&1, 0)) |> Enum.min_max()
      x = decimals(@left + (column + 0.5) * @plot_width / columns, 1)
      # A column of one time would be a line of no length.
      "M#{x} #{y.(slowest) - 0.8}V#{y.(fastest) + 0.8}"
    end)
  end

  defp y(us, {low, high}) do
    share = (:math.log10(max(us, 1.0e-3)) - low) / (high - low)
    Float.round(@top + (1 - share) * @plot_height, 1)
  end

  defp power(decade) when decade < 3, do: "#{number(:math.pow(10, decade))} µs"
  defp power(decade) when decade < 6, do: "#{number(:math.pow(10, decade - 3))} ms"
  defp power(decade), do: "#{number(:math.pow(10, decade - 6))} s"

  defp number(x) when x >= 1, do: Integer.to_string(round(x))
  defp number(x), do: Float.to_string(x)

  defp share(x) when x >= 0.1, do: "#{decimals(100 * x, 0)} %"
  defp share(x), do: "#{decimals(100 * x, 2)} %"

  defp decimals(x, n), do: :erlang.float_to_binary(x / 1, decimals: n)

  defp escape(text) do
    text
    |> String.replace("&", "&amp;")
    |> String.replace("<", "&lt;")
    |> String.replace(">", "&gt;")
    |> String.replace("\"", "&quot;")
  end

  defp style do
    """

    :root { --ground: #fbfaf8; --card: #fff; --ink: #22201c; --soft: #6d675e; --rule: #e6e1d8;
            --times: #3367b0; --budget: #c2402f; color-scheme: light dark }
    @media (prefers-color-scheme: dark) {
      :root { --ground: #16171a; --card: #1e2024; --ink: #ebe7df; --soft: #a29c91; --rule: #33363c;
              --times: #7fb0f5; --budget: #ff8a75 } }
    * { box-sizing: border-box }
    body { margin: 0; background: var(--ground); color: var(--ink);
           font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif }
    main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem }
    h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .6rem; letter-spacing: -.01em }
    h2 { font-size: 1.25rem; margin: 0 0 .3rem; letter-spacing: .04em; text-transform: uppercase }
    p { margin: 0 0 1rem; color: var(--soft); max-width: 46rem }
    b { color: var(--ink) }
    .scroll { overflow-x: auto; margin: 1.5rem 0 }
    table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .93rem }
    thead th { font-weight: 500; color: var(--soft); text-align: right; padding: .15rem .6rem }
    tbody th { text-align: left; padding: .45rem .6rem .45rem 0 }
    tbody td { text-align: right; padding: .45rem .6rem; white-space: nowrap }
    tbody tr { border-top: 1px solid var(--rule) }
    section { background: var(--card); border: 1px solid var(--rule); border-radius: 12px;
              padding: 1.4rem 1.5rem 1.5rem; margin: 1.5rem 0 }
    svg { display: block; width: 100%; height: auto; font-size: 12px }
    .grid { stroke: var(--rule) }
    .tick { fill: var(--soft) }
    .times { stroke: var(--times); stroke-width: 1.7; fill: none }
    .median { stroke: var(--ink); stroke-dasharray: 2 4; opacity: .65 }
    .median-label, .budget-label { font-weight: 600; paint-order: stroke;
                                   stroke: var(--card); stroke-width: 4px }
    .median-label { fill: var(--ink) }
    .budget { stroke: var(--budget); stroke-width: 1.5 }
    .budget-label { fill: var(--budget) }
    figure { margin: 1rem 0 0 }
    figcaption { color: var(--soft); font-size: .9rem; margin-bottom: .35rem }
    pre { margin: 0; padding: .9rem 1.1rem; border-left: 3px solid var(--times); overflow-wrap: anywhere;
          white-space: pre-wrap; font: 1rem/1.6 Georgia, "Iowan Old Style", serif }
    """
  end
end
