if Code.ensure_loaded?(Axon) do
  defmodule Nitrox.Axon.Layers.Node do
    @moduledoc false
    # What the layers of `Nitrox.Axon` are made with: each is one node of Axon, so that Axon names it,
    # shows it and freezes it as it does its own.

    import Nitrox.Options, only: [fail!: 2, one_of: 1, not_negative: 0]

    alias Nx.Tensor, as: T

    # The most that a node takes: the parameters of a Mamba block with all that it may have, its input
    # and Axon's options.
    @most 20

    @typedoc "The shape of a parameter, by the shapes of the layer's inputs, and how it is drawn."
    @type param :: {(map() -> tuple()), atom() | fun()}

    @doc """
    A node on `inputs`, by name, with `params`, by name; nil stands for what is not there. `fun` gets a
    map of both, inputs under atoms and parameters under strings.
    """
    def build(op, opts, inputs, params, fun) do
      inputs = for {name, %Axon{} = input} <- inputs, do: {name, input}
      {names, inputs} = Enum.unzip(inputs)
      params = for {_, {_, _}} = param <- params, do: param

      parameters =
        for {name, {shape, initializer}} <- params do
          shape = &(names |> Enum.zip(&1) |> Map.new() |> shape.())
          Axon.param(name, spread(length(names), shape), initializer: initializer)
        end

      names = names ++ Enum.map(params, &elem(&1, 0))
      # The last argument is Axon's options, of which the mode makes no difference here.
      run = &(names |> Enum.zip(&1) |> Map.new() |> fun.())

      Axon.layer(spread(length(names) + 1, run), inputs ++ parameters,
        name: naming(opts.name || "#{op}_{n}"),
        op_name: op,
        meta: Map.drop(opts, [:name])
      )
    end

    # Axon puts a number for {n}: how many layers of the same op come before. When it draws first
    # values, by these names, it has counted the nodes' functions instead, and each of ours would be the
    # first of its kind. There all of ours are counted.
    defp naming(name) do
      fn op, counts -> String.replace(name, "{n}", "#{before(op, counts)}") end
    end

    defp before(op, counts) when is_atom(op), do: counts[op] || 0

    defp before(_function, counts) do
      Enum.sum(
        for {op, count} <- counts,
            is_function(op) and Function.info(op, :module) == {:module, __MODULE__},
            do: count
      )
    end

    # Axon asks functions for their arity.
    for n <- 1..@most do
      args = Macro.generate_arguments(n, __MODULE__)
      defp spread(unquote(n), fun), do: fn unquote_splicing(args) -> fun.(unquote(args)) end
    end

    # ── Options that several layers have ──────────────────────────────────────────────────────────

    def input!(_op, %Axon{} = x), do: x
    def input!(op, other), do: fail!(op, "x: expected a layer of Axon, got #{inspect(other)}")

    def name, do: {"a string", &is_binary/1}
    def layer, do: {"a layer of Axon", &is_struct(&1, Axon)}

    def integer(least, most),
      do: {"an integer from #{least} to #{most}", &(is_integer(&1) and &1 in least..most)}

    def positive, do: {"a number above 0", &(is_number(&1) and &1 > 0)}

    def initializer do
      {"the name of one of Axon.Initializers or a function of 2 or 3 arguments",
       fn initializer ->
         is_function(initializer, 2) or is_function(initializer, 3) or
           (is_atom(initializer) and Code.ensure_loaded?(Axon.Initializers) and
              function_exported?(Axon.Initializers, initializer, 0))
       end}
    end

    @doc "`norm:` and its `epsilon:`."
    def norm_schema do
      [
        norm: {nil, one_of([:rms_norm, :layer_norm])},
        epsilon: {1.0e-5, not_negative()}
      ]
    end

    # ── Parts of a layer ──────────────────────────────────────────────────────────────────────────

    @doc "The length of the last axis of an input `{batch, frames, features}`."
    def width!(_op, _name, {_, _, width}), do: width

    def width!(op, name, shape) do
      fail!(op, "#{name}: expected {batch, frames, features}, got #{inspect(shape)}")
    end

    def norm_params(%{norm: nil}, _width), do: []

    def norm_params(%{norm: norm}, width) do
      shape = &{width.(&1)}
      beta = if norm == :layer_norm, do: {shape, :zeros}
      [{"norm.gamma", {shape, :ones}}, {"norm.beta", beta}]
    end

    @doc "x as a block takes it, and what is added to the block's result: x itself where it has a norm."
    def enter(%{norm: nil}, %{x: x}), do: {x, nil}

    def enter(%{norm: :rms_norm, epsilon: epsilon}, %{x: x} = p),
      do: {Nitrox.rms_norm(x, p["norm.gamma"], epsilon: epsilon), x}

    def enter(%{norm: :layer_norm, epsilon: epsilon}, %{x: x} = p),
      do: {Nitrox.layer_norm(x, p["norm.gamma"], p["norm.beta"], epsilon: epsilon), x}

    @doc "The parameters in the type of x; those that are `kept` stay f32 where they are stored so."
    def typed(%{x: %T{type: type}} = p, kept \\ []) do
      Map.new(p, fn
        {name, tensor} when is_binary(name) ->
          case if(name in kept, do: stored(tensor)) do
            %T{type: {:f, 32}} = tensor -> {name, tensor}
            _ -> {name, Nx.as_type(tensor, type)}
          end

        input ->
          input
      end)
    end

    # A mixed precision policy of Axon casts all that a layer takes. This is a parameter as it was
    # before that.
    defp stored(%T{data: %Nx.Defn.Expr{op: :as_type, args: [tensor]}}), do: tensor
    defp stored(tensor), do: tensor

    @doc "Uniform from −a to a, where a is 1/√fan-in, or `scale` times that."
    def fan_in(scale \\ 1.0) do
      fn shape, type, key -> uniform(key, scale / :math.sqrt(elem(shape, 0)), shape, type) end
    end

    def uniform(key, bound, shape, type) do
      {drawn, _} = Nx.Random.uniform(key, -bound, bound, shape: shape, type: :f32)
      Nx.as_type(drawn, type)
    end
  end
end
