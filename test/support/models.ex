defmodule Nitrox.TestModels do
  @moduledoc false
  # Models of Axon with parameters drawn by chance, run on any backend.

  @compile {:no_warn_undefined, [Axon, Axon.ModelState, Nx, Nx.Defn.Composite]}
  import Nitrox.TestNumbers

  @doc "Models of Axon's own layers by name, each with the shape of its input `x`."
  def plain do
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
      lstm: {recurrent(&Axon.lstm(&1, 5)), {2, 6, 4}},
      gru: {recurrent(&Axon.gru(&1, 5)), {2, 6, 4}},
      static_gru: {recurrent(&Axon.gru(&1, 5, unroll: :static)), {2, 6, 4}}
    ]
  end

  defp recurrent(layer) do
    {seq, _} = layer.(Axon.input("x", shape: {nil, 6, 4}))
    seq |> Axon.flatten() |> Axon.dense(3, activation: :softmax)
  end

  @doc """
  A state for a model, on `Nx.BinaryBackend`. Floats are moved by chance, by `:scale`, so that biases
  are not the zeros and norms not the ones that they begin with; other options are those of Axon.
  """
  def init(model, inputs, opts \\ []) do
    {scale, opts} = Keyword.pop(opts, :scale, 0.1)
    {init, _} = Axon.build(model, [seed: 7] ++ opts)
    state = init.(templates(inputs), Axon.ModelState.empty())

    update_in(state.data, fn data ->
      Nx.Defn.Composite.traverse(data, fn
        %{type: {:f, _}} = t ->
          t |> Nx.add(random(t.shape, scale)) |> Nx.as_type(t.type) |> host()

        t ->
          t
      end)
    end)
  end

  def templates(inputs), do: Nx.Defn.Composite.traverse(inputs, &Nx.to_template/1)

  @doc "What a model gives on a backend, where its state and its inputs are brought first."
  def predict(model, state, inputs, backend, opts \\ []) do
    {_, predict} = Axon.build(model, opts)
    state = %{state | data: on(state.data, backend)}
    Nx.with_default_backend(backend, fn -> predict.(state, on(inputs, backend)) end)
  end
end
