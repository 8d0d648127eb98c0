# A process that wakes each millisecond, beside a loop of frames: it stands for everything else in
# the VM, which a frame must not hold up.
#
# How late the process is depends on the machine as much as on us, so it is compared with itself
# while the VM is idle: windows of both by turns, in which the noise of the machine falls on both.
# Noise only ever makes a p99 worse, and mostly not in each of five attempts; a frame that holds a
# scheduler does so in all of them. So the best of five attempts counts. An attempt says nothing where
# the machine's other processes took their part of the cores (a frame needs them too, and then it is
# the kernel that makes the VM's threads wait), or where the idle p99 is above 8 ms; it is made again.
# After three of those the test is left out, and says so, as all of them are where the machine is so
# busy from the start (test_helper.exs). The last test shows that schedulers which are held are seen: it
# would fail if the others could not.
defmodule Nitrox.SchedulersTest do
  use ExUnit.Case, async: false

  alias Nitrox.{Program, Session, Tensor}

  @moduletag :quiet

  @attempts 5
  @again 3
  @busy 8_000
  # Of the machine's cores, for other processes.
  @others 0.1
  @windows 3
  @ticks 150
  # Microseconds.
  @allowed 1_000

  # Of the times from one tick to the next, in µs, over all windows: beside `other` and beside `work`.
  defp p99s(work, other, windows \\ @windows, count \\ @ticks) do
    {before, busy} =
      for _ <- 1..windows, reduce: {[], []} do
        {before, busy} -> {beside(other, count) ++ before, beside(work, count) ++ busy}
      end

    {p99(before), p99(busy)}
  end

  defp beside(work, count) do
    workers = work.()
    # Under way before it is measured.
    Process.sleep(20)
    times = ticks(count)
    Enum.each(workers, &stop/1)
    times
  end

  defp idle, do: []

  # In a process of its own, as its heap would be collected otherwise.
  defp ticks(count) do
    Task.async(fn ->
      for _ <- 1..count do
        before = System.monotonic_time(:microsecond)
        receive(do: (:never -> :ok), after: (1 -> :ok))
        System.monotonic_time(:microsecond) - before
      end
    end)
    |> Task.await(:infinity)
  end

  defp p99(times), do: times |> Enum.sort() |> Enum.at(floor(0.99 * length(times)))

  defp stop(pid) do
    Process.unlink(pid)
    monitor = Process.monitor(pid)
    Process.exit(pid, :kill)
    assert_receive {:DOWN, ^monitor, :process, ^pid, _}
  end

  # The first difference within bounds, or the least, with the p99s themselves. An attempt counts
  # where the p99 beside `other` is not too high already.
  defp best(work, other, attempts \\ @attempts, again \\ @again, best \\ nil)

  defp best(_, _, 0, _, best), do: best
  defp best(_, _, _, 0, _), do: :too_busy

  defp best(work, other, attempts, again, best) do
    {{idle, busy}, others} = beside_others(fn -> p99s(work, other) end)
    attempt = {busy - idle, idle, busy}

    cond do
      busy - idle <= @allowed ->
        attempt

      idle > @busy or others > @others ->
        Process.sleep(1_000)
        best(work, other, attempts, again - 1, best)

      true ->
        best(work, other, attempts - 1, again, min(best || attempt, attempt))
    end
  end

  # What a function gives, and the share of all cores that other processes took meanwhile: of the time
  # that the machine's cores were busy, or lent to another machine, what was not this VM's.
  defp beside_others(fun) do
    {busy, all, ours} = cpu_time()
    result = fun.()
    {busy_now, all_now, ours_now} = cpu_time()
    {result, (busy_now - busy - (ours_now - ours)) / max(all_now - all, 1)}
  end

  # In the kernel's ticks; no time at all where it does not say.
  defp cpu_time do
    with {:ok, stat} <- File.read("/proc/stat"),
         ["cpu" | times] <- stat |> String.split("\n") |> hd() |> String.split(),
         {:ok, own} <- File.read("/proc/self/stat") do
      [user, nice, system, idle, waiting, irq, softirq, steal | _] =
        Enum.map(times, &String.to_integer/1)

      busy = user + nice + system + irq + softirq + steal
      # The name, in parentheses, may have spaces in it.
      [_, fields] = String.split(own, ") ", parts: 2)
      [own_user, own_system] = fields |> String.split() |> Enum.slice(11, 2)
      ours = String.to_integer(own_user) + String.to_integer(own_system)
      {busy, busy + idle + waiting, ours}
    else
      _ -> {0, 0, 0}
    end
  end

  defp loop(frame), do: spawn_link(fn -> Stream.repeatedly(frame) |> Stream.run() end)

  defp paced(frame) do
    loop(fn ->
      started = System.monotonic_time(:millisecond)
      frame.()
      Process.sleep(max(16 - (System.monotonic_time(:millisecond) - started), 0))
    end)
  end

  # A policy of two LSTM layers and a head.
  defp policy(device) do
    random = fn shape ->
      bytes =
        for _ <- 1..Tuple.product(shape),
            into: <<>>,
            do: <<0.05 * :rand.normal()::float-32-native>>

      Tensor.from_binary(bytes, {:f, 32}, shape, device: device)
    end

    layers = for input <- [288, 256], do: {random.({input, 1024}), random.({256, 1024})}
    head = random.({256, 32})
    zeros = fn -> Nitrox.broadcast_to(Tensor.tensor(0.0, device: device), {1, 256}) end

    fun = fn x, states ->
      {x, states} =
        Enum.zip_reduce(layers, states, {x, []}, fn {wi, wh}, state, {x, states} ->
          {seq, state} = Nitrox.lstm(x, state, wi, wh, nil)
          {seq, [state | states]}
        end)

      {Nitrox.dense(x, head, nil), Enum.reverse(states)}
    end

    template = Nitrox.template({1, 1, 288}, {:f, 32})

    options = [
      device: device,
      state: [{zeros.(), zeros.()}, {zeros.(), zeros.()}],
      outputs: :binary
    ]

    session = Session.new(Program.compile(fun, [template], options))
    x = Tensor.to_binary(random.({1, 1, 288}))
    fn -> Session.step(session, [x]) end
  end

  # Some milliseconds of work.
  defp window(device) do
    w = Nitrox.broadcast_to(Tensor.tensor(0.001, device: device), {512, 512})
    fun = fn x -> Enum.reduce(1..8, x, fn _, x -> Nitrox.dense(x, w, nil) end) end

    program =
      Program.compile(fun, [Nitrox.template({32, 512}, {:f, 32})],
        device: device,
        outputs: :binary
      )

    x = :binary.copy(<<1.0::float-32-native>>, 32 * 512)
    fn -> Program.run(program, [x]) end
  end

  # Whether the work holds others up; nil where there is no telling.
  defp holds_up?(context, work, other \\ &idle/0) do
    case best(work, other) do
      :too_busy -> leave_out(context)
      # As the message of an assertion.
      {more, _, _} = measured -> if more > @allowed, do: measured, else: false
    end
  end

  defp leave_out(context) do
    Nitrox.TestSummary.leave_out(context, "the machine is too busy for tests of time")
    nil
  end

  for {name, device, tags} <- [{"the CPU", :cpu, []}, {"a GPU", {:cuda, 0}, [cuda: true]}] do
    describe "on #{name} a millisecond's timer keeps its p99 beside" do
      @describetag tags
      @device device

      test "frames at 60 a second", context do
        frame = policy(@device)
        frame.()
        assert holds_up?(context, fn -> [paced(frame)] end) in [false, nil]
      end

      test "frames back to back, compared with a busy process", context do
        frame = policy(@device)
        frame.()
        # It takes a core, as any busy process does: it is compared with one.
        busy = fn -> [loop(fn -> Enum.reduce(1..1_000, 0, &+/2) end)] end
        assert holds_up?(context, fn -> [loop(frame)] end, busy) in [false, nil]
      end

      test "a frame of some milliseconds, 60 a second", context do
        frame = window(@device)
        frame.()
        assert holds_up?(context, fn -> [paced(frame)] end) in [false, nil]
      end
    end
  end

  test "and one that holds the schedulers is seen", context do
    # A built-in function that does not yield; one process a scheduler.
    list = holding(100_000)
    work = fn -> for _ <- 1..System.schedulers_online(), do: loop(fn -> hold(list) end) end
    {idle, busy} = p99s(work, &idle/0, 1, 40)
    if idle > @busy, do: leave_out(context), else: assert(busy - idle > @allowed)
  end

  # It counts for next to nothing with the scheduler, so each call has to end a turn of the process.
  defp hold(list) do
    _ = :erlang.list_to_tuple(list)
    :erlang.yield()
  end

  # A list for which it takes some milliseconds.
  defp holding(n) do
    list = Enum.to_list(1..n)
    fastest = for(_ <- 1..5, do: elem(:timer.tc(fn -> hold(list) end), 0)) |> Enum.min()
    if fastest > 3_000 or n > 8_000_000, do: list, else: holding(2 * n)
  end
end
