defmodule Nitrox.TestModels do
  @moduledoc false
  # Models of Axon with parameters drawn by chance, run on any backend.

  @compile {:no_warn_undefined, [Axon, Axon.ModelState, Nx, Nx.Defn.Composite]}
  import Nitrox.TestNumbers

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
