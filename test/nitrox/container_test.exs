defmodule Nitrox.ContainerTest do
  use ExUnit.Case, async: true
  alias Nitrox.{Container, Error}

  defp flatten(container), do: Container.flatten(container, :test, "it", &is_integer/1)
  defp leaf(x), do: if(is_integer(x), do: {:ok, x}, else: {:error, "a number"})

  test "flattens in a fixed order and puts together again" do
    for {container, leaves} <- [
          {1, [1]},
          {{}, []},
          {[], []},
          {%{}, []},
          {{1, [2, {3}], %{b: 5, a: 4}}, [1, 2, 3, 4, 5]},
          {%{"z" => 3, :a => [1, 2]}, [1, 2, 3]},
          {%{2 => {20}, 1 => 10}, [10, 20]}
        ] do
      assert {^leaves, skeleton} = flatten(container)
      assert Container.build(skeleton, leaves) == container
      assert Container.leaves(container, skeleton, :test, "it", &leaf/1) == leaves
    end
  end

  test "refuses what is neither leaf nor container, and says where" do
    for {bad, message} <- [
          {{1, %{a: [2, "x"]}}, "test: it[1][:a][1] can't be a binary of 1 bytes"},
          {[1 | 2], "test: it can't be an improper list"},
          {1..2, "test: it can't be a Range"},
          {{nil}, "test: it[0] can't be nil"}
        ] do
      assert_raise Error, message, fn -> flatten(bad) end
    end
  end

  test "refuses another structure, and says which was expected" do
    {_, skeleton} = flatten({1, %{a: [2, 3]}})

    for {bad, message} <- [
          {{1}, "test: it must be a tuple of 2, got a tuple of 1"},
          {[1, %{a: [2, 3]}], "test: it must be a tuple of 2, got a list of 2"},
          {{1, %{b: [2, 3]}},
           "test: it[1] must be a map with the keys :a, got a map with the keys :b"},
          {{1, %{a: [2, 3], b: 1}},
           "test: it[1] must be a map with the keys :a, got a map with the keys :a, :b"},
          {{1, %{a: [2]}}, "test: it[1][:a] must be a list of 2, got a list of 1"},
          {{1, %{a: [2 | 3]}}, "test: it[1][:a] must be a list of 2, got an improper list"},
          {{:x, %{a: [2, 3]}}, "test: it[0] must be a number, got :x"}
        ] do
      assert_raise Error, message, fn ->
        Container.leaves(bad, skeleton, :test, "it", &leaf/1)
      end
    end
  end
end
