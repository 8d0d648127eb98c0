defmodule Nitrox.OpTest do
  use ExUnit.Case, async: true

  alias Nitrox.{Error, Native, Op, Template, Tensor, Value}

  defp f32(list), do: Tensor.tensor(list, type: {:f, 32})
  defp add(inputs), do: Op.apply(%Op.Binary{kind: :add}, inputs)
  defp value(shape, type \\ {:f, 32}), do: Value.source({:input, 0}, Template.new(shape, type))

  defp refused(op, inputs) do
    assert_raise Error, fn -> Op.apply(op, inputs) end
  end

  describe "on tensors" do
    test "runs at once" do
      assert [%Tensor{type: {:f, 32}, shape: {2}, device: :cpu} = sum] =
               add([f32([1, 2]), f32([3, 4])])

      assert Tensor.to_list(sum) == [4.0, 6.0]
    end

    test "a number takes the type of the first tensor, wherever it stands" do
      for {inputs, sum} <- [
            {[f32([1, 2]), 0.5], [1.5, 2.5]},
            {[1, f32([1, 2])], [2.0, 3.0]},
            {[Tensor.tensor([1, 2], type: {:s, 64}), 2 ** 40], [2 ** 40 + 1, 2 ** 40 + 2]}
          ] do
        assert [result] = add(inputs)
        assert Tensor.to_list(result) == sum
      end
    end

    test "a number that is not of the type is refused" do
      error = refused(%Op.Binary{kind: :add}, [Tensor.tensor([1, 2]), 0.5])
      assert error.message == "binary: the number 0.5 is no {:s, 32}, the type of its tensor"
      assert error.op == :binary
    end
  end

  describe "on values" do
    test "is traced, with types and shapes from the op's rule" do
      x = value({2, 3})
      w = f32([[1], [2], [3]])
      assert [%Value{type: {:f, 32}, shape: {2, 1}} = y] = dense([x, w, nil, nil])
      assert y.node.inputs == [x, w, nil, nil]

      assert [z] = add([y, 1])
      assert z.node.inputs == [y, {:constant, <<1.0::float-32-native>>, {:f, 32}}]
      assert inspect(z) == "#Nitrox.Value<f32[2][1] of binary>"
      assert inspect(x) == "#Nitrox.Value<f32[2][3] of input 0>"
    end

    test "is refused where it is written" do
      x = value({2, 3})
      error = assert_raise Error, fn -> dense([x, x, nil, nil]) end
      assert {error.reason, error.op} == {:shape, :dense}
      assert error.message == "dense: w must be {3, 3}, got {2, 3}"
    end

    defp dense(inputs), do: Op.apply(%Op.Dense{activation: :relu}, inputs)
  end

  describe "refuses" do
    test "what is no input" do
      x = f32([1])

      for {inputs, message} <- [
            {[], "binary: takes at least one tensor, got none"},
            {[1, nil], "binary: takes at least one tensor, got none"},
            {[x, :a], "binary: takes tensors, numbers and nil, got :a"},
            {[x, [1]], "binary: takes tensors, numbers and nil, got [1]"},
            {[x, 1..2], "binary: takes tensors, numbers and nil, got 1..2"},
            {[Template.new({1}, {:f, 32}), x], "binary: a template has no elements"},
            {[x, Template.new({1}, {:f, 32})], "binary: a template has no elements"},
            {[value({1}), Template.new({1}, {:f, 32})], "binary: a template has no elements"},
            {[x], "binary: takes 2 inputs, got 1"},
            {[x, nil], "binary: b is missing"},
            {[x, x, x], "binary: takes 2 inputs, got 3"}
          ] do
        assert refused(%Op.Binary{kind: :add}, inputs).message == message
      end
    end

    test "attributes, naming the op, the field, what was expected and what came" do
      x = f32([[1]])

      for {op, message} <- [
            {%Op.Dense{activation: :foo},
             "dense: unknown variant :foo for activation, expected one of none, relu, silu, " <>
               "gelu, gelu_tanh, tanh, sigmoid"},
            {%Op.Dense{activation: nil},
             "dense: unknown variant nil for activation, expected one of none, relu, silu, " <>
               "gelu, gelu_tanh, tanh, sigmoid"},
            {%Op.Dense{activation: 1},
             "dense: activation must be one of none, relu, silu, gelu, gelu_tanh, tanh, sigmoid, got 1"},
            {%Op.LayerNorm{epsilon: "a"}, ~s(layer_norm: epsilon must be a number, got "a")},
            {%Op.LayerNorm{epsilon: 10 ** 30},
             "layer_norm: epsilon must be a number, got an integer beyond 64 bits"},
            {%Op.Reshape{shape: [1, -1]},
             "reshape: shape[1] must be a non-negative integer of 64 bits, got -1"},
            {%Op.Reshape{shape: {1}}, "reshape: shape must be a list, got {1}"},
            {%Op.Reshape{shape: [1 | 2]}, "reshape: shape must be a list, got an improper list"},
            {%Op.Cast{type: {:f, 8}},
             "cast: type: unknown type {:f, 8}, expected one of {:u, 8}, {:u, 16}, {:u, 32}, " <>
               "{:u, 64}, {:s, 8}, {:s, 16}, {:s, 32}, {:s, 64}, {:f, 16}, {:bf, 16}, {:f, 32}, " <>
               "{:f, 64}"},
            {%Op.Cast{type: :f32}, "cast: type must be a tuple of 2 elements, got :f32"},
            {%Op.Cast{type: {:f, "32"}},
             ~s(cast: type[1] must be a non-negative integer of 64 bits, got "32")},
            {%Op.Lstm{reverse: 1}, "lstm: reverse must be true or false, got 1"}
          ] do
        assert refused(op, [x]).message == message
      end
    end
  end

  describe "the library" do
    test "takes integers for floats, and no attribute it does not know" do
      x = f32([[1, 2]])
      one = f32([1, 1])

      assert {:ok, [_]} =
               Native.run(:cpu, {:layer_norm, %{epsilon: 1}}, [x.ref, one.ref, one.ref])

      for {op, message} <- [
            {{:layer_norm, %{epsilon: 1, axis: 0}},
             "layer_norm: unknown attribute axis, expected one of epsilon"},
            {{:layer_norm, %{}}, "layer_norm: epsilon is missing"},
            {{:layer_norm, %{"epsilon" => 1}},
             ~s(layer_norm: expected a map with atom keys, got "epsilon")},
            {{:layer_norm, [epsilon: 1]}, "layer_norm: expected a map, got a list"},
            {{:select, %{a: 1}}, "select: takes no attributes, got a"},
            {{:layer_norm}, "op: :layer_norm takes 1 value(s) beside it, got 0"},
            {:layer_norm, "op: :layer_norm takes 1 value(s) beside it, got 0"},
            {{:layer_norm, %{}, %{}}, "op: :layer_norm takes 1 value(s) beside it, got 2"}
          ] do
        assert {:error, {:argument, _, ^message, nil}} = Native.run(:cpu, op, [])
      end

      assert {:error,
              {:argument, nil, "unknown variant :foo for op, expected one of dense" <> _, _}} =
               Native.run(:cpu, {:foo, %{}}, [])

      assert {:error, {:argument, nil, "inputs[1] must be a tensor, got a reference", _}} =
               Native.run(:cpu, {:select, %{}}, [x.ref, make_ref()])
    end

    test "finds an error inside a graph" do
      graph = %{
        nodes: [%{op: {:dense, %{activation: :rel}}, inputs: []}],
        inputs: [],
        outputs: [],
        next_state: []
      }

      assert {:error, {:argument, nil, message, nil}} =
               Native.compile(:cpu, graph, [], [], {false, 1})

      assert message =~ "graph.nodes[0].op: dense: unknown variant :rel for activation"

      graph = %{graph | nodes: [%{op: {:select, %{}}, inputs: [nil, {:node, 1}]}]}

      assert {:error, {:argument, nil, message, nil}} =
               Native.compile(:cpu, graph, [], [], {false, 1})

      assert message == "graph.nodes[0].inputs[1]: :node takes 2 value(s) beside it, got 1"
    end
  end

  describe "explain/3" do
    test "names a variant, for tensors and templates" do
      w = f32([[1, 2], [3, 4]])
      op = %Op.Dense{activation: :none}
      assert %{variant: variant, why: why, launches: 0} = Op.explain(op, [w, w])
      assert is_binary(variant) and is_binary(why)
      assert Op.explain(op, [Template.new({2, 2}, {:f, 32}), w, nil]).variant == variant
      assert %{variant: "alias", launches: 0} = Op.explain(%Op.Reshape{shape: [4]}, [w])
    end

    test "refuses what the op refuses" do
      op = %Op.Dense{activation: :none}
      assert_raise Error, ~r/w is missing/, fn -> Op.explain(op, [f32([[1]]), nil]) end
      assert_raise Error, ~r/takes tensors/, fn -> Op.explain(op, [f32([[1]]), "a"]) end
    end
  end
end
