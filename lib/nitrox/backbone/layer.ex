defmodule Nitrox.Backbone.Layer do
  @moduledoc false
  # One layer of a backbone: the part in which the kinds differ.

  @typedoc "How a parameter is drawn: uniform of deviation 1/√fan-in, or a constant."
  @type draw :: {:fan_in, pos_integer()} | :ones | :zeros

  @type params :: %{String.t() => Nitrox.t()}

  @doc "Name, shape and draw of each parameter of a layer from `inputs` features to `width`."
  @callback params(inputs :: pos_integer(), width :: pos_integer()) :: [
              {String.t(), tuple(), draw()}
            ]

  @doc "The parameter of shape `{inputs, n · width}`, and n: what sizes are read from in a file."
  @callback sizes() :: {String.t(), pos_integer()}

  @doc "The shapes of the state, all f32 zeros at first; nil for a layer without one."
  @callback state(width :: pos_integer(), batch :: pos_integer()) :: tuple() | nil

  @doc "`x {B, T, inputs}` → `{y {B, T, width}, state}`."
  @callback run(params(), x :: Nitrox.t(), state :: tuple() | nil) :: {Nitrox.t(), tuple() | nil}
end

defmodule Nitrox.Backbone.Mlp do
  @moduledoc false
  @behaviour Nitrox.Backbone.Layer

  @impl true
  def params(inputs, width) do
    [{"w", {inputs, width}, {:fan_in, inputs}}, {"b", {width}, {:fan_in, inputs}}]
  end

  @impl true
  def sizes, do: {"w", 1}

  @impl true
  def state(_width, _batch), do: nil

  @impl true
  def run(p, x, nil), do: {Nitrox.dense(x, p["w"], p["b"], activation: :relu), nil}
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
  def params(inputs, width), do: Recurrent.params(inputs, width, 4)

  @impl true
  def sizes, do: {"wi", 4}

  @impl true
  def state(width, batch), do: {{batch, width}, {batch, width}}

  @impl true
  def run(p, x, state), do: Recurrent.run(&Nitrox.lstm/5, p, x, state)
end

defmodule Nitrox.Backbone.Gru do
  @moduledoc false
  @behaviour Nitrox.Backbone.Layer
  alias Nitrox.Backbone.Recurrent

  @impl true
  def params(inputs, width), do: Recurrent.params(inputs, width, 3)

  @impl true
  def sizes, do: {"wi", 3}

  @impl true
  def state(width, batch), do: {{batch, width}}

  @impl true
  def run(p, x, state), do: Recurrent.run(&Nitrox.gru/5, p, x, state)
end
