defmodule Nitrox.Functions.Choosing do
  @moduledoc false
  # From scores to a choice.

  alias Nitrox.{Op, Options}

  defmacro __using__(_) do
    quote location: :keep, unquote: false do
      @doc """
      The softmax along `:axis` (default `-1`): `x {…}` → `{…}`. See `Nitrox.Op.Softmax`.

          iex> Nitrox.softmax(Nitrox.tensor([2.0, 2.0])) |> Nitrox.to_list()
          [0.5, 0.5]
      """
      @doc group: "Choosing"
      @spec softmax(t(), keyword()) :: t()
      def softmax(x, opts \\ []) do
        opts = Options.validate!(:softmax, opts, axis: {-1, integer()})
        one(%Op.Softmax{axis: opts.axis, log: false}, [x])
      end

      @doc "The logarithm of `softmax/2`, with its options."
      @doc group: "Choosing"
      @spec log_softmax(t(), keyword()) :: t()
      def log_softmax(x, opts \\ []) do
        opts = Options.validate!(:log_softmax, opts, axis: {-1, integer()})
        one(%Op.Softmax{axis: opts.axis, log: true}, [x])
      end

      @doc """
      The index of the greatest element, `{:s, 32}`. The first of equals wins, and a NaN beats any number.

      Options:

        * `:axis` - along which to look. Without one, the index is that into all elements in order
        * `:keep_axis` - leave the axis there, with length 1 (default `false`)

      ## Examples

          iex> x = Nitrox.tensor([[1.0, 7.0], [8.0, 3.0]])
          iex> Nitrox.argmax(x, axis: -1) |> Nitrox.to_list()
          [1, 0]
          iex> Nitrox.argmax(x) |> Nitrox.to_number()
          2
      """
      @doc group: "Choosing"
      @spec argmax(t(), keyword()) :: t()
      def argmax(x, opts \\ []) do
        opts =
          Options.validate!(:argmax, opts, axis: {nil, integer()}, keep_axis: {false, boolean()})

        case opts do
          %{axis: nil, keep_axis: true} ->
            fail!(:argmax, "keep_axis: needs an axis to keep")

          %{axis: nil} ->
            one(%Op.Argmax{axis: 0}, [reshape(x, {size(tensor!(:argmax, x))})])

          %{axis: axis, keep_axis: keep_axis} ->
            one(%Op.Argmax{axis: axis, keep_axis: keep_axis}, [x])
        end
      end

      @doc """
      Draws an index from each row of logits, on the device. See `Nitrox.Op.Sample`.

      `logits {…, V}`, `counter {}` of `{:s, 32}` → `{ids {…}, counter + 1}`, both `{:s, 32}`. The draw
      depends on nothing but the seed and the counter: keep the new counter in a session's state, and
      the next call draws anew; give the same one again, and it draws the same.

      Options:

        * `:temperature` - the logits are divided by it; 0 takes the most likely (default `1.0`)
        * `:top_k` - only the k most likely
        * `:top_p` - only the fewest, from the most likely down, whose probabilities sum to at least p
        * `:seed` - default `0`

      ## Examples

          iex> logits = Nitrox.tensor([[0.0, 9.0, 1.0]])
          iex> {ids, counter} = Nitrox.sample(logits, Nitrox.tensor(0), temperature: 0)
          iex> {Nitrox.to_list(ids), Nitrox.to_number(counter)}
          {[1], 1}
      """
      @doc group: "Choosing"
      @spec sample(t(), t(), keyword()) :: {t(), t()}
      def sample(logits, counter, opts \\ []) do
        opts =
          Options.validate!(:sample, opts,
            temperature: {1.0, not_negative()},
            top_k: {nil, integer(1)},
            top_p:
              {nil, {"a number above 0 and at most 1", &(is_number(&1) and &1 > 0 and &1 <= 1)}},
            seed: {0, {"an integer from 0 to 2^64 - 1", &(&1 in 0..0xFFFFFFFFFFFFFFFF)}}
          )

        top_p = if opts.top_p, do: opts.top_p * 1.0
        op = struct!(Op.Sample, %{opts | temperature: opts.temperature * 1.0, top_p: top_p})
        [ids, counter] = Op.apply(op, [logits, counter])
        {ids, counter}
      end
    end
  end
end
