# So that a test that goes wrong can't take all of the machine's memory.
Application.put_env(:nitrox, :add_backend_on_inspect, false)
Application.put_env(:nitrox, :devices, [{:cpu, memory_limit: 1024 ** 3}])

# The tests of Nx are compiled without it too, and then left out.
unless Code.ensure_loaded?(Nx), do: Code.put_compiler_option(:no_warn_undefined, :all)

# What this machine lacks, as the tag of the tests that need it and the reason they are left out.
# `mix test --include cuda` runs them all the same.
gpu? = fn ->
  try do
    match?({:ok, _}, Nitrox.Device.get({:cuda, 0}))
  rescue
    _ -> false
  end
end

# Tests of what is to be the same on all devices take these.
devices = if gpu?.(), do: [:cpu, {:cuda, 0}], else: [:cpu]
Application.put_env(:nitrox, :test_devices, devices)

has? = fn app, module ->
  Code.ensure_loaded?(module) and match?({:ok, _}, Application.ensure_all_started(app))
end

# Whether there is about as much to run as there are cores, and a process that sleeps a millisecond is
# back within eight, most of the time.
quiet? = fn ->
  runnable =
    for _ <- 1..20 do
      Process.sleep(10)

      case File.read("/proc/loadavg") do
        {:ok, text} -> text |> String.split([" ", "/"]) |> Enum.at(3) |> String.to_integer()
        {:error, _} -> 0
      end
    end

  times = for _ <- 1..200, do: elem(:timer.tc(fn -> Process.sleep(1) end), 0)
  cores = System.schedulers_online()
  Enum.sum(runnable) / 20 <= 3 * cores and Enum.at(Enum.sort(times), 196) < 8_000
end

missing =
  for {tag, false, why} <- [
        {:cuda, length(devices) > 1, "no GPU"},
        {:quiet, quiet?.(), "the machine is too busy for tests of time"},
        {:nvcc, System.find_executable("nvcc") != nil, "no nvcc"},
        {:nx, has?.(:nx, Nx), "Nx is neither in deps nor on ERL_LIBS"},
        {:axon, has?.(:axon, Axon), "Axon is neither in deps nor on ERL_LIBS"},
        {:telemetry, has?.(:telemetry, :telemetry),
         "telemetry is neither in deps nor on ERL_LIBS"},
        {:bumblebee, has?.(:bumblebee, Bumblebee), "Bumblebee is not on ERL_LIBS"}
      ],
      do: {tag, why}

# Property tests draw from :rand, seeded in their setup from `ExUnit.configuration()[:seed]`.
# A busy machine makes a test slow, and is no reason to fail: what these bounds end is a test that hangs.
ExUnit.start(
  timeout: 900_000,
  assert_receive_timeout: 60_000,
  exclude: Keyword.keys(missing),
  missing: missing,
  formatters: [Nitrox.TestSummary]
)
