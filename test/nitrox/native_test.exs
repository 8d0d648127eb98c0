defmodule Nitrox.NativeTest do
  # Takes most of the memory that the CPU device has here (see test_helper.exs).
  use ExUnit.Case, async: false

  alias Nitrox.{Device, Error, Native, Tensor, TestMemory}

  @limit 1024 ** 3
  @chunk 192 * 1024 ** 2

  setup do
    Device.open(:cpu)
    assert Device.memory_stats(:cpu).limit == @limit
    for pid <- Process.list(), do: :erlang.garbage_collect(pid)
    on_exit(fn -> Device.trim(:cpu) end)
  end

  # Takes milliseconds and no host memory.
  defp chunk, do: Nitrox.broadcast_to(Tensor.tensor(1, type: {:u, 8}), {@chunk})

  describe "out of memory" do
    test "handles that processes have dropped are collected, and the call made again" do
      parent = self()

      # Its heap is of some words: by itself this process never collects.
      holder =
        spawn_link(fn ->
          chunks = for _ <- 1..5, do: chunk()
          send(parent, {:full, length(chunks)})
          receive do: (:stop -> :ok)
        end)

      assert_receive {:full, 5}
      assert Device.memory_stats(:cpu).in_use >= 5 * @chunk

      # No room for it, but for the collection.
      tensor = chunk()
      assert tensor.shape == {@chunk}
      assert Device.memory_stats(:cpu).in_use < 2 * @chunk
      assert Process.info(self(), :message_queue_len) == {:message_queue_len, 0}
      send(holder, :stop)
    end

    test "what is held stays, and the error has the statistics" do
      held = for _ <- 1..5, do: chunk()
      error = assert_raise Error, fn -> chunk() end
      assert error.reason == :out_of_memory
      assert error.message =~ "out of memory on :cpu: #{@chunk} bytes asked for"
      assert error.message =~ "limit #{@limit}"
      assert error.hint =~ "drop tensors"

      # Smaller ones still fit, and the held ones are whole.
      assert Tensor.to_list(Tensor.tensor([1, 2])) == [1, 2]
      for tensor <- held, do: assert(<<1, 1, 1>> = Native.call(:to_binary, [tensor.ref, 3]))
      Enum.each(held, &Tensor.deallocate/1)
      assert Device.memory_stats(:cpu).in_use < @chunk
    end
  end

  test "tensors go back to the pool with their process" do
    assert TestMemory.leaks(fn ->
             before = Device.memory_stats(:cpu).in_use
             tensor = Tensor.from_binary(<<0::size(8 * 1_000_000)>>, {:u, 8}, {1_000_000})
             assert Device.memory_stats(:cpu).in_use - before >= 1_000_000
             tensor
           end) == {0, 0}
  end

  test "a configuration that can't be read is refused, and is no limit by oversight" do
    before = Application.get_env(:nitrox, :devices)
    on_exit(fn -> Application.put_env(:nitrox, :devices, before) end)

    for {devices, part} <- [
          {:cpu, "a list of devices and their options, got :cpu"},
          {[:cpu], "a list of devices and their options, got [:cpu]"},
          {[{:cpu, 5}], "options must be a keyword list, got 5"},
          {[cpu: [memory_limt: 5]], "unknown option :memory_limt; known are :memory_limit"},
          {[cpu: [memory_limit: "1G"]], ~s(memory_limit must be a non-negative integer)}
        ] do
      Application.put_env(:nitrox, :devices, devices)
      error = assert_raise Error, fn -> Device.open(:cpu) end
      assert error.message =~ part
    end
  end

  test "a device that is not open yet is opened by the call that needs it" do
    device = {:cuda, 4_000_000}
    assert Native.memory_stats(device) == {:closed, device}
    error = assert_raise Error, fn -> Device.memory_stats(device) end
    assert error.reason == :unavailable
  end

  test "all functions of the library are there, and no other" do
    for {name, arity} <- Native.nifs(), do: assert(function_exported?(Native, name, arity))

    # A stub that was not replaced would answer this.
    for {name, arity} <- Native.nifs() do
      answer = apply(Native, name, List.duplicate(nil, arity))
      refute match?({:error, {:unavailable, nil, "the library of Nitrox" <> _, _}}, answer)
    end
  end
end
