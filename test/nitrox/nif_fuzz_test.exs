defmodule Nitrox.NifFuzzTest do
  # Every NIF, called with terms that are right, nearly right and wrong, from many processes at
  # once. None may bring the VM down, raise or panic; what is held is given back in the end.
  use ExUnit.Case, async: false

  alias Nitrox.{Backbone, Device, Error, Native, OpExamples, Program, Session, Telemetry, Tensor}
  alias Nitrox.TestMemory

  # Of each NIF that takes an argument.
  @calls 10_000
  @processes 8
  # Those that take an op: every op's share of their calls.
  @of_ops [:run, :run_dirty, :infer, :explain, :compile]
  @share 100

  @reasons ~w(shape type argument unsupported device deallocated unavailable out_of_memory driver
              poisoned compile file)a

  setup do
    Device.open(:cpu)
    before = TestMemory.settled()

    on_exit(fn ->
      Native.listen(Process.whereis(Telemetry.Relay))
      assert TestMemory.left(before) == {0, 0}, "bytes and blocks leaked"
    end)
  end

  # A process of its own for all handles, so that none outlives the test.
  defp in_process(fun), do: Task.async(fun) |> Task.await(:infinity)

  for {name, arity} <- Native.nifs() do
    @tag nif: name, arity: arity
    test "#{name}/#{arity}", %{nif: name, arity: arity} do
      seed = ExUnit.configuration()[:seed]

      in_process(fn ->
        world = world()

        answers =
          1..@processes
          |> Task.async_stream(
            fn i ->
              :rand.seed(:exsss, {seed, i, :erlang.phash2(name)})
              for _ <- 1..calls(name), do: fuzz(name, world)
            end,
            max_concurrency: @processes,
            ordered: false,
            timeout: :infinity
          )
          |> Enum.flat_map(fn {:ok, answers} -> answers end)

        kinds = Enum.frequencies_by(answers, &elem(&1, 0))
        if arity > 0, do: assert(length(answers) == @calls)

        if name in @of_ops do
          shares = Enum.frequencies_by(answers, &elem(&1, 1))

          for module <- OpExamples.modules(), op = Nitrox.Op.name(struct(module)) do
            assert shares[op] >= @share, "#{op}: #{shares[op]} calls"
          end
        end

        # A fuzzer that only ever hears no, or never does, tests little.
        if name not in [:wait, :cuda_count, :survey] do
          assert kinds[:ok] || kinds[:heavy], "no call passed: #{inspect(kinds)}"
        end

        if arity > 0, do: assert(kinds[:error] > @calls / 20, inspect(kinds))
      end)
    end
  end

  test "there are arguments that each op takes: it is run, explained and compiled with them" do
    in_process(fn ->
      world = world()

      for module <- OpExamples.modules() do
        name = Nitrox.Op.name(struct(module))
        examples = for {{^name, _}, _} = example <- OpExamples.all(), do: example

        assert examples != [],
               "no arguments were found that #{name} takes: help Nitrox.OpExamples to find some"

        for {op, specs} <- examples do
          inputs = Enum.map(specs, &(&1 && world.tensors[&1]))
          assert {:ok, outputs} = Native.run_dirty(:cpu, op, inputs)
          assert {:ok, inferred} = Native.infer(op, specs)
          assert Enum.map(outputs, &elem(&1, 1)) == inferred
          assert {:ok, {_, _, _}} = Native.explain(:cpu, op, specs)
          assert {:ok, {program, ^inferred}} = apply(Native, :compile, every_input(op, specs))

          assert {:ok, results} =
                   Native.program_run_dirty(program, Enum.reject(inputs, &is_nil/1))

          assert length(results) == length(inferred)
        end
      end
    end)
  end

  # The op alone, with all of its inputs as the program's.
  defp every_input(op, specs) do
    {references, _} =
      Enum.map_reduce(specs, 0, fn
        nil, i -> {nil, i}
        _, i -> {{:input, i}, i + 1}
      end)

    {:ok, outputs} = Native.infer(op, specs)

    graph = %{
      nodes: [%{op: op, inputs: references}],
      inputs: Enum.reject(specs, &is_nil/1),
      outputs: for({_, i} <- Enum.with_index(outputs), do: {:node, 0, i}),
      next_state: []
    }

    [:cpu, graph, [], [], {false, 1}]
  end

  test "through Nitrox.Native.call/2 a refusal is a Nitrox.Error" do
    :rand.seed(:exsss, ExUnit.configuration()[:seed])

    in_process(fn ->
      world = world()

      for {name, _} <- Native.nifs(), _ <- 1..500 do
        args = name |> args(world) |> mutate_some(world) |> spare(name)

        try do
          Native.call(name, args)
        rescue
          error in Error -> assert check(error.reason, error.op, error.message, error.hint)
        end
      end
    end)
  end

  # Nothing can be wrong about the arguments of one that takes none.
  defp calls(name) do
    div(if(Native.nifs()[name] == 0, do: 80, else: @calls), @processes)
  end

  # The kind of the answer, and the op that was called, as it was before it was changed.
  defp fuzz(name, world) do
    right = args(name, world)
    args = right |> mutate_some(world) |> spare(name)

    try do
      answer(apply(Native, name, args))
    catch
      kind, reason ->
        flunk("#{name} raised #{inspect({kind, reason})} for #{text(args)}")
    else
      {:bad, answer} -> flunk("#{name} answered #{text(answer)} for #{text(args)}")
      kind -> {kind, op_of(name, right)}
    end
  end

  defp op_of(:infer, [{op, _} | _]), do: op
  defp op_of(:compile, [_, %{nodes: [%{op: {op, _}} | _]} | _]), do: op
  defp op_of(name, [_, {op, _} | _]) when name in @of_ops, do: op
  defp op_of(_, _), do: nil

  defp text(term), do: inspect(term, limit: 100, printable_limit: 200)

  defp answer({:ok, _}), do: :ok
  defp answer(:heavy), do: :heavy
  defp answer({:closed, {:cuda, n}}) when is_integer(n), do: :closed
  defp answer({:pending, run}) when is_reference(run), do: :pending

  defp answer({:error, {reason, op, message, hint}} = error) do
    if check(reason, op, message, hint), do: :error, else: {:bad, error}
  end

  defp answer(other), do: {:bad, other}

  # A panic would be `:internal`, which is a bug and no refusal.
  defp check(reason, op, message, hint) do
    reason in @reasons and is_atom(op) and is_binary(message) and String.valid?(message) and
      byte_size(message) < 2_000 and (is_nil(hint) or is_binary(hint))
  end

  # -- Arguments that are right -----------------------------------------------------------------

  # All handles there are, made once a test and shared by its processes.
  defp world do
    tensors =
      for {_, specs} <- OpExamples.all(), spec <- specs, spec != nil, uniq: true, into: %{} do
        {spec, ref(random_tensor(spec))}
      end

    add = &Nitrox.add/2
    x = Tensor.tensor([1.0, 2.0])
    program = Program.compile(fn a -> {add.(a, x), a} end, [x], instances: 2)
    readback = Program.compile(fn a -> add.(a, 1) end, [x], outputs: :binary)
    stateful = Program.compile(fn a, s -> {s, add.(a, s)} end, [x], state: x)
    session = Session.new(stateful)
    # The first run of a program is left to a dirty scheduler.
    for program <- [program, readback], do: Program.run(program, [x])
    Session.step(session, [x])
    dead = Tensor.tensor([1.0, 2.0])
    Tensor.deallocate(dead)
    {weights, entries, _} = Native.call(:weights_open, [weights_path()])

    # What the engine makes one op of is no op to be called: it comes in a program.
    features = [input: {:features, 2}, outputs: 2]
    mamba = Backbone.init(:mamba, [hidden: [16, 16]] ++ features) |> Backbone.session()
    Session.step(mamba, [<<0::64>>])

    examples =
      OpExamples.all()
      |> Enum.group_by(fn {{name, _}, _} -> name end)
      |> Enum.map(fn {_, of_op} -> List.to_tuple(of_op) end)
      |> List.to_tuple()

    %{
      tensors: tensors,
      examples: examples,
      x: x.ref,
      dead: dead.ref,
      programs: [program.ref, readback.ref],
      stateful: stateful.ref,
      session: session.ref,
      sessions: [session.ref, mamba.ref],
      junk: junk_kinds(),
      weights: weights,
      names: Enum.map(entries, &elem(&1, 0)),
      foreign: [make_ref(), :atomics.new(1, []), :counters.new(1, []), :ets.new(:t, [])]
    }
  end

  defp ref(%Tensor{ref: ref}), do: ref

  defp weights_path, do: Path.join(:code.priv_dir(:nitrox), "demo/mlp.safetensors")

  # NaN, infinity and all other patterns are among the bytes.
  defp random_tensor({type, shape}) do
    bytes = :rand.bytes(Enum.product(shape) * Nitrox.Element.bytes(type))
    Tensor.from_binary(bytes, type, List.to_tuple(shape))
  end

  # Each op as often as the others, now and then with the inputs of another.
  defp op(world) do
    {op, specs} = example(world)
    if one_in(5), do: {op, elem(example(world), 1)}, else: {op, specs}
  end

  defp example(%{examples: examples}) do
    of_op = elem(examples, :rand.uniform(tuple_size(examples)) - 1)
    elem(of_op, :rand.uniform(tuple_size(of_op)) - 1)
  end

  defp args(name, _) when name in [:cuda_count, :survey], do: []
  defp args(:listen, _), do: [pick([nil, self()])]
  defp args(:open, _), do: [device(), nil]

  defp args(name, _) when name in [:device_info, :synchronize, :trim, :memory_stats],
    do: [device()]

  # A GPU's kernels would take minutes.
  defp args(:warmup, _), do: [pick([:cpu, {:cuda, 4_000_000}]), self()]

  defp args(name, world) when name in [:from_binary, :from_binary_dirty] do
    {type, shape} = spec = world.tensors |> Map.keys() |> pick()
    [device(), spec, :rand.bytes(Enum.product(shape) * Nitrox.Element.bytes(type))]
  end

  defp args(name, world) when name in [:to_binary, :to_binary_dirty],
    do: [a_tensor(world), pick([nil, 0, 1, 8, 10_000])]

  defp args(name, world) when name in [:copy, :copy_dirty], do: [a_tensor(world), device()]

  # Its own, since the others' would soon be gone.
  defp args(:deallocate, world) do
    if one_in(2),
      do: [ref(Tensor.tensor([1, 2]))],
      else: [pick([world.dead | world.foreign])]
  end

  defp args(:address, world), do: [a_tensor(world)]

  # Nobody reads what comes of it, so that the address may be any. Another call may give `world.x` up.
  defp args(:adopt, world) do
    x = ref(Tensor.tensor([1.0, 2.0]))
    {address, _} = Native.call(:address, [x])
    [device(), {{:f, 32}, [2]}, address, pick([x, world.x, nil, {self(), "owner"}])]
  end

  defp args(name, world) when name in [:run, :run_dirty] do
    {op, specs} = op(world)
    [device(), op, Enum.map(specs, &(&1 && world.tensors[&1]))]
  end

  defp args(:infer, world), do: Tuple.to_list(op(world))
  defp args(:explain, world), do: [device() | Tuple.to_list(op(world))]

  # Every op on parameters and inputs, and a state that is passed on.
  defp args(:compile, world) do
    {op, specs} = op(world)

    {references, {parameters, inputs}} =
      Enum.map_reduce(specs, {[], []}, fn
        nil, acc ->
          {nil, acc}

        spec, {parameters, inputs} ->
          if one_in(2),
            do: {{:param, length(parameters)}, {parameters ++ [world.tensors[spec]], inputs}},
            else: {{:input, length(inputs)}, {parameters, inputs ++ [spec]}}
      end)

    graph = %{
      nodes: [%{op: op, inputs: references}, node_on(op)],
      inputs: inputs,
      outputs: [{:node, 0, 0}, {:node, 1, 0}],
      next_state: [{:state, 0}]
    }

    [device(), graph, parameters, [world.x], {one_in(2), pick([1, 2])}]
  end

  defp args(name, world) when name in [:program_info, :program_explain, :session_new],
    do: [pick([world.stateful | world.programs])]

  defp args(name, world) when name in [:program_run, :program_run_dirty],
    do: [pick(world.programs), feeds(world)]

  defp args(name, world) when name in [:session_step, :session_step_dirty],
    do: [pick(world.sessions), feeds(world), one_in(2)]

  defp args(name, world)
       when name in [
              :session_snapshot,
              :session_fork
            ],
       do: [pick(world.sessions)]

  defp args(:session_restore, world), do: [world.session, [world.x]]
  defp args(:wait, world), do: [pick([world.session, world.x | world.foreign])]

  defp args(:weights_open, _) do
    [
      pick([
        weights_path(),
        "/",
        "",
        "/nowhere",
        weights_path() <> "\0",
        Path.dirname(__ENV__.file)
      ])
    ]
  end

  defp args(:weights_fetch, world), do: [world.weights, pick(["nothing" | world.names]), device()]

  # Of whatever type its first output is.
  defp node_on(_), do: %{op: {:unary, %{kind: :negate}}, inputs: [{:node, 0, 0}]}

  defp feeds(world), do: [pick([world.x, :rand.bytes(8)])]

  # A GPU of this number is on no machine: opening one is no call to make ten thousand times.
  defp device, do: if(one_in(20), do: {:cuda, 4_000_000}, else: :cpu)

  defp a_tensor(world), do: pick([world.dead | Map.values(world.tensors)])

  # A change must not hit on a GPU that is there, whose kernels would take minutes.
  defp spare([{:cuda, n} | rest], :warmup) when n in 0..16, do: [{:cuda, 4_000_000} | rest]
  defp spare(args, _), do: args

  # -- Arguments that are not -------------------------------------------------------------------

  defp mutate_some([], _), do: []

  defp mutate_some(args, world) do
    case :rand.uniform(10) do
      n when n <= 3 -> args
      n when n <= 7 -> mutate_arg(args, world)
      n when n <= 9 -> args |> mutate_arg(world) |> mutate_arg(world)
      _ -> Enum.map(args, fn _ -> junk(world) end)
    end
  end

  defp mutate_arg(args, world) do
    List.update_at(args, :rand.uniform(length(args)) - 1, &mutate(&1, world))
  end

  # One term somewhere inside, replaced or changed.
  defp mutate([_ | _] = list, world) do
    cond do
      List.improper?(list) -> junk(world)
      one_in(5) -> mutate_list(list, world)
      true -> mutate_arg(list, world)
    end
  end

  defp mutate(tuple, world) when is_tuple(tuple) and tuple_size(tuple) > 0 do
    if one_in(8),
      do: junk(world),
      else: tuple |> Tuple.to_list() |> mutate_list_or_arg(world) |> List.to_tuple()
  end

  defp mutate(map, world) when is_map(map) and map_size(map) > 0 do
    key = pick(Map.keys(map))

    case :rand.uniform(8) do
      1 -> Map.delete(map, key)
      2 -> Map.put(map, junk_key(), junk(world))
      3 -> junk(world)
      _ -> Map.update!(map, key, &mutate(&1, world))
    end
  end

  defp mutate(n, world) when is_integer(n) and abs(n) < 1.0e300 do
    pick([
      n + 1,
      n - 1,
      -n,
      n / (abs(n) + 1),
      2 ** 31,
      2 ** 62,
      2 ** 63 - 1,
      2 ** 64,
      junk(world)
    ])
  end

  defp mutate(binary, world) when is_binary(binary) do
    size = byte_size(binary)

    case :rand.uniform(4) do
      1 -> binary_part(binary, 0, :rand.uniform(size + 1) - 1)
      2 -> binary <> :rand.bytes(:rand.uniform(9))
      3 when size > 0 -> <<binary::binary-size(size - 1), 1::1>>
      _ -> junk(world)
    end
  end

  defp mutate(_, world), do: junk(world)

  defp mutate_list(list, world) do
    case :rand.uniform(6) do
      1 -> tl(list)
      2 -> list ++ [junk(world)]
      3 -> list ++ junk(world)
      4 -> list ++ list
      5 -> Enum.reverse(list)
      6 -> Enum.map(list, fn _ -> nil end)
    end
  end

  defp mutate_list_or_arg(list, world) do
    if one_in(6) do
      Enum.take(list ++ [junk(world)], :rand.uniform(length(list) + 1))
    else
      mutate_arg(list, world)
    end
  end

  defp junk_key, do: pick([:foo, :"", :ω, "epsilon", 1, nil, {:a}, [], make_ref()])

  defp junk(%{junk: junk} = world) do
    handles = [world.dead, world.x, world.session, world.stateful, world.weights]
    own = [handles, world.programs, world.foreign, [self(), make_ref()]]
    pick(elem(junk, :rand.uniform(tuple_size(junk)) - 1) || pick(own))
  end

  # By kind, so that each kind is as likely; nil is for what a test's world has.
  defp junk_kinds do
    {
      [0, 1, -1, 8, 64, 2 ** 31, 2 ** 32, 2 ** 63, -(2 ** 63), 2 ** 64, 10 ** 400],
      [0.0, -0.0, 0.5, 1.0e308, -1.0e308, 5.0e-324],
      [nil, true, :foo, :"", :ω, :cpu, :dense, :node, :infinity],
      [String.to_atom(String.duplicate("z", 255)), String.to_atom(String.duplicate("ω", 255))],
      [
        "",
        "dense",
        <<0>>,
        <<255, 254>>,
        <<1::3>>,
        <<0x7FC00000::32>>,
        :binary.copy("x", 100_000)
      ],
      [[], [1 | 2], [nil], [[[]]], ~c"abc", Enum.to_list(1..1000), deep_list(), [{}]],
      [{}, {:f, 32}, {:f, 33}, {{:f, 32}, [2]}, {1, 2, 3}, deep_tuple(), {:dense, %{}}],
      [%{}, %{epsilon: 1}, %{"a" => 1}, Map.new(1..100, &{&1, &1}), 1..2, %Error{}],
      [&is_atom/1, fn -> 1 end, hd(Port.list())],
      nil
    }
  end

  defp deep_list, do: Enum.reduce(1..10_000, [], fn _, list -> [list] end)
  defp deep_tuple, do: Enum.reduce(1..10_000, {}, fn _, tuple -> {tuple} end)

  defp one_in(n), do: :rand.uniform(n) == 1
  defp pick(list), do: Enum.random(list)
end
