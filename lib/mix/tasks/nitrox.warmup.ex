defmodule Mix.Tasks.Nitrox.Warmup do
  @shortdoc "Compiles the GPU's kernels ahead of need"

  @moduledoc """
  Compiles the kernels of Nitrox for the GPU at hand and keeps them on disk, so that no call has to
  wait for a compiler later.

      mix nitrox.warmup
      mix nitrox.warmup --device cuda:1

  A frame of a layer of attention or of a Mamba block is compiled for its size: those of the demo's and the bench's
  networks are here, others with the program that has them.

  What is compiled already is not compiled again. A GPU of another kind, another version of NVRTC
  or of Nitrox needs its own.

  ## Options

    * `--device` — `cuda` (the default) or `cuda:1`
  """
  use Mix.Task

  alias Nitrox.{Device, Error}

  @requirements ["app.start"]

  @impl true
  def run(args) do
    {options, rest, invalid} = OptionParser.parse(args, strict: [device: :string])

    if rest != [] or invalid != [] do
      Mix.raise("unknown arguments; see mix help nitrox.warmup")
    end

    device = device(Keyword.get(options, :device, "cuda"))
    started = System.monotonic_time(:millisecond)

    try do
      Device.warmup(device, &progress/1)
    rescue
      error in Error -> Mix.raise(Exception.message(error))
    end

    seconds = (System.monotonic_time(:millisecond) - started) / 1000
    Mix.shell().info("#{inspect(device)} is ready (#{Float.round(seconds, 1)} s)")
  end

  defp device("cuda"), do: {:cuda, 0}

  defp device("cuda:" <> number = text) do
    case Integer.parse(number) do
      {n, ""} when n >= 0 -> {:cuda, n}
      _ -> unknown(text)
    end
  end

  defp device(text), do: unknown(text)

  defp unknown(text), do: Mix.raise("--device must be cuda or cuda:1, got #{text}")

  defp progress(%{done: done, total: total, name: name, microseconds: us, ok?: ok?}) do
    outcome = if ok?, do: "#{Float.round(us / 1.0e6, 2)} s", else: "failed"
    Mix.shell().info("#{done}/#{total} #{name}: #{outcome}")
  end
end
