defmodule Nitrox.DeviceTest do
  use ExUnit.Case, async: true
  doctest Nitrox.Device

  alias Nitrox.{Device, Error, Tensor}

  test "get/1 returns what open/1 raises" do
    assert {:error, %Error{reason: :argument} = error} = Device.get(:gpu)
    assert error.message == "device must be :cpu or {:cuda, n}, got :gpu"
    assert_raise Error, error.message, fn -> Device.open(:gpu) end

    for bad <- [{:cuda, -1}, {:cuda, 1.0}, {:cuda, 2 ** 32}, {:cuda, 0, 0}, "cpu", nil] do
      assert {:error, %Error{reason: :argument}} = Device.get(bad)
    end
  end

  test "a GPU that is not there is unavailable, each time it is asked for" do
    for _ <- 1..2 do
      assert {:error, %Error{reason: :unavailable} = error} = Device.get({:cuda, 4_000_000})
      assert error.message =~ "{:cuda, 4000000}"
      assert is_binary(error.hint)
    end
  end

  test "the memory limit of an open device stays as it is" do
    assert Device.open(:cpu) == :cpu
    limit = Device.memory_stats(:cpu).limit

    assert_raise Error, ~r/is open already; its memory_limit can't be changed/, fn ->
      Device.open(:cpu, memory_limit: 1)
    end

    assert_raise Error, ~r/memory_limit must be/, fn -> Device.open(:cpu, memory_limit: -1) end
    assert Device.memory_stats(:cpu).limit == limit
    assert_raise Nitrox.Error, fn -> Device.open(:cpu, limit: 1) end
  end

  test "list/0 begins with the CPU" do
    assert [%{device: :cpu, name: name, compute_capability: nil} | gpus] = Device.list()
    assert is_binary(name)

    for gpu <- gpus do
      assert %{device: {:cuda, _}, memory: memory, compute_capability: {major, _}} = gpu
      assert memory > 0 and major >= 8
    end
  end

  test "warming up: nothing on the CPU, an error where there is no device" do
    assert Device.warmup(:cpu, fn _ -> flunk("nothing is compiled") end) == :ok
    assert_raise Error, ~r/not available/, fn -> Device.warmup({:cuda, 4_000_000}) end
    refute_received _
  end

  @tag :cuda
  test "warming up a GPU counts its kernels" do
    parent = self()
    assert Device.warmup({:cuda, 0}, &send(parent, {:progress, &1})) == :ok
    assert_received {:progress, %{done: 1, total: total, ok?: true, name: name}}
    assert name =~ ".cu"
    for n <- 2..total//1, do: assert_received({:progress, %{done: ^n, total: ^total, ok?: true}})
    refute_received _
  end

  test "memory statistics" do
    tensor = Tensor.tensor(List.duplicate(1.0, 1000))
    stats = Device.memory_stats(:cpu)

    assert stats.in_use >= 4000 and stats.in_use <= stats.reserved
    assert stats.peak >= stats.in_use
    assert stats.allocations >= 1 and stats.total_allocations >= stats.allocations
    assert stats.fragmentation >= 0.0 and stats.fragmentation <= 1.0
    assert stats.segments >= 1
    assert Device.synchronize(:cpu) == :ok
    assert Device.trim(:cpu) == :ok
    assert Tensor.to_list(tensor) == List.duplicate(1.0, 1000)
  end
end
