defmodule Nitrox.Nx.DefnTest do
  # The functions of Nitrox by their names in a `defn`.
  use ExUnit.Case, async: true

  @moduletag :nx

  if Code.ensure_loaded?(Nx.Defn) do
    defmodule Functions do
      @moduledoc false
      import Nx.Defn

      defn(attend(q, k, v), do: Nitrox.flash_attention(q, k, v, causal: true, window: {2, 0}))

      defn recur(x, c, h, wi, wh) do
        {seq, {_, h}} = Nitrox.lstm(x, {c, h}, wi, wh, nil)
        Nitrox.softmax(Nitrox.multiply(seq, 2), axis: -1) + Nx.new_axis(h, 1)
      end

      defn(gradient(q, k, v), do: grad(q, fn q -> Nx.sum(attend(q, k, v) * v) end))

      defn layer(x, w, opts \\ []) do
        opts = keyword!(opts, activation: :relu)
        Nitrox.dense(x, w, nil, activation: opts[:activation])
      end
    end

    defp random(shape, seed) do
      {x, _} = Nx.Random.normal(Nx.Random.key(seed), shape: shape)
      x
    end

    defp close?(a, b), do: Nx.all_close(a, b, atol: 1.0e-5) |> Nx.to_number() == 1

    test "they are what they are outside of it, with options, tuples, nil and numbers" do
      Nx.default_backend(Nitrox.Backend)
      [q, k, v] = for i <- 1..3, do: random({2, 5, 2, 8}, i)
      eager = Nitrox.flash_attention(q, k, v, causal: true, window: {2, 0})
      assert close?(Functions.attend(q, k, v), eager)

      {x, state} = {random({2, 4, 3}, 4), random({2, 5}, 5)}
      {wi, wh} = {random({3, 20}, 6), random({5, 20}, 7)}
      {seq, {_, h}} = Nitrox.lstm(x, {state, state}, wi, wh, nil)
      eager = seq |> Nitrox.multiply(2) |> Nitrox.softmax() |> Nx.add(Nx.new_axis(h, 1))
      assert close?(Functions.recur(x, state, state, wi, wh), eager)

      w = random({3, 4}, 8)
      assert close?(Functions.layer(x, w), Nx.max(Nx.dot(x, w), 0))
      assert close?(Functions.layer(x, w, activation: :tanh), Nx.tanh(Nx.dot(x, w)))
    end

    test "they have gradients, and run on other backends" do
      inputs = for i <- 1..3, do: random({2, 5, 2, 8}, i)

      [ours, theirs] =
        for backend <- [Nitrox.Backend, Nx.BinaryBackend] do
          Nx.default_backend(backend)
          [q, k, v] = Enum.map(inputs, &Nx.backend_copy(&1, backend))
          Functions.gradient(q, k, v)
        end

      assert close?(ours, theirs)
      assert %{data: %{__struct__: Nx.BinaryBackend}} = theirs
    end

    test "each function on tensors can be called there, with each number of arguments" do
      exports = Nitrox.__info__(:functions)

      {inside, outside} =
        Enum.split_with(exports, fn {n, _} -> String.starts_with?("#{n}", "__defn:") end)

      # What makes, moves and looks at handles is not for a defn.
      assert {:dense, 3} in outside and {:"__defn:dense__", 3} in inside
      assert {:"__defn:dense__", 4} in inside
      refute {:"__defn:to_binary__", 1} in inside

      for {name, arity} <- inside do
        [_, plain] = Regex.run(~r/^__defn:(.*)__$/, "#{name}")
        assert {String.to_existing_atom(plain), arity} in outside
      end
    end
  else
    test "Nx is missing", do: :ok
  end
end
