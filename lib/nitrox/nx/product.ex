if Code.ensure_loaded?(Nx.Tensor) do
  defmodule Nitrox.Nx.Product do
    @moduledoc false
    # Products of tensors, and systems of them.

    alias Nitrox.Nx.Data
    alias Nitrox.Op

    def dot(out, a, contract_a, batch_a, b, contract_b, batch_b) do
      device = Data.device(a, b)

      op = %Op.Dot{
        contract_a: contract_a,
        batch_a: batch_a,
        contract_b: contract_b,
        batch_b: batch_b
      }

      refs = [Data.whole(a, out.type, device), Data.whole(b, out.type, device)]
      Data.run(out, op, refs, device)
    end

    # The conjugate of a real matrix is the matrix.
    def triangular_solve(out, a, b, opts) do
      device = Data.device(a, b)

      op = %Op.TriangularSolve{
        lower: opts[:lower],
        left_side: opts[:left_side],
        transpose: opts[:transform_a] == :transpose
      }

      refs = [Data.whole(a, out.type, device), Data.whole(b, out.type, device)]
      Data.run(out, op, refs, device)
    end

    @doc "The engine has the batch first, then the channels, then space."
    def conv(out, t, kernel, opts) do
      device = Data.device(t, kernel)

      op = %Op.Conv{
        strides: opts[:strides],
        padding: Enum.map(opts[:padding], &Tuple.to_list/1),
        input_dilation: opts[:input_dilation],
        kernel_dilation: opts[:kernel_dilation],
        feature_groups: opts[:feature_group_size],
        batch_groups: opts[:batch_group_size]
      }

      refs = [
        Data.whole(t, out.type, device) |> permute(opts[:input_permutation], device),
        Data.whole(kernel, out.type, device) |> permute(opts[:kernel_permutation], device)
      ]

      # Nx says where each axis of the result comes to lie, the engine's transpose where from.
      from =
        opts[:output_permutation] |> Enum.with_index() |> Enum.sort() |> Enum.map(&elem(&1, 1))

      Data.put(out, Data.call(op, refs, device) |> permute(from, device), device)
    end

    defp permute(ref, axes, device) do
      if axes == Enum.sort(axes),
        do: ref,
        else: Data.call(%Op.Transpose{axes: axes}, [ref], device)
    end
  end
end
