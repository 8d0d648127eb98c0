defmodule Mix.Tasks.Compile.Nitrox do
  @moduledoc """
  Builds the Rust library with cargo and puts it into `priv/native`.

  Cargo is only started when a source has changed since the library there was built. All Mix
  environments share one cargo folder, `_build/native` (or `CARGO_TARGET_DIR`).

  With `NITROX_SKIP_BUILD=1` the library that is there is used as it is, and Rust is not needed.
  """
  use Mix.Task.Compiler

  @manifest "native/Cargo.toml"
  @library "priv/native/libnitrox_nif.so"
  # The fingerprint of the sources the library was built from lies beside it, so that they go together.
  @fingerprint "priv/native/sources.md5"
  # What the library is made from; tests and benches are not.
  @sources ~w(native/*.{toml,lock} native/.cargo/config.toml native/*/Cargo.toml native/*/build.rs
              native/*/{src,kernels}/**/*)

  @impl true
  def run(_args) do
    if System.get_env("NITROX_SKIP_BUILD") in [nil, "", "0"], do: build(), else: use_built()
  end

  @impl true
  def clean, do: Enum.each([@library, @fingerprint], &File.rm/1)

  defp use_built do
    File.exists?(@library) ||
      Mix.raise("""
      NITROX_SKIP_BUILD is set, but there is no library at #{Path.expand(@library)}.
      Unset it to build the library with cargo, or put one there.
      """)

    link_priv()
    {:noop, []}
  end

  defp build do
    fingerprint = fingerprint()

    if File.exists?(@library) and File.read(@fingerprint) == {:ok, fingerprint} do
      link_priv()
      {:noop, []}
    else
      install(cargo_build())
      replace(@fingerprint, fingerprint)
      link_priv()
      {:ok, []}
    end
  end

  # Contents, not times: a checkout or a copy touches every file and changes none.
  defp fingerprint do
    sources = for glob <- @sources, path <- Path.wildcard(glob, match_dot: true), do: path

    files =
      for path <- Enum.sort(sources), {:ok, content} <- [File.read(path)], do: {path, content}

    settings = Enum.map(~w(RUSTFLAGS CARGO_BUILD_TARGET RUSTUP_TOOLCHAIN), &System.get_env/1)
    {files, settings} |> :erlang.term_to_binary() |> :erlang.md5() |> Base.encode16(case: :lower)
  end

  defp cargo_build do
    cargo =
      System.find_executable("cargo") ||
        Mix.raise("Nitrox needs Rust to build its library: install it from https://rustup.rs")

    target = System.get_env("CARGO_TARGET_DIR") || Path.join(build_root(), "native")
    args = ~w(build --release -p nitrox_nif --manifest-path #{@manifest})
    Mix.shell().info("Building the Rust library of Nitrox (the first time takes some minutes)")

    # Streamed as it comes, so that a long build is seen to move.
    {_, status} =
      System.cmd(cargo, args,
        env: [{"CARGO_TARGET_DIR", target}],
        into: IO.stream(),
        stderr_to_stdout: true
      )

    if status != 0,
      do: Mix.raise("cargo could not build #{@manifest} (exit #{status}, see above)")

    triple = System.get_env("CARGO_BUILD_TARGET") || ""
    Path.join([target, triple, "release", cdylib(:os.type())])
  end

  # As a dependency this is the user's _build, so that the build outlives a `mix deps.clean`.
  defp build_root, do: Path.dirname(Mix.Project.build_path())

  defp cdylib({:unix, :darwin}), do: "libnitrox_nif.dylib"
  defp cdylib({:unix, _}), do: "libnitrox_nif.so"

  # A running VM may have the old library mapped: it is replaced by a rename, never written into.
  defp install(built) do
    new = File.read!(built)
    if File.read(@library) != {:ok, new}, do: replace(@library, new)
  end

  defp replace(path, content) do
    temporary = "#{path}.#{System.pid()}"
    File.mkdir_p!(Path.dirname(path))
    File.write!(temporary, content)
    File.rename!(temporary, path)
  end

  # Mix links priv into _build before it runs the compilers, when the first build has none yet.
  defp link_priv, do: Mix.Project.build_structure()
end
