defmodule Nitrox.SoakTest do
  # Not async: it looks at the memory of the whole VM.
  use ExUnit.Case

  alias Nitrox.{Backbone, Session}
  alias Nitrox.Demo.CharacterModel

  # `make soak` sets it to 200,000.
  @frames String.to_integer(System.get_env("NITROX_SOAK_FRAMES") || "3000")

  defp load(name),
    do: Backbone.load(Application.app_dir(:nitrox, "priv/demo/#{name}.safetensors"))

  describe "memory is flat" do
    for name <- CharacterModel.names() do
      @tag :soak
      @tag timeout: 3_600_000
      test "over many frames of #{name}", do: soak(unquote(name))
    end
  end

  defp soak(name) do
    session = Backbone.session(load(name), sample: [temperature: 1.0, seed: 5])

    frames = fn count ->
      Enum.reduce(1..count, <<0::signed-32-native>>, fn _, token ->
        {token, _logits} = Session.step(session, [token])
        token
      end)
    end

    frames.(1000)
    before = memory()
    {time, _} = :timer.tc(fn -> frames.(@frames) end)
    later = memory()
    # Until here it holds what is counted.
    assert is_struct(session, Session)

    if System.get_env("NITROX_SOAK_FRAMES") do
      IO.puts(
        "#{name}: #{@frames} frames in #{Float.round(time / 1.0e6, 1)} s, bytes before and after: " <>
          Enum.map_join([:device, :vm, :process], ", ", &"#{&1} #{before[&1]} #{later[&1]}")
      )
    end

    assert later.device == before.device
    # A word a frame would show.
    assert later.vm - before.vm < 1_000_000
    assert later.process - before.process < 4_000_000
  end

  # In bytes: of the CPU device's tensors, of Erlang's, and what the process holds of the machine's.
  defp memory do
    for pid <- Process.list(), do: :erlang.garbage_collect(pid)

    process =
      with {:ok, text} <- File.read("/proc/self/status"),
           [_, kilobytes] <- Regex.run(~r/VmRSS:\s+(\d+) kB/, text),
           do: 1024 * String.to_integer(kilobytes),
           else: (_ -> 0)

    %{device: Nitrox.memory_stats(:cpu).in_use, vm: :erlang.memory(:total), process: process}
  end
end
