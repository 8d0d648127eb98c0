defmodule Nitrox.Device do
  @moduledoc """
  The devices: `:cpu`, and `{:cuda, n}` for each GPU that the driver shows.

  A device is opened when it is first used, once, and stays open for the life of the VM. What is
  given no device goes to `default/0`:

      config :nitrox,
        default_device: {:cuda, 0},
        devices: [{{:cuda, 0}, memory_limit: 4 * 1024 ** 3}]

  `memory_limit` is the most bytes that Nitrox takes of the device's memory; without it that is
  all there is. It can also be given to `open/2`, before the device is used.

  A device that can't be used raises a `Nitrox.Error` of the reason `:unavailable`, which says what is
  missing; `get/1` returns it.
  """

  alias Nitrox.{Error, Native, Options}

  @type t :: :cpu | {:cuda, non_neg_integer()}

  @typedoc "Sizes are bytes."
  @type stats :: %{
          in_use: non_neg_integer(),
          peak: non_neg_integer(),
          reserved: non_neg_integer(),
          allocations: non_neg_integer(),
          total_allocations: non_neg_integer(),
          segments: non_neg_integer(),
          largest_free: non_neg_integer(),
          fragmentation: float(),
          limit: non_neg_integer() | nil
        }

  @doc """
  The device that is used where none is named.
  """
  @spec default() :: t()
  def default, do: Application.get_env(:nitrox, :default_device, :cpu)

  @doc """
  Whether a device can be used: `{:ok, device}`, or the error that its use would raise.

      iex> Nitrox.Device.get(:cpu)
      {:ok, :cpu}
  """
  @spec get(t()) :: {:ok, t()} | {:error, Error.t()}
  def get(device) do
    {:ok, open(device)}
  rescue
    error in Error -> {:error, error}
  end

  @doc """
  Opens a device, which may be open already, and returns it.

  ## Options

    * `:memory_limit` — the most bytes it may take. It can't be changed once the device is open.
  """
  @spec open(t(), memory_limit: pos_integer()) :: t()
  def open(device, options \\ []) do
    options = Options.known!(:open, options, [:memory_limit])
    limit = Keyword.get_lazy(options, :memory_limit, fn -> configured_limit(device) end)
    Native.call(:open, [device, limit])
    device
  end

  # What is misspelt there would else be no limit at all.
  defp configured_limit(device) do
    devices = Application.get_env(:nitrox, :devices, [])

    if not (Options.list?(devices) and Enum.all?(devices, &match?({_, _}, &1))) do
      Options.fail!(
        :open,
        "config :nitrox, devices: expected a list of devices and their options, got #{inspect(devices)}",
        "as in devices: [{{:cuda, 0}, memory_limit: 4 * 1024 ** 3}]"
      )
    end

    with {_, options} <- List.keyfind(devices, device, 0),
         do: Options.known!(:open, options, [:memory_limit])[:memory_limit]
  end

  @doc """
  The devices of this machine, the CPU first. GPUs that can't be used are left out; `get/1` says
  why. Each is opened for it.

  `memory` is in bytes; `compute_capability` is `{major, minor}`, and nil for the CPU.
  """
  @spec list() :: [
          %{
            device: t(),
            name: String.t(),
            memory: non_neg_integer() | nil,
            compute_capability: {non_neg_integer(), non_neg_integer()} | nil
          }
        ]
  def list, do: [cpu() | gpus()]

  defp cpu do
    %{
      device: :cpu,
      name: proc("cpuinfo", ~r/^model name\s*:\s*(.+)$/m) || "CPU",
      memory:
        with(kb when kb != nil <- proc("meminfo", ~r/^MemTotal:\s*(\d+) kB$/m)) do
          String.to_integer(kb) * 1024
        end,
      compute_capability: nil
    }
  end

  defp proc(file, pattern) do
    with {:ok, text} <- File.read("/proc/#{file}"),
         [_, found] <- Regex.run(pattern, text) do
      found
    else
      _ -> nil
    end
  end

  defp gpus do
    for n <- 0..(cuda_count() - 1)//1, {:ok, device} <- [get({:cuda, n})] do
      {name, memory, capability} = Native.call(:device_info, [device])
      %{device: device, name: name, memory: memory, compute_capability: capability}
    end
  end

  defp cuda_count do
    Native.call(:cuda_count, [])
  rescue
    Error -> 0
  end

  @doc """
  What a device's memory is used for.

    * `in_use`, `allocations` — what tensors, programs and sessions hold now
    * `peak`, `total_allocations` — the most that `in_use` ever was, and all allocations so far
    * `reserved`, `segments` — what was taken from the system, in pieces that are used again
    * `largest_free`, `fragmentation` — the largest tensor that still fits, and 1 − that ÷ all that
      is free
    * `limit` — the `memory_limit`
  """
  @spec memory_stats(t()) :: stats()
  def memory_stats(device \\ default()), do: Native.call(:memory_stats, [device])

  @typedoc """
  A kernel that is compiled: its name, how many there are so far and in all, the time it took, and
  whether it compiled.
  """
  @type progress :: %{
          name: String.t(),
          done: pos_integer(),
          total: pos_integer(),
          microseconds: non_neg_integer(),
          ok?: boolean()
        }

  @doc """
  Compiles all kernels for a GPU and keeps them on disk, so that nothing has to be compiled later.
  `progress` is called after each.

  On the CPU there is nothing to do.
  """
  @spec warmup(t(), (progress() -> any())) :: :ok
  def warmup(device \\ default(), progress \\ fn _ -> :ok end) do
    open(device)
    parent = self()

    task =
      Task.async(fn ->
        try do
          Native.call(:warmup, [device, parent])
        rescue
          error in Error -> error
        end
      end)

    watch(task.ref, progress)
  end

  defp watch(ref, progress) do
    receive do
      {:nitrox_warmup, name, done, total, microseconds, ok?} ->
        progress.(%{name: name, done: done, total: total, microseconds: microseconds, ok?: ok?})
        watch(ref, progress)

      # From the process that sent all of those, and so after them.
      {^ref, result} ->
        Process.demonitor(ref, [:flush])
        if result == :ok, do: :ok, else: raise(result)
    end
  end

  @doc """
  Gives memory that is reserved and not used back to the system.
  """
  @spec trim(t()) :: :ok
  def trim(device \\ default()), do: Native.call(:trim, [device])

  @doc """
  Waits until a device has done all work that was queued on it.
  """
  @spec synchronize(t()) :: :ok
  def synchronize(device \\ default()), do: Native.call(:synchronize, [device])
end
