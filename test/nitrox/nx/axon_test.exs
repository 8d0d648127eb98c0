defmodule Nitrox.Nx.AxonTest do
  # Plain models of Axon on this backend: what Nx.BinaryBackend gives, nothing through the host, and
  # no transfers but of what goes in and what comes out.
  use ExUnit.Case, async: false

  @moduletag :nx
  @moduletag :axon
  @moduletag :telemetry

  # Axon is not there for the compiler on every machine.
  if Code.ensure_loaded?(Axon) do
    import Nitrox.TestNumbers
    alias Nitrox.TestModels

    defp events(fun) do
      Nitrox.TestEvents.during([[:nitrox, :tensor, :transfer], [:nitrox, :fallback]], fun)
    end

    defp models do
      dropout =
        Axon.input("x", shape: {nil, 8})
        |> Axon.dense(16)
        |> Axon.dropout(rate: 0.5)
        |> Axon.dense(3, activation: :softmax)

      TestModels.plain() ++ [dropout: {dropout, {5, 8}}]
    end

    defp input(shape) do
      :rand.seed(:exsss, ExUnit.configuration()[:seed])
      random(shape)
    end

    test "forward" do
      for {name, {model, shape}} <- models(), backend <- backends() do
        {init, predict} = Axon.build(model, mode: :inference)
        x = input(shape)
        state = init.(Nx.template(shape, :f32), Axon.ModelState.empty())
        expected = predict.(state, %{"x" => x})
        state = %{state | data: on(state.data, backend)}

        {bytes, events} =
          Nx.with_default_backend(backend, fn ->
            events(fn ->
              y = predict.(state, %{"x" => Nx.backend_copy(x, backend)})
              Nx.to_binary(y)
            end)
          end)

        assert [] == for({:fallback, event} <- events, do: event.op)

        assert [{:to_device, Nx.byte_size(x)}, {:to_host, byte_size(bytes)}] ==
                 for({:transfer, event} <- events, do: {event.direction, event.bytes})

        got = Nx.from_binary(bytes, :f32, backend: Nx.BinaryBackend)
        difference = Nx.subtract(got, Nx.flatten(expected)) |> Nx.abs() |> Nx.reduce_max()
        assert Nx.to_number(difference) < 1.0e-5, "#{name}"
      end
    end

    test "training" do
      for {name, {model, shape}} <- models(), backend <- backends() do
        {init, predict} = Axon.build(model, mode: :train)
        {optimizer, update} = Polaris.Optimizers.adam(learning_rate: 0.01)
        x = input(shape)
        y = Nx.iota({elem(shape, 0), 3}, axis: 1, backend: Nx.BinaryBackend) |> Nx.equal(1)

        {losses, events} =
          Nx.with_default_backend(backend, fn ->
            state = init.(Nx.template(shape, :f32), Axon.ModelState.empty())
            [x, y] = for t <- [x, y], do: Nx.backend_copy(t, backend)
            parameters = state.data

            loss = fn parameters, x, y ->
              %{prediction: p} = predict.(%{state | data: parameters}, %{"x" => x})
              Axon.Losses.categorical_cross_entropy(y, p, reduction: :mean)
            end

            step = fn parameters, moments, x, y ->
              {loss, gradient} = Nx.Defn.value_and_grad(parameters, &loss.(&1, x, y))
              {updates, moments} = update.(gradient, moments, parameters)
              {loss, Polaris.Updates.apply_updates(parameters, updates), moments}
            end

            step = Nx.Defn.jit(step)

            events(fn ->
              {losses, _} =
                Enum.map_reduce(1..4, {parameters, optimizer.(parameters)}, fn _,
                                                                               {parameters,
                                                                                moments} ->
                  {loss, parameters, moments} = step.(parameters, moments, x, y)
                  {Nx.to_number(loss), {parameters, moments}}
                end)

              losses
            end)
          end)

        assert List.last(losses) < hd(losses), "#{name}: #{inspect(losses)}"
        assert [] == for({:fallback, event} <- events, do: event.op)
        # Only the losses come to the host.
        assert [] ==
                 Enum.reject(events, &match?({:transfer, %{direction: :to_host, bytes: 4}}, &1))
      end
    end
  else
    test "Axon is missing", do: :ok
  end
end
