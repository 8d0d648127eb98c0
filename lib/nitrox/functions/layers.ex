defmodule Nitrox.Functions.Layers do
  @moduledoc false
  # The layers that know no time.

  alias Nitrox.{Op, Options}

  defmacro __using__(_) do
    quote location: :keep, unquote: false do
      @activations [:none, :relu, :silu, :gelu, :gelu_tanh, :tanh, :sigmoid]

      @doc """
      A linear layer, `activation(x · w + b) + residual`. See `Nitrox.Op.Dense`.

      `x {…, in}`, `w {in, out}`, `b {out}` or nil → `{…, out}`.

      Options:

        * `:activation` - #{Enum.map_join(@activations, ", ", &"`#{inspect(&1)}`")} (default `:none`)
        * `:residual` - a tensor `{…, out}`, added last

      ## Examples

          iex> x = Nitrox.tensor([[1.0, -2.0]])
          iex> w = Nitrox.tensor([[1.0, 0.0], [0.0, 1.0]])
          iex> Nitrox.dense(x, w, nil, activation: :relu) |> Nitrox.to_list()
          [[1.0, 0.0]]
      """
      @doc group: "Layers"
      @spec dense(t(), t(), t() | nil, keyword()) :: t()
      def dense(x, w, b, opts \\ []) do
        opts =
          Options.validate!(:dense, opts,
            activation: {:none, one_of(@activations)},
            residual: {nil, tensor()}
          )

        one(%Op.Dense{activation: opts.activation}, [x, w, b, opts.residual])
      end

      @doc """
      Layer normalisation over the last axis. See `Nitrox.Op.LayerNorm`.

      `x {…, D}`, `gamma {D}`, `beta {D}` → `{…, D}`.

      Options:

        * `:epsilon` - added to the variance (default `1.0e-5`)
        * `:residual` - a tensor of `x`'s shape. It is added to `x` first, and the result is
          `{normed, x + residual}`

      ## Examples

          iex> x = Nitrox.tensor([[1.0, 3.0]])
          iex> [one, zero] = [Nitrox.tensor([1.0, 1.0]), Nitrox.tensor([0.0, 0.0])]
          iex> Nitrox.layer_norm(x, one, zero, epsilon: 0) |> Nitrox.to_list()
          [[-1.0, 1.0]]
      """
      @doc group: "Layers"
      @spec layer_norm(t(), t(), t(), keyword()) :: t() | {t(), t()}
      def layer_norm(x, gamma, beta, opts \\ []) do
        opts = norm_options(:layer_norm, opts)
        norm(%Op.LayerNorm{epsilon: opts.epsilon * 1.0}, [x, gamma, beta], opts.residual)
      end

      @doc """
      Normalisation by the root mean square of the last axis. See `Nitrox.Op.RmsNorm`.

      `x {…, D}`, `gamma {D}` → `{…, D}`. Options are those of `layer_norm/4`.
      """
      @doc group: "Layers"
      @spec rms_norm(t(), t(), keyword()) :: t() | {t(), t()}
      def rms_norm(x, gamma, opts \\ []) do
        opts = norm_options(:rms_norm, opts)
        norm(%Op.RmsNorm{epsilon: opts.epsilon * 1.0}, [x, gamma], opts.residual)
      end

      defp norm_options(op, opts) do
        Options.validate!(op, opts, epsilon: {1.0e-5, not_negative()}, residual: {nil, tensor()})
      end

      defp norm(op, inputs, nil), do: one(op, inputs)

      defp norm(op, inputs, residual) do
        [normed, sum] = Op.apply(op, inputs ++ [residual])
        {normed, sum}
      end

      @doc """
      A feed-forward block with a gate, `(activation(x · gate) ⊙ (x · up)) · down`. See
      `Nitrox.Op.GatedMlp`.

      `x {…, D}`, `gate {D, F}`, `up {D, F}`, `down {F, D}` → `{…, D}`.

      Options:

        * `:activation` - `:silu`, `:gelu` (by the error function) or `:gelu_tanh` (default `:silu`)
        * `:residual` - a tensor of x's shape, added last

      ## Examples

          iex> w = Nitrox.tensor([[1.0]])
          iex> y = Nitrox.gated_mlp(Nitrox.tensor([[0.0]]), w, w, w, residual: Nitrox.tensor([[3.0]]))
          iex> Nitrox.to_list(y)
          [[3.0]]
      """
      @doc group: "Layers"
      @spec gated_mlp(t(), t(), t(), t(), keyword()) :: t()
      def gated_mlp(x, gate, up, down, opts \\ []) do
        opts =
          Options.validate!(:gated_mlp, opts,
            activation: {:silu, one_of([:silu, :gelu, :gelu_tanh])},
            residual: {nil, tensor()}
          )

        one(%Op.GatedMlp{activation: opts.activation}, [x, gate, up, down, opts.residual])
      end

      @doc """
      Rows of a table, one for each id. See `Nitrox.Op.Embedding`.

      `table {V, E}`, `ids {…}` of an integer type → `{…, E}`. An id outside of the table gives NaN.

          iex> table = Nitrox.tensor([[1.0, 1.5], [2.0, 2.5]])
          iex> Nitrox.embedding(table, Nitrox.tensor([1, 0])) |> Nitrox.to_list()
          [[2.0, 2.5], [1.0, 1.5]]
      """
      @doc group: "Layers"
      @spec embedding(t(), t()) :: t()
      def embedding(table, ids), do: one(%Op.Embedding{}, [table, ids])
    end
  end
end
