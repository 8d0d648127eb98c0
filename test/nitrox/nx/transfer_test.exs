defmodule Nitrox.Nx.TransferTest do
  # What crosses between the host and the device, who holds memory, and what is kept as a constant.
  use ExUnit.Case, async: false
  @moduletag :nx

  alias Nitrox.{Backend, Device, TestEvents, TestMemory}

  setup do
    Nx.default_backend({Backend, device: :cpu})
    :ok
  end

  # The events of this process while `fun` runs.
  defp events(event, fun) do
    {result, events} = TestEvents.all([event], fun)
    {result, Enum.map(events, &elem(&1, 1))}
  end

  defp transfers(fun), do: events([:nitrox, :tensor, :transfer], fun)
  defp in_use, do: Device.memory_stats(:cpu).in_use

  defp allocations(fun) do
    before = Device.memory_stats(:cpu).total_allocations
    result = fun.()
    {result, Device.memory_stats(:cpu).total_allocations - before}
  end

  describe "transfers" do
    @describetag :telemetry

    test "only what goes in and comes out crosses" do
      x = for _ <- 1..12, into: <<>>, do: <<:rand.uniform()::float-32-native>>

      {got, crossed} =
        transfers(fn ->
          x = Nx.from_binary(x, :f32) |> Nx.reshape({3, 4})
          y = Nx.multiply(x, 2) |> Nx.add(Nx.transpose(Nx.reshape(x, {4, 3})))
          y = Nx.divide(y, Nx.sum(Nx.exp(y), axes: [1], keep_axes: true))
          Nx.slice(y, [0, 1], [3, 2]) |> Nx.to_binary()
        end)

      assert byte_size(got) == 24

      assert [
               %{direction: :to_device, bytes: 48, device: :cpu},
               %{direction: :to_host, bytes: 24, device: :cpu}
             ] = crossed
    end

    test "from_nx refuses what no tensor of ours can be" do
      for {tensor, part} <- [
            {Nx.vectorize(Nx.tensor([[1.0], [2.0]]), :row), "vectorized"},
            {Nx.iota({1, 1, 1, 1, 1, 1, 1, 1, 2}), "at most 8 axes"},
            {Nx.tensor([1], type: {:u, 2}), "unknown type {:u, 2}"},
            {1, "a Nx.Tensor, got 1"}
          ] do
        assert_raise Nitrox.Error, ~r/#{part}/, fn -> Nitrox.from_nx(tensor) end
      end
    end

    test "options of the backend are checked wherever they are given" do
      for options <- [[device: :gpu], [junk: 1]] do
        backend = {Backend, options}
        host = Nx.tensor([1], backend: Nx.BinaryBackend)
        assert_raise Nitrox.Error, fn -> Nx.tensor([1], backend: backend) end
        assert_raise Nitrox.Error, fn -> Nx.backend_transfer(host, backend) end
        assert_raise Nitrox.Error, fn -> Nx.backend_copy(Nx.tensor([1]), backend) end
      end
    end

    test "tensors of Nx and of Nitrox are refused beside each other, and explained alike" do
      {nx, ours} = {Nx.tensor([1.0, 2.0]), Nitrox.tensor([1.0, 2.0])}

      for {a, b} <- [{nx, ours}, {ours, nx}] do
        error = assert_raise Nitrox.Error, fn -> Nitrox.add(a, b) end
        assert error.message =~ "not both" and error.hint =~ "Nitrox.from_nx/1"
      end

      op = %Nitrox.Op.Softmax{axis: 0, log: false}
      assert Nitrox.explain(op, [nx]) == Nitrox.explain(op, [ours])
    end

    test "to_nx, from_nx, reshape and copies on the device share the buffer" do
      t = Nitrox.tensor([1.0, 2.0, 3.0])

      {{nx, allocated}, crossed} =
        transfers(fn ->
          allocations(fn ->
            nx = Nitrox.to_nx(t) |> Nx.reshape({3, 1}) |> Nx.backend_copy(Backend)
            Nitrox.from_nx(nx) |> Nitrox.to_nx()
          end)
        end)

      assert {crossed, allocated} == {[], 0}
      assert Nx.to_flat_list(nx) == [1.0, 2.0, 3.0]
      assert Nx.to_pointer(nx).address == Nx.to_pointer(Nitrox.to_nx(t)).address
    end

    test "what is shown is all that is read" do
      x = Nx.iota({1000}) |> Nx.add(1)
      {_, [crossed]} = transfers(fn -> inspect(x, limit: 9) end)
      assert crossed.bytes == 40
    end

    test "a type that no kernel has goes through the host, and says so" do
      x = Nx.tensor([1, 2], type: :c64)
      {y, told} = events([:nitrox, :fallback], fn -> Nx.add(x, 1) end)
      assert [%{op: :add, why: :type, device: :cpu, count: 1}] = told
      assert %{__struct__: Backend} = y.data
      assert Nx.to_flat_list(y) == [Complex.new(2.0), Complex.new(3.0)]
    end
  end

  describe "constants" do
    test "a number takes no memory until a tensor needs it" do
      {_, allocated} =
        allocations(fn ->
          x = Nx.broadcast(Nx.tensor(2.0), {100, 100})
          Nx.exp(Nx.add(Nx.reshape(x, {10_000}), 1)) |> Nx.as_type(:f64) |> Nx.to_binary(limit: 3)
        end)

      assert allocated == 0
    end

    test "are what they stand for" do
      x = Nx.broadcast(3, {2, 2})
      assert Nx.to_flat_list(x) == [3, 3, 3, 3]
      assert Nx.sum(x) |> Nx.to_number() == 12
      assert Nx.transpose(Nx.add(x, Nx.tensor([1, 2]))) |> Nx.to_flat_list() == [4, 4, 5, 5]
      assert Nx.add(Nx.broadcast(1, {3, 1}), Nx.broadcast(1, {1, 2})).shape == {3, 2}

      assert Nx.add(Nx.broadcast(1, {2, 3}), Nx.tensor([1])) |> Nx.to_flat_list() == [
               2,
               2,
               2,
               2,
               2,
               2
             ]

      assert Nx.select(1, Nx.broadcast(1, {2}), Nx.tensor([5])) |> Nx.to_flat_list() == [1, 1]
      assert Nx.to_number(Nx.as_type(Nx.tensor(300.7), :u8)) == 255
      assert Nx.to_number(Nx.as_type(Nx.tensor(:nan), :s32)) == 0
      assert Nx.to_number(Nx.exp(1000.0)) == :infinity
      assert [3, 3, 3, 3] = Nx.to_flat_list(Nx.backend_copy(x, Nx.BinaryBackend))
    end
  end

  describe "backends" do
    test "transfer, copy and deallocate" do
      x = Nx.tensor([1, 2, 3])
      y = Nx.backend_copy(x)
      assert %{__struct__: Nx.BinaryBackend} = y.data
      copy = Nx.backend_copy(x, Backend)
      assert Nx.backend_deallocate(x) == :ok
      assert Nx.backend_deallocate(x) == :already_deallocated
      assert_raise Nitrox.Error, ~r/deallocated/, fn -> Nx.add(x, 1) end
      assert inspect(x) =~ "deallocated"
      assert Nx.to_flat_list(copy) == [1, 2, 3]
      assert Nx.to_flat_list(Nx.backend_transfer(copy)) == [1, 2, 3]
      assert Nx.backend_deallocate(copy) == :already_deallocated
      z = Nx.backend_transfer(y, {Backend, device: :cpu})
      assert %{__struct__: Backend, device: :cpu} = z.data
      assert Nx.backend_transfer(z, Backend) == z
    end

    test "operands of Nx.BinaryBackend come along" do
      x = Nx.tensor([1, 2])
      y = Nx.tensor([0.5, 0.5], backend: Nx.BinaryBackend)
      for z <- [Nx.add(x, y), Nx.add(y, x)], do: assert(%{__struct__: Backend} = z.data)
      assert Nx.concatenate([y, x]) |> Nx.to_flat_list() == [0.5, 0.5, 1.0, 2.0]
      assert Nx.dot(y, x) |> Nx.to_number() == 1.5
    end

    test "to_batched" do
      batches = fn options ->
        Nx.iota({5, 2}) |> Nx.to_batched(2, options) |> Enum.map(&Nx.to_flat_list/1)
      end

      assert batches.([]) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]
      assert batches.(leftover: :discard) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    end

    test "options that are not known" do
      assert_raise Nitrox.Error, ~r/known are :device/, fn ->
        Nx.default_backend({Backend, client: :cuda})
      end
    end

    test "types and axes that no kernel takes are held all the same" do
      for type <- [:u16, :s8, :u64, :c64, :f8] do
        x = Nx.tensor([[1, 2], [3, 4]], type: type)
        y = Nx.tensor([[1, 2], [3, 4]], type: type, backend: Nx.BinaryBackend)
        assert Nx.to_binary(x) == Nx.to_binary(y)
        assert Nx.to_binary(Nx.add(x, x)) == Nx.to_binary(Nx.add(y, y))
        assert Nx.to_binary(Nx.transpose(x)) == Nx.to_binary(Nx.transpose(y))
      end

      x = Nx.tensor([1, 2, 3], type: :u4)
      assert Nx.to_flat_list(x) == [1, 2, 3]
      assert Nx.to_flat_list(Nx.add(x, 1)) == [2, 3, 4]

      many = Nx.iota({2, 1, 1, 1, 1, 1, 1, 1, 1, 2})
      assert Nx.to_flat_list(Nx.add(many, 1)) == [1, 2, 3, 4]
      assert Nx.reshape(many, {2, 2}) |> Nx.sum() |> Nx.to_number() == 6
    end

    @tag :cuda
    test "two devices in one op" do
      x = Nx.tensor([1, 2])
      y = Nx.tensor([1, 2], backend: {Backend, device: {:cuda, 0}})
      assert_raise Nitrox.Error, ~r/cuda, 0/, fn -> Nx.add(x, y) end
      assert Nx.add(Nx.backend_copy(y, Backend), x) |> Nx.to_flat_list() == [2, 4]
      # A constant is of no device yet.
      assert %{__struct__: Backend, device: {:cuda, 0}} = Nx.add(Nx.tensor(1), y).data
    end
  end

  describe "pointers" do
    test "a tensor is adopted where it lies" do
      x = Nx.add(Nx.tensor([1.0, 2.0, 3.0]), 1)
      pointer = Nx.to_pointer(x)
      assert %{__struct__: Nx.Pointer, kind: :local, data_size: 12} = pointer
      y = Nx.from_pointer(Backend, pointer, :f32, {3}, owner: x, names: [:a])
      assert y.names == [:a]
      assert Nx.to_flat_list(Nx.multiply(y, 2)) == [4.0, 6.0, 8.0]
      assert Nx.to_pointer(y) == pointer
    end

    test "the owner stays for as long as there is a view on it" do
      assert TestMemory.leaks(fn ->
               {before, _} = TestMemory.settled()
               y = adopted()
               # A view of the view: x itself is held by nothing else any more.
               z = Nx.reshape(y, {2, 5000})
               {held, _} = TestMemory.settled()
               assert held >= before + 40_000
               assert Nx.to_number(Nx.sum(z)) == 10_000.0 * 2
             end) == {0, 0}
    end

    defp adopted do
      Nx.default_backend({Backend, device: :cpu})
      x = Nx.add(Nx.broadcast(1.0, {10_000}), Nx.tensor([1.0]))
      Nx.from_pointer(Backend, Nx.to_pointer(x), :f32, {10_000}, owner: x)
    end

    test "what is refused" do
      x = Nx.tensor([1.0, 2.0])
      pointer = Nx.to_pointer(x)

      assert_raise Nitrox.Error, ~r/takes 12 bytes/, fn ->
        Nx.from_pointer(Backend, pointer, :f32, {3})
      end

      assert_raise Nitrox.Error, ~r/:local/, fn -> Nx.to_pointer(x, mode: :ipc) end

      assert_raise Nitrox.Error, ~r/a Nx.Pointer, got 1/, fn ->
        Nx.from_pointer(Backend, 1, :f32, {2})
      end

      assert_raise Nitrox.Error, ~r/:local/, fn ->
        Nx.from_pointer(Backend, struct(Nx.Pointer, kind: :ipc, handle: "x"), :f32, {2})
      end

      for address <- [0, pointer.address + 1, -1, nil] do
        assert_raise Nitrox.Error, fn ->
          Nx.from_pointer(Backend, %{pointer | address: address}, :f32, {2})
        end
      end

      assert_raise Nitrox.Error, ~r/constant/, fn -> Nx.to_pointer(Nx.tensor(1.0)) end

      assert %{__struct__: Nx.Pointer} =
               Nx.tensor(1.0) |> Nitrox.from_nx() |> Nitrox.to_nx() |> Nx.to_pointer()
    end
  end

  describe "processes" do
    test "64 at once get right answers" do
      1..64
      |> Task.async_stream(
        fn i ->
          Nx.default_backend({Backend, device: :cpu})
          x = Nx.add(Nx.iota({40, 50}, type: :f32), i)

          for _ <- 1..20 do
            y = x |> Nx.multiply(2) |> Nx.subtract(x) |> Nx.dot(Nx.transpose(x)) |> Nx.sum()
            columns = Nx.sum(x, axes: [0])
            assert_in_delta Nx.to_number(Nx.divide(y, Nx.dot(columns, columns))), 1.0, 1.0e-4
          end
        end,
        max_concurrency: 64,
        timeout: :infinity
      )
      |> Enum.each(&assert {:ok, _} = &1)
    end

    test "those that are killed leak nothing" do
      assert TestMemory.leaks(fn ->
               {before, _} = TestMemory.settled()
               parent = self()

               killed =
                 for _ <- 1..8 do
                   spawn_monitor(fn ->
                     Nx.default_backend({Backend, device: :cpu})
                     x = Nx.iota({100, 100}, type: :f32)
                     at_work = &Nx.add(Nx.dot(&1, x), 1)
                     y = at_work.(x)
                     send(parent, {:at_work, self()})
                     y |> Stream.iterate(at_work) |> Stream.run()
                   end)
                 end

               for {pid, _} <- killed, do: assert_receive({:at_work, ^pid})
               assert in_use() > before
               for {pid, _} <- killed, do: Process.exit(pid, :kill)
               for {pid, m} <- killed, do: assert_receive({:DOWN, ^m, :process, ^pid, :killed})
             end) == {0, 0}
    end
  end
end
