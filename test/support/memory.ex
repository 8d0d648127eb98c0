defmodule Nitrox.TestMemory do
  @moduledoc false
  # What a device holds, `{bytes, allocations}`. A dropped handle gives its memory back when its process
  # is collected, or has ended, and a call that its process did not live to see may still be under way:
  # so this waits for what it looks for, and for no time that is right on one machine only.

  alias Nitrox.Device

  # Looks in a row that have to agree.
  @agree 5
  # Milliseconds. A look takes ten or more.
  @patience 60_000

  @doc "What is held once collecting changes nothing."
  @spec settled(Device.t()) :: {non_neg_integer(), non_neg_integer()}
  def settled(device \\ :cpu), do: settle(device, held(device), @agree)

  defp settle(_, held, 0), do: held

  defp settle(device, before, times) do
    case held(device) do
      ^before -> settle(device, before, times - 1)
      other -> settle(device, other, @agree)
    end
  end

  @doc "How much more is held than before, `{0, 0}` as soon as it is that."
  @spec left({non_neg_integer(), non_neg_integer()}, Device.t()) :: {integer(), integer()}
  def left({bytes, allocations} = before, device \\ :cpu, until \\ now() + @patience) do
    {bytes_now, allocations_now} = held(device)

    case {bytes_now - bytes, allocations_now - allocations} do
      {0, 0} -> {0, 0}
      left -> if now() > until, do: left, else: left(before, device, until)
    end
  end

  @doc """
  What a function leaves behind that runs in a process of its own. It is run twice: the first time may
  make what is kept for good, such as kernels and staging memory.
  """
  @spec leaks(Device.t(), (-> any())) :: {integer(), integer()}
  def leaks(device \\ :cpu, fun) do
    in_process(fun)
    before = settled(device)
    in_process(fun)
    left(before, device)
  end

  # As a task fails, so does the test.
  defp in_process(fun) do
    Task.await(
      Task.async(fn ->
        fun.()
        :ok
      end),
      :infinity
    )
  end

  defp held(device) do
    Device.synchronize(device)
    for pid <- Process.list(), do: :erlang.garbage_collect(pid)
    Process.sleep(10)
    %{in_use: bytes, allocations: allocations} = Device.memory_stats(device)
    {bytes, allocations}
  end

  defp now, do: System.monotonic_time(:millisecond)
end
