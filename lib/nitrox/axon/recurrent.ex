if Code.ensure_loaded?(Axon) do
  defmodule Nitrox.Axon.Recurrent do
    @moduledoc false
    # LSTM and GRU, and the packing of their gates.

    import Nitrox.Axon.Fused, only: [cast: 2, common_type: 1, fits: 2, reversed: 2, shapes: 1]

    alias Nx.Tensor, as: T

    # The parameters of a layer, and the gates in each, in the order in which `Nitrox.lstm/6` and
    # `Nitrox.gru/6` take them.
    @gates %{
      lstm: [
        {"input_kernel", ~w(wii wif wig wio)},
        {"hidden_kernel", ~w(whi whf whg who)},
        {"bias", ~w(bi bf bg bo)}
      ],
      gru: [
        {"input_kernel", ~w(wir wiz win)},
        {"hidden_kernel", ~w(whr whz whn)},
        {"bias", ~w(br bz bin bhn)}
      ]
    }

    # ── Packing ───────────────────────────────────────────────────────────────────────────────────

    @doc "A layer's parameters with the gates of each side by side, or `:error` where some are missing."
    def pack(kind, parameters) do
      reduce(kind, parameters, fn
        %T{} = packed, _ ->
          {:ok, packed}

        gates, names when is_map(gates) ->
          with {:ok, tensors} <- tensors(gates, names),
               do: {:ok, Nx.concatenate(tensors, axis: -1)}

        _, _ ->
          :error
      end)
    end

    @doc "What `pack/2` was given."
    def unpack(kind, parameters) do
      reduce(kind, parameters, fn
        %T{} = packed, names -> {:ok, split(packed, names)}
        gates, _ -> {:ok, gates}
      end)
    end

    defp reduce(kind, parameters, fun) do
      Enum.reduce_while(@gates[kind], {:ok, parameters}, fn {name, gates}, {:ok, parameters} ->
        case parameters do
          %{^name => value} ->
            case fun.(value, gates) do
              {:ok, value} -> {:cont, {:ok, %{parameters | name => value}}}
              :error -> {:halt, :error}
            end

          # A layer may have no bias.
          %{} ->
            if name == "bias", do: {:cont, {:ok, parameters}}, else: {:halt, :error}
        end
      end)
    end

    defp tensors(gates, names) do
      if Enum.all?(names, &is_map_key(gates, &1)),
        do: {:ok, Enum.map(names, &Map.fetch!(gates, &1))},
        else: :error
    end

    defp split(packed, names) do
      width = div(Nx.axis_size(packed, -1), length(names))

      for {name, i} <- Enum.with_index(names), into: %{} do
        {name, Nx.slice_along_axis(packed, i * width, width, axis: -1)}
      end
    end

    @doc "A layer's inputs as Axon's own function takes them."
    def unpacked(kind, [x, state, mask | parameters]) do
      parameters =
        for {parameter, {_, names}} <- Enum.zip(parameters, @gates[kind]) do
          case parameter do
            %T{} = packed -> split(packed, names)
            gates -> gates
          end
        end

      [x, state, mask | parameters]
    end

    # ── Running ───────────────────────────────────────────────────────────────────────────────────

    @doc "The layer by one op: `{:ok, {sequence, state}}`, or `{:plain, why}`."
    def run(kind, [x, state, mask | parameters], opts, details) do
      [wi, wh, b] =
        for {{_, names}, i} <- Enum.with_index(@gates[kind]),
            do: weight(Enum.at(parameters, i), names)

      states = Tuple.to_list(state)
      weights = Enum.flat_map([wi, wh, b], &leaves/1)

      with {:ok, type} <- common_type([x | weights]),
           {:ok, wide} <- common_type([x | weights] ++ states),
           :ok <- fits(Nx.rank(x) == 3, "an input of shape #{shapes([x])}, and not {B, T, I}"),
           hidden = Nx.axis_size(hd(leaves(wh)), 0),
           expected = {Nx.axis_size(x, 0), hidden},
           :ok <-
             fits(Enum.all?(states, &(&1.shape == expected)), "a state of #{shapes(states)}"),
           {:ok, mask} <- mask(mask, x, details) do
        # Axon's layer may have been given a sequence in reverse, by Axon.bidirectional/4.
        ahead = mask == nil && reversed(x, [1])
        [wi, wh, b] = for w <- [wi, wh, b], do: cast_weight(w, type)
        # The kernels take a state of their own type or of f32.
        states = for s <- states, do: cast(s, if(wide == type, do: type, else: {:f, 32}))
        x = cast(ahead || x, type)
        options = [mask: mask, reverse: ahead not in [nil, false]]

        {sequence, state} =
          apply(Nitrox, kind, [x, List.to_tuple(states), wi, wh, b, options])

        # An unrolled loop collects its frames in f32.
        sequence_type =
          if opts[:unroll] == :dynamic, do: Nx.Type.merge(wide, {:f, 32}), else: wide

        sequence = cast(sequence, sequence_type)
        sequence = if ahead, do: Nx.reverse(sequence, axes: [1]), else: sequence
        state = for s <- Tuple.to_list(state), do: cast(s, wide)
        {:ok, {sequence, List.to_tuple(state)}}
      end
    end

    def run(_, _, _, _), do: {:plain, "it has other inputs than Axon gives such a layer"}

    defp weight(nil, _), do: nil
    defp weight(%T{} = packed, _), do: packed
    defp weight(gates, names), do: names |> Enum.map(&Map.fetch!(gates, &1)) |> List.to_tuple()

    defp leaves(nil), do: []
    defp leaves(%T{} = tensor), do: [tensor]
    defp leaves(tuple), do: Tuple.to_list(tuple)

    defp cast_weight(nil, _), do: nil
    defp cast_weight(%T{} = w, type), do: cast(w, type)

    defp cast_weight(gates, type),
      do: gates |> Tuple.to_list() |> Enum.map(&cast(&1, type)) |> List.to_tuple()

    # Axon reads a mask as u8, and one frame of it for all where it has only one.
    defp mask(_, _, %{masked?: false}), do: {:ok, nil}

    defp mask(%T{} = mask, x, _) do
      batch = Nx.axis_size(x, 0)
      frames = Nx.axis_size(x, 1)
      mask = Nx.as_type(mask, :u8)

      cond do
        mask.shape == {} ->
          {:ok, Nx.broadcast(mask, {batch, frames})}

        Nx.size(mask) == batch * frames and Nx.axis_size(mask, 0) == batch ->
          {:ok, Nx.reshape(mask, {batch, frames})}

        mask.shape == {batch, 1} ->
          {:ok, Nx.broadcast(mask, {batch, frames})}

        true ->
          {:plain, "a mask of shape #{shapes([mask])}"}
      end
    end

    defp mask(_, _, _), do: {:plain, "a mask that is no tensor"}
  end
end
