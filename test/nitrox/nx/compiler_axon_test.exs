defmodule Nitrox.CompilerAxonTest do
  # Models of Axon by Nitrox.Compiler: as Nx.BinaryBackend has them, in one run of one program, with
  # nothing through the host.
  use ExUnit.Case, async: false
  @moduletag :nx
  @moduletag :axon
  @moduletag :telemetry

  if Code.ensure_loaded?(Axon) do
    import Nitrox.TestNumbers
    alias Nitrox.TestModels

    @events for name <- [
                  [:compile],
                  [:program, :run],
                  [:op, :run],
                  [:fallback],
                  [:tensor, :transfer]
                ],
                do: [:nitrox | name]

    defp input(shape) do
      :rand.seed(:exsss, ExUnit.configuration()[:seed])
      random(shape)
    end

    defp parameters(model, shape) do
      {init, _} = Axon.build(model, compiler: Nx.Defn.Evaluator)
      init.(Nx.template(shape, :f32), Axon.ModelState.empty())
    end

    defp close!(a, b) do
      [a, b] =
        for c <- [a, b],
            do: c |> host() |> then(&Nx.Defn.Composite.flatten_list([&1]))

      assert length(a) == length(b)

      for {a, b} <- Enum.zip(a, b) do
        error = Nx.subtract(a, b) |> Nx.abs() |> Nx.reduce_max() |> Nx.to_number()
        assert error < 1.0e-4, inspect({a, b})
      end
    end

    setup do
      Nx.default_backend(Nx.BinaryBackend)
      Nitrox.Compiler.clear()
    end

    for name <- [:mlp, :convolution, :static_gru, :lstm] do
      test "#{name}: a forward pass and its gradient" do
        {model, shape} = TestModels.plain()[unquote(name)]
        params = parameters(model, shape)
        x = input(shape)
        {_, evaluated} = Axon.build(model, compiler: Nx.Defn.Evaluator)

        loss = fn predict ->
          fn params, x -> params |> predict.(x) |> Nx.log() |> Nx.mean() end
        end

        gradient = fn predict -> &Nx.Defn.grad(&1, fn p -> loss.(predict).(p, &2) end) end
        expected = evaluated.(params, x)

        # To be differentiated a model is built without a compiler of its own.
        {_, plain} = Axon.build(model, mode: :inference)
        state = %{params | data: %{}}
        gradient = gradient.(fn p, x -> plain.(%{state | data: p}, x) end)
        expected_gradient = Nx.Defn.jit(gradient, compiler: Nx.Defn.Evaluator).(params.data, x)

        for device <- Application.get_env(:nitrox, :test_devices) do
          backend = {Nitrox.Backend, device: device}
          {_, compiled} = Axon.build(model, compiler: Nitrox.Compiler, device: device)
          held = on(params, backend)
          compiled.(held, x)
          {got, events} = Nitrox.TestEvents.all(@events, fn -> compiled.(held, x) end)
          close!(got, expected)

          assert [{[:nitrox, :program, :run], _}] = events

          opts = [compiler: Nitrox.Compiler, device: device]
          got = Nx.Defn.jit(gradient, opts).(on(params.data, backend), x)
          close!(got, expected_gradient)
        end
      end
    end

    # As guides/axon.md says: a program that holds the weights may run the layers as one.
    @tag :cuda
    test "recurrent layers one upon the other" do
      zeros = [recurrent_initializer: :zeros]
      {seq, _} = Axon.input("x", shape: {nil, 6, 64}) |> Axon.lstm(64, zeros)
      {seq, _} = seq |> Axon.layer_norm() |> Axon.lstm(64, zeros)
      model = Nitrox.Axon.accelerate(seq)
      {_, predict} = Axon.build(model, mode: :inference)
      params = parameters(model, {1, 6, 64})
      x = Nx.template({1, 6, 64}, :f32)

      ops = fn fun, args ->
        explained = Nitrox.Compiler.explain(fun, args, device: {:cuda, 0})
        for %{op: op} <- explained.ops, op not in [:concatenate, :reshape], do: op
      end

      apart = [:lstm, :layer_norm, :lstm]
      assert ops.(predict, [params, x]) == apart
      # Clusters of blocks are of Hopper and later.
      {major, _} = Enum.find(Nitrox.devices(), &(&1.device == {:cuda, 0})).compute_capability
      expected = if major >= 9, do: [:recurrent_stack], else: apart
      assert ops.(&predict.(params, &1), [x]) == expected
    end

    test "a training loop" do
      {model, shape} = TestModels.plain()[:mlp]
      x = input(shape)

      y =
        Nx.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0]],
          backend: Nx.BinaryBackend
        )

      data = List.duplicate({x, y}, 5)

      state = parameters(model, shape)

      train = fn opts ->
        model
        |> Axon.Loop.trainer(
          :categorical_cross_entropy,
          Polaris.Optimizers.adam(learning_rate: 0.01),
          log: 0
        )
        |> Axon.Loop.run(data, state, [epochs: 3] ++ opts)
      end

      expected = train.(compiler: Nx.Defn.Evaluator)

      for device <- Application.get_env(:nitrox, :test_devices) do
        got = train.(compiler: Nitrox.Compiler, device: device)
        close!(got.data, expected.data)
      end
    end
  else
    test "models by this compiler", do: flunk("Axon is not there")
  end
end
