defmodule Nitrox.Backbone.Layer do
  @moduledoc false
  # One layer of a backbone: the part in which the kinds differ.

  @typedoc """
  How a parameter is drawn: uniform of deviation 1/√fan-in, a constant, or as Mamba starts A
  (−1, −2, … along the states) and the bias of its time steps (steps from 0.001 to 0.1).
  """
  @type draw :: {:fan_in, pos_integer()} | :ones | :zeros | :decays | :time_steps

  @type params :: %{String.t() => Nitrox.t()}

  @typedoc "What the config says of a layer beside its width: `:state`, `:heads` and so on."
  @type sizes :: %{atom() => pos_integer()}

  @doc "Name, shape and draw of each parameter of a layer from `inputs` features to `width`."
  @callback params(inputs :: pos_integer(), width :: pos_integer(), sizes()) :: [
              {String.t(), tuple(), draw()}
            ]

  @doc "The inputs, the width and the sizes, from the shapes of the parameters that have two axes."
  @callback sizes(matrix :: (String.t() -> {pos_integer(), pos_integer()})) ::
              {inputs :: pos_integer(), width :: pos_integer(), sizes()}

  @doc "Shape and type of each part of the state, all zeros at first; `:weights` is the weights' type."
  @callback state(width :: pos_integer(), batch :: pos_integer(), sizes()) :: [
              {tuple(), :f32 | :weights}
            ]

  @doc """
  `x {B, T, inputs}` → `{y {B, T, width}, state}`. `places` is what `Nitrox.Backbone.Attention.places/4`
  gives, in backbones that attend.
  """
  @callback run(params(), x :: Nitrox.t(), state :: tuple(), places :: map() | nil) ::
              {Nitrox.t(), tuple()}
end

defmodule Nitrox.Backbone.Mlp do
  @moduledoc false
  @behaviour Nitrox.Backbone.Layer

  @impl true
  def params(inputs, width, _sizes) do
    [{"w", {inputs, width}, {:fan_in, inputs}}, {"b", {width}, {:fan_in, inputs}}]
  end

  @impl true
  def sizes(matrix) do
    {inputs, width} = matrix.("w")
    {inputs, width, %{}}
  end

  @impl true
  def state(_width, _batch, _sizes), do: []

  @impl true
  def run(p, x, {}, _places), do: {Nitrox.dense(x, p["w"], p["b"], activation: :relu), {}}
end

defmodule Nitrox.Backbone.Recurrent do
  @moduledoc false
  # What LSTM and GRU layers share: weights for `gates` gates, and a layer norm after the cell.

  def params(inputs, width, gates) do
    [
      {"wi", {inputs, gates * width}, {:fan_in, inputs}},
      {"wh", {width, gates * width}, {:fan_in, width}},
      {"b", {4 * width}, {:fan_in, width}},
      {"norm.gamma", {width}, :ones},
      {"norm.beta", {width}, :zeros}
    ]
  end

  def sizes(matrix, gates) do
    {inputs, columns} = matrix.("wi")
    {inputs, div(columns, gates), %{}}
  end

  def run(cell, p, x, state) do
    {seq, state} = cell.(x, state, p["wi"], p["wh"], p["b"])
    {Nitrox.layer_norm(seq, p["norm.gamma"], p["norm.beta"]), state}
  end
end

defmodule Nitrox.Backbone.Lstm do
  @moduledoc false
  @behaviour Nitrox.Backbone.Layer
  alias Nitrox.Backbone.Recurrent

  @impl true
  def params(inputs, width, _sizes), do: Recurrent.params(inputs, width, 4)

  @impl true
  def sizes(matrix), do: Recurrent.sizes(matrix, 4)

  @impl true
  def state(width, batch, _sizes), do: [{{batch, width}, :f32}, {{batch, width}, :f32}]

  @impl true
  def run(p, x, state, _places), do: Recurrent.run(&Nitrox.lstm/5, p, x, state)
end

defmodule Nitrox.Backbone.Gru do
  @moduledoc false
  @behaviour Nitrox.Backbone.Layer
  alias Nitrox.Backbone.Recurrent

  @impl true
  def params(inputs, width, _sizes), do: Recurrent.params(inputs, width, 3)

  @impl true
  def sizes(matrix), do: Recurrent.sizes(matrix, 3)

  @impl true
  def state(width, batch, _sizes), do: [{{batch, width}, :f32}]

  @impl true
  def run(p, x, state, _places), do: Recurrent.run(&Nitrox.gru/5, p, x, state)
end
