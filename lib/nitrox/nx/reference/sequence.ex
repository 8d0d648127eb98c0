if Code.ensure_loaded?(Nx.Tensor) do
  defmodule Nitrox.Nx.Reference.Sequence do
    @moduledoc false
    # The ops along time, one frame after the other.

    import Nx.Defn

    import Nitrox.Nx.Reference,
      only: [f32: 1, plus: 2, dense: 3, activate: 2, layer_norm: 4, rms_norm: 3]

    def causal_conv1d(op, [x, w | rest]) do
      [b, state] = for i <- 0..1, do: Enum.at(rest, i)
      {batch, frames, width} = x.shape
      {taps, _} = w.shape

      past = state || Nx.broadcast(Nx.tensor(0, type: x.type), {batch, taps - 1, width})
      all = Nx.concatenate([past, x], axis: 1)

      sum =
        for tap <- 0..(taps - 1), reduce: nil do
          sum ->
            part = all |> Nx.slice_along_axis(tap, frames, axis: 1) |> f32()
            term = Nx.multiply(part, f32(w[tap]))
            if sum, do: Nx.add(sum, term), else: term
        end

      y = sum |> plus(b) |> activate(op.activation) |> Nx.as_type(x.type)
      {y, Nx.slice_along_axis(all, frames, taps - 1, axis: 1)}
    end

    def lstm(op, [x, c0, h0, wi, wh | rest]) do
      [b, mask] = for i <- 0..1, do: Enum.at(rest, i)
      {hidden, _} = wh.shape
      type = state_type(c0 || h0, x)
      [c0, h0] = for s <- [c0, h0], do: state(s, x, hidden)

      {c, h, seq} =
        lstm_frames(dense(x, wi, b), c0, h0, f32(wh), mask(mask, x), reverse: op.reverse)

      {Nx.as_type(seq, x.type), Nx.as_type(c, type), Nx.as_type(h, type)}
    end

    def gru(op, [x, h0, wi, wh | rest]) do
      [b, mask] = for i <- 0..1, do: Enum.at(rest, i)
      {hidden, _} = wh.shape
      b = f32(b || Nx.broadcast(0.0, {4 * hidden}))
      gates = dense(x, wi, Nx.slice_along_axis(b, 0, 3 * hidden))
      recurrent = Nx.slice_along_axis(b, 3 * hidden, hidden)
      h = state(h0, x, hidden)

      {h, seq} =
        gru_frames(gates, h, f32(wh), recurrent, mask(mask, x), reverse: op.reverse)

      {Nx.as_type(seq, x.type), Nx.as_type(h, state_type(h0, x))}
    end

    defp state_type(nil, x), do: x.type
    defp state_type(state, _), do: state.type

    defp state(nil, x, hidden), do: Nx.broadcast(0.0, {Nx.axis_size(x, 0), hidden})
    defp state(state, _, _), do: f32(state)

    defp mask(nil, x), do: Nx.broadcast(Nx.u8(0), {Nx.axis_size(x, 0), Nx.axis_size(x, 1)})
    defp mask(mask, _), do: mask

    defnp lstm_frames(gates, c, h, wh, mask, opts \\ []) do
      {batch, frames, hidden} =
        {Nx.axis_size(gates, 0), Nx.axis_size(gates, 1), Nx.axis_size(h, 1)}

      seq = Nx.broadcast(0.0, {batch, frames, hidden})

      {c, h, seq, _, _, _} =
        while {c, h, seq, gates, wh, mask}, i <- 0..(frames - 1) do
          t = frame(i, frames, opts)
          g = gates |> Nx.slice_along_axis(t, 1, axis: 1) |> Nx.squeeze(axes: [1])
          g = g + Nx.dot(h, wh)
          kept = Nx.slice_along_axis(mask, t, 1, axis: 1) != 0

          new_c =
            Nx.sigmoid(gate(g, 1, hidden)) * c +
              Nx.sigmoid(gate(g, 0, hidden)) * Nx.tanh(gate(g, 2, hidden))

          new_h = Nx.sigmoid(gate(g, 3, hidden)) * Nx.tanh(new_c)
          kept = Nx.broadcast(kept, h)
          c = Nx.select(kept, c, new_c)
          h = Nx.select(kept, h, new_h)
          {c, h, Nx.put_slice(seq, [0, t, 0], Nx.new_axis(h, 1)), gates, wh, mask}
        end

      {c, h, seq}
    end

    defnp gru_frames(gates, h, wh, recurrent, mask, opts \\ []) do
      {batch, frames, hidden} =
        {Nx.axis_size(gates, 0), Nx.axis_size(gates, 1), Nx.axis_size(h, 1)}

      seq = Nx.broadcast(0.0, {batch, frames, hidden})

      {h, seq, _, _, _, _} =
        while {h, seq, gates, wh, recurrent, mask}, i <- 0..(frames - 1) do
          t = frame(i, frames, opts)
          g = gates |> Nx.slice_along_axis(t, 1, axis: 1) |> Nx.squeeze(axes: [1])
          k = Nx.dot(h, wh)
          r = Nx.sigmoid(gate(g, 0, hidden) + gate(k, 0, hidden))
          z = Nx.sigmoid(gate(g, 1, hidden) + gate(k, 1, hidden))
          n = Nx.tanh(gate(g, 2, hidden) + r * (gate(k, 2, hidden) + recurrent))
          kept = Nx.broadcast(Nx.slice_along_axis(mask, t, 1, axis: 1) != 0, h)
          h = Nx.select(kept, h, (1 - z) * n + z * h)
          {h, Nx.put_slice(seq, [0, t, 0], Nx.new_axis(h, 1)), gates, wh, recurrent, mask}
        end

      {h, seq}
    end

    defnp frame(i, frames, opts \\ []) do
      case opts[:reverse] do
        true -> frames - 1 - i
        _ -> i
      end
    end

    defnp(gate(g, i, hidden), do: Nx.slice_along_axis(g, i * hidden, hidden, axis: 1))

    def selective_scan(op, [x, dt, a, b, c | rest]) do
      [d, z, dt_bias, state, residual, gamma, beta] = for i <- 0..6, do: Enum.at(rest, i)
      {batch, _, width} = x.shape
      {_, states} = a.shape
      wide = f32(x)
      h = f32(state || Nx.broadcast(0.0, {batch, width, states}))
      {y, h} = scan_frames(wide, step(op, dt, dt_bias), f32(a), f32(b), f32(c), h)
      y = if d, do: Nx.add(y, Nx.multiply(f32(d), wide)), else: y
      y = if z, do: Nx.multiply(y, activate(f32(z), :silu)), else: y
      y = plus(y, residual)

      case op.norm do
        nil ->
          {Nx.as_type(y, x.type), h}

        :layer_norm ->
          {normed(layer_norm(y, f32(gamma), f32(beta), op.epsilon), x), Nx.as_type(y, x.type), h}

        :rms_norm ->
          {normed(plus(rms_norm(y, f32(gamma), op.epsilon), beta), x), Nx.as_type(y, x.type), h}
      end
    end

    defp normed(y, x), do: Nx.as_type(y, x.type)

    defp step(op, dt, bias) do
      dt = dt |> f32() |> plus(bias)
      dt = if op.dt_softplus, do: activate(dt, :softplus), else: dt

      case op.dt_clamp do
        nil -> dt
        {low, high} -> Nx.clip(dt, low, high)
      end
    end

    defnp scan_frames(x, dt, a, b, c, h) do
      frames = Nx.axis_size(x, 1)
      y = Nx.broadcast(0.0, x)

      {h, y, _, _, _, _, _} =
        while {h, y, x, dt, a, b, c}, t <- 0..(frames - 1) do
          [x_t, dt_t] = [at(x, t), at(dt, t)]
          [b_t, c_t] = [at(b, t), at(c, t)]
          decay = Nx.exp(Nx.new_axis(dt_t, -1) * a)
          h = decay * h + Nx.new_axis(dt_t * x_t, -1) * Nx.new_axis(b_t, 1)
          y_t = Nx.sum(h * Nx.new_axis(c_t, 1), axes: [-1])
          {h, Nx.put_slice(y, [0, t, 0], Nx.new_axis(y_t, 1)), x, dt, a, b, c}
        end

      {y, h}
    end

    defnp(at(x, t), do: x |> Nx.slice_along_axis(t, 1, axis: 1) |> Nx.squeeze(axes: [1]))
  end
end
