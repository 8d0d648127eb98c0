defmodule Mix.Tasks.Nitrox.WarmupTest do
  use ExUnit.Case, async: true
  alias Mix.Tasks.Nitrox.Warmup

  test "refuses what it does not know" do
    for device <- ["cpu", "cuda:", "cuda:x", "cuda:-1"] do
      assert_raise Mix.Error, "--device must be cuda or cuda:1, got #{device}", fn ->
        Warmup.run(["--device", device])
      end
    end

    for args <- [["now"], ["--devise", "cuda"]] do
      assert_raise Mix.Error, ~r/mix help nitrox.warmup/, fn -> Warmup.run(args) end
    end
  end

  test "says what is missing where there is no such GPU" do
    assert_raise Mix.Error, ~r/{:cuda, 4000000} is not available/, fn ->
      Warmup.run(["--device", "cuda:4000000"])
    end
  end
end
