if Code.ensure_loaded?(Axon) do
  defmodule Nitrox.Axon.Report do
    @moduledoc """
    What `Nitrox.Axon.accelerate/2` did to a model, layer by layer, as `Nitrox.Axon.explain/1` gives it.
    `inspect/2` and `to_string/1` show it as a table.

    Each of `layers` is a map:

      * `:layer` - its name, such as `"lstm_0"`, behind those of the blocks that it is in:
        `"block_0.lstm_0"`
      * `:path` - the same as a list: where its parameters are in a model state
      * `:kind` - `:lstm`, `:dense`, `:attention` and so on
      * `:op` - the function of `Nitrox` that it is now, such as `:lstm`, or nil where it was left alone
      * `:with` - the names of the layers that it does as well: an activation, a sum
      * `:why` - why it was left alone, or nil
      * `:notes` - what else there is to know, such as what stays apart
    """

    @type layer :: %{
            layer: String.t(),
            path: [String.t()],
            kind: atom(),
            op: atom(),
            with: [String.t()],
            why: String.t() | nil,
            notes: [String.t()]
          }
    @type t :: %__MODULE__{accelerated: boolean(), layers: [layer()]}
    defstruct accelerated: false, layers: []

    @doc false
    def text(%__MODULE__{layers: layers, accelerated: accelerated?}) do
      {replaced, kept} = Enum.split_with(layers, & &1.op)
      first = if accelerated?, do: "replaced", else: "accelerate/2 would replace"

      sections =
        for {title, [_ | _] = rows} <- [{first, replaced}, {"as they are", kept}],
            do: [title <> ":" | table(rows)]

      if sections == [],
        do: "no layers that Nitrox has an op for",
        else: sections |> List.flatten() |> Enum.join("\n")
    end

    defp table(rows) do
      width = rows |> Enum.map(&String.length(label(&1))) |> Enum.max()

      for row <- rows do
        done = if row.op, do: [Enum.join(["Nitrox.#{row.op}" | row.with], " + ")], else: [row.why]
        "  #{String.pad_trailing(label(row), width)}  #{Enum.join(done ++ row.notes, "; ")}"
      end
    end

    # Bumblebee gives attention no name.
    defp label(%{kind: :attention, layer: layer}), do: "#{layer} (attention)"
    defp label(%{layer: layer}), do: layer

    defimpl String.Chars do
      def to_string(report), do: Nitrox.Axon.Report.text(report)
    end

    defimpl Inspect do
      def inspect(report, _) do
        lines = report |> Nitrox.Axon.Report.text() |> String.split("\n")
        Enum.join(["#Nitrox.Axon.Report<" | Enum.map(lines, &("  " <> &1))] ++ [">"], "\n")
      end
    end
  end
end
