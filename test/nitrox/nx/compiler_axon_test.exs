defmodule Nitrox.CompilerAxonTest do
  # Models of Axon by Nitrox.Compiler: as Nx.BinaryBackend has them, in one run of one program, with
  # nothing through the host.
  use ExUnit.Case, async: false
  @moduletag :nx
  @moduletag :axon
  @moduletag :telemetry

  if Code.ensure_loaded?(Axon) do
    def handle(event, _, metadata, {parent, id}) do
      if self() == parent, do: send(parent, {id, event, metadata})
    end

    defp events(fun) do
      id = make_ref()

      names =
        for name <- [[:compile], [:program, :run], [:op, :run], [:fallback], [:tensor, :transfer]],
            do: [:nitrox | name]

      :ok = :telemetry.attach_many(id, names, &__MODULE__.handle/4, {self(), id})
      result = fun.()
      :telemetry.detach(id)
      {result, received(id)}
    end

    defp received(id) do
      receive do
        {^id, [:nitrox | event], _} -> [event | received(id)]
      after
        0 -> []
      end
    end

    defp models do
      frames = Axon.input("x", shape: {nil, 6, 4})

      [
        mlp:
          {Axon.input("x", shape: {nil, 8})
           |> Axon.dense(16, activation: :relu)
           |> Axon.layer_norm()
           |> Axon.dense(16, activation: :gelu)
           |> Axon.batch_norm()
           |> Axon.dense(3, activation: :softmax), {5, 8}},
        convolution:
          {Axon.input("x", shape: {nil, 8, 8, 3})
           |> Axon.conv(4, kernel_size: 3, padding: :same, activation: :relu)
           |> Axon.max_pool(kernel_size: 2)
           |> Axon.depthwise_conv(2, kernel_size: 2)
           |> Axon.avg_pool(kernel_size: 2, strides: 1)
           |> Axon.flatten()
           |> Axon.dense(3, activation: :softmax), {2, 8, 8, 3}},
        static_gru:
          {frames
           |> Axon.gru(5, unroll: :static)
           |> elem(0)
           |> Axon.flatten()
           |> Axon.dense(3, activation: :softmax), {2, 6, 4}},
        dynamic_lstm:
          {frames
           |> Axon.lstm(5)
           |> elem(0)
           |> Axon.flatten()
           |> Axon.dense(3, activation: :softmax), {2, 6, 4}}
      ]
    end

    defp input(shape) do
      :rand.seed(:exsss, ExUnit.configuration()[:seed])
      values = for _ <- 1..Tuple.product(shape), do: :rand.normal()
      Nx.tensor(values, type: :f32, backend: Nx.BinaryBackend) |> Nx.reshape(shape)
    end

    defp parameters(model, shape) do
      {init, _} = Axon.build(model, compiler: Nx.Defn.Evaluator)
      init.(Nx.template(shape, :f32), Axon.ModelState.empty())
    end

    defp moved(container, backend),
      do: Nx.Defn.Composite.traverse(container, &Nx.backend_copy(&1, backend))

    defp close!(a, b) do
      [a, b] =
        for c <- [a, b],
            do: c |> moved(Nx.BinaryBackend) |> then(&Nx.Defn.Composite.flatten_list([&1]))

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

    for name <- [:mlp, :convolution, :static_gru, :dynamic_lstm] do
      test "#{name}: a forward pass and its gradient" do
        {model, shape} = models()[unquote(name)]
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
          held = moved(params, backend)
          compiled.(held, x)
          {got, events} = events(fn -> compiled.(held, x) end)
          close!(got, expected)

          assert events == [[:program, :run]]

          opts = [compiler: Nitrox.Compiler, device: device]
          got = Nx.Defn.jit(gradient, opts).(moved(params.data, backend), x)
          close!(got, expected_gradient)
        end
      end
    end

    test "a training loop" do
      {model, shape} = models()[:mlp]
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
