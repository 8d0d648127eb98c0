defmodule Nitrox.TensorTest do
  use ExUnit.Case, async: true
  doctest Nitrox.Tensor
  doctest Nitrox.Template

  import Bitwise
  alias Nitrox.{Element, Error, Template, Tensor}

  setup do
    :rand.seed(:exsss, ExUnit.configuration()[:seed])
    :ok
  end

  describe "round trips" do
    for type <- Element.types() do
      @tag type: type
      test "bytes of #{inspect(type)}", %{type: type} do
        for shape <- [{}, {1}, {0}, {3, 0, 2}, {2, 3}, {1, 1, 1, 1, 1, 1, 1, 2}, {17, 5}] do
          bytes = :rand.bytes(Tuple.product(shape) * Element.bytes(type))
          tensor = Tensor.from_binary(bytes, type, shape)
          assert Tensor.to_binary(tensor) == bytes
          assert {tensor.type, tensor.shape, tensor.device} == {type, shape, :cpu}
        end
      end

      @tag type: type
      test "numbers of #{inspect(type)}", %{type: type} do
        numbers = [[0, 1, 2], [3, 100, 127]]
        back = Tensor.to_list(Tensor.tensor(numbers, type: type))
        assert back == numbers
        exact = if elem(type, 0) in [:f, :bf], do: &is_float/1, else: &is_integer/1
        assert Enum.all?(List.flatten(back), exact)
      end
    end

    test "sizes that are copied on a dirty scheduler" do
      bytes = :rand.bytes(1_000_000)
      tensor = Tensor.from_binary(bytes, {:u, 8}, {1000, 1000})
      assert Tensor.to_binary(tensor) == bytes
      assert Tensor.to_binary(Tensor.copy(tensor)) == bytes
    end

    test "the greatest and the least integers" do
      for {type, least, greatest} <- [
            {{:u, 8}, 0, 255},
            {{:u, 16}, 0, (1 <<< 16) - 1},
            {{:u, 32}, 0, (1 <<< 32) - 1},
            {{:u, 64}, 0, (1 <<< 64) - 1},
            {{:s, 8}, -128, 127},
            {{:s, 16}, -(1 <<< 15), (1 <<< 15) - 1},
            {{:s, 32}, -(1 <<< 31), (1 <<< 31) - 1},
            {{:s, 64}, -(1 <<< 63), (1 <<< 63) - 1}
          ] do
        assert Tensor.to_list(Tensor.tensor([least, greatest], type: type)) == [least, greatest]

        for beyond <- [least - 1, greatest + 1, 0.5, :nan] do
          error = assert_raise Error, fn -> Tensor.tensor(beyond, type: type) end
          assert error.reason == :argument
          assert error.message =~ "is no #{inspect(type)}"
        end
      end
    end

    test "floats that are no numbers" do
      for type <- [{:f, 16}, {:bf, 16}, {:f, 32}, {:f, 64}] do
        list = [:nan, :infinity, :neg_infinity, -0.0, 1.0]
        assert [:nan, :infinity, :neg_infinity, zero, 1.0] = round_trip(list, type)
        assert <<1::1, _::63>> = <<zero::float>>
      end
    end

    test "floats are rounded to the nearest, ties to even" do
      assert round_trip([1.0 + 2 ** -8, 1.0 + 3 * 2 ** -8, 1.0 + 2 ** -7], {:bf, 16}) ==
               [1.0, 1.015625, 1.0078125]

      assert round_trip([1.0 + 2 ** -11, 1.0 + 3 * 2 ** -11, 2 ** -24], {:f, 16}) ==
               [1.0, 1.001953125, 2.0 ** -24]

      # Past the greatest: infinity, also from an integer that no float holds.
      assert round_trip([3.4e38, 65_520.0, -1.0e6], {:f, 16}) ==
               [:infinity, :infinity, :neg_infinity]

      assert round_trip([3.4e38, 10 ** 400, -(10 ** 400)], {:bf, 16}) ==
               [:infinity, :infinity, :neg_infinity]
    end

    test "what is not exact in f32 comes back as the nearest f32" do
      <<nearest::float-32>> = <<0.1::float-32>>
      assert round_trip([0.1], {:f, 32}) == [nearest]
      assert round_trip([0.1], {:f, 64}) == [0.1]
    end

    defp round_trip(list, type), do: Tensor.to_list(Tensor.tensor(list, type: type))
  end

  describe "tensor/2" do
    test "takes the type from the numbers" do
      assert Tensor.tensor(1).type == {:s, 32}
      assert Tensor.tensor([1, 2.0]).type == {:f, 32}
      assert Tensor.tensor([1, :nan]).type == {:f, 32}
    end

    test "nested lists, empty ones too" do
      for list <- [[], [[], []], [[[1], [2]], [[3], [4]]], [[1, 2, 3]]] do
        assert Tensor.to_list(Tensor.tensor(list)) == list
      end

      assert Tensor.tensor([[], []]).shape == {2, 0}
    end

    test "refuses what is no tensor" do
      for {data, message} <- [
            {[[1, 2], [3]], "one length"},
            {[1, [2]], "is no"},
            {[[1], 2], "a list was expected beside lists, got 2"},
            {[1 | 2], "improper"},
            {[[1 | 2], [1, 2]], "improper"},
            {"abc", "is no"},
            {%{}, "is no"},
            {nil, "is no"}
          ] do
        error = assert_raise Error, fn -> Tensor.tensor(data) end
        assert error.message =~ message
        assert error.reason == :argument
      end

      assert_raise Error, ~r/unknown type :f32, expected one of {:u, 8}/, fn ->
        Tensor.tensor(1, type: :f32)
      end

      assert_raise Error, ~r/device must be/, fn -> Tensor.tensor(1, device: :tpu) end
      assert_raise Nitrox.Error, fn -> Tensor.tensor(1, kind: 1) end
    end
  end

  describe "from_binary/4" do
    test "refuses sizes that do not fit, and says what does" do
      error = assert_raise Error, fn -> Tensor.from_binary(<<0>>, {:f, 32}, {2, 3}) end
      assert error.message == "from_binary: {:f, 32} {2, 3} takes 24 bytes, got 1"
      assert error.op == :from_binary
    end

    test "refuses what is no shape, type or binary" do
      for {args, message} <- [
            {["", {:f, 33}, {1}], "unknown type {:f, 33}"},
            {["", :f32, {1}], "type must be a tuple of 2 elements, got :f32"},
            {["", {:f, 32}, [1]], "a shape is a tuple, got [1]"},
            {["", {:f, 32}, {-1}], "shape[0] must be a non-negative integer"},
            {["", {:f, 32}, {1.0}], "shape[0] must be a non-negative integer"},
            {["", {:f, 32}, {2 ** 64}], "an integer beyond 64 bits"},
            {["", {:f, 32}, {2 ** 62, 2}], "overflows"},
            {["", {:f, 32}, {0, 2 ** 62, 2}], "overflows"},
            {["", {:f, 32}, {1, 1, 1, 1, 1, 1, 1, 1, 1}], "at most 8 axes"},
            {[~c"a", {:u, 8}, {1}], "must be a binary, got a list"},
            {[<<1::3>>, {:u, 8}, {1}], "must be a binary"}
          ] do
        error = assert_raise Error, fn -> apply(Tensor, :from_binary, args) end
        assert error.message =~ message
      end
    end
  end

  describe "to_number/1" do
    test "wants one element" do
      assert Tensor.to_number(Tensor.tensor([[2.5]])) == 2.5
      error = assert_raise Error, fn -> Tensor.to_number(Tensor.tensor([1, 2])) end
      assert error.message == "to_number: one element expected, s32[2] has 2"
    end
  end

  describe "buffers" do
    test "a reshaped tensor shares the buffer and outlives its origin" do
      origin = Tensor.tensor([[1, 2, 3], [4, 5, 6]])
      view = Nitrox.reshape(origin, {3, 2})
      Tensor.deallocate(origin)
      assert Tensor.to_list(view) == [[1, 2], [3, 4], [5, 6]]
    end

    test "a copy has a buffer of its own" do
      origin = Tensor.tensor([1, 2])
      copy = Tensor.copy(origin, :cpu)
      Tensor.deallocate(origin)
      assert Tensor.to_list(copy) == [1, 2]
      assert copy.ref != origin.ref
    end

    test "a deallocated tensor says so wherever it is used" do
      tensor = Tensor.tensor([1.0, 2.0])
      other = Tensor.tensor([1.0, 2.0])
      assert Tensor.deallocate(tensor) == :ok
      assert Tensor.deallocate(tensor) == :ok

      for use <- [
            fn -> Tensor.to_binary(tensor) end,
            fn -> Tensor.to_list(tensor) end,
            fn -> Tensor.copy(tensor) end,
            fn -> Nitrox.add(other, tensor) end,
            fn -> Nitrox.Program.compile(fn x -> x end, [tensor], state: tensor) end
          ] do
        error = assert_raise Error, use
        assert error.reason == :deallocated or error.message =~ "arguments"
      end
    end
  end

  test "what has no elements is refused with what to do" do
    refused = fn fun -> Exception.message(assert_raise(Error, fun)) end

    traced = fn ->
      Nitrox.Program.compile(&Nitrox.to_list/1, [Template.new({}, {:f, 32})])
    end

    assert refused.(traced) =~ ~r/to_list: .* got #Nitrox.Value<f32 of input 0> .*an output/
    assert refused.(fn -> Nitrox.copy(Template.new({}, {:f, 32})) end) =~ "copy: expected"
    assert refused.(fn -> Tensor.shape({1}) end) =~ "shape: expected a Nitrox.Tensor, got {1}"
  end

  describe "inspect" do
    test "shows the first elements and reads no more" do
      text = inspect(Tensor.tensor(List.duplicate([1, 2, 3], 1000)), limit: 7)

      assert text == """
             #Nitrox.Tensor<
               s32[1000][3] on :cpu
               [
                 [1, 2, 3],
                 [1, 2, 3],
                 [1, ...],
                 ...
               ]
             >\
             """
    end

    test "of scalars, empty and deallocated tensors" do
      assert inspect(Tensor.tensor(1.5)) == "#Nitrox.Tensor<\n  f32 on :cpu\n  1.5\n>"
      assert inspect(Tensor.tensor([])) == "#Nitrox.Tensor<\n  s32[0] on :cpu\n  []\n>"
      tensor = Tensor.tensor([1])
      Tensor.deallocate(tensor)
      assert inspect(tensor) =~ "(this tensor was deallocated)"
    end
  end

  test "templates are checked where they are made" do
    assert %Template{type: {:f, 32}, shape: {1, 288}} = Template.new({1, 288}, {:f, 32})

    for {shape, type} <- [{{1}, :f32}, {{-1}, {:f, 32}}, {[1], {:f, 32}}, {{1.0}, {:f, 32}}] do
      assert_raise Error, fn -> Template.new(shape, type) end
    end
  end
end
