defmodule Nitrox.BackboneTest do
  use ExUnit.Case, async: true
  alias Nitrox.{Backbone, Program, Session}

  @frames 21

  @configs [
    {:mlp, [input: {:features, 9}, hidden: [16, 8], outputs: 5]},
    {:mlp, [input: {:features, 3}, context: 4, hidden: [16], outputs: 5]},
    {:mlp, [input: {:tokens, 11, 6}, context: 5, hidden: [16, 16], outputs: 11]},
    {:lstm, [input: {:features, 9}, hidden: [8, 12], outputs: 5]},
    {:lstm, [input: {:tokens, 11, 6}, hidden: [8], outputs: 11]},
    {:gru, [input: {:features, 9}, hidden: [8, 12], outputs: 5]},
    {:gru, [input: {:tokens, 11, 6}, hidden: [8], outputs: 11]},
    {:mamba, [input: {:features, 9}, hidden: [8, 8], outputs: 5, state: 3, dt_rank: 2]},
    {:mamba, [input: {:tokens, 11, 6}, hidden: [6], outputs: 11, expand: 3, conv: 2]},
    {:attention, [input: {:features, 9}, hidden: [8, 8], outputs: 5, heads: 2, context: 5]},
    {:attention, [input: {:tokens, 11, 8}, hidden: [8], outputs: 11, ffn: 12, context: 64]},
    {:jamba, [input: {:features, 9}, hidden: List.duplicate(8, 6), outputs: 5, context: 6]},
    {:jamba, [input: {:tokens, 11, 8}, hidden: [8, 8], outputs: 11, attention_every: 2]}
  ]

  # `frames` as one window, and as the list of its frames.
  defp input(backbone, batch, frames) do
    rand = :rand.seed_s(:exsss, 5)

    {window, shape} =
      case backbone.input do
        {:features, n} ->
          {numbers, _} =
            Enum.map_reduce(1..(batch * frames * n), rand, fn _, r -> :rand.normal_s(r) end)

          {Nitrox.tensor(numbers), [n]}

        {:tokens, vocabulary, _} ->
          {ids, _} =
            Enum.map_reduce(1..(batch * frames), rand, fn _, r ->
              :rand.uniform_s(vocabulary, r)
            end)

          {Nitrox.tensor(Enum.map(ids, &(&1 - 1))), []}
      end

    window = Nitrox.reshape(window, List.to_tuple([batch, frames | shape]))

    steps =
      for t <- 0..(frames - 1),
          do: window |> cut(t, 1) |> Nitrox.reshape(List.to_tuple([batch | shape]))

    {window, steps}
  end

  defp cut(x, from, count) do
    [batch, _ | rest] = Tuple.to_list(Nitrox.shape(x))
    Nitrox.slice(x, [0, from | Enum.map(rest, fn _ -> 0 end)], [batch, count | rest])
  end

  defp steps(backbone, frames, state) do
    {logits, state} = Enum.map_reduce(frames, state, &Backbone.step(backbone, &1, &2))
    {Nitrox.stack(logits, axis: 1), state}
  end

  defp assert_near(a, b) do
    [a, b] = for x <- [a, b], do: List.flatten(Nitrox.to_list(x))
    distance = Enum.zip_reduce(a, b, 0.0, fn x, y, sum -> sum + (x - y) * (x - y) end)
    size = Enum.reduce(b, 0.0, &(&2 + &1 * &1))
    assert size > 0
    assert :math.sqrt(distance / size) <= 1.0e-5
  end

  for {{kind, config}, n} <- Enum.with_index(@configs), batch <- [1, 3] do
    test "step after step is the window: #{n} #{kind}, batch #{batch}" do
      batch = unquote(batch)
      backbone = Backbone.init(unquote(kind), unquote(Macro.escape(config)), seed: unquote(n))
      {window, frames} = input(backbone, batch, @frames)
      start = Backbone.initial_state(backbone, batch)

      {whole, after_whole} = Backbone.window(backbone, window, start)
      assert Nitrox.shape(whole) == {batch, @frames, backbone.outputs}
      {stepped, _} = steps(backbone, frames, start)
      assert_near(stepped, whole)

      # From a state in the middle, into which either form may lead, both go on as one.
      {first, middle} = Backbone.window(backbone, cut(window, 0, 7), start)
      {_, stepped_middle} = steps(backbone, Enum.take(frames, 7), start)
      {rest, _} = Backbone.window(backbone, cut(window, 7, @frames - 7), stepped_middle)
      {stepped_rest, _} = steps(backbone, Enum.drop(frames, 7), middle)
      assert_near(first, cut(whole, 0, 7))
      assert_near(rest, cut(whole, 7, @frames - 7))
      assert_near(stepped_rest, cut(whole, 7, @frames - 7))

      # The state matters: the last window goes on from where it is.
      if backbone.kind != :mlp or backbone.context do
        {fresh, _} = Backbone.window(backbone, window, start)
        {carried, _} = Backbone.window(backbone, window, after_whole)
        assert Nitrox.to_list(fresh) != Nitrox.to_list(carried)
      end
    end

    test "a compiled step is the eager one: #{n} #{kind}, batch #{batch}" do
      batch = unquote(batch)
      backbone = Backbone.init(unquote(kind), unquote(Macro.escape(config)), seed: unquote(n))
      {_, frames} = input(backbone, batch, @frames)
      session = Backbone.session(backbone, batch: batch)

      Enum.reduce(frames, Backbone.initial_state(backbone, batch), fn frame, state ->
        {logits, state} = Backbone.step(backbone, frame, state)
        {action, bytes} = Session.step(session, [Nitrox.to_binary(frame)])
        here = Nitrox.from_binary(bytes, {:f, 32}, {batch, backbone.outputs})
        assert_near(here, logits)
        assert action == here |> Nitrox.argmax(axis: -1) |> Nitrox.to_binary()
        state
      end)
    end
  end

  for {{kind, config}, n} <- Enum.with_index(@configs) do
    @tag :cuda
    test "CUDA gives what the CPU gives: #{n} #{kind}" do
      here = Backbone.init(unquote(kind), unquote(Macro.escape(config)), seed: unquote(n))
      params = Map.new(here.params, fn {name, p} -> {name, Nitrox.copy(p, {:cuda, 0})} end)
      there = Backbone.new(unquote(kind), unquote(Macro.escape(config)), params)
      {window, frames} = input(here, 2, @frames)

      {expected, _} = Backbone.window(here, window, Backbone.initial_state(here, 2))

      {logits, _} =
        Backbone.window(there, Nitrox.copy(window, {:cuda, 0}), Backbone.initial_state(there, 2))

      assert_near(logits, expected)

      session = Backbone.session(there, batch: 2)

      for {frame, t} <- Enum.with_index(frames) do
        {_, bytes} = Session.step(session, [Nitrox.to_binary(frame)])

        assert_near(
          Nitrox.from_binary(bytes, {:f, 32}, {2, 1, here.outputs}),
          cut(expected, t, 1)
        )
      end
    end
  end

  # The forms of each kind over 500 frames, with rings of 60: far more than they hold.
  @long [
    mlp: [hidden: [64, 64], context: 60],
    lstm: [hidden: [64, 64]],
    gru: [hidden: [64, 64]],
    mamba: [hidden: [64, 64]],
    attention: [hidden: [64, 64]],
    jamba: [hidden: List.duplicate(64, 6)]
  ]

  for {kind, config} <- @long do
    test "500 frames, one by one and at once: #{kind}" do
      config = unquote(config) ++ [input: {:features, 32}, outputs: 7]
      assert_long(Backbone.init(unquote(kind), config, seed: 3))
    end

    @tag :cuda
    test "500 frames, one by one and at once, on CUDA: #{kind}" do
      # As wide as a game's.
      width = if unquote(kind) == :mlp, do: 512, else: 256
      config = Keyword.update!(unquote(config), :hidden, &Enum.map(&1, fn _ -> width end))
      config = config ++ [input: {:features, 288}, outputs: 53]
      assert_long(Backbone.init(unquote(kind), config, seed: 3, device: {:cuda, 0}))
    end
  end

  defp assert_long(backbone) do
    {window, frames} = input(backbone, 1, 500)
    window = Nitrox.copy(window, backbone.device)
    frames = Enum.map(frames, &Nitrox.to_binary/1)
    start = Backbone.initial_state(backbone)

    form = fn x -> Backbone.window(backbone, x, start) end
    whole = Program.compile(form, [window], device: backbone.device)
    {logits, _} = Program.run(whole, [window])

    session = Backbone.session(backbone)

    stepped =
      for frame <- frames, into: <<>> do
        {_action, logits} = Session.step(session, [frame])
        logits
      end

    assert_near(Nitrox.from_binary(stepped, {:f, 32}, {1, 500, backbone.outputs}), logits)
  end

  test "a session samples on, and sessions of one program are apart" do
    backbone = Backbone.init(:gru, input: {:tokens, 11, 6}, hidden: [8], outputs: 11)
    program = Backbone.program(backbone, sample: [temperature: 2.0, seed: 9])

    write = fn session, from, count ->
      {tokens, _} =
        Enum.map_reduce(1..count, from, fn _, token ->
          {action, _} = Session.step(session, [token])
          {action, action}
        end)

      tokens
    end

    [a, b] = [Session.new(program), Session.new(program)]
    first = write.(a, <<0::signed-32-native>>, 30)
    assert write.(b, <<0::signed-32-native>>, 30) == first
    assert length(Enum.uniq(first)) > 3
    assert write.(a, List.last(first), 30) != first
    assert is_map(Program.info(program))
  end

  test "the window form compiles too" do
    backbone = Backbone.init(:lstm, input: {:features, 4}, hidden: [8], outputs: 3)
    {window, _} = input(backbone, 1, 10)
    start = Backbone.initial_state(backbone)
    {expected, _} = Backbone.window(backbone, window, start)

    program = Program.compile(fn x -> elem(Backbone.window(backbone, x, start), 0) end, [window])
    assert_near(Program.run(program, [window]), expected)
  end

  test "weights in 16 bits keep their state in f32" do
    for type <- [{:bf, 16}, {:f, 16}] do
      backbone =
        Backbone.init(:lstm, [input: {:features, 4}, hidden: [8], outputs: 3], type: type)

      assert Backbone.template(backbone).type == type
      {window, _} = input(backbone, 1, 6)

      {logits, state} =
        Backbone.window(backbone, Nitrox.cast(window, type), Backbone.initial_state(backbone))

      assert Nitrox.type(logits) == type
      assert [{%{type: {:f, 32}}, %{type: {:f, 32}}}] = state.layers
    end
  end

  test "weights in 16 bits: Mamba keeps h in f32, and what frames were in their own type" do
    for type <- [{:bf, 16}, {:f, 16}] do
      config = [input: {:features, 4}, hidden: List.duplicate(8, 3), outputs: 3]
      backbone = Backbone.init(:jamba, config, type: type)
      {window, _} = input(backbone, 1, 6)

      {logits, state} =
        Backbone.window(backbone, Nitrox.cast(window, type), Backbone.initial_state(backbone))

      assert Nitrox.type(logits) == type
      assert [{conv, h}, {_, _}, {ring}] = state.layers
      assert Enum.map([conv, h, ring], &Nitrox.type/1) == [type, {:f, 32}, type]
      assert Nitrox.to_list(state.turns) == [6, 6, 0]
    end
  end

  test "a step is few ops: a layer's, and those of the whole" do
    steps = fn kind, layers ->
      config = [input: {:features, 8}, hidden: List.duplicate(64, layers), outputs: 5]
      Program.info(Backbone.program(Backbone.init(kind, config))).steps
    end

    # With the norms, which on CUDA are in the dense layers: 6 and 7 launches.
    assert steps.(:mamba, 3) - steps.(:mamba, 2) == 7
    assert steps.(:attention, 3) - steps.(:attention, 2) == 9
  end

  test "inspecting one shows its shape, not its weights" do
    backbone =
      Backbone.init(:mlp, input: {:tokens, 11, 6}, context: 5, hidden: [16, 8], outputs: 11)

    assert inspect(backbone) ==
             "#Nitrox.Backbone<mlp, tokens of 11, the last 5 frames -> 16 -> 8 -> 11, f32 on :cpu>"
  end

  test "a seed is the weights" do
    config = [input: {:features, 4}, hidden: [8], outputs: 3]

    weights = fn seed ->
      Nitrox.to_binary(Backbone.init(:mlp, config, seed: seed).params["layers.0.w"])
    end

    assert weights.(1) == weights.(1)
    assert weights.(1) != weights.(2)
    # Deviation 1/√fan-in.
    big =
      Backbone.init(:mlp, input: {:features, 100}, hidden: [100], outputs: 1).params["layers.0.w"]

    assert_in_delta Nitrox.to_number(Nitrox.mean(Nitrox.multiply(big, big))), 0.01, 5.0e-4
  end

  describe "refusals" do
    defp refusal(fun), do: Exception.message(assert_raise(Nitrox.Error, fun))

    test "of configs" do
      good = [input: {:features, 4}, hidden: [8], outputs: 3]
      assert refusal(fn -> Backbone.init(:lsmt, good) end) =~ ":lstm"
      assert refusal(fn -> Backbone.init(:mlp, Keyword.delete(good, :outputs)) end) =~ ":outputs"
      assert refusal(fn -> Backbone.init(:mlp, [widths: 1] ++ good) end) =~ ":hidden"

      assert refusal(fn -> Backbone.init(:mlp, Keyword.put(good, :hidden, 8)) end) =~
               "a list of widths"

      assert refusal(fn -> Backbone.init(:mlp, Keyword.put(good, :input, 8)) end) =~
               "{:features, n}"

      assert refusal(fn -> Backbone.init(:gru, [context: 4] ++ good) end) =~ "context"
      assert refusal(fn -> Backbone.init(:attention, [state: 4] ++ good) end) =~ ":jamba, :mamba"
      assert refusal(fn -> Backbone.init(:mamba, [heads: 4] ++ good) end) =~ ":attention, :jamba"
      assert refusal(fn -> Backbone.init(:attention, [heads: 3] ++ good) end) =~ "heads"
      assert refusal(fn -> Backbone.init(:mamba, [stat: 3] ++ good) end) =~ ":state"
      uneven = Keyword.put(good, :hidden, [8, 16])
      assert refusal(fn -> Backbone.init(:mamba, uneven) end) =~ "one width"
      narrow = Keyword.put(good, :input, {:tokens, 5, 4})
      assert refusal(fn -> Backbone.init(:jamba, narrow) end) =~ "as wide as the layers, 8"
      backbone = Backbone.init(:mlp, good)
      assert refusal(fn -> Backbone.session(backbone, batches: 2) end) =~ ":batch"

      assert refusal(fn -> Backbone.session(backbone, sample: [temprature: 1]) end) =~
               ":temperature"
    end

    test "of more weights than can be drawn" do
      large = [input: {:features, 2 ** 31}, hidden: [4], outputs: 2]

      assert refusal(fn -> Backbone.init(:gru, large) end) =~
               ~r/at most 268435456 .* makes \d{11}/
    end

    test "of frames and states" do
      backbone = Backbone.init(:lstm, input: {:features, 4}, hidden: [8], outputs: 3)
      state = Backbone.initial_state(backbone, 2)
      x = Nitrox.broadcast_to(Nitrox.tensor(0.0), {2, 4})

      for {x, state, part} <- [
            {Nitrox.tensor([1.0]), state, "x must be {B, 4}, got {1}"},
            {1, state, "x must be a tensor, got 1"},
            {x, nil, "the state must be a map with the keys :layers, got nil"},
            {x, %{layers: []}, "the state[:layers] must be a list of 1"},
            {x, %{layers: [{x, nil}]}, "the state[:layers][0][1] must be a tensor, got nil"},
            {x, Backbone.initial_state(backbone), "must be f32[2][8], got f32[1][8]"}
          ] do
        assert refusal(fn -> Backbone.step(backbone, x, state) end) =~ part
      end

      assert refusal(fn -> Backbone.window(backbone, x, state) end) =~ "x must be {B, T, 4}"
      assert refusal(fn -> Backbone.initial_state(backbone, 0) end) =~ "at least 1, got 0"
      assert refusal(fn -> Backbone.initial_state(backbone, 2 ** 40) end) =~ "out of memory"
    end

    test "of weights" do
      config = [input: {:features, 4}, hidden: [8], outputs: 3]
      params = Backbone.init(:mlp, config).params
      assert Backbone.new(:mlp, config, params).params == params

      assert refusal(fn -> Backbone.new(:mlp, config, Map.delete(params, "head.b")) end) =~
               "head.b {3} is missing"

      wrong = Map.put(params, "layers.0.b", Nitrox.tensor([1.0]))

      assert refusal(fn -> Backbone.new(:mlp, config, wrong) end) =~
               "layers.0.b must be {8}, got {1}"
    end
  end

  describe "load" do
    @describetag :tmp_dir

    # A safetensors file of f16 zeros.
    defp file(dir, kind, shapes, metadata \\ "") do
      {entries, size} =
        Enum.map_reduce(shapes, 0, fn {name, shape}, at ->
          to = at + 2 * Enum.product(shape)

          {~s("#{name}":{"dtype":"F16","shape":#{inspect(shape, charlists: :as_lists)},"data_offsets":[#{at},#{to}]}),
           to}
        end)

      header = ~s({"__metadata__":{"backbone":"#{kind}"#{metadata}},#{Enum.join(entries, ",")}})
      path = Path.join(dir, "#{kind}.safetensors")
      File.write!(path, [<<byte_size(header)::little-64>>, header, <<0::size(size * 8)>>])
      path
    end

    test "reads the config from the shapes", %{tmp_dir: dir} do
      shapes = [
        {"embedding.table", [7, 3]},
        {"layers.0.w", [12, 5]},
        {"layers.0.b", [5]},
        {"layers.1.w", [5, 6]},
        {"layers.1.b", [6]},
        {"head.w", [6, 7]},
        {"head.b", [7]}
      ]

      backbone = Backbone.load(file(dir, "mlp", shapes))

      assert {backbone.kind, backbone.input, backbone.hidden, backbone.outputs} ==
               {:mlp, {:tokens, 7, 3}, [5, 6], 7}

      assert backbone.context.length == 4
      assert backbone.type == {:f, 32}

      # A name that is missing or of another shape is named.
      assert refusal(fn -> Backbone.load(file(dir, "mlp", List.delete_at(shapes, 2))) end) =~
               "layers.0.b"

      wrong = List.replace_at(shapes, 4, {"layers.1.b", [2, 3]})

      assert refusal(fn -> Backbone.load(file(dir, "mlp", wrong)) end) =~
               "layers.1.b must be {6}, got {2, 3}"

      assert refusal(fn -> Backbone.load(file(dir, "rwkv", shapes)) end) =~ "gru, jamba, lstm"
      assert refusal(fn -> Backbone.load(file(dir, "mlp", [{"head.w", [6]}])) end) =~ "layers.0.w"
    end

    test "reads the sizes of Mamba and attention", %{tmp_dir: dir} do
      config = [hidden: List.duplicate(16, 4), outputs: 5]
      mamba = [state: 3, expand: 3, conv: 2, dt_rank: 5]
      attention = [heads: 2, ffn: 9, context: 7]
      said = ~s(,"heads":"2","context":"7")

      for {kind, sizes} <- [
            mamba: mamba,
            attention: attention,
            jamba: mamba ++ attention ++ [attention_every: 2]
          ],
          input <- [{:features, 6}, {:tokens, 11, 16}] do
        made = Backbone.init(kind, [input: input] ++ config ++ sizes)
        shapes = for {name, p} <- made.params, do: {name, Tuple.to_list(Nitrox.shape(p))}
        read = Backbone.load(file(dir, kind, shapes, if(kind != :mamba, do: said, else: "")))

        for field <- [:kind, :input, :hidden, :outputs, :sizes],
            do: assert(Map.fetch!(read, field) == Map.fetch!(made, field))

        if kind != :mamba do
          unsaid = file(dir, kind, shapes, ~s(,"heads":"two","context":"7"))
          assert refusal(fn -> Backbone.load(unsaid) end) =~ ~s(must say heads, got "two")
        end
      end
    end

    test "reads features and gates", %{tmp_dir: dir} do
      shapes =
        [{"layers.0.wi", [10, 18]}, {"layers.0.wh", [6, 18]}, {"layers.0.b", [24]}] ++
          [
            {"layers.0.norm.gamma", [6]},
            {"layers.0.norm.beta", [6]},
            {"head.w", [6, 4]},
            {"head.b", [4]}
          ]

      backbone = Backbone.load(file(dir, "gru", shapes), type: {:f, 16})
      assert {backbone.input, backbone.hidden, backbone.outputs} == {{:features, 10}, [6], 4}
      assert backbone.type == {:f, 16}
    end
  end
end
