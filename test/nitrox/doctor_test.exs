defmodule Nitrox.DoctorTest do
  # One test sets the default device.
  use ExUnit.Case, async: false

  alias Mix.Tasks.Nitrox.Doctor, as: Task
  alias Nitrox.{Doctor, TestVM}

  defp text(report), do: report |> Task.text() |> Enum.join("\n")
  defp problems(report), do: Enum.map_join(report.advice, "\n", & &1.problem)

  # In a VM with another environment.
  defp report(env) do
    script = """
    {:ok, _} = Application.ensure_all_started(:nitrox)
    IO.puts(["report:", Base.encode64(:erlang.term_to_binary(Nitrox.Doctor.report()))])
    """

    {out, 0} = TestVM.run(script, env)
    [_, report] = Regex.run(~r/^report:(.+)$/m, out)
    report |> Base.decode64!() |> :erlang.binary_to_term()
  end

  describe "this machine" do
    test "is reported, and the report is printed" do
      report = Doctor.report()
      assert {:ok, path} = report.library
      assert File.exists?(path)
      assert report.cpu.cores >= 1
      assert report.cpu.instruction_set in ["AVX-512", "AVX2", "base"]
      assert report.default_device == {:cpu, :ok}
      assert [_ | _] = report.loader_folders

      assert ["libcuda", "libnvrtc", "libcublasLt", "libcublas", "libcudnn", "libnvidia-ml"] =
               Enum.map(report.libraries, & &1.name)

      assert Enum.all?(report.libraries, &(&1.found || &1.tried != []))

      for %{op: op, on: [{:cpu, variant} | _]} <- report.variants do
        refute variant =~ "can't", "#{op}: #{variant}"
      end

      text = text(report)
      for part <- ["CPU", "libnvrtc", report.cpu.name, "To mend"], do: assert(text =~ part)
    end

    test "the task prints it, and takes no arguments" do
      Mix.shell(Mix.Shell.Process)
      on_exit(fn -> Mix.shell(Mix.Shell.IO) end)
      Task.run([])
      assert_received {:mix_shell, :info, [text]}
      assert text =~ "Nitrox" and text =~ "What runs where"
      assert_raise Mix.Error, ~r/no arguments/, fn -> Task.run(["--all"]) end
    end

    test "a default device that is not there is told, and everything else as well" do
      before = Application.get_env(:nitrox, :default_device)

      on_exit(fn ->
        if before,
          do: Application.put_env(:nitrox, :default_device, before),
          else: Application.delete_env(:nitrox, :default_device)
      end)

      for device <- [{:cuda, 4_000_000}, :gpu, "cpu", nil] do
        Application.put_env(:nitrox, :default_device, device)
        assert %{default_device: {^device, {:error, _}}} = report = Doctor.report()
        assert problems(report) =~ "the default device is #{inspect(device)}"
        assert text(report) =~ "CAN'T BE USED"
      end
    end
  end

  describe "another environment" do
    test "a compiler that is not where it should be, and no place for the cache" do
      unset = for name <- ["NITROX_CACHE", "XDG_CACHE_HOME", "HOME"], do: {name, nil}
      report = report([{"NITROX_NVRTC_PATH", "/nowhere/libnvrtc.so"} | unset])
      nvrtc = Enum.find(report.libraries, &(&1.name == "libnvrtc"))
      assert %{found: nil, tried: [{"/nowhere/libnvrtc.so", why}]} = nvrtc
      assert why =~ "No such file"
      assert nvrtc.folders == ["/nowhere/libnvrtc.so"]
      assert report.cache.folder == nil
      assert problems(report) =~ "no place for the cache"
    end

    test "an empty folder of compilers" do
      empty = TestVM.folder("nvrtc")
      report = report([{"NITROX_NVRTC_PATH", empty}])
      nvrtc = Enum.find(report.libraries, &(&1.name == "libnvrtc"))
      assert %{found: nil, tried: [], folders: [^empty]} = nvrtc
      assert text(report) =~ "searched #{empty}"
    end

    test "a file that is no library in the compiler's place" do
      path = Path.join(TestVM.folder("nvrtc"), "libnvrtc.so.13")
      File.write!(path, "no library")
      report = report([{"NITROX_NVRTC_PATH", path}])
      nvrtc = Enum.find(report.libraries, &(&1.name == "libnvrtc"))
      assert %{found: nil, tried: [{^path, why}]} = nvrtc
      assert why =~ "too short" or why =~ "invalid ELF"
    end

    test "a cache that can't be read or made" do
      file = Path.join(TestVM.folder("cache"), "file")
      File.write!(file, "")
      report = report([{"NITROX_CACHE", file}])
      told = "the cache of kernels can't be"
      assert problems(report) =~ told
      assert text(report) =~ file
      assert text(report) =~ "set NITROX_CACHE"

      # A file where the folder itself should be.
      base = TestVM.folder("cache")
      File.mkdir_p!(Path.join(base, "nitrox"))
      File.write!(Path.join(base, "nitrox/kernels"), "")
      report = report([{"NITROX_CACHE", base}])
      assert {:error, why} = report.cache
      assert why =~ base
      assert problems(report) =~ told
    end

    test "a cache with damaged entries" do
      base = TestVM.folder("cache")
      kernels = Path.join(base, "nitrox/kernels/sm_90a")
      File.mkdir_p!(kernels)
      damaged = Path.join(kernels, "norm-0123.cubin")
      File.write!(damaged, "nitrox\0\1 and nothing more")
      File.write!(Path.join(kernels, ".17-0.tmp"), "half")
      report = report([{"NITROX_CACHE", base}])
      assert %{entries: 1, bytes: 25, damaged: [^damaged], drafts: 1} = report.cache
      assert problems(report) =~ "1 damaged and 1 unfinished"
      assert text(report) =~ damaged
    end

    test "the loader's path is among the folders" do
      assert "/some/where" in report([{"LD_LIBRARY_PATH", "/some/where:/else"}]).loader_folders
    end
  end

  describe "the survey of another machine" do
    @gib 1024 ** 3

    defp survey(gpus, overrides \\ %{}) do
      {:ok,
       Map.merge(
         %{
           cpu: %{threads: 16, instruction_set: "AVX2"},
           driver: {:ok, {13, 0}},
           nvml: {:ok, "580.95.05"},
           gpus: gpus,
           nvrtc: %{
             found: {"libnvrtc.so.13", {13, 0}},
             places: [{"libnvrtc.so.13", "found"}],
             folders: []
           },
           cublaslt: %{found: nil, places: [{"libcublasLt.so.13", "not there"}], folders: []},
           cublas: %{found: nil, places: [{"libcublas.so.13", "not there"}], folders: []},
           cudnn: %{found: nil, places: [{"libcudnn.so.9", "not there"}], folders: []},
           cache: %{folder: "/tmp", entries: 3, bytes: 99, damaged: [], drafts: 0}
         },
         overrides
       )}
    end

    defp gpu(memory) do
      %{name: "A card", capability: {9, 0}, total: 80 * @gib, bus_id: "0", memory: memory}
    end

    defp memory(free, processes),
      do: %{total: 80 * @gib, free: free, used: 80 * @gib - free, processes: processes}

    # Not to be opened: there is no such card here.
    defp examine(survey, usable \\ :ok) do
      Doctor.examine(survey, fn
        :cpu -> :ok
        {:cuda, _} -> usable
      end)
    end

    test "who holds a card's memory, this process and others" do
      own = String.to_integer(System.pid())
      holders = {:ok, [{own, 2 * @gib}, {4_000_000, nil}]}
      report = examine(survey([gpu(memory(4 * @gib, holders))]))
      assert report.driver == {:ok, %{version: "580.95.05", cuda: {13, 0}}}
      assert [%{device: {:cuda, 0}, usable: :ok, holders: [one, other]} = card] = report.cards
      assert card.memory == %{total: 80 * @gib, free: 4 * @gib}
      assert %{self: true, bytes: 2_147_483_648, name: name} = one
      assert is_binary(name)
      assert other == %{pid: 4_000_000, name: nil, bytes: nil, self: false}
      assert problems(report) == "A card has 5.0 % of its memory left"
      text = text(report)
      assert text =~ "memory: 80.0 GiB, of which 4.0 GiB are free"
      assert text =~ "#{own} #{name} (this one): 2.0 GiB"
      assert text =~ "4000000 a process of another container, or of the host: (not known)"
    end

    test "what the driver does not tell is said to be unknown" do
      report = examine(survey([gpu({:error, "no NVML"})], %{nvml: {:error, "no NVML"}}))

      assert [%{holders: {:unknown, "no NVML"}, memory: %{free: {:unknown, "no NVML"}}}] =
               report.cards

      assert text(report) =~ "held by: can't be known: no NVML"
      assert text(report) =~ "of which (not known: no NVML) are free"

      report = examine(survey([gpu(memory(79 * @gib, {:error, "not permitted"}))]))
      assert [%{holders: {:unknown, "not permitted"}, memory: %{free: free}}] = report.cards
      assert free == 79 * @gib
      assert report.advice == []
      assert text(report) =~ "To mend\n  nothing"
    end

    test "a card that can't be used, and one that does not answer" do
      broken = {:error, "cuDeviceGet: broken"}
      gpus = [gpu(memory(79 * @gib, {:ok, []})), broken]
      report = examine(survey(gpus), {:error, "too old"})
      assert [%{usable: {:error, "too old"}}, ^broken] = report.cards
      assert problems(report) =~ "A card can't be used: too old"
      assert problems(report) =~ "a card does not answer: cuDeviceGet: broken"
      assert text(report) =~ "CAN'T BE USED: too old"
    end

    test "a compiler that is missing beside a card, and a cache that is empty" do
      lacking = %{
        nvrtc: %{found: nil, places: [{"libnvrtc.so.13", "no such file"}], folders: ["/opt/x"]},
        cache: %{folder: "/tmp", entries: 0, bytes: 0, damaged: [], drafts: 0},
        cpu: %{threads: 1, instruction_set: "base"}
      }

      report = examine(survey([gpu(memory(79 * @gib, {:ok, []}))], lacking))
      assert problems(report) =~ "libnvrtc is missing"
      assert problems(report) =~ "no kernel is compiled yet"
      assert problems(report) =~ "no AVX2"
      assert text(report) =~ "tried libnvrtc.so.13: no such file"
      assert text(report) =~ "searched /opt/x"
    end

    test "a driver without a card, and one that is too old" do
      assert problems(examine(survey([]))) =~ "the driver shows no GPU"
      old = %{driver: {:error, "the NVIDIA driver is too old: libcuda has no cuX"}}
      report = examine(survey([], old))
      assert [%{mend: "install an NVIDIA driver for CUDA 12 or 13"}] = report.advice
    end

    test "no library of Nitrox" do
      report =
        Doctor.examine({:error, "it is not there"}, fn _ -> {:error, "it is not there"} end)

      assert report.library == {:error, "it is not there"}
      assert {:unknown, _} = report.cpu.cores
      assert report.variants == [] or Enum.all?(report.variants, &(&1.on == []))
      assert [%{problem: problem} | _] = report.advice
      assert problem =~ "the library of Nitrox can't be used"
      assert text(report) =~ "MISSING: it is not there"
    end
  end

  @tag :cuda
  test "a GPU is found, with its driver, its memory and its compiler" do
    report = Doctor.report()
    assert {:ok, %{cuda: {major, _}}} = report.driver
    assert major >= 12

    assert [%{device: {:cuda, 0}, usable: :ok, memory: %{total: total, free: free}} = card | _] =
             report.cards

    assert total > 2 * 1024 ** 3
    assert match?({:unknown, why} when is_binary(why), free) or free in 0..total
    assert is_list(card.holders) or match?({:unknown, _}, card.holders)

    for %{name: name, found: found} <- report.libraries,
        name in ["libcuda", "libnvrtc"],
        do: assert(found)

    assert %{found: "/" <> _} = hd(report.libraries)

    for %{op: op, on: on} <- report.variants do
      assert {{:cuda, 0}, variant} = List.keyfind(on, {:cuda, 0}, 0)
      refute variant =~ "can't", "#{op}: #{variant}"
    end

    IO.puts("\n" <> text(report))
  end
end
