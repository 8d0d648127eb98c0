defmodule Nitrox.Axon.MemoryTest do
  # What a forward of each backbone as a model of Axon takes of the device: transfers and memory. In a
  # VM of its own, since the pool's peak is that of its life, by `bench/axon_memory.exs`.
  use ExUnit.Case, async: false

  @moduletag :nx
  @moduletag :axon
  @moduletag :telemetry
  @moduletag timeout: 600_000

  @bench Path.expand("../../../bench/axon_memory.exs", __DIR__)
  @sizes "--batch 4 --frames 16 --features 48 --width 64 --outputs 9"
  @backbones [:mlp, :lstm, :gru, :mamba, :attention, :jamba]

  # Tensors as large as the widest that a forward needs at a time, at most. Attention has its input,
  # the normalised one, q, k and v, and two of them turned.
  @live 10
  # cuBLASLt has a workspace for a product, as long as it runs.
  @workspace 32 * 1024 * 1024

  defp measured(device) do
    name =
      case device do
        :cpu -> "cpu"
        {:cuda, n} -> "cuda:#{n}"
      end

    arguments = String.split("--raw --device #{name} #{@sizes}")

    script = """
    {:ok, _} = Application.ensure_all_started(:nitrox)
    System.argv(#{inspect(arguments)})
    Code.require_file(#{inspect(@bench)})
    """

    {output, status} = Nitrox.TestVM.run(script)
    assert status == 0, output

    for "{:" <> _ = line <- String.split(output, "\n") do
      {{_, _} = measured, _} = Code.eval_string(line)
      measured
    end
  end

  test "a forward moves its input and its output, and holds no more than its tensors" do
    for device <- Application.get_env(:nitrox, :test_devices) do
      all = measured(device)
      assert Keyword.keys(all) == @backbones
      workspace = if device == :cpu, do: 0, else: @workspace

      for {name, m} <- all do
        what = "#{name} on #{inspect(device)}: #{inspect(m)}"
        assert m.input == 4 * 4 * 16 * 48 and m.output == 4 * 4 * 16 * 9
        assert m.transfers == [to_device: m.input, to_host: m.output], what
        assert m.fallbacks == [], what
        assert m.ops > 0 and m.parameters > 0, what

        # There is at least what goes in and what comes out.
        assert m.peak >= m.input + m.output and m.collected >= m.input + m.output, what
        # Each tensor once: no copies, and no room for anything else.
        assert m.peak <= m.input + m.tensors + workspace, what
        assert m.collected <= m.input + m.output + @live * m.widest + workspace, what
      end
    end
  end
end
