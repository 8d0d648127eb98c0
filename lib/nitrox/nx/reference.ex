if Code.ensure_loaded?(Nx.Tensor) do
  defmodule Nitrox.Nx.Reference do
    @moduledoc false
    # Each op in plain Nx: what a block runs on other backends and compilers, and what gradients are
    # taken of. As in the kernels, everything is computed in f32 and rounded once.

    alias Nitrox.{Error, Op}
    alias Nitrox.Nx.Reference.{Attention, Sequence}

    @fused [
      Op.Dense,
      Op.LayerNorm,
      Op.RmsNorm,
      Op.Lstm,
      Op.Gru,
      Op.FlashAttention,
      Op.CausalConv1d,
      Op.SelectiveScan,
      Op.Rope,
      Op.GatedMlp,
      Op.Embedding,
      Op.Softmax,
      Op.Sample
    ]

    @doc "Whether an op is worth a block: whether Nx has no op that is the same."
    def fused?(%module{}), do: module in @fused

    @doc "An op's output, or a tuple of them."
    def run(op, inputs)

    def run(%Op.Dense{activation: activation}, [x, w | rest]) do
      dense(x, w, Enum.at(rest, 0))
      |> activate(activation)
      |> plus(Enum.at(rest, 1))
      |> Nx.as_type(x.type)
    end

    def run(%Op.GatedMlp{activation: activation}, [x, gate, up, down | rest]) do
      dense(x, gate)
      |> activate(activation)
      |> Nx.multiply(dense(x, up))
      |> dense(down)
      |> plus(Enum.at(rest, 0))
      |> Nx.as_type(x.type)
    end

    def run(%Op.LayerNorm{epsilon: epsilon}, [x, gamma, beta | rest]) do
      norm(x, Enum.at(rest, 0), &layer_norm(&1, f32(gamma), f32(beta), epsilon))
    end

    def run(%Op.RmsNorm{epsilon: epsilon}, [x, gamma | rest]) do
      norm(x, Enum.at(rest, 0), &rms_norm(&1, f32(gamma), epsilon))
    end

    def run(%Op.Softmax{axis: axis, log: log?}, [x]) do
      wide = f32(x)
      shifted = Nx.subtract(wide, Nx.reduce_max(wide, axes: [axis], keep_axes: true))
      powers = Nx.exp(shifted)
      sum = Nx.sum(powers, axes: [axis], keep_axes: true)

      if log?,
        do: Nx.as_type(Nx.subtract(shifted, Nx.log(sum)), x.type),
        else: Nx.as_type(Nx.divide(powers, sum), x.type)
    end

    def run(%Op.Embedding{}, [table, ids]) do
      rows = Nx.axis_size(table, 0)
      inside = Nx.logical_and(Nx.greater_equal(ids, 0), Nx.less(ids, rows))
      found = Nx.take(table, Nx.clip(ids, 0, rows - 1))
      nan = Nx.tensor(:nan, type: table.type)
      Nx.select(Nx.broadcast(Nx.new_axis(inside, -1), found.shape), found, nan)
    end

    def run(%Op.Rope{} = op, [x, positions]) do
      {_, frames, _, width} = x.shape
      turned = op.dims || width

      positions =
        case positions.shape do
          {} -> Nx.add(positions, Nx.iota({1, frames}))
          {_} -> Nx.new_axis(positions, 0)
          {_, _} -> positions
        end

      pair = Nx.iota({div(turned, 2)}, type: :f32)
      rate = Nx.multiply(op.scale, Nx.pow(op.base, Nx.multiply(pair, -2.0 / max(turned, 1))))
      angle = Nx.multiply(f32(Nx.new_axis(positions, -1)), rate) |> Nx.new_axis(2)
      rope(f32(x), Nx.cos(angle), Nx.sin(angle), turned, op.interleaved) |> Nx.as_type(x.type)
    end

    def run(%Op.FlashAttention{} = op, inputs), do: Attention.run(op, inputs)
    def run(%Op.CausalConv1d{} = op, inputs), do: Sequence.causal_conv1d(op, inputs)
    def run(%Op.Lstm{} = op, inputs), do: Sequence.lstm(op, inputs)
    def run(%Op.Gru{} = op, inputs), do: Sequence.gru(op, inputs)
    def run(%Op.SelectiveScan{} = op, inputs), do: Sequence.selective_scan(op, inputs)

    def run(%Op.Sample{}, _) do
      message = "draws on Nitrox.Backend alone"
      raise Error.argument(:sample, message, "draw with Nx.Random elsewhere")
    end

    # ── What Nx has a word for ────────────────────────────────────────────────────────────────────

    def run(%Op.Unary{kind: kind}, [x]), do: activate(x, kind)

    def run(%Op.Binary{kind: kind}, [a, b]), do: Kernel.apply(Nx, kind, [a, b])

    def run(%Op.Select{}, [predicate, on_true, on_false]) do
      shape = Nx.add(Nx.add(predicate, on_true), on_false).shape
      Nx.select(Nx.broadcast(predicate, shape), on_true, on_false)
    end

    def run(%Op.Cast{type: type}, [x]), do: Nx.as_type(x, type)
    def run(%Op.Reshape{shape: shape}, [x]), do: Nx.reshape(x, List.to_tuple(shape))
    def run(%Op.Transpose{axes: axes}, [x]), do: Nx.transpose(x, axes: axes)

    def run(%Op.Slice{wrap: false, starts: starts, lengths: lengths, strides: strides}, [x, nil]),
      do: Nx.slice(x, starts, lengths, strides: strides)

    def run(%Op.Broadcast{shape: shape}, [x]), do: Nx.broadcast(x, List.to_tuple(shape))
    def run(%Op.Concatenate{axis: axis}, tensors), do: Nx.concatenate(tensors, axis: axis)

    def run(%Op.Reduce{kind: kind, axes: axes, keep_axes: keep}, [x]) do
      options = if axes == [], do: [keep_axes: keep], else: [axes: axes, keep_axes: keep]
      name = %{max: :reduce_max, min: :reduce_min}[kind] || kind
      Kernel.apply(Nx, name, [x, options]) |> Nx.as_type(x.type)
    end

    def run(%Op.Argmax{axis: axis, keep_axis: keep}, [x]),
      do: Nx.argmax(x, axis: axis, keep_axis: keep)

    def run(%module{}, _) do
      name = module |> Module.split() |> List.last()
      raise Error.argument(:nx, "Nitrox.Op.#{name} takes no tensors of Nx", "Nx has its own")
    end

    # ── Parts ─────────────────────────────────────────────────────────────────────────────────────

    def f32(nil), do: nil
    def f32(x), do: Nx.as_type(x, :f32)

    def dense(x, w, b \\ nil), do: x |> f32() |> Nx.dot([-1], f32(w), [0]) |> plus(b)

    def plus(x, nil), do: x
    def plus(x, y), do: Nx.add(x, f32(y))

    def activate(x, :none), do: x
    def activate(x, :relu), do: Nx.max(x, 0)
    def activate(x, :silu), do: Nx.multiply(x, Nx.sigmoid(x))
    def activate(x, :reciprocal), do: Nx.divide(1, x)

    def activate(x, :gelu) do
      half = Nx.multiply(x, 0.5)
      Nx.multiply(half, Nx.add(1, Nx.erf(Nx.multiply(x, :math.sqrt(0.5)))))
    end

    def activate(x, :gelu_tanh) do
      cubed = Nx.multiply(x, Nx.multiply(x, x))
      inner = Nx.add(x, Nx.multiply(cubed, 0.044715))
      half = Nx.multiply(x, 0.5)
      Nx.multiply(half, Nx.add(1, Nx.tanh(Nx.multiply(inner, :math.sqrt(2 / :math.pi())))))
    end

    # Without a power that overflows.
    def activate(x, :softplus),
      do: Nx.add(Nx.max(x, 0), Nx.log1p(Nx.exp(Nx.negate(Nx.abs(x)))))

    def activate(x, kind), do: Kernel.apply(Nx, kind, [x])

    # The norm of x, or of x and its residual, and then also that.
    defp norm(x, nil, normalise), do: Nx.as_type(normalise.(f32(x)), x.type)

    defp norm(x, residual, normalise) do
      sum = Nx.add(f32(x), f32(residual))
      {Nx.as_type(normalise.(sum), x.type), Nx.as_type(sum, x.type)}
    end

    def layer_norm(x, gamma, beta, epsilon) do
      centred = Nx.subtract(x, Nx.mean(x, axes: [-1], keep_axes: true))

      variance = Nx.mean(Nx.multiply(centred, centred), axes: [-1], keep_axes: true)

      centred
      |> Nx.multiply(Nx.rsqrt(Nx.add(variance, epsilon)))
      |> Nx.multiply(gamma)
      |> plus(beta)
    end

    def rms_norm(x, gamma, epsilon) do
      square = Nx.mean(Nx.multiply(x, x), axes: [-1], keep_axes: true)
      x |> Nx.multiply(Nx.rsqrt(Nx.add(square, epsilon))) |> Nx.multiply(gamma)
    end

    defp rope(x, _, _, 0, _), do: x

    defp rope(x, cos, sin, turned, interleaved?) do
      {b, s, h, width} = x.shape
      half = div(turned, 2)
      part = Nx.slice_along_axis(x, 0, turned, axis: 3)

      {pairs, axis} =
        if interleaved?,
          do: {Nx.reshape(part, {b, s, h, half, 2}), 4},
          else: {Nx.reshape(part, {b, s, h, 2, half}), 3}

      [j, k] =
        for i <- 0..1,
            do: pairs |> Nx.slice_along_axis(i, 1, axis: axis) |> Nx.squeeze(axes: [axis])

      turned_part =
        [
          Nx.subtract(Nx.multiply(j, cos), Nx.multiply(k, sin)),
          Nx.add(Nx.multiply(j, sin), Nx.multiply(k, cos))
        ]
        |> Nx.stack(axis: axis)
        |> Nx.reshape({b, s, h, turned})

      if turned == width,
        do: turned_part,
        else:
          Nx.concatenate(
            [turned_part, Nx.slice_along_axis(x, turned, width - turned, axis: 3)],
            axis: 3
          )
    end
  end
end
