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

    def block(struct, out, args, fun) do
      case native(struct, out, args) do
        {:ok, result} -> result
        :default -> apply(fun, [struct | args])
      end
    end

    @doc "A block by what the engine has for it, or `:default` where that is nothing."
    def native(%Block{} = block, out, tensors), do: {:ok, Fused.native(block, out, tensors)}

    def native(%module{} = struct, out, [t]) do
      native? = Routes.native?(t)

      case struct do
        %Nx.Block.LogicalNot{} when native? ->
          {:ok, Elementwise.logical_not(out, t)}

        %Nx.Block.TopK{} when native? ->
          {:ok, Index.top_k(out, t)}

        _ when native? and is_map_key(@cumulative, module) ->
          {:ok, Reduce.cumulative(@cumulative[module], out, t, struct)}

        _ ->
          :default
      end
    end

    def native(_struct, _out, _args), do: :default
  end
end
