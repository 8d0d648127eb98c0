defmodule Nitrox.Demo.Timing do
  @moduledoc false
  # Frames one after the other, back to back or at a pace, and what their times say. The bench
  # measures with it too.

  @type summary :: %{
          p10: float(),
          p50: float(),
          p95: float(),
          p99: float(),
          p999: float(),
          max: float()
        }

  @doc """
  Calls `frame` with what it last returned, `count` times, and gives the time of each call in
  microseconds, the first one first, and what each returned. Nothing but the call is timed.

  With `:fps` a frame begins when it is due, and the process sleeps until then. With `:prepare` too it
  sleeps until a millisecond or two before, calls that, and waits for the frame awake; one that takes
  the time when the frame is due does the waiting. With `:prepare` alone that is called before each
  frame.
  """
  def measure(count, first, frame, opts \\ []) do
    period =
      opts[:fps] && System.convert_time_unit(1_000_000_000, :nanosecond, :native) / opts[:fps]

    tick = opts[:tick] || fn _ -> :ok end
    pace = {System.monotonic_time(), period, opts[:prepare]}
    loop(0, count, first, frame, pace, tick, [], [])
  end

  defp loop(count, count, _last, _frame, _pace, tick, times, results) do
    tick.(count)
    {Enum.reverse(times), Enum.reverse(results)}
  end

  defp loop(n, count, last, frame, pace, tick, times, results) do
    if rem(n, 100) == 0, do: tick.(n)
    wait(n, pace)
    from = System.monotonic_time()
    result = frame.(last)
    to = System.monotonic_time()
    time = System.convert_time_unit(to - from, :native, :nanosecond) / 1000
    loop(n + 1, count, result, frame, pace, tick, [time | times], [result | results])
  end

  defp wait(_n, {_start, nil, nil}), do: :ok
  defp wait(_n, {_start, nil, prepare}), do: prepare.()

  defp wait(n, {start, period, prepare}) when is_function(prepare, 1) do
    due = start + round(n * period)
    prepare.(due)
    spin(due)
  end

  defp wait(n, {start, period, prepare}) do
    due = start + round(n * period)
    left = System.convert_time_unit(due - System.monotonic_time(), :native, :microsecond)
    early = if prepare, do: 1, else: 0
    if left >= 1000 * (early + 1), do: Process.sleep(div(left, 1000) - early)

    if prepare do
      prepare.()
      spin(due)
    end
  end

  defp spin(due), do: if(System.monotonic_time() < due, do: spin(due))

  @doc "Percentiles by nearest rank: each is a time that was measured."
  @spec summary([float(), ...]) :: summary()
  def summary(times) do
    sorted = times |> Enum.sort() |> List.to_tuple()
    count = tuple_size(sorted)
    at = fn share -> elem(sorted, max(ceil(share * count), 1) - 1) end

    %{
      p10: at.(0.1),
      p50: at.(0.5),
      p95: at.(0.95),
      p99: at.(0.99),
      p999: at.(0.999),
      max: at.(1)
    }
  end

  @doc "Microseconds as a reader wants them: `61.3 µs`, `1.25 ms`."
  @spec text(number()) :: String.t()
  def text(us) when us < 1000, do: "#{:erlang.float_to_binary(us / 1, decimals: 1)} µs"
  def text(us), do: "#{:erlang.float_to_binary(us / 1000, decimals: 2)} ms"
end
