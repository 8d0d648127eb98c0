defmodule Nitrox.Native do
  @moduledoc false
  # The NIF library, and the one place where its answers are unwrapped.
  #
  # A NIF answers `{:ok, value}` or `{:error, {reason, op, message, hint}}`, and raises nothing.
  # Three more answers say who has to be asked instead: `:heavy` (its dirty twin), `{:closed,
  # device}` (again, once the device is open) and `{:pending, run}` (`wait/1`, which has the results
  # of a run that the GPU has not done yet).

  alias Nitrox.{Error, Telemetry}

  @on_load :load
  @unloaded {__MODULE__, :unloaded}

  @nifs [
    open: 2,
    cuda_count: 0,
    device_info: 1,
    warmup: 2,
    synchronize: 1,
    trim: 1,
    memory_stats: 1,
    survey: 0,
    listen: 1,
    from_binary: 3,
    from_binary_dirty: 3,
    to_binary: 2,
    to_binary_dirty: 2,
    copy: 2,
    copy_dirty: 2,
    deallocate: 1,
    address: 1,
    adopt: 4,
    run: 3,
    run_dirty: 3,
    infer: 2,
    explain: 3,
    compile: 5,
    program_info: 1,
    program_explain: 1,
    program_run: 2,
    program_run_dirty: 2,
    session_new: 1,
    session_step: 3,
    session_step_dirty: 3,
    session_snapshot: 1,
    session_restore: 2,
    session_fork: 1,
    wait: 1,
    weights_open: 1,
    weights_fetch: 3
  ]

  @twins for {name, _} <- @nifs,
             twin = :"#{name}_dirty",
             Keyword.has_key?(@nifs, twin),
             into: %{},
             do: {name, twin}

  @doc false
  def nifs, do: @nifs

  @doc false
  # A library that cannot be loaded is told about by each call, not by a module that is not there.
  def load do
    path = :filename.join(:code.priv_dir(:nitrox), ~c"native/libnitrox_nif")

    with {:error, {kind, text}} <- :erlang.load_nif(path, 0) do
      message = "the library of Nitrox could not be loaded: #{path}: #{text}"

      hint =
        if kind in [:upgrade, :reload],
          do: "restart the VM: the library can't be replaced in one that runs",
          else: "build it with `mix compile`, on the machine it is to run on"

      :persistent_term.put(@unloaded, {:error, {:unavailable, nil, message, hint}})
    end

    :ok
  end

  for {name, arity} <- @nifs do
    @doc false
    def unquote(name)(unquote_splicing(Macro.generate_unique_arguments(arity, __MODULE__))) do
      :persistent_term.get(@unloaded)
    end
  end

  @doc """
  Calls a NIF and goes on where its answer says, to a value or a raised `Nitrox.Error`.
  """
  @spec call(atom(), [term()]) :: term()
  def call(name, args), do: call(name, args, _collect? = true)

  @doc """
  As `call/2` for `session_step/3`, without the list of arguments and the choice of a function by its
  name: the less code a frame goes through, the less of it is cold.
  """
  @spec step(reference(), list(), boolean()) :: term()
  def step(session, feeds, prepare?) do
    case session_step(session, feeds, prepare?) do
      {:ok, value} -> value
      answer -> go_on(answer, :session_step, [session, feeds, prepare?], _collect? = true)
    end
  end

  # In place of apply/3, which looks the function up at each call.
  for {name, arity} <- @nifs do
    args = Macro.generate_unique_arguments(arity, __MODULE__)
    defp nif(unquote(name), unquote(args)), do: unquote(name)(unquote_splicing(args))
  end

  defp call(name, args, collect?), do: go_on(nif(name, args), name, args, collect?)

  defp go_on(answer, name, args, collect?) do
    case answer do
      {:ok, value} ->
        value

      :heavy ->
        call(Map.fetch!(@twins, name), args, collect?)

      # Its results are taken from the device once, so this call can't be made again.
      {:pending, run} ->
        call(:wait, [run], false)

      {:closed, device} ->
        Nitrox.Device.open(device)
        call(name, args, collect?)

      # The VM's collector sees a handle of some words, not the memory behind it.
      {:error, {:out_of_memory, _, _, _}} when collect? ->
        collect_handles(name)
        call(name, args, false)

      {:error, error} ->
        raise Error.from_native(error)
    end
  end

  # Longer than a collection of any process takes, and shorter than a call that holds one up.
  @collection_ms 1_000

  # In a process of its own: its mailbox takes the answers that come too late.
  defp collect_handles(name) do
    started = System.monotonic_time()

    {pid, monitor} =
      spawn_monitor(fn ->
        tag = make_ref()
        processes = Process.list() -- [self()]
        Enum.each(processes, &:erlang.garbage_collect(&1, async: tag))
        deadline = System.monotonic_time(:millisecond) + @collection_ms
        Enum.each(processes, fn _ -> await_collection(tag, deadline) end)
      end)

    receive do: ({:DOWN, ^monitor, :process, ^pid, _} -> :ok)

    Telemetry.execute(
      [:nitrox, :memory, :collected],
      %{duration: System.monotonic_time() - started},
      %{call: name}
    )
  end

  defp await_collection(tag, deadline) do
    receive do
      {:garbage_collect, ^tag, _} -> :ok
    after
      max(deadline - System.monotonic_time(:millisecond), 0) -> :ok
    end
  end
end
