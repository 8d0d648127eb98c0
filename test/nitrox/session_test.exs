# The same tests on each device.
for {name, device, tags} <- [{:CPU, :cpu, []}, {:CUDA, {:cuda, 0}, [cuda: true]}] do
  defmodule Module.concat(Nitrox.SessionTest, name) do
    use ExUnit.Case, async: true

    @moduletag tags
    @device device

    alias Nitrox.{Error, Program, Session, Tensor}

    defp f32(list), do: Tensor.tensor(list, type: {:f, 32}, device: @device)

    defp compile(fun, templates, options \\ []) do
      Program.compile(fun, templates, Keyword.put_new(options, :device, @device))
    end

    defp list(tensor), do: Tensor.to_list(tensor)
    defp t(shape \\ {2}), do: Nitrox.template(shape, {:f, 32})

    # Counts its steps, and adds its input to a sum.
    defp counter(options \\ []) do
      fun = fn x, %{count: count, sum: sum} ->
        count = Nitrox.add(count, 1)
        sum = Nitrox.add(sum, x)
        {{count, sum}, %{count: count, sum: sum}}
      end

      state = %{count: Tensor.tensor(0, device: @device), sum: f32([0, 0])}
      compile(fun, [t()], [state: state] ++ options)
    end

    defp step(session, x) do
      {count, sum} = Session.step(session, [x])
      {Tensor.to_number(count), list(sum)}
    end

    test "keeps its state from step to step" do
      session = Session.new(counter())
      assert step(session, f32([1, 2])) == {1, [1.0, 2.0]}
      assert step(session, f32([1, 2])) == {2, [2.0, 4.0]}
      assert %{count: count, sum: sum} = Session.state(session)
      assert {Tensor.to_number(count), list(sum)} == {2, [2.0, 4.0]}
    end

    test "sessions of one program do not know of each other" do
      program = counter()
      [a, b] = for _ <- 1..2, do: Session.new(program)
      step(a, f32([1, 1]))
      step(a, f32([1, 1]))
      assert step(b, f32([5, 5])) == {1, [5.0, 5.0]}
      assert step(a, f32([1, 1])) == {3, [3.0, 3.0]}
    end

    test "the initial tensors stay as they are" do
      initial = f32([1, 2])
      program = compile(fn s -> {s, Nitrox.add(s, s)} end, [], state: initial)
      session = Session.new(program)
      for _ <- 1..3, do: Session.step(session, [])
      assert list(initial) == [1.0, 2.0]
      Tensor.deallocate(initial)
      assert list(Session.step(Session.new(program), [])) == [1.0, 2.0]
    end

    describe "states pass" do
      test "to one another, to themselves, to the outputs" do
        state = {f32([1, 1]), f32([2, 2]), f32([3, 3])}

        # Two are swapped, the third goes through; all are given out as they were.
        program = compile(fn {a, b, c} -> {[a, b, c], {b, a, c}} end, [], state: state)
        session = Session.new(program)
        one = [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]
        other = [[2.0, 2.0], [1.0, 1.0], [3.0, 3.0]]

        for expected <- [one, other, one, other] do
          assert Enum.map(Session.step(session, []), &list/1) == expected
        end
      end

      test "from inputs, parameters and other states" do
        w = f32([9, 9])
        state = [f32([0, 0]), f32([0, 0]), f32([0, 0])]

        program =
          compile(fn x, [a, _, _] -> {a, [x, a, w]} end, [t()], state: state)

        session = Session.new(program)
        assert list(Session.step(session, [f32([1, 1])])) == [0.0, 0.0]
        assert list(Session.step(session, [f32([2, 2])])) == [1.0, 1.0]
        assert Enum.map(Session.state(session), &list/1) == [[2.0, 2.0], [1.0, 1.0], [9.0, 9.0]]
      end

      test "with a slice written into one, read before and after" do
        ring = f32([0, 0, 0, 0])
        position = Tensor.tensor(0, device: @device)

        fun = fn x, {ring, position} ->
          next = Nitrox.put_slice(ring, [0], x, position: position, wrap: true)
          {{ring, next}, {next, Nitrox.add(position, 1)}}
        end

        session = Session.new(compile(fun, [t({1})], state: {ring, position}))

        for i <- 1..10 do
          {before, now} = Session.step(session, [f32([i])])
          assert list(before) == filled(i - 1)
          assert list(now) == filled(i)
        end
      end

      # A ring of four after so many writes of 1, 2, 3, …
      defp filled(n) do
        for slot <- 0..3 do
          latest = n - Integer.mod(n - 1 - slot, 4)
          if latest >= 1, do: latest * 1.0, else: 0.0
        end
      end
    end

    describe "snapshot, restore, fork" do
      setup do
        :rand.seed(:exsss, ExUnit.configuration()[:seed])
        random = fn shape -> random(shape) end
        [wi, wh, b] = [random.({4, 16}), random.({4, 16}), random.({16})]
        zeros = f32([[0, 0, 0, 0]])

        fun = fn x, {c, h} ->
          {seq, {c, h}} = Nitrox.lstm(x, {c, h}, wi, wh, b)
          {seq, {c, h}}
        end

        program =
          compile(fun, [t({1, 1, 4})], state: {zeros, zeros}, outputs: :binary)

        frames = for _ <- 1..20, do: random({1, 1, 4})
        {:ok, session: Session.new(program), frames: frames}
      end

      defp random(shape) do
        bytes =
          for _ <- 1..Tuple.product(shape), into: <<>>, do: <<:rand.normal()::float-32-native>>

        Tensor.from_binary(bytes, {:f, 32}, shape, device: @device)
      end

      defp play(session, frames), do: Enum.map(frames, &Session.step(session, [&1]))

      defp state(session) do
        {c, h} = Session.state(session)
        {Tensor.to_binary(c), Tensor.to_binary(h)}
      end

      test "a restored session repeats itself bit for bit", %{session: session, frames: frames} do
        play(session, Enum.take(frames, 7))
        snapshot = Session.snapshot(session)
        state = state(session)
        first = play(session, frames)
        assert state(session) != state

        for _ <- 1..3 do
          assert Session.restore(session, snapshot) == :ok
          assert state(session) == state
          assert play(session, frames) == first
        end

        assert length(Enum.uniq(first)) == length(first)
      end

      test "a snapshot serves another session of the program", context do
        %{session: session, frames: frames} = context
        play(session, frames)
        snapshot = Session.snapshot(session)
        other = Session.new(session.program)
        Session.restore(other, snapshot)
        assert play(other, frames) == play(session, frames)
      end

      test "a fork goes on from the same state and disturbs nothing", context do
        %{session: session, frames: frames} = context
        play(session, Enum.take(frames, 5))
        fork = Session.fork(session)
        state = state(session)
        assert state(fork) == state

        ahead = play(fork, frames)
        assert state(session) == state
        assert play(session, frames) == ahead
        assert state(session) == state(fork)
      end

      test "other states are refused", %{session: session} do
        other = Session.snapshot(Session.new(counter()))
        error = assert_raise Error, fn -> Session.restore(session, other) end
        assert error.message =~ "restore: state 0 is f32{1, 4}, got s32{}"

        one = %{other | tensors: [hd(other.tensors)]}
        error = assert_raise Error, fn -> Session.restore(session, one) end
        assert error.message =~ "restore: 2 states expected, got 1"

        error = assert_raise Error, fn -> Session.restore(session, {1, 2}) end
        assert error.message =~ "expected a Nitrox.Session.Snapshot, got {1, 2}"
      end
    end

    describe "processes" do
      test "two that call one session get each its own answers, in order" do
        session = Session.new(counter(outputs: :binary))

        answers =
          for x <- [1.0, 1000.0] do
            Task.async(fn ->
              input = <<x::float-32-native, 0::32>>

              for _ <- 1..2_000 do
                {<<n::32-native>>, <<sum::float-32-native, _::32>>} =
                  Session.step(session, [input])

                {n, sum, x}
              end
            end)
          end
          |> Task.await_many(:infinity)

        for own <- answers, do: assert(own == Enum.sort(own))

        # Merged by count they are one history, in which no step is missing or done twice.
        history = answers |> Enum.concat() |> Enum.sort()
        assert Enum.map(history, &elem(&1, 0)) == Enum.to_list(1..4_000)

        Enum.reduce(history, 0.0, fn {_, sum, x}, before ->
          assert sum == before + x
          sum
        end)
      end

      test "64 on one session, and 64 sessions at once" do
        program = counter()
        session = Session.new(program)

        counts =
          1..64
          |> Task.async_stream(
            fn _ -> for _ <- 1..25, do: elem(step(session, f32([1, 0])), 0) end,
            max_concurrency: 64,
            timeout: :infinity
          )
          |> Enum.flat_map(fn {:ok, counts} -> counts end)

        assert Enum.sort(counts) == Enum.to_list(1..1_600)

        1..64
        |> Task.async_stream(
          fn i ->
            own = Session.new(program)
            for n <- 1..25, do: assert(step(own, f32([i, 0])) == {n, [1.0 * i * n, 0.0]})
          end,
          max_concurrency: 64,
          timeout: :infinity
        )
        |> Stream.run()
      end

      test "one that is killed in the middle leaves the session to the others" do
        session = Session.new(counter())
        x = f32([1, 1])

        for _ <- 1..50 do
          pid =
            spawn(fn ->
              Stream.repeatedly(fn -> Session.step(session, [x]) end) |> Stream.run()
            end)

          step(session, x)
          Process.sleep(:rand.uniform(3))
          Process.exit(pid, :kill)
          # Whole steps only: the count and the sum agree.
          {count, [sum, _]} = step(session, x)
          assert sum == count * 1.0
        end
      end
    end

    # Longer than a normal scheduler may be held: on the CPU it runs on a dirty one, and on a GPU it
    # is still under way when the call's spin ends.
    describe "a session that is prepared" do
      test "is as it was" do
        session = Session.new(counter())
        assert Session.step(session, [f32([1, 2])])
        before = Tensor.to_binary(Session.state(session).sum)
        for _ <- 1..3, do: assert(Session.prepare(session) == :ok)
        assert Tensor.to_binary(Session.state(session).sum) == before
      end

      test "answers as one that is not, whatever its arguments and answers are like" do
        # A ring, which is written in place, beside states of two slots.
        fun = fn %{x: x, more: {y}}, {ring, at} ->
          ring = Nitrox.put_slice(ring, [0], x, position: at, wrap: true)
          at = Nitrox.add(at, 1)
          {%{sums: [Nitrox.sum(ring), Nitrox.add(x, y)], at: at}, {ring, at}}
        end

        state = {f32([0, 0, 0]), Tensor.tensor(0, device: @device)}

        for outputs <- [:tensor, :binary] do
          program =
            compile(fun, [%{x: t({1}), more: {t({1})}}], state: state, outputs: outputs)

          [plain, prepared] = for _ <- 1..2, do: Session.new(program)

          for n <- 1..20 do
            assert Session.prepare(prepared) == :ok
            x = if rem(n, 3) == 0, do: f32([n]), else: <<n::float-32-native>>
            args = [%{x: x, more: {<<0.5::float-32-native>>}}]
            [a, b] = for session <- [plain, prepared], do: Session.step(session, args)
            assert bytes(a) == bytes(b)
          end

          assert bytes(Session.state(plain)) == bytes(Session.state(prepared))
        end
      end

      defp bytes(%Tensor{} = tensor), do: Tensor.to_binary(tensor)
      defp bytes(binary) when is_binary(binary), do: binary
      defp bytes(tuple) when is_tuple(tuple), do: bytes(Tuple.to_list(tuple))
      defp bytes(list) when is_list(list), do: Enum.map(list, &bytes/1)
      defp bytes(%{} = map), do: Map.new(map, fn {key, value} -> {key, bytes(value)} end)

      test "until a step is due answers as one that is not, and not before" do
        [plain, ready] = for _ <- 1..2, do: Session.new(counter(outputs: :binary))
        x = [<<1.0::float-32-native, 2.0::float-32-native>>]
        ms = System.convert_time_unit(1, :millisecond, :native)

        # With time to sleep, with none, with none for a rehearsal, and too late. Of the first there is
        # nothing to rehearse yet.
        for left <- [1, 8, 5, 2, 1, 0, -3] do
          due = System.monotonic_time() + left * ms
          assert Session.prepare_until(ready, due) == :ok
          assert System.monotonic_time() >= due
          assert Session.step(ready, x) == Session.step(plain, x)
        end

        assert bytes(Session.state(plain)) == bytes(Session.state(ready))

        for due <- [
              1.5,
              nil,
              :now,
              System.system_time(),
              System.monotonic_time() + 2 ** 60,
              2 ** 80
            ] do
          assert_raise Error, ~r/expected a time as of System.monotonic_time/, fn ->
            Session.prepare_until(ready, due)
          end
        end

        assert_raise Error, ~r/expected a Nitrox.Session/, fn -> Session.prepare_until(nil, 0) end
      end

      test "may have no arguments and no answers" do
        program =
          compile(fn s -> {{}, Nitrox.add(s, 1)} end, [],
            state: Tensor.tensor(0, device: @device)
          )

        session = Session.new(program)

        for n <- 1..5 do
          assert Session.prepare(session) == :ok
          assert Session.step(session, []) == {}
          assert Tensor.to_number(Session.state(session)) == n
        end
      end
    end

    describe "a long step" do
      setup do
        w = f32(for i <- 1..512, do: for(j <- 1..512, do: if(i == j, do: 1.0, else: 0.0)))

        fun = fn x, count ->
          y = Enum.reduce(1..40, x, fn _, x -> Nitrox.dense(x, w, nil) end)
          count = Nitrox.add(count, 1)
          {{y, count}, count}
        end

        state = Tensor.tensor(0, device: @device)
        # Tensors come back before the GPU has made them; bytes are waited for.
        [session, read_back] =
          for outputs <- [:tensor, :binary] do
            Session.new(compile(fun, [t({8, 512})], state: state, outputs: outputs))
          end

        x = f32(for(_ <- 1..8, do: Enum.to_list(1..512)))
        {:ok, session: session, read_back: read_back, x: x}
      end

      defp long(session, x) do
        {y, count} = Session.step(session, [x])
        assert Tensor.to_binary(y) == Tensor.to_binary(x)
        Tensor.to_number(count)
      end

      test "of many processes on one session", %{session: session, x: x} do
        counts =
          1..24
          |> Task.async_stream(fn _ -> for _ <- 1..3, do: long(session, x) end,
            max_concurrency: 24,
            timeout: :infinity
          )
          |> Enum.flat_map(fn {:ok, counts} -> counts end)

        assert Enum.sort(counts) == Enum.to_list(1..72)
      end

      test "whose process is killed", %{session: session, x: x} do
        Enum.reduce(1..10, 0, fn round, before ->
          pids = for _ <- 1..4, do: spawn(fn -> long(session, x) end)
          Process.sleep(:rand.uniform(4))
          Enum.each(pids, &Process.exit(&1, :kill))
          # None is made twice. One whose process is gone may still be made, in a later round too.
          count = long(session, x)
          assert count > before and count <= 5 * round
          count
        end)
      end

      if @device != :cpu do
        test "is pending, and its results are there once", %{read_back: session, x: x} do
          alias Nitrox.{Native, Error}
          step = fn -> Session.step(session, [x]) end
          bytes = Tensor.to_binary(x)
          assert {^bytes, <<1::32-native>>} = step.()
          assert {^bytes, <<2::32-native>>} = step.()
          assert {:pending, run} = Native.session_step(session.ref, [x.ref], false)
          # The instance is in use until then.
          assert Native.session_step(session.ref, [x.ref], false) == :heavy
          assert {:ok, [_, _]} = Native.wait(run)
          assert {:error, {:argument, :wait, message, nil}} = Native.wait(run)
          assert message =~ "taken already"

          # One that nobody waits for gives its instance back with its process.
          {pid, monitor} =
            spawn_monitor(fn ->
              {:pending, _} = Native.session_step(session.ref, [x.ref], false)
            end)

          assert_receive {:DOWN, ^monitor, :process, ^pid, :normal}
          assert {^bytes, <<5::32-native>>} = step.()
        end
      end
    end

    describe "refuses" do
      defp refused(fun), do: assert_raise(Error, fun)

      test "a program without a state, and to run one with a state" do
        program = compile(& &1, [t()])
        assert refused(fn -> Session.new(program) end).message =~ "compiled without a state"
        error = refused(fn -> Program.run(counter(), [f32([1, 2])]) end)
        assert error.message == "program: it has a state, and runs in a session"
        assert error.hint =~ "Nitrox.Session.new/1"
      end

      test "states that do not fit" do
        s = f32([1, 2])

        for {fun, state, message} <- [
              {fn s -> s end, s,
               "a function with a state must be a tuple of 2, got a Nitrox.Value"},
              {fn s -> {s, {s}} end, s,
               "new state must be a value or a tensor, got a tuple of 1"},
              {fn {a, b} -> {a, {a, b, a}} end, {s, s}, "new state must be a tuple of 2"},
              {fn s -> {s, 1} end, s, "new state must be a value or a tensor, got 1"},
              {fn s -> {s, Nitrox.reshape(s, {1, 2})} end, s,
               "a state is f32[2], its new value f32[1][2]"},
              {fn s -> {s, Nitrox.cast(s, {:f, 16})} end, s,
               "a state is f32[2], its new value f16[2]"},
              {fn s -> {s, s} end, {}, "the state has no tensor in it"},
              {fn s -> {s, s} end, t(), "state can't be a Nitrox.Template"}
            ] do
          assert refused(fn -> compile(fun, [], state: state) end).message =~ message
        end
      end
    end

    test "inspect" do
      session = Session.new(counter())
      assert inspect(session) == "#Nitrox.Session<state (s32, f32[2]) on #{inspect(@device)}>"
      assert inspect(Session.snapshot(session)) == "#Nitrox.Session.Snapshot<s32, f32[2]>"

      assert inspect(session.program) ==
               "#Nitrox.Program<(f32[2]) -> (s32, f32[2]), state (s32, f32[2]) on #{inspect(@device)}>"
    end
  end
end
