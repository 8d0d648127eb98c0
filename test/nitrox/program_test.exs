# The same tests on each device.
for {name, device, tags} <- [{:CPU, :cpu, []}, {:CUDA, {:cuda, 0}, [cuda: true]}] do
  defmodule Module.concat(Nitrox.ProgramTest, name) do
    use ExUnit.Case, async: true

    @moduletag tags
    @device device

    alias Nitrox.{Error, Program, Tensor}

    @vector {{3}, {:f, 32}}

    defp t({shape, type} \\ @vector), do: Nitrox.template(shape, type)
    defp f32(list), do: Tensor.tensor(list, type: {:f, 32}, device: @device)

    defp compile(fun, templates, options \\ []) do
      Program.compile(fun, templates, Keyword.put_new(options, :device, @device))
    end

    defp list(tensor), do: Tensor.to_list(tensor)

    test "gives what the function gives on tensors" do
      w = f32([[0.5, -1.0], [0.25, 2.0], [1.0, 1.0]])
      b = f32([0.125, -0.5])

      fun = fn x ->
        x = Nitrox.layer_norm(x, f32([1, 1, 1]), f32([0, 0, 0]))
        Nitrox.softmax(Nitrox.dense(x, w, b, activation: :tanh))
      end

      x = f32([[1.0, 2.0, 4.0], [-1.0, 0.0, 3.0]])
      program = compile(fun, [x])
      assert Tensor.to_binary(Program.run(program, [x])) == Tensor.to_binary(fun.(x))
    end

    test "containers go in and out as they are" do
      fun = fn %{a: a, b: {b, [c]}}, d ->
        %{sum: [Nitrox.add(a, b)], rest: {c, %{"d" => d}}}
      end

      program = compile(fun, [%{a: t(), b: {t(), [t()]}}, t()])
      [a, b, c, d] = for i <- 1..4, do: f32([i, i, i])

      assert %{sum: [sum], rest: {c2, %{"d" => d2}}} =
               Program.run(program, [%{a: a, b: {b, [c]}}, d])

      assert Enum.map([sum, c2, d2], &list/1) == [
               [3.0, 3.0, 3.0],
               [3.0, 3.0, 3.0],
               [4.0, 4.0, 4.0]
             ]
    end

    test "a leaf may be a host binary" do
      program = compile(&Nitrox.add(&1, &2), [t(), t()], outputs: :binary)
      x = f32([1, 2, 3])
      expected = Tensor.to_binary(f32([2, 4, 6]))
      assert Program.run(program, [x, Tensor.to_binary(x)]) == expected
      assert Program.run(program, [Tensor.to_binary(x), x]) == expected
    end

    test "tensors that the function uses are parameters, once each" do
      w = f32([1, 2, 3])
      program = compile(&Nitrox.add(Nitrox.multiply(&1, w), w), [t()])
      assert Program.info(program).parameter_bytes == 12

      # They are bound: giving the handle up changes nothing.
      Tensor.deallocate(w)
      assert list(Program.run(program, [f32([1, 1, 1])])) == [2.0, 4.0, 6.0]
    end

    test "numbers are parameters, once each" do
      fun = fn x -> Nitrox.add(Nitrox.multiply(Nitrox.add(x, 1), 2), 1) end
      program = compile(fun, [t()])
      assert %{parameter_bytes: 8, steps: 3} = Program.info(program)
      assert list(Program.run(program, [f32([0, 1, 2])])) == [3.0, 5.0, 7.0]
    end

    test "what depends on parameters alone is computed when it is compiled" do
      w = f32([1, 2, 3])
      fun = fn x -> Nitrox.add(x, Nitrox.exp(Nitrox.multiply(w, w))) end
      program = compile(fun, [t()])
      assert Program.info(program).steps == 1
      assert Tensor.to_binary(Program.run(program, [w])) == Tensor.to_binary(fun.(w))
    end

    test "what no output depends on is left out" do
      fun = fn x ->
        Nitrox.exp(x)
        Nitrox.add(x, x)
      end

      assert Program.info(compile(fun, [t()])).steps == 1
    end

    test "a value that is used twice is computed once" do
      fun = fn x ->
        y = Nitrox.exp(x)
        {Nitrox.add(y, y), y}
      end

      assert Program.info(compile(fun, [t()])).steps == 2
    end

    test "inputs, parameters and one value twice may be outputs" do
      w = f32([7, 8, 9])
      program = compile(fn x -> {x, w, Nitrox.negate(x), x, w} end, [t()])
      x = f32([1, 2, 3])
      results = Program.run(program, [x])

      assert results |> Tuple.to_list() |> Enum.map(&list/1) ==
               [list(x), list(w), [-1.0, -2.0, -3.0], list(x), list(w)]

      # Each is a tensor of its own.
      for result <- Tuple.to_list(results), do: Tensor.deallocate(result)
      assert list(w) == [7.0, 8.0, 9.0]
      assert list(elem(Program.run(program, [x]), 1)) == [7.0, 8.0, 9.0]
    end

    test "an output that is a reshape of another" do
      fun = fn x ->
        y = Nitrox.exp(x)
        {y, Nitrox.reshape(y, {1, 3}), Nitrox.reshape(x, {3, 1})}
      end

      program = compile(fun, [t()])
      x = f32([0, 0, 0])
      {y, row, column} = Program.run(program, [x])

      assert {list(y), list(row), list(column)} ==
               {[1.0, 1.0, 1.0], [[1.0, 1.0, 1.0]], [[0.0], [0.0], [0.0]]}
    end

    test "a later run never changes a result" do
      program = compile(&{Nitrox.multiply(&1, 2), &1}, [t()])

      results =
        for i <- 1..50 do
          {double, same} = Program.run(program, [f32([i, i, i])])
          {i, double, same}
        end

      for {i, double, same} <- results do
        assert list(double) == List.duplicate(2.0 * i, 3)
        assert list(same) == List.duplicate(1.0 * i, 3)
      end
    end

    test "a program of no ops and one of no inputs" do
      assert list(Program.run(compile(& &1, [t()]), [f32([1, 2, 3])])) == [1.0, 2.0, 3.0]
      w = f32([1, 2])
      assert list(Program.run(compile(fn -> w end, []), [])) == [1.0, 2.0]
      assert Program.run(compile(fn -> {} end, []), []) == {}
    end

    test "many processes on one program, with one instance and with several" do
      for instances <- [1, 4] do
        program = compile(&Nitrox.multiply(&1, &1), [t()], instances: instances)
        assert Program.info(program).instances == instances

        1..64
        |> Task.async_stream(
          fn i ->
            for _ <- 1..20,
                do:
                  assert(
                    list(Program.run(program, [f32([i, i, i])])) == [
                      i * i * 1.0,
                      i * i * 1.0,
                      i * i * 1.0
                    ]
                  )
          end,
          max_concurrency: 64,
          ordered: false,
          timeout: :infinity
        )
        |> Stream.run()
      end
    end

    test "a long program, and one with a long chain" do
      fun = fn x -> Enum.reduce(1..2_000, x, fn _, x -> Nitrox.add(x, 1) end) end
      program = compile(fun, [t()])
      assert Program.info(program).steps == 2_000
      assert list(Program.run(program, [f32([0, 1, 2])])) == [2000.0, 2001.0, 2002.0]
    end

    describe "refuses" do
      defp refused(fun) do
        assert_raise(Error, fun).message
      end

      test "a function of another arity" do
        assert refused(fn -> compile(fn x, _ -> x end, [t()]) end) ==
                 "program: a function of 1 arguments was expected for these templates, got one of 2 " <>
                   "(a state is one more argument, the last)"
      end

      test "templates, outputs and options that are none" do
        assert refused(fn -> compile(& &1, [{1}]) end) ==
                 "program: template 0[0] can't be 1"

        assert refused(fn -> compile(fn _ -> 1 end, [t()]) end) ==
                 "program: output can't be 1"

        assert refused(fn -> compile(& &1, [t()], outputs: :list) end) ==
                 "program: outputs are :tensor or :binary, got :list"

        assert refused(fn -> compile(& &1, [t()], instances: 0) end) =~ "instances must be"
        assert refused(fn -> compile(& &1, [t()], instances: -1) end) =~ "instances"
        assert refused(fn -> compile(& &1, [t()], device: :gpu) end) =~ "device must be"
        assert_raise Nitrox.Error, fn -> compile(& &1, [t()], states: 1) end
      end

      test "arguments that are not the templates'" do
        program = compile(fn %{a: a}, b -> Nitrox.add(a, b) end, [%{a: t()}, t()])
        x = f32([1, 2, 3])

        for {args, message} <- [
              {[%{a: x}], "program: takes a list of 2 arguments, got 1"},
              {[%{a: x}, x, x], "program: takes a list of 2 arguments, got 3"},
              {x, "program: takes a list of 2 arguments, got"},
              {[x, x], "argument 0 must be a map with the keys :a, got a Nitrox.Tensor"},
              {[%{a: 1}, x], "argument 0[:a] must be a tensor or a binary, got 1"},
              {[%{a: x}, nil], "argument 1 must be a tensor or a binary, got nil"},
              {[%{a: x}, <<0::64>>], "input 1 is {:f, 32} {3}, 12 bytes, got 8"},
              {[%{a: x}, f32([1, 2])], "input 1 is f32{3}, got f32{2}"},
              {[%{a: x}, Tensor.tensor([1, 2, 3], device: @device)],
               "input 1 is f32{3}, got s32{3}"}
            ] do
          assert refused(fn -> Program.run(program, args) end) =~ message
        end
      end

      test "what an op refuses, with the op's own words" do
        fun = fn x -> Nitrox.dense(x, f32([[1.0, 2.0]]), nil) end

        assert refused(fn -> compile(fun, [t({{1, 3}, {:f, 32}})]) end) =~
                 "dense: w must be"
      end
    end

    test "explain tells what each step is, and by which kernel" do
      w = f32([[1.0, 2.0], [3.0, 4.0]])
      x = t({{1, 2}, {:f, 32}})

      program =
        compile(&(&1 |> Nitrox.dense(w, nil) |> Nitrox.reshape({2}) |> Nitrox.softmax()), [x])

      assert [%{op: :dense} = dense, %{op: :softmax} = softmax] = Program.explain(program)
      assert Program.info(program).steps == 2
      alone = &Nitrox.explain(&1, &2, device: @device)
      op = %Nitrox.Op.Dense{activation: :none}
      assert Map.delete(dense, :op) == alone.(op, [x, w, nil, nil])
      op = %Nitrox.Op.Softmax{axis: 0, log: false}
      assert Map.delete(softmax, :op) == alone.(op, [t({{2}, {:f, 32}})])
      assert refused(fn -> Program.explain(w) end) =~ "Nitrox.Program"
    end

    test "inspect" do
      program = compile(&Nitrox.add(&1, 1), [t()])
      assert inspect(program) == "#Nitrox.Program<(f32[3]) -> (f32[3]) on #{inspect(@device)}>"
    end
  end
end
