# So that a test that goes wrong can't take all of the machine's memory.
Application.put_env(:nitrox, :devices, [{:cpu, memory_limit: 1024 ** 3}])

# What this machine lacks, as the tag of the tests that need it and the reason they are left out.
# `mix test --include cuda` runs them all the same.
gpu? = fn ->
  try do
    match?({:ok, _}, Nitrox.Device.get({:cuda, 0}))
  rescue
    _ -> false
  end
end

has? = fn app, module ->
  Code.ensure_loaded?(module) and match?({:ok, _}, Application.ensure_all_started(app))
end

missing =
  for {tag, false, why} <- [
        {:cuda, gpu?.(), "no GPU"},
        {:nx, has?.(:nx, Nx), "Nx is neither in deps nor on ERL_LIBS"},
        {:axon, has?.(:axon, Axon), "Axon is neither in deps nor on ERL_LIBS"},
        {:telemetry, has?.(:telemetry, :telemetry),
         "telemetry is neither in deps nor on ERL_LIBS"}
      ],
      do: {tag, why}

# Property tests draw from :rand, seeded in their setup from `ExUnit.configuration()[:seed]`.
ExUnit.start(
  exclude: Keyword.keys(missing),
  missing: missing,
  formatters: [Nitrox.TestSummary]
)
