defmodule Nitrox.Nx.Cache do
  @moduledoc false
  # What was compiled for `Nitrox.Compiler`, by what it was compiled for. A key is built once: who
  # else asks for it meanwhile waits. When there are too many, the one that was not used for the
  # longest time goes; its programs live as long as a call of them.
  use GenServer

  alias Nitrox.Error

  @limit 512

  def start_link(_), do: GenServer.start_link(__MODULE__, nil, name: __MODULE__)

  @doc "What is kept for a key, or else what `build` gives."
  def fetch(key, build) do
    case lookup(key) do
      {:ok, value} -> value
      :error -> claim(key, build)
    end
  end

  @doc "Forgets everything."
  def clear do
    GenServer.call(__MODULE__, :clear)
  catch
    :exit, {:noproc, _} -> not_started!()
  end

  @doc "How many are kept."
  def size, do: :ets.info(__MODULE__, :size)

  defp lookup(key) do
    case :ets.lookup(__MODULE__, key) do
      [{_, value, used}] ->
        # Not for the one that was used last: to find a large key again takes its time.
        if used != :counters.get(uses(), 1),
          do: :ets.update_element(__MODULE__, key, {3, next_use()})

        {:ok, value}

      [] ->
        :error
    end
  rescue
    ArgumentError -> not_started!()
  end

  # The uses are numbered. Two at once may get one number, which does no harm.
  defp uses, do: :persistent_term.get(__MODULE__)

  defp next_use do
    :counters.add(uses(), 1, 1)
    :counters.get(uses(), 1)
  end

  defp claim(key, build) do
    case GenServer.call(__MODULE__, {:claim, key}, :infinity) do
      :kept ->
        fetch(key, build)

      :build ->
        value =
          try do
            build.()
          catch
            kind, reason ->
              GenServer.cast(__MODULE__, {:failed, key, self()})
              :erlang.raise(kind, reason, __STACKTRACE__)
          end

        GenServer.call(__MODULE__, {:keep, key, value}, :infinity)
        value
    end
  end

  defp not_started! do
    raise Error.argument(
            :compiler,
            "Nitrox is not started",
            "start it with Application.ensure_all_started(:nitrox)"
          )
  end

  # ── The process that owns the table ─────────────────────────────────────────────────────────────

  # `building` has, by key, who builds it, the monitor on that process, and who waits.
  @impl true
  def init(nil) do
    :ets.new(__MODULE__, [:named_table, :public, read_concurrency: true, write_concurrency: true])
    :persistent_term.put(__MODULE__, :counters.new(1, []))
    {:ok, %{}}
  end

  @impl true
  def handle_call({:claim, key}, {pid, _} = from, building) do
    case building do
      %{^key => {builder, monitor, waiting}} ->
        {:noreply, %{building | key => {builder, monitor, [from | waiting]}}}

      %{} ->
        if :ets.member(__MODULE__, key),
          do: {:reply, :kept, building},
          else: {:reply, :build, Map.put(building, key, {pid, Process.monitor(pid), []})}
    end
  end

  def handle_call({:keep, key, value}, _, building) do
    :ets.insert(__MODULE__, {key, value, next_use()})
    limit = Application.get_env(:nitrox, :compiler_cache, @limit)
    if size() > limit, do: drop_oldest(size() - limit)
    {{_, monitor, waiting}, building} = Map.pop(building, key)
    Process.demonitor(monitor, [:flush])
    Enum.each(waiting, &GenServer.reply(&1, :kept))
    {:reply, :ok, building}
  end

  def handle_call(:clear, _, building) do
    :ets.delete_all_objects(__MODULE__)
    # The values were in messages to this process.
    :erlang.garbage_collect()
    {:reply, :ok, building}
  end

  @impl true
  def handle_cast({:failed, key, pid}, building), do: {:noreply, next(building, key, pid)}

  @impl true
  def handle_info({:DOWN, _, :process, pid, _}, building) do
    keys = for {key, {^pid, _, _}} <- building, do: key
    {:noreply, Enum.reduce(keys, building, &next(&2, &1, pid))}
  end

  # Who builds a key that its builder gave up: the one that has waited the longest.
  defp next(building, key, pid) do
    case building do
      %{^key => {^pid, monitor, waiting}} ->
        Process.demonitor(monitor, [:flush])

        case Enum.reverse(waiting) do
          [] ->
            Map.delete(building, key)

          [{next, _} = from | rest] ->
            GenServer.reply(from, :build)
            %{building | key => {next, Process.monitor(next), Enum.reverse(rest)}}
        end

      %{} ->
        building
    end
  end

  defp drop_oldest(count) do
    :ets.select(__MODULE__, [{{:"$1", :_, :"$2"}, [], [{{:"$2", :"$1"}}]}])
    |> Enum.sort_by(&elem(&1, 0))
    |> Enum.take(count)
    |> Enum.each(fn {_, key} -> :ets.delete(__MODULE__, key) end)
  end
end
