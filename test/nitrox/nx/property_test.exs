defmodule Nitrox.Nx.PropertyTest do
  # Random calls of Nx, on this backend, on each device there is, and on Nx.BinaryBackend. The seed is ExUnit's, which it
  # prints: `mix test --seed n` draws the same again.
  use ExUnit.Case, async: true
  @moduletag :nx

  @integers for kind <- [:u, :s], bits <- [8, 16, 32, 64], do: {kind, bits}
  @floats [{:f, 16}, {:bf, 16}, {:f, 32}, {:f, 64}]
  @types @integers ++ @floats

  # Of an element, relative. Nx.BinaryBackend computes in f64 and cuts bf16 off.
  @bounds %{{:f, 16} => 2.0e-3, {:bf, 16} => 1.6e-2, {:f, 32} => 4.0e-6, {:f, 64} => 1.0e-12}

  @rounds 60

  setup do
    :rand.seed(:exsss, ExUnit.configuration()[:seed])
    :ok
  end

  # ── What is drawn ───────────────────────────────────────────────────────────────────────────────

  defp pick(list), do: Enum.random(list)
  defp between(a, b), do: a + :rand.uniform(b - a + 1) - 1

  defp shape(rank \\ between(0, 4)),
    do: for(_ <- 1..rank//1, do: between(1, 5)) |> List.to_tuple()

  defp tensor(shape, type, range \\ {-9, 9})

  defp tensor(shape, {kind, _} = type, {low, high}) when kind in [:s, :u] do
    low = if kind == :u, do: max(low, 0), else: low
    values = for _ <- 1..Tuple.product(shape)//1, do: between(ceil(low), floor(high))
    build(values, shape, type)
  end

  defp tensor(shape, type, {low, high}) do
    values = for _ <- 1..Tuple.product(shape)//1, do: low + (high - low) * :rand.uniform()
    build(values, shape, type)
  end

  defp build(values, shape, type),
    do: Nx.tensor(values, type: type, backend: Nx.BinaryBackend) |> Nx.reshape(shape)

  # A shape that broadcasts with another: some axes 1, some leading ones missing.
  defp partner(shape) do
    axes = for n <- Tuple.to_list(shape), do: pick([n, n, 1])
    axes |> Enum.drop(between(0, length(axes))) |> List.to_tuple()
  end

  # ── What is compared ────────────────────────────────────────────────────────────────────────────

  # Half of the operands that may be numbers are: a constant is another path.
  defp check(what, tensors, fun, bound \\ nil) do
    expected = Nx.with_default_backend(Nx.BinaryBackend, fn -> apply(fun, tensors) end)

    for device <- Application.get_env(:nitrox, :test_devices) do
      backend = {Nitrox.Backend, device: device}
      got = Nx.with_default_backend(backend, fn -> apply(fun, brought(tensors)) end)

      types = Enum.map_join(tensors, ", ", &"#{inspect(&1.type)} #{inspect(&1.shape)}")
      what = "#{what} of #{types} on #{inspect(device)}"

      for {got, expected} <- Enum.zip(flat(got), flat(expected)) do
        assert %{__struct__: Nitrox.Backend, device: ^device} = got.data
        assert got.type == expected.type, what
        assert {got.shape, got.names} == {expected.shape, expected.names}, what
        close!(got, expected, bound || @bounds[expected.type], what)
      end
    end
  end

  # Now and then one of the operands is left where it is: it is brought along.
  defp brought([]), do: []

  defp brought(tensors) do
    left = if between(1, 4) == 1 and length(tensors) > 1, do: between(0, length(tensors) - 1)
    for {t, i} <- Enum.with_index(tensors), do: if(i == left, do: t, else: here(t))
  end

  defp here(%{shape: {}} = t) do
    if pick([true, false]),
      do: Nx.tensor(Nx.to_number(t), type: t.type),
      else: Nx.backend_copy(t, Nx.default_backend())
  end

  defp here(t), do: Nx.backend_copy(t, Nx.default_backend())

  defp flat(t) when is_struct(t, Nx.Tensor), do: [t]
  defp flat(tuple), do: Tuple.to_list(tuple)

  defp close!(got, expected, nil, what),
    do: assert(Nx.to_flat_list(got) == Nx.to_flat_list(expected), what)

  defp close!(got, expected, bound, what) do
    [xs, ys] = for t <- [got, expected], do: Nx.to_flat_list(t)
    size = ys |> Enum.filter(&is_number/1) |> Enum.map(&abs/1) |> Enum.max(fn -> 0 end)

    for {x, y} <- Enum.zip(xs, ys) do
      same =
        x == y or
          (is_number(x) and is_number(y) and
             abs(x - y) <= bound * max(abs(y), size * 0.01) + 1.0e-30)

      assert same, "#{what}: got #{x}, expected #{y}"
    end
  end

  # ── Elementwise ─────────────────────────────────────────────────────────────────────────────────

  @domains %{
    log: {0.1, 9},
    log1p: {-0.5, 9},
    sqrt: {0, 9},
    rsqrt: {0.1, 9},
    acosh: {1.1, 9},
    atanh: {-0.9, 0.9},
    acos: {-1, 1},
    asin: {-1, 1},
    erf_inv: {-0.9, 0.9},
    # Away from the poles.
    tan: {-1.4, 1.4}
  }

  # Differences that Nx.BinaryBackend loses: near 0 it takes 1 off, or from 1.
  @loose %{expm1: 1.0e-5, log1p: 1.0e-5, erfc: 1.0e-4, erf_inv: 1.0e-4}

  test "functions of one tensor" do
    names = Keyword.keys(Nx.Shared.unary_math_funs())

    for name <- names, type <- @types do
      # An integer is either in the function's domain or it is not.
      {low, high} = @domains[name] || {-4, 4}
      {low, high} = if type in @integers, do: {ceil(low), floor(high)}, else: {low, high}
      out = Nx.Type.to_floating(type)
      bound = max(@loose[name] || 0, @bounds[out])
      check("#{name}", [tensor(shape(), type, {low, high})], &apply(Nx, name, [&1]), bound)
    end

    for name <- [:abs, :negate, :sign, :ceil, :floor, :round, :is_nan, :is_infinity, :logical_not],
        type <- @types do
      check("#{name}", [tensor(shape(), type)], &apply(Nx, name, [&1]))
    end

    for name <- [:bitwise_not, :population_count, :count_leading_zeros], type <- @integers do
      check("#{name}", [tensor(shape(), type)], &apply(Nx, name, [&1]))
    end
  end

  test "functions of two tensors, of any two types" do
    names =
      ~w(add subtract multiply divide min max atan2 equal not_equal greater less greater_equal)a ++
        ~w(less_equal logical_and logical_or logical_xor)a

    for name <- names, _ <- 1..@rounds do
      a = shape()
      [a, b] = Enum.shuffle([a, partner(a)])
      operands = [tensor(a, pick(@types)), tensor(b, pick(@types), {1, 9})]
      check("#{name}", operands, &apply(Nx, name, [&1, &2]))
    end

    for name <- ~w(quotient remainder)a, _ <- 1..@rounds do
      a = shape()
      operands = [tensor(a, pick(@integers)), tensor(partner(a), pick(@integers), {1, 9})]
      check("#{name}", operands, &apply(Nx, name, [&1, &2]))
    end

    for name <- ~w(bitwise_and bitwise_or bitwise_xor left_shift right_shift)a, _ <- 1..@rounds do
      a = shape()
      operands = [tensor(a, pick(@integers)), tensor(partner(a), pick(@integers), {0, 7})]
      check("#{name}", operands, &apply(Nx, name, [&1, &2]))
    end

    for types <- [@integers, @floats], _ <- 1..@rounds do
      a = shape()
      operands = [tensor(a, pick(types), {1, 4}), tensor(partner(a), pick(types), {0, 3})]
      check("pow", operands, &Nx.pow/2)
    end
  end

  test "numbers among the operands" do
    for name <- ~w(add subtract multiply divide max less)a, type <- @types, _ <- 1..4 do
      number = pick([2, 0.5, 3])
      check("#{name} with #{number}", [tensor(shape(), type)], &apply(Nx, name, [&1, number]))

      check(
        "#{name} of #{number}",
        [tensor(shape(), type, {1, 9})],
        &apply(Nx, name, [number, &1])
      )
    end
  end

  test "select and clip" do
    for _ <- 1..@rounds do
      a = shape()
      predicate = tensor(pick([a, {}]), pick(@types), {0, 1})
      predicate = Nx.round(predicate)
      operands = [predicate, tensor(a, pick(@types)), tensor(partner(a), pick(@types))]
      check("select", operands, &Nx.select/3)

      type = pick(@types)
      check("clip", [tensor(shape(), type)], &Nx.clip(&1, 1, 3))
    end
  end

  # ── Shape ───────────────────────────────────────────────────────────────────────────────────────

  test "types" do
    for from <- @types, to <- @types do
      range = if elem(to, 0) == :u, do: {0, 9}, else: {-9, 9}
      check("as_type #{inspect(to)}", [tensor(shape(), from, range)], &Nx.as_type(&1, to))
    end

    for {kind, bits} <- @types, to <- @types, elem(to, 1) == bits do
      check(
        "bitcast",
        [tensor(shape(), {kind, bits})],
        &Nx.bitcast(&1, to),
        if(elem(to, 0) in [:f, :bf], do: 0.0)
      )
    end
  end

  test "what moves elements about" do
    for _ <- 1..@rounds do
      type = pick(@types)
      x = tensor(shape(between(1, 4)), type)
      rank = tuple_size(x.shape)
      axes = Enum.shuffle(0..(rank - 1))
      check("transpose", [x], &Nx.transpose(&1, axes: axes))
      check("reshape", [x], &Nx.reshape(&1, {Nx.size(&1)}))
      some = Enum.take(axes, between(1, rank))
      check("reverse", [x], &Nx.reverse(&1, axes: some))
      place = between(0, rank)
      check("new_axis", [x], &Nx.new_axis(&1, place))

      wider = Tuple.insert_at(x.shape, 0, 3)
      check("broadcast", [x], &Nx.broadcast(&1, wider))
      into = List.to_tuple(Tuple.to_list(x.shape) ++ [2])

      check(
        "broadcast into axes",
        [x],
        &Nx.broadcast(&1, into, axes: Enum.to_list(0..(rank - 1)))
      )

      config = for _ <- 1..rank, do: {between(0, 2), between(0, 2), between(0, 1)}
      check("pad", [x], &Nx.pad(&1, 3, config))

      starts = for n <- Tuple.to_list(x.shape), do: between(0, n)
      lengths = for n <- Tuple.to_list(x.shape), do: between(1, n)
      strides = for n <- lengths, do: between(1, n)
      check("slice", [x], &Nx.slice(&1, starts, lengths, strides: strides))

      # A number, a constant, or what only the device knows.
      held = for start <- starts, do: {pick([:number, :constant, :device]), start}

      there = fn ->
        for {how, start} <- held do
          case how do
            :number -> start
            :constant -> Nx.tensor(start, type: :s64)
            :device -> Nx.sum(Nx.tensor([start], type: :s32))
          end
        end
      end

      check("slice at tensors", [x], &Nx.slice(&1, there.(), lengths, strides: strides))

      part = tensor(List.to_tuple(lengths), pick(@types))
      check("put_slice", [x, part], &Nx.put_slice(&1, there.(), &2))

      axis = between(0, rank - 1)
      y = tensor(put_elem(x.shape, axis, between(1, 3)), pick(@types))
      check("concatenate", [x, y, x], &Nx.concatenate([&1, &2, &3], axis: axis))

      check(
        "stack",
        [x, tensor(x.shape, pick(@types))],
        &Nx.stack([&1, &2], axis: axis)
      )
    end
  end

  test "what is made" do
    for type <- @types, _ <- 1..5 do
      shape = shape(between(1, 4))
      axis = pick([nil | Enum.to_list(0..(tuple_size(shape) - 1))])
      check("iota", [], fn -> Nx.iota(shape, type: type, axis: axis) end)
      check("eye", [], fn -> Nx.eye({2, 3, 4}, type: type) end)
      check("broadcast", [], fn -> Nx.broadcast(Nx.tensor(7, type: type), shape) end)
    end
  end

  # ── Indices and order ───────────────────────────────────────────────────────────────────────────

  test "gather, take and indexed writes" do
    for _ <- 1..@rounds do
      x = tensor(shape(between(1, 4)), pick(@types))
      rank = tuple_size(x.shape)
      axes = 0..(rank - 1) |> Enum.take_random(between(1, rank)) |> Enum.sort()
      k = between(1, 6)

      rows = for _ <- 1..k, do: for(axis <- axes, do: between(0, elem(x.shape, axis) - 1))
      indices = Nx.tensor(rows, type: pick(@integers), backend: Nx.BinaryBackend)
      check("gather", [x, indices], &Nx.gather(&1, &2, axes: axes))

      rest = for axis <- 0..(rank - 1), axis not in axes, do: elem(x.shape, axis)
      updates = tensor(List.to_tuple([k | rest]), pick(@types))
      # Sums of floats are in another order there.
      check(
        "indexed_add",
        [x, indices, updates],
        &Nx.indexed_add(&1, &2, &3, axes: axes),
        sum_bound(x, updates)
      )

      check("indexed_put", [x, indices, updates], &Nx.indexed_put(&1, &2, &3, axes: axes))

      axis = between(0, rank - 1)
      places = tensor(shape(between(1, 2)), {:s, 32}, {0, elem(x.shape, axis) - 1})
      check("take", [x, places], &Nx.take(&1, &2, axis: axis))
      along = tensor(put_elem(x.shape, axis, 3), {:s, 64}, {0, elem(x.shape, axis) - 1})
      check("take_along_axis", [x, along], &Nx.take_along_axis(&1, &2, axis: axis))
    end
  end

  defp sum_bound(x, y) do
    bound = @bounds[Nx.Type.merge(x.type, y.type)]
    bound && bound * 4
  end

  test "sort, argsort, top_k" do
    for type <- @types, _ <- 1..8 do
      x = tensor(shape(between(1, 3)), type)
      axis = between(0, tuple_size(x.shape) - 1)
      direction = pick([:asc, :desc])
      check("sort", [x], &Nx.sort(&1, axis: axis, direction: direction))
      check("argsort", [x], &Nx.argsort(&1, axis: axis, direction: direction, stable: true))
      k = between(1, elem(x.shape, tuple_size(x.shape) - 1))
      check("top_k", [x], &elem(Nx.top_k(&1, k: k), 0))
    end

    x = Nx.tensor([1.0, :nan, :infinity, -3.0, :neg_infinity, 0.5], backend: Nx.BinaryBackend)

    for direction <- [:asc, :desc] do
      check("sort", [x], &Nx.sort(&1, direction: direction), 0.0)
      check("argsort", [x], &Nx.argsort(&1, direction: direction))
    end
  end

  # ── Reductions ──────────────────────────────────────────────────────────────────────────────────

  test "reductions" do
    for name <- ~w(sum product reduce_max reduce_min all any mean)a, type <- @types, _ <- 1..5 do
      # Of no axes Nx makes all and any a conversion, where a negative float has no u8.
      x = tensor(shape(), type, if(name in [:all, :any], do: {0, 2}, else: {-2, 2}))
      rank = tuple_size(x.shape)
      axes = pick([nil, 0..(rank - 1)//1 |> Enum.take_random(between(0, rank))])
      options = [axes: axes, keep_axes: pick([true, false])]
      options = if axes == nil, do: Keyword.delete(options, :axes), else: options
      bound = @bounds[Nx.Type.to_floating(type)] * 8
      bound = if type in @floats or name == :mean, do: bound
      bound = if name in [:all, :any], do: nil, else: bound
      check("#{name} #{inspect(options)}", [x], &apply(Nx, name, [&1, options]), bound)
    end

    for name <- [:argmax, :argmin], type <- @types, _ <- 1..6 do
      x = tensor(shape(between(1, 4)), type, {0, 3})
      axis = pick([nil, between(0, tuple_size(x.shape) - 1)])
      options = [axis: axis, tie_break: pick([:low, :high]), keep_axis: pick([true, false])]
      check("#{name} #{inspect(options)}", [x], &apply(Nx, name, [&1, options]))
    end

    for name <- ~w(cumulative_sum cumulative_product cumulative_max cumulative_min)a,
        type <- @types do
      x = tensor(shape(between(1, 3)), type, {-2, 2})
      options = [axis: between(0, tuple_size(x.shape) - 1), reverse: pick([true, false])]
      # There bf16 is cut off after each element.
      bound = @bounds[type] && @bounds[type] * 32
      check("#{name} #{inspect(options)}", [x], &apply(Nx, name, [&1, options]), bound)
    end
  end

  test "windows" do
    for name <- ~w(window_sum window_product window_max window_min)a, type <- @types, _ <- 1..3 do
      x = tensor({between(2, 5), between(3, 6)}, type, {-2, 2})
      window = {between(1, 2), between(1, 3)}

      options = [
        strides: [between(1, 2), between(1, 2)],
        padding: pick([:valid, :same, [{1, 0}, {0, 2}]]),
        window_dilations: pick([1, [1, 1]])
      ]

      bound = @bounds[type] && @bounds[type] * 8

      check(
        "#{name} #{inspect({window, options})}",
        [x],
        &apply(Nx, name, [&1, window, options]),
        bound
      )
    end

    for name <- [:window_scatter_max, :window_scatter_min], _ <- 1..10 do
      type = pick(@types)
      x = tensor({4, 6}, type)
      source = tensor({2, 2}, pick(@types))
      options = [strides: [2, 3], padding: :valid]
      # There what is added is made a tensor of f32 first.
      bound = @bounds[source.type] && max(@bounds[source.type], @bounds[{:f, 32}])
      check("#{name}", [x, source], &apply(Nx, name, [&1, &2, 0, {2, 3}, options]), bound)
    end
  end

  # ── Products ────────────────────────────────────────────────────────────────────────────────────

  test "dot, with batches and any axes contracted" do
    for _ <- 1..(2 * @rounds) do
      batch = shape(between(0, 2)) |> Tuple.to_list()
      contracted = shape(between(0, 2)) |> Tuple.to_list()
      [free_a, free_b] = for _ <- 1..2, do: shape(between(0, 2)) |> Tuple.to_list()
      {a, contract_a} = arrange(batch, contracted, free_a)
      {b, contract_b} = arrange(batch, contracted, free_b)
      batch_axes = Enum.to_list(0..(length(batch) - 1)//1)
      operands = [tensor(a, pick(@types), {-2, 2}), tensor(b, pick(@types), {-2, 2})]
      [x, y] = operands
      bound = @bounds[Nx.Type.merge(x.type, y.type)]

      check(
        "dot",
        operands,
        &Nx.dot(&1, contract_a, batch_axes, &2, contract_b, batch_axes),
        bound && bound * 8
      )
    end
  end

  # The axes but those of the batch in any order, and where those that are contracted came to lie.
  defp arrange(batch, contracted, free) do
    tagged = Enum.with_index(contracted, &{&2, &1}) ++ Enum.map(free, &{nil, &1})
    tagged = Enum.shuffle(tagged)
    shape = batch ++ Enum.map(tagged, &elem(&1, 1))

    axes =
      for i <- 0..(length(contracted) - 1)//1,
          do: length(batch) + Enum.find_index(tagged, &(elem(&1, 0) == i))

    {List.to_tuple(shape), axes}
  end

  # What stands beside a diagonal is less than it, so that no solution is far from its right side. The
  # triangle that is not read has elements too.
  defp triangle(batch, n, type) do
    beside = tensor(List.to_tuple(batch ++ [n, n]), type, {-1, 1})
    diagonal = Nx.multiply(Nx.eye(n, type: type, backend: Nx.BinaryBackend), pick([3, 5]))
    Nx.add(beside, diagonal)
  end

  test "triangular systems, in every form" do
    for _ <- 1..(2 * @rounds) do
      batch = shape(between(0, 2)) |> Tuple.to_list()
      n = between(1, 5)
      left_side = pick([true, false])
      columns = pick([[], [between(1, 5)]])
      sides = if left_side, do: [n | columns], else: columns ++ [n]
      a = triangle(batch, n, pick(@types))
      b = tensor(List.to_tuple(batch ++ sides), pick(@types))

      options = [
        lower: pick([true, false]),
        left_side: left_side,
        transform_a: pick([:none, :transpose, :conjugate])
      ]

      bound = @bounds[Nx.Type.merge(a.type, b.type) |> Nx.Type.to_floating()]
      solve = &Nx.LinAlg.triangular_solve(&1, &2, options)
      check("triangular_solve #{inspect(options)}", [a, b], solve, bound * 4)
    end
  end

  test "the gradient of a triangular system" do
    for lower <- [true, false], left_side <- [true, false], transform <- [:none, :transpose] do
      options = [lower: lower, left_side: left_side, transform_a: transform]
      [a, b] = [triangle([], 4, {:f, 64}), tensor({4, 4}, {:f, 64})]

      gradient = fn a, b ->
        Nx.Defn.grad({a, b}, fn {a, b} ->
          x = Nx.LinAlg.triangular_solve(a, b, options)
          Nx.sum(Nx.multiply(x, Nx.iota({4, 4})))
        end)
      end

      check("gradient of triangular_solve #{inspect(options)}", [a, b], gradient, 1.0e-10)
    end
  end

  test "conv, of one to three axes" do
    for spatial <- 1..3, _ <- 1..12 do
      groups = pick([1, 1, 2])
      batch_groups = if groups == 1, do: pick([1, 1, 2]), else: 1
      input = [2 * batch_groups, 2 * groups] ++ for(_ <- 1..spatial, do: between(3, 5))
      kernel = [2 * groups * batch_groups, 2] ++ for(_ <- 1..spatial, do: between(1, 3))

      options = [
        strides: for(_ <- 1..spatial, do: between(1, 2)),
        padding: pick([:valid, :same, for(_ <- 1..spatial, do: {between(0, 2), between(0, 2)})]),
        input_dilation: for(_ <- 1..spatial, do: between(1, 2)),
        kernel_dilation: pick([1, 1]),
        feature_group_size: groups,
        batch_group_size: batch_groups
      ]

      [x, k] = for s <- [input, kernel], do: tensor(List.to_tuple(s), pick(@floats), {-1, 1})
      bound = @bounds[Nx.Type.merge(x.type, k.type)]
      check("conv #{inspect(options)}", [x, k], &Nx.conv(&1, &2, options), bound * 16)

      # Channels last.
      last = [0, spatial + 1] ++ Enum.to_list(1..spatial)
      from = for i <- 0..(spatial + 1), do: Enum.find_index(last, &(&1 == i))
      options = options ++ [input_permutation: last, output_permutation: last]
      x = Nx.transpose(x, axes: from)

      check(
        "conv, channels last, #{inspect(options)}",
        [x, k],
        &Nx.conv(&1, &2, options),
        bound * 16
      )
    end
  end
end
