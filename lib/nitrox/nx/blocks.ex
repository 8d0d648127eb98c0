if Code.ensure_loaded?(Nx.Tensor) do
  defmodule Nitrox.Nx.Blocks do
    @moduledoc false
    # `Nx.block/4`: what the engine does in one op, or else the block's default body, whose ops then
    # run on the device one by one.

    alias Nitrox.Nx.{Block, Elementwise, Fused, Index, Reduce, Routes}

    @cumulative %{
      Nx.Block.CumulativeSum => :sum,
      Nx.Block.CumulativeProduct => :product,
      Nx.Block.CumulativeMax => :max,
      Nx.Block.CumulativeMin => :min
    }

    def block(%Block{} = block, out, tensors, _fun), do: Fused.native(block, out, tensors)

    def block(%module{} = struct, out, [t] = args, fun) do
      native? = Routes.native?(t)

      case struct do
        %Nx.Block.LogicalNot{} when native? ->
          Elementwise.logical_not(out, t)

        %Nx.Block.TopK{} when native? ->
          Index.top_k(out, t)

        _ when native? and is_map_key(@cumulative, module) ->
          Reduce.cumulative(@cumulative[module], out, t, struct)

        _ ->
          apply(fun, [struct | args])
      end
    end

    def block(struct, _out, args, fun), do: apply(fun, [struct | args])
  end
end
