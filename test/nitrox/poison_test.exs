defmodule Nitrox.PoisonTest do
  # A kernel that writes where no memory is. No kernel of the library does, and no call can make one
  # do it; so a VM of its own finds one in its cache, which was put there in place of a good one.
  use ExUnit.Case, async: true

  alias Nitrox.TestVM

  @moduletag :cuda
  @moduletag :nvcc

  # The entry points and parameters of kernels/elementwise/unary.cu.
  @kernel ~S"""
  extern "C" __global__ void unary(const float *x, float *y, unsigned long long n, unsigned kind) {
    *(volatile int *)0xdead00000000ull = 1;
  }
  """

  @good """
  {:ok, _} = Application.ensure_all_started(:nitrox)
  [0.0] = Nitrox.tensor([0.0], device: {:cuda, 0}) |> Nitrox.tanh() |> Nitrox.to_list()
  """

  @bad """
  {:ok, _} = Application.ensure_all_started(:nitrox)
  alias Nitrox.{Device, Program, Session, Tensor}
  gpu = {:cuda, 0}
  x = Nitrox.tensor([1.0, 2.0], device: gpu)
  template = Nitrox.template({2}, {:f, 32})
  # Kernels of another module, loaded before.
  program = Program.compile(&Nitrox.add(&1, 1), [template], device: gpu)
  step = fn a, s -> {s, Nitrox.add(a, s)} end
  session = Session.new(Program.compile(step, [template], device: gpu, state: x))
  read_back = Session.new(Program.compile(step, [template], device: gpu, state: x, outputs: :binary))
  bytes = Tensor.to_binary(x)
  {_, _} = {Session.step(session, [x]), Session.step(read_back, [bytes])}
  snapshot = Session.snapshot(session)
  [2.0, 3.0] = program |> Program.run([x]) |> Nitrox.to_list()

  # The launch may be accepted: the news comes with whoever waits first.
  first =
    try do
      Nitrox.to_list(Nitrox.tanh(x))
    rescue
      error -> error
    end

  %Nitrox.Error{reason: :poisoned, message: message, hint: hint} = first
  IO.puts(message)
  true = message =~ "CUDA_ERROR_ILLEGAL_ADDRESS (700)"
  true = hint =~ "restart the VM"

  calls = [
    fn -> Nitrox.tensor([1.0], device: gpu) end,
    fn -> Nitrox.to_binary(x) end,
    fn -> Nitrox.copy(x) end,
    fn -> Nitrox.copy(x, :cpu) end,
    fn -> Nitrox.add(x, x) end,
    fn -> Nitrox.tanh(x) end,
    fn -> Nitrox.sum(x) end,
    fn -> Program.run(program, [x]) end,
    fn -> Program.run(program, [bytes]) end,
    fn -> Session.step(session, [x]) end,
    fn -> Session.step(session, [bytes]) end,
    fn -> Session.step(read_back, [bytes]) end,
    fn -> Session.snapshot(session) end,
    fn -> Session.restore(session, snapshot) end,
    fn -> Session.fork(session) end,
    fn -> Session.new(session.program) end,
    fn -> Program.compile(&Nitrox.add(&1, 1), [template], device: gpu) end,
    fn -> Device.synchronize(gpu) end
  ]

  # Twice, from this process and from others.
  for round <- 1..2, {call, i} <- Enum.with_index(calls) do
    run = fn -> try(do: {:ok, call.()}, rescue: (e -> e)) end
    got = if round == 1, do: run.(), else: Task.await(Task.async(run), :infinity)

    case got do
      %Nitrox.Error{reason: :poisoned, message: ^message} -> :ok
      other -> IO.puts("call \#{i}: \#{inspect(other)}")
    end
  end

  # The VM lives, and what needs no GPU serves on; the rest is collected.
  [3.0] = Nitrox.tensor([1.0]) |> Nitrox.add(2) |> Nitrox.to_list()
  %{in_use: _} = Device.memory_stats(gpu)
  %{cards: [_ | _]} = Nitrox.Doctor.report()
  for pid <- Process.list(), do: :erlang.garbage_collect(pid)
  IO.puts("poisoned and alive")
  """

  test "after an illegal access every call to the device says so, and the VM lives" do
    folder = TestVM.folder("poison")
    env = [{"NITROX_CACHE", folder}]
    {out, status} = TestVM.run(@good, env)
    assert status == 0, out

    assert [entry] =
             Path.wildcard(Path.join(folder, "nitrox/kernels/*/elementwise-unary-*.cubin"))

    arch = entry |> Path.dirname() |> Path.basename()
    File.write!(entry, entry(compile(folder, arch)))

    {out, status} = TestVM.run(@bad, env)
    assert status == 0, out
    assert out =~ "poisoned and alive"
    refute out =~ ~r/^call \d+:/m, out
  end

  defp compile(folder, arch) do
    [source, cubin] = for name <- ["bad.cu", "bad.cubin"], do: Path.join(folder, name)
    File.write!(source, @kernel)

    {out, status} =
      System.cmd("nvcc", ["-cubin", "-arch=#{arch}", "-o", cubin, source], stderr_to_stdout: true)

    assert status == 0, out
    File.read!(cubin)
  end

  # The form of a cache entry: a mark, the length, the FNV-1a of 128 bits, the cubin.
  defp entry(cubin) do
    hash =
      for <<byte <- cubin>>, reduce: 0x6C62272E07BB014262B821756295C58D do
        hash -> rem(Bitwise.bxor(hash, byte) * 0x0000000001000000000000000000013B, 2 ** 128)
      end

    <<"nitrox", 0, 1, byte_size(cubin)::64-little, hash::128-little, cubin::binary>>
  end
end
