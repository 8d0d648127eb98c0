defmodule Nitrox.Doctor do
  @moduledoc """
  What this machine has for Nitrox, what is missing, and how to mend it. `mix nitrox.doctor` prints it.

  Nothing here raises: what can't be found out is `{:error, why}`, or `{:unknown, why}` where it may
  well be in order.
  """

  alias Nitrox.{Device, Error, Native, Op}
  alias Nitrox.Doctor.Advice

  @typedoc """
  A library that is opened at run time, what was tried and what came of it, and the folders that were
  searched beside those of the system's loader.
  """
  @type library :: %{
          name: String.t(),
          purpose: String.t(),
          found: String.t() | nil,
          tried: [{String.t(), String.t()}],
          folders: [String.t()]
        }

  @typedoc "Sizes are bytes. A process of another container may have no name here."
  @type card :: %{
          device: Device.t(),
          name: String.t(),
          compute_capability: {non_neg_integer(), non_neg_integer()},
          memory: %{total: non_neg_integer(), free: non_neg_integer() | {:unknown, String.t()}},
          holders:
            [%{pid: integer(), name: String.t() | nil, bytes: integer() | nil, self: boolean()}]
            | {:unknown, String.t()},
          usable: :ok | {:error, String.t()}
        }

  @type report :: %{
          nitrox: %{version: String.t(), elixir: String.t(), otp: String.t()},
          library: {:ok, String.t()} | {:error, String.t()},
          cpu: %{
            name: String.t(),
            cores: pos_integer() | {:unknown, String.t()},
            instruction_set: String.t() | {:unknown, String.t()},
            memory: %{total: integer() | nil, available: integer() | nil}
          },
          driver:
            {:ok, %{version: String.t() | nil, cuda: {integer(), integer()}}}
            | {:error, String.t()},
          cards: [card() | {:error, String.t()}],
          libraries: [library()],
          loader_folders: [String.t()],
          cache:
            %{
              folder: String.t() | nil,
              entries: non_neg_integer(),
              bytes: non_neg_integer(),
              damaged: [String.t()],
              drafts: non_neg_integer(),
              writable: :ok | {:error, String.t()}
            }
            | {:error, String.t()},
          default_device: {Device.t(), :ok | {:error, String.t()}},
          variants: [%{op: String.t(), on: [{Device.t(), String.t()}]}],
          advice: [%{problem: String.t(), mend: String.t()}]
        }

  @doc """
  The report. Each GPU is opened for it, as its use would do.
  """
  @spec report() :: report()
  def report do
    survey = survey()
    usable = fn device -> with {:ok, _} <- get(device), do: :ok end
    examine(survey, usable)
  end

  @doc false
  # From a survey of the library's, so that one of another machine can be examined too. `usable`
  # says of a device whether it is, `:ok` or an error.
  def examine(survey, usable) do
    cards = cards(survey, usable)
    own = for %{device: device, usable: usable} <- cards, do: {device, usable}
    devices = [{:cpu, usable.(:cpu)} | own]

    report = %{
      nitrox: versions(),
      library: with({:ok, _} <- survey, do: {:ok, library_path()}),
      cpu: cpu(survey),
      driver: driver(survey),
      cards: cards,
      libraries: libraries(survey),
      loader_folders: loader_folders(),
      cache: cache(survey),
      default_device: default_device(usable),
      variants: variants(for {device, :ok} <- devices, do: device)
    }

    Map.put(report, :advice, Advice.of(report))
  end

  defp survey do
    case Native.survey() do
      {:ok, survey} -> {:ok, survey}
      {:error, error} -> {:error, Exception.message(Error.from_native(error))}
    end
  rescue
    error -> {:error, Exception.message(error)}
  end

  defp get(device) do
    with {:error, error} <- Device.get(device), do: {:error, Exception.message(error)}
  end

  defp versions do
    version = with v when v != nil <- Application.spec(:nitrox, :vsn), do: List.to_string(v)
    %{version: version || "?", elixir: System.version(), otp: System.otp_release()}
  end

  defp library_path do
    Path.join(List.to_string(:code.priv_dir(:nitrox)), "native/libnitrox_nif.so")
  end

  # -- The CPU ----------------------------------------------------------------------------------

  defp cpu(survey) do
    own =
      case survey do
        {:ok, %{cpu: %{threads: threads, instruction_set: set}}} ->
          %{cores: threads, instruction_set: set}

        {:error, _} ->
          why = {:unknown, "the library of Nitrox could not be loaded"}
          %{cores: why, instruction_set: why}
      end

    kilobytes = fn name ->
      with text when text != nil <- proc("meminfo", ~r/^#{name}:\s*(\d+) kB$/m) do
        String.to_integer(text) * 1024
      end
    end

    memory = %{total: kilobytes.("MemTotal"), available: kilobytes.("MemAvailable")}
    name = proc("cpuinfo", ~r/^model name\s*:\s*(.+)$/m) || "CPU"
    Map.merge(own, %{name: name, memory: memory})
  end

  defp proc(file, pattern) do
    with {:ok, text} <- File.read("/proc/#{file}"),
         [_, found] <- Regex.run(pattern, text) do
      String.trim(found)
    else
      _ -> nil
    end
  end

  # -- The driver and its cards -------------------------------------------------------------------

  defp driver({:error, why}), do: {:error, why}

  defp driver({:ok, survey}) do
    with {:ok, cuda} <- survey.driver do
      # NVML's own word, or the kernel module's.
      version =
        case survey.nvml do
          {:ok, version} -> version
          {:error, _} -> proc("driver/nvidia/version", ~r/Kernel Module[^\d]*([\d.]+)/)
        end

      {:ok, %{version: version, cuda: cuda}}
    end
  end

  defp cards({:error, _}, _), do: []

  defp cards({:ok, %{gpus: gpus}}, usable) do
    for {gpu, n} <- Enum.with_index(gpus) do
      with %{} <- gpu do
        {free, holders} = memory(gpu.memory)

        %{
          device: {:cuda, n},
          name: gpu.name,
          compute_capability: gpu.capability,
          memory: %{total: gpu.total, free: free},
          holders: holders,
          usable: usable.({:cuda, n})
        }
      end
    end
  end

  defp memory({:error, why}), do: {{:unknown, why}, {:unknown, why}}
  defp memory(%{free: free, processes: {:error, why}}), do: {free, {:unknown, why}}

  defp memory(%{free: free, processes: {:ok, processes}}) do
    own = System.pid()

    holders =
      for {pid, bytes} <- processes do
        %{
          pid: pid,
          name: proc("#{pid}/comm", ~r/^(.+)$/),
          bytes: bytes,
          self: Integer.to_string(pid) == own
        }
      end

    {free, holders}
  end

  # -- Libraries ------------------------------------------------------------------------------------

  defp libraries({:error, _}), do: []

  defp libraries({:ok, survey}) do
    searched = fn name, purpose, %{found: found, places: places, folders: folders} ->
      found = with({place, {major, minor}} <- found, do: "#{place} (#{major}.#{minor})")
      %{name: name, purpose: purpose, found: found, tried: places, folders: folders}
    end

    [
      %{
        name: "libcuda",
        purpose: "the driver; without it there is no GPU",
        found: if(match?({:ok, _}, survey.driver), do: mapped("libcuda.so") || "found"),
        tried: [{"libcuda.so.1, libcuda.so", outcome(survey.driver)}],
        folders: []
      },
      searched.("libnvrtc", "compiles the kernels for a GPU", survey.nvrtc),
      searched.(
        "libcublasLt",
        "computes large matrix products; without it our own kernels do",
        survey.cublaslt
      ),
      searched.(
        "libcublas",
        "solves large triangular systems; without it our own kernels do",
        survey.cublas
      ),
      searched.(
        "libcudnn",
        "computes convolutions where it is quicker; without it our own kernels do",
        survey.cudnn
      ),
      %{
        name: "libnvidia-ml",
        purpose: "tells who holds a GPU's memory; nothing else needs it",
        found: if(match?({:ok, _}, survey.nvml), do: mapped("libnvidia-ml.so") || "found"),
        tried: [{"libnvidia-ml.so.1, libnvidia-ml.so", outcome(survey.nvml)}],
        folders: []
      }
    ]
  end

  defp outcome({:ok, _}), do: "found"
  defp outcome({:error, why}), do: why

  # Where a library that is open lies.
  defp mapped(name) do
    proc("self/maps", ~r/(\/\S*#{Regex.escape(name)}\S*)$/m)
  end

  # Of the system's loader: LD_LIBRARY_PATH, its configuration, and its own.
  defp loader_folders do
    path = System.get_env("LD_LIBRARY_PATH", "") |> String.split(":", trim: true)

    configured =
      for file <- Enum.sort(Path.wildcard("/etc/ld.so.conf.d/*.conf")),
          {:ok, text} <- [File.read(file)],
          "/" <> _ = folder <- String.split(text, "\n", trim: true),
          do: String.trim(folder)

    Enum.uniq(path ++ configured ++ ["/lib", "/usr/lib", "/lib64", "/usr/lib64"])
  end

  # -- The cache ------------------------------------------------------------------------------------

  defp cache({:error, why}), do: {:error, why}

  defp cache({:ok, %{cache: %{error: why, folder: folder}}}), do: {:error, "#{folder}: #{why}"}

  defp cache({:ok, %{cache: cache}}) do
    Map.put(cache, :writable, if(cache.folder, do: writable(cache.folder), else: :ok))
  end

  # Whether the folder, or the one that it would be made in, can be written to.
  defp writable(folder) do
    case File.stat(folder) do
      {:ok, %{type: :directory, access: access}} when access in [:read_write, :write] -> :ok
      {:ok, %{type: :directory}} -> {:error, "#{folder} can't be written to"}
      {:ok, _} -> {:error, "#{folder} is no folder"}
      {:error, :enoent} when folder not in ["/", "."] -> writable(Path.dirname(folder))
      {:error, why} -> {:error, "#{folder}: #{:file.format_error(why)}"}
    end
  end

  # -- What would run where -------------------------------------------------------------------------

  defp default_device(usable) do
    device = Device.default()
    {device, usable.(device)}
  end

  # Of each family one, at the sizes of a policy's frame and of training.
  defp variants(devices) do
    f32 = fn shape -> Nitrox.template(shape, {:f, 32}) end
    bf16 = fn shape -> Nitrox.template(shape, {:bf, 16}) end
    {x, row} = {f32.({1024, 288}), f32.({1, 288})}
    {w, b} = {f32.({288, 256}), f32.({256})}
    [wi, wh, bias, state] = Enum.map([{288, 1024}, {256, 1024}, {1024}, {1, 256}], f32)
    heads = bf16.({4, 512, 8, 64})
    one = bf16.({1, 1, 8, 64})
    keys = bf16.({1, 60, 8, 64})
    scanned = f32.({1, 1, 512})
    states = f32.({1, 1, 16})
    decay = f32.({512, 16})

    ops = [
      {"dense, 1 row", %Op.Dense{activation: :relu}, [row, w, b, nil]},
      {"dense, 1024 rows", %Op.Dense{activation: :relu}, [x, w, b, nil]},
      {"LSTM, 1 frame", %Op.Lstm{}, [f32.({1, 1, 288}), state, state, wi, wh, bias, nil]},
      {"LSTM, 60 frames", %Op.Lstm{}, [f32.({1, 60, 288}), state, state, wi, wh, bias, nil]},
      {"attention, 1 frame on 60, bf16", %Op.FlashAttention{causal: true},
       [one, keys, keys, nil, nil, nil, nil]},
      {"attention, 4 × 512, bf16", %Op.FlashAttention{causal: true},
       [heads, heads, heads, nil, nil, nil, nil]},
      {"selective scan, 1 frame", %Op.SelectiveScan{dt_softplus: true},
       [scanned, scanned, decay, states, states] ++ List.duplicate(nil, 7)},
      {"layer norm, 1 row", %Op.LayerNorm{epsilon: 1.0e-5}, [f32.({1, 256}), b, b, nil]}
    ]

    for {name, op, inputs} <- ops do
      %{op: name, on: for(device <- devices, do: {device, variant(op, inputs, device)})}
    end
  end

  defp variant(op, inputs, device) do
    Op.explain(op, inputs, device: device).variant
  rescue
    error -> "can't: #{Exception.message(error)}"
  end
end
