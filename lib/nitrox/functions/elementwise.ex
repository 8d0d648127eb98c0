defmodule Nitrox.Functions.Elementwise do
  @moduledoc false
  # Functions of one, two and three tensors, element by element.

  import Kernel, except: [abs: 1, ceil: 1, floor: 1, max: 2, min: 2, round: 1]

  alias Nitrox.Op

  defmacro __using__(_) do
    quote location: :keep, unquote: false do
      for {name, doc} <- [
            negate: "`−x`.",
            abs: "`|x|`.",
            sign: "−1, 0 or 1.",
            exp: "`eˣ`. Floats.",
            expm1: "`eˣ − 1`, exact near 0. Floats.",
            log: "The natural logarithm. Floats.",
            log1p: "`ln(1 + x)`, exact near 0. Floats.",
            sqrt: "`√x`. Floats.",
            rsqrt: "`1 / √x`. Floats.",
            reciprocal: "`1 / x`. Floats.",
            sin: "The sine. Floats.",
            cos: "The cosine. Floats.",
            tanh: "The hyperbolic tangent. Floats.",
            erf: "The error function. Floats.",
            floor: "The next integer down. Floats.",
            ceil: "The next integer up. Floats.",
            round: "The nearest integer, halves away from zero. Floats.",
            sigmoid: "`1 / (1 + e⁻ˣ)`. Floats.",
            relu: "x where it is positive, 0 elsewhere.",
            silu: "`x · sigmoid(x)`. Floats.",
            gelu: "`x · Φ(x)` by the error function. Floats.",
            gelu_tanh: "`gelu/1` by its approximation with tanh, as in GPT-2. Floats.",
            softplus: "`ln(1 + eˣ)`. Floats.",
            logical_not: "1 where x is 0, 0 elsewhere, as `{:u, 8}`."
          ] do
        @doc "#{doc} `x {…}` → `{…}`."
        @doc group: "Functions of one tensor"
        @spec unquote(name)(t()) :: t()
        def unquote(name)(x), do: one(%Op.Unary{kind: unquote(name)}, [x])
      end

      for {name, doc} <- [
            add: "`a + b`.",
            subtract: "`a − b`.",
            multiply: "`a · b`.",
            divide: "`a / b`. Floats; `quotient/2` divides integers.",
            quotient: "`a / b` of integers, truncated; by zero it gives zero.",
            remainder: "What `a / b` leaves over, with the sign of `a`.",
            max: "The greater one.",
            min: "The lesser one.",
            pow: "`aᵇ`.",
            equal: "1 where `a = b`, else 0, as `{:u, 8}`.",
            not_equal: "1 where `a ≠ b`, else 0, as `{:u, 8}`.",
            less: "1 where `a < b`, else 0, as `{:u, 8}`.",
            less_equal: "1 where `a ≤ b`, else 0, as `{:u, 8}`.",
            greater: "1 where `a > b`, else 0, as `{:u, 8}`.",
            greater_equal: "1 where `a ≥ b`, else 0, as `{:u, 8}`.",
            logical_and: "1 where neither is 0, else 0, as `{:u, 8}`.",
            logical_or: "1 where one of them is not 0, else 0, as `{:u, 8}`.",
            logical_xor: "1 where just one of them is not 0, else 0, as `{:u, 8}`."
          ] do
        @doc """
        #{doc}

        `a` and `b` are of one type and broadcast against each other; one of them may be a number. See
        `Nitrox.Op.Binary`.
        """
        @doc group: "Functions of two tensors"
        @spec unquote(name)(operand(), operand()) :: t()
        def unquote(name)(a, b), do: one(%Op.Binary{kind: unquote(name)}, [a, b])
      end

      @doc """
      `on_true` where the predicate is not zero, `on_false` elsewhere. The predicate is `{:u, 8}`, as
      comparisons give it; the three broadcast.

          iex> x = Nitrox.tensor([-1.0, 2.0])
          iex> x |> Nitrox.less(0) |> Nitrox.select(Nitrox.multiply(x, 0.5), x) |> Nitrox.to_list()
          [-0.5, 2.0]
      """
      @doc group: "Functions of two tensors"
      @spec select(t(), t(), t()) :: t()
      def select(predicate, on_true, on_false),
        do: one(%Op.Select{}, [predicate, on_true, on_false])

      @doc """
      `x`, but no less than `least` and no more than `most`.

          iex> Nitrox.tensor([-3, 0, 3]) |> Nitrox.clip(-1, 1) |> Nitrox.to_list()
          [-1, 0, 1]
      """
      @doc group: "Functions of two tensors"
      @spec clip(t(), operand(), operand()) :: t()
      def clip(_x, least, most) when is_number(least) and is_number(most) and least > most do
        fail!(:clip, "expected least ≤ most, got #{inspect(least)} and #{inspect(most)}")
      end

      def clip(x, least, most), do: x |> max(least) |> min(most)
    end
  end
end
