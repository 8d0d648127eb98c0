# The compiler that builds the Rust library. Mix needs it before it has compiled anything of this
# project, so it can't be a module of lib/: it is loaded from its source here.
Code.require_file("native/compile.exs", __DIR__)

defmodule Nitrox.MixProject do
  use Mix.Project

  @version "0.1.0"

  def project do
    [
      app: :nitrox,
      version: @version,
      elixir: "~> 1.17",
      elixirc_paths: elixirc_paths(Mix.env()),
      compilers: [:nitrox] ++ Mix.compilers(),
      # Optional dependencies may lie on ERL_LIBS instead of in deps/ (see deps/0).
      prune_code_paths: false,
      start_permanent: Mix.env() == :prod,
      deps: deps(),
      name: "Nitrox",
      description: "GPU kernels for Nx and Axon, and for 60 frames a second",
      package: package(),
      docs: docs()
    ]
  end

  def application do
    [extra_applications: [:logger], mod: {Nitrox.Application, []}]
  end

  defp elixirc_paths(:test), do: ["lib", "test/support"]
  defp elixirc_paths(_), do: ["lib"]

  # Nitrox needs none of these. NITROX_HEX=0 is for a machine where Hex can't be reached.
  defp deps do
    if System.get_env("NITROX_HEX") == "0" do
      []
    else
      [
        # Nx.block/4 came with 0.12.
        {:nx, "~> 0.12", optional: true},
        {:axon, "~> 0.7", optional: true},
        {:telemetry, "~> 1.0", optional: true},
        {:benchee, "~> 1.3", only: :dev},
        {:ex_doc, "~> 0.34", only: :dev, runtime: false}
      ]
    end
  end

  defp package do
    [
      licenses: ["Apache-2.0"],
      # The repository's address goes here, and in project/0 as source_url, once it is public.
      links: %{},
      files:
        ~w(lib mix.exs .formatter.exs README.md CHANGELOG.md LICENSE guides notebooks) ++
          ~w(native/*.exs) ++
          ~w(native/*.toml native/*.lock native/*/Cargo.toml native/*/build.rs) ++
          ~w(native/*/src native/*/kernels native/*/tests native/*/benches)
    ]
  end

  defp docs do
    [
      main: "readme",
      source_ref: "v#{@version}",
      extras:
        ["README.md", "CHANGELOG.md"] ++
          Enum.sort(Path.wildcard("guides/*.md") ++ Path.wildcard("notebooks/*.livemd")),
      groups_for_extras: [Guides: ~r"^(guides|notebooks)/"]
    ]
  end
end
