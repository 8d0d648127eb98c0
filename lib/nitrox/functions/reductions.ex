defmodule Nitrox.Functions.Reductions do
  @moduledoc false
  # Reductions over axes.

  alias Nitrox.{Op, Options}

  defmacro __using__(_) do
    quote location: :keep, unquote: false do
      for {name, kind, doc} <- [
            {:sum, :sum, "The sum"},
            {:mean, :mean, "The mean of floats"},
            {:product, :product, "The product"},
            {:reduce_max, :max, "The greatest element"},
            {:reduce_min, :min, "The least element"}
          ] do
        @doc """
        #{doc} over `:axes`, or over all of them. See `Nitrox.Op.Reduce`.

        Options:

          * `:axes` - a list of axes (default: all)
          * `:keep_axes` - leave them there, with length 1 (default `false`)
        """
        @doc group: "Reductions"
        @spec unquote(name)(t(), keyword()) :: t()
        def unquote(name)(x, opts \\ []) do
          opts =
            Options.validate!(unquote(name), opts,
              axes: {nil, axes()},
              keep_axes: {false, boolean()}
            )

          one(%Op.Reduce{kind: unquote(kind), axes: opts.axes || [], keep_axes: opts.keep_axes}, [
            x
          ])
        end
      end
    end
  end
end
