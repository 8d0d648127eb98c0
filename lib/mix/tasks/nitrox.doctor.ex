defmodule Mix.Tasks.Nitrox.Doctor do
  @shortdoc "Says what this machine has for Nitrox, and how to mend what is missing"

  @moduledoc """
  Says what this machine has for Nitrox: the driver and its GPUs, who holds their memory, the
  libraries with every path that was searched, the cache of compiled kernels, the CPU device, which
  kernel would serve what on which device, and how to mend what is missing.

      mix nitrox.doctor

  `Nitrox.Doctor.report/0` gives the same as a map.
  """
  use Mix.Task

  @requirements ["app.start"]

  @impl true
  def run([]) do
    report = Nitrox.Doctor.report()
    Mix.shell().info(Enum.join(text(report), "\n"))
  end

  def run(_), do: Mix.raise("mix nitrox.doctor takes no arguments")

  @doc false
  # The lines.
  def text(report) do
    Enum.concat([
      nitrox(report),
      section("CPU", cpu(report.cpu)),
      section("NVIDIA driver", driver(report.driver) ++ Enum.flat_map(report.cards, &card/1)),
      section("Libraries", libraries(report)),
      section("Cache of compiled kernels", cache(report.cache)),
      section("What runs where", variants(report)),
      section("To mend", advice(report.advice))
    ])
  end

  defp section(title, lines), do: ["", title | Enum.map(lines, &("  " <> &1))]

  defp nitrox(%{nitrox: nitrox, library: library}) do
    [
      "Nitrox #{nitrox.version} on Elixir #{nitrox.elixir}, OTP #{nitrox.otp}",
      case library do
        {:ok, path} -> "its library: #{path}"
        {:error, why} -> "its library: MISSING: #{why}"
      end
    ]
  end

  defp cpu(cpu) do
    %{total: total, available: available} = cpu.memory

    [
      cpu.name,
      "#{known(cpu.cores)} cores, instruction set #{known(cpu.instruction_set)}",
      "memory: #{size(total)}, of which #{size(available)} are free"
    ]
  end

  defp driver({:error, why}), do: ["none: #{why}"]

  defp driver({:ok, %{version: version, cuda: {major, minor}}}) do
    ["#{version || "version unknown"}, for CUDA #{major}.#{minor}"]
  end

  defp card({:error, why}), do: ["a card that does not answer: #{why}"]

  defp card(card) do
    {major, minor} = card.compute_capability

    [
      "",
      "#{inspect(card.device)}: #{card.name}, compute capability #{major}.#{minor}",
      case card.usable do
        :ok -> "  can be used"
        {:error, why} -> "  CAN'T BE USED: #{why}"
      end,
      "  memory: #{size(card.memory.total)}, of which #{known(card.memory.free, &size/1)} are free"
      | holders(card.holders)
    ]
  end

  defp holders({:unknown, why}), do: ["  held by: can't be known: #{why}"]
  defp holders([]), do: ["  held by: no process that the driver tells of"]

  defp holders(holders) do
    for holder <- holders do
      name = holder.name || "a process of another container, or of the host"
      own = if holder.self, do: " (this one)"
      "  held by: #{holder.pid} #{name}#{own}: #{size(holder.bytes)}"
    end
  end

  defp libraries(%{libraries: libraries, loader_folders: folders}) do
    Enum.flat_map(libraries, &library/1) ++
      ["the system's loader searches" | Enum.map(folders, &"  #{&1}")]
  end

  defp library(library) do
    head =
      case library.found do
        nil -> "#{library.name}: MISSING (#{library.purpose})"
        place -> "#{library.name}: #{place} (#{library.purpose})"
      end

    tried = for {place, outcome} <- library.tried, do: "  tried #{place}: #{outcome}"
    folders = if library.found, do: [], else: Enum.map(library.folders, &"  searched #{&1}")
    [head | tried] ++ folders
  end

  defp cache({:error, why}), do: ["can't be read: #{why}"]
  defp cache(%{folder: nil}), do: ["none"]

  defp cache(cache) do
    writable = with {:error, why} <- cache.writable, do: [why]

    [
      cache.folder,
      "#{cache.entries} entries, #{size(cache.bytes)}; #{length(cache.damaged)} damaged"
      | List.wrap(if writable == :ok, do: [], else: writable)
    ] ++ Enum.map(cache.damaged, &"  damaged: #{&1}")
  end

  defp variants(%{default_device: {device, state}, variants: variants}) do
    default =
      case state do
        :ok -> "by default on #{inspect(device)}"
        {:error, why} -> "by default on #{inspect(device)}, which CAN'T BE USED: #{why}"
      end

    lines =
      for %{op: op, on: on} <- variants do
        where =
          Enum.map_join(on, ", ", fn {device, variant} -> "#{inspect(device)} #{variant}" end)

        "#{op}: #{where}"
      end

    [default | lines]
  end

  defp advice([]), do: ["nothing"]

  defp advice(advice) do
    Enum.flat_map(advice, fn %{problem: problem, mend: mend} -> [problem, "  → #{mend}"] end)
  end

  defp known(value, format \\ &to_string/1)
  defp known({:unknown, why}, _), do: "(not known: #{why})"
  defp known(value, format), do: format.(value)

  defp size(nil), do: "(not known)"

  defp size(bytes) do
    {unit, name} =
      Enum.find([{1024 ** 3, "GiB"}, {1024 ** 2, "MiB"}], {1, "bytes"}, &(elem(&1, 0) <= bytes))

    if unit == 1, do: "#{bytes} bytes", else: "#{Float.round(bytes / unit, 1)} #{name}"
  end
end
