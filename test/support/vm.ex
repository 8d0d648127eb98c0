defmodule Nitrox.TestVM do
  @moduledoc false
  # A VM of its own for what can't be undone, or depends on the environment of the process: the
  # library reads that once, and `System.put_env/2` does not reach it.

  @doc "Runs a script, and gives what it wrote and its exit status."
  @spec run(String.t(), [{String.t(), String.t() | nil}]) :: {String.t(), non_neg_integer()}
  def run(script, env \\ []) do
    elixir = System.find_executable("elixir")
    paths = for path <- :code.get_path(), ours?(path), do: ["-pa", List.to_string(path)]
    arguments = List.flatten(paths) ++ ["-e", script]
    System.cmd(elixir, arguments, env: env, stderr_to_stdout: true)
  end

  @doc "A folder for such a VM to find, which goes with the test."
  @spec folder(String.t()) :: Path.t()
  def folder(name) do
    # Other VMs count from one too.
    unique = "#{System.pid()}-#{System.unique_integer([:positive])}"
    path = Path.join(System.tmp_dir!(), "nitrox-#{name}-#{unique}")
    File.mkdir_p!(path)
    ExUnit.Callbacks.on_exit(fn -> File.rm_rf!(path) end)
    path
  end

  # The applications of this project and of its dependencies, not those of Erlang and Elixir.
  defp ours?(path) do
    path = List.to_string(path)

    not String.starts_with?(path, List.to_string(:code.root_dir())) and
      String.contains?(path, "ebin")
  end
end
