defmodule Nitrox.DemoTest do
  # Not async: it times frames, and Mix has one shell.
  use ExUnit.Case

  alias Mix.Tasks.Nitrox.Demo
  alias Nitrox.Demo.{CharacterModel, Html, Json, Timing}

  setup do
    shell = Mix.shell()
    Mix.shell(Mix.Shell.Process)
    on_exit(fn -> Mix.shell(shell) end)
  end

  defp said do
    receive do
      {:mix_shell, :info, [text]} -> text <> "\n" <> said()
    after
      0 -> ""
    end
  end

  describe "the demo" do
    @describetag :tmp_dir

    test "agrees with PyTorch, and writes its files", %{tmp_dir: dir} do
      run(["--frames", "40", "--out", dir])
      report = said()

      for name <- CharacterModel.names(), do: assert(report =~ ~r/^#{name}  /m)

      assert report =~ "bits per character" and report =~ "at 60 a second" and
               report =~ "demo.html"

      json = File.read!(Path.join(dir, "demo.json"))

      assert String.starts_with?(
               json,
               ~s({"device":"cpu","backbones":[{"name":"mlp","bits_per_character":1.)
             )

      for key <- ~w(reference_bits_per_character max_logit_difference frames frame_us p50 p95 p99
                    max over_budget memory_bytes text) do
        assert length(String.split(json, ~s("#{key}":))) == 7, key
      end

      html = File.read!(Path.join(dir, "demo.html"))
      assert length(String.split(html, "<svg")) == 7
      refute html =~ ~r/(src|href)=/
    end

    test "is the same text for the same seed, and paced where it is asked to be", %{tmp_dir: dir} do
      text = fn args ->
        run(["--backbone", "gru", "--frames", "30", "--temperature", "1", "--out", dir] ++ args)
        [_, text] = Regex.run(~r/"text":"(.*?)"}/, File.read!(Path.join(dir, "demo.json")))
        {text, said()}
      end

      {first, _} = text.(["--seed", "1"])
      {again, report} = text.(["--seed", "1", "--paced", "--fps", "100"])
      assert first == again
      assert report =~ "30 frames at 100 a second" and report =~ "over 10.00 ms"
      {other, _} = text.(["--seed", "2"])
      assert first != other
    end

    @tag :cuda
    test "agrees with PyTorch on CUDA", %{tmp_dir: dir} do
      run(["--device", "cuda", "--frames", "200", "--out", dir])
      assert said() =~ "{:cuda, 0}"
    end

    defp run(args), do: Demo.run(args)
  end

  test "options" do
    opts = Demo.options(["--device", "cuda:2", "--backbone", "gru,mlp", "--top-k", "5"])

    assert %{device: {:cuda, 2}, backbones: ["gru", "mlp"], frames: 2000, fps: 60, paced: false} =
             opts

    assert opts.sample == [temperature: 0.7, top_k: 5, seed: 0]
    assert Demo.options([]).device == :cpu

    for {args, part} <- [
          {~w(--device gpu), "gpu"},
          {~w(--device cuda:x), "cuda:x"},
          {~w(--backbone rnn), "mlp, lstm, gru, mamba, attention, jamba"},
          {~w(--frames 0), "--frames"},
          {~w(lstm), "lstm"}
        ] do
      assert Exception.message(assert_raise(Mix.Error, fn -> Demo.options(args) end)) =~ part
    end
  end

  test "a figure out of bounds is complained about" do
    fine = %{
      name: "gru",
      bits_per_character: 1.5,
      reference_bits_per_character: 1.505,
      max_logit_difference: 9.0e-4
    }

    assert Demo.complaints(fine) == []
    assert [text] = Demo.complaints(%{fine | max_logit_difference: 2.0e-3})
    assert text =~ "gru" and text =~ "2.0e-03"
    assert [text] = Demo.complaints(%{fine | bits_per_character: 1.52})
    assert text =~ "0.0150"
  end

  test "surprise is −log₂ of a softmax" do
    assert_in_delta CharacterModel.surprise([1.0, 1.0, 1.0, 1.0], 2), 2.0, 1.0e-12
    assert_in_delta CharacterModel.surprise([1000.0, 0.0], 0), 0.0, 1.0e-12
  end

  test "percentiles are measured times" do
    times = Enum.shuffle(Enum.map(1..1000, &(&1 / 1)))

    assert Timing.summary(times) == %{
             p10: 100.0,
             p50: 500.0,
             p95: 950.0,
             p99: 990.0,
             p999: 999.0,
             max: 1000.0
           }

    assert Timing.summary([3.0]) == %{p10: 3.0, p50: 3.0, p95: 3.0, p99: 3.0, p999: 3.0, max: 3.0}
    assert {Timing.text(12.34), Timing.text(1234.5)} == {"12.3 µs", "1.23 ms"}
  end

  test "frames are given what the last one returned, and wait until they are due" do
    {times, results} = Timing.measure(5, 0, &(&1 + 1))
    assert {length(times), results} == {5, [1, 2, 3, 4, 5]}

    Timing.measure(3, nil, & &1, prepare: fn -> send(self(), :prepared) end)
    for _ <- 1..3, do: assert_received(:prepared)
    refute_received :prepared

    # One that takes the time is told when each frame is due, and may wait for it.
    Timing.measure(3, nil, & &1, fps: 500, prepare: &send(self(), {:due, &1}))
    period = System.convert_time_unit(2, :millisecond, :native)
    assert_received {:due, first}
    assert_received {:due, second}
    assert_received {:due, third}
    assert {second - first, third - second} == {period, period}
    assert System.monotonic_time() >= third

    from = System.monotonic_time(:millisecond)
    {times, _} = Timing.measure(11, nil, & &1, fps: 100)
    # The last one is due 100 ms after the first, and starts at most a millisecond early.
    assert System.monotonic_time(:millisecond) - from >= 98
    # Waiting is not timed.
    assert Enum.sum(times) < 50_000
  end

  test "JSON" do
    term = [a: 1, b: [1.5, nil, true], c: [], d: [e: "é\"\\\n\t"], f: :cpu]

    assert Json.encode(term) ==
             ~S({"a":1,"b":[1.5,null,true],"c":[],"d":{"e":"é\"\\\n\u0009"},"f":"cpu"})
  end

  test "the page escapes what networks write" do
    times = [50.0, 20_000.0]

    result = %{
      name: "gru",
      times: times,
      frame_us: Timing.summary(times),
      paced: nil,
      over_budget: 1,
      bits_per_character: 1.0,
      reference_bits_per_character: 1.0,
      max_logit_difference: 0.0,
      memory_bytes: 1,
      text: "<script>&"
    }

    page = IO.iodata_to_binary(Html.page([result], %{fps: 60, device: :cpu, paced: false}))
    assert page =~ "&lt;script&gt;&amp;" and not (page =~ "<script>")
    assert page =~ "16.67 ms"
  end
end
