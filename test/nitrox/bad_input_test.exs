# Every public function, called with one thing wrong: a whole argument, an element of a list or tuple,
# or an option. It may find nothing wrong with it, or raise a `Nitrox.Error`; nothing else.
defmodule Nitrox.BadInputTest do
  # Fills the device's memory now and then.
  use ExUnit.Case, async: false

  alias Nitrox.{Backbone, Device, Doctor, Error, Import, Op, Program, Session, Template, Tensor}
  alias Nitrox.Weights

  @modules [
    Nitrox,
    Backbone,
    Device,
    Doctor,
    Import,
    Op,
    Program,
    Session,
    Template,
    Tensor,
    Weights
  ]

  # A call of each, with arguments that are right.
  defp calls do
    x = Tensor.tensor([[1.0, 2.0], [3.0, 4.0]])
    row = Tensor.tensor([1.0, 1.0])
    seq = Tensor.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    heads = Tensor.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
    gates = Tensor.tensor(List.duplicate(List.duplicate(0.1, 8), 2))
    r_z_n = Tensor.tensor(List.duplicate(List.duplicate(0.1, 6), 2))
    zero = Tensor.tensor(0)
    f32 = {:f, 32}

    identity = fn a -> a end
    program = Program.compile(identity, [x])
    next = fn a, s -> {a, Nitrox.add(a, s)} end
    session = Session.new(Program.compile(next, [x], state: x))
    features = [input: {:features, 2}, hidden: [4], outputs: 2]
    backbone = Backbone.init(:gru, features)
    demo = fn name -> Path.join(:code.priv_dir(:nitrox), "demo/#{name}.safetensors") end
    weights = Weights.open(demo.("mlp"))

    unary =
      ~w(negate abs sign exp expm1 log log1p sqrt rsqrt reciprocal sin cos tanh erf floor ceil round
         sigmoid relu silu gelu gelu_tanh softplus logical_not)a

    binary =
      ~w(add subtract multiply divide max min pow equal not_equal less less_equal greater
         greater_equal logical_and logical_or logical_xor)a

    for(name <- unary, do: {Nitrox, name, [x]}) ++
      for(name <- binary, do: {Nitrox, name, [x, row]}) ++
      for(name <- [:quotient, :remainder], do: {Nitrox, name, [zero, 2]}) ++
      for name <- [:sum, :mean, :product, :reduce_max, :reduce_min] do
        {Nitrox, name, [x, [axes: [0], keep_axes: true]]}
      end ++
      for module <- [Nitrox, Tensor],
          {name, args} <- [
            tensor: [[[1, 2], [3, 4]], [type: f32, device: :cpu]],
            from_binary: [<<0::64>>, f32, {2}, [device: :cpu]],
            to_binary: [x],
            to_list: [x],
            to_number: [Tensor.tensor([1])],
            copy: [x, :cpu],
            shape: [x],
            type: [x],
            device: [x],
            deallocate: [Nitrox.copy(x)]
          ] do
        {module, name, args}
      end ++
      [
        {Nitrox, :template, [{2, 2}, f32]},
        {Nitrox, :from_nx, [if(Code.ensure_loaded?(Nx), do: Nitrox.to_nx(x), else: nil)]},
        {Nitrox, :to_nx, [x]},
        {Nitrox, :devices, []},
        {Nitrox, :memory_stats, [:cpu]},
        {Nitrox, :synchronize, [:cpu]},
        {Nitrox, :explain, [%Op.Dense{activation: :relu}, [x, x, nil, nil], [device: :cpu]]},
        {Nitrox, :dense, [x, x, row, [activation: :relu, residual: x]]},
        {Nitrox, :layer_norm, [x, row, row, [epsilon: 1.0e-5, residual: x]]},
        {Nitrox, :rms_norm, [x, row, [epsilon: 1.0e-5, residual: x]]},
        {Nitrox, :gated_mlp, [x, x, x, x, [activation: :gelu, residual: x]]},
        {Nitrox, :embedding, [x, zero]},
        {Nitrox, :lstm,
         [
           seq,
           {Tensor.tensor([[0.0, 0.0]]), nil},
           gates,
           List.to_tuple(List.duplicate(x, 4)),
           nil,
           [mask: Tensor.tensor([[0, 1]], type: {:u, 8}), reverse: true]
         ]},
        {Nitrox, :gru, [seq, {nil}, r_z_n, {x, x, x}, nil, [mask: nil, reverse: false]]},
        {Nitrox, :causal_conv1d,
         [seq, x, row, [activation: :silu, state: Tensor.tensor([[[0.0, 0.0]]])]]},
        {Nitrox, :selective_scan,
         [
           seq,
           seq,
           x,
           seq,
           seq,
           [
             dt_bias: row,
             dt_softplus: true,
             dt_clamp: {0.0, 1.0},
             d: row,
             z: seq,
             state: Tensor.tensor([[[0.0, 0.0], [0.0, 0.0]]]),
             residual: seq,
             norm: {:layer_norm, row, row},
             epsilon: 1.0e-5
           ]
         ]},
        {Nitrox, :rope,
         [
           heads,
           Tensor.tensor([0, 1]),
           [base: 10_000.0, scale: 1.0, dims: 2, interleaved: true]
         ]},
        {Nitrox, :flash_attention,
         [
           heads,
           heads,
           heads,
           [
             scale: 0.5,
             softcap: 2.0,
             bias: x,
             causal: true,
             window: {1, nil},
             offset: 0,
             kv_len: Tensor.tensor([2]),
             key_mask: Tensor.tensor([[1, 1]], type: {:u, 8}),
             lse: true
           ]
         ]},
        {Nitrox, :softmax, [x, [axis: -1]]},
        {Nitrox, :log_softmax, [x, [axis: -1]]},
        {Nitrox, :argmax, [x, [axis: 0, keep_axis: true]]},
        {Nitrox, :sample, [x, zero, [temperature: 0.5, top_k: 2, top_p: 0.5, seed: 1]]},
        {Nitrox, :select, [Tensor.tensor([0, 1], type: {:u, 8}), x, row]},
        {Nitrox, :clip, [x, 0, 1]},
        {Nitrox, :cast, [x, {:bf, 16}]},
        {Nitrox, :reshape, [x, {1, :auto}]},
        {Nitrox, :transpose, [x, [axes: [1, 0]]]},
        {Nitrox, :broadcast_to, [x, {3, 2, 2}]},
        {Nitrox, :slice,
         [x, [0, 1], [1, 1], [strides: [1, 1], position: zero, axis: 0, wrap: true]]},
        {Nitrox, :put_slice, [x, [0, 0], x, [position: zero, axis: 0, wrap: true]]},
        {Nitrox, :concatenate, [[x, x], [axis: 0]]},
        {Nitrox, :stack, [[x, x], [axis: 0]]},
        {Template, :new, [{2, 2}, f32]},
        {Device, :default, []},
        {Device, :get, [:cpu]},
        {Device, :open, [:cpu, [memory_limit: 1024 ** 3]]},
        {Device, :list, []},
        {Device, :memory_stats, [:cpu]},
        {Device, :warmup, [:cpu, identity]},
        {Device, :trim, [:cpu]},
        {Device, :synchronize, [:cpu]},
        {Op, :apply, [%Op.Binary{kind: :add}, [x, row]]},
        {Op, :create, [%Op.Iota{type: f32, shape: [2], axis: 0}, :cpu]},
        {Op, :explain, [%Op.Softmax{axis: 0, log: false}, [x], [device: :cpu]]},
        {Program, :compile,
         [next, [x], [state: x, device: :cpu, outputs: :tensor, instances: 2]]},
        {Program, :run, [program, [x]]},
        {Program, :info, [program]},
        {Program, :explain, [program]},
        {Session, :new, [session.program]},
        {Session, :step, [session, [x]]},
        {Session, :prepare, [session]},
        {Session, :prepare_until, [session, System.monotonic_time()]},
        {Session, :state, [session]},
        {Session, :snapshot, [session]},
        {Session, :restore, [session, Session.snapshot(session)]},
        {Session, :fork, [session]},
        {Weights, :open, [demo.("mlp")]},
        {Weights, :names, [weights]},
        {Weights, :metadata, [weights]},
        {Weights, :member?, [weights, "head.b"]},
        {Weights, :template, [weights, "head.b"]},
        {Weights, :fetch, [weights, "head.b", [shape: {63}, type: f32, device: :cpu]]},
        {Backbone, :new, [:gru, features, backbone.params, [type: f32, device: :cpu]]},
        {Backbone, :init, [:gru, features, [seed: 1, type: f32, device: :cpu]]},
        {Backbone, :load, [demo.("mlp"), [type: f32, device: :cpu]]},
        {Backbone, :initial_state, [backbone, 1]},
        {Backbone, :template, [backbone, 1]},
        {Backbone, :program, [backbone, [batch: 1, sample: [temperature: 0.5]]]},
        {Backbone, :session, [backbone, [batch: 1, sample: [temperature: 0.5]]]},
        {Doctor, :report, []}
      ] ++ imports() ++ Enum.flat_map(~w(mlp lstm gru mamba attention jamba)a, &forms/1)
  end

  # Both forms of a backbone whose state has all that its kind can have.
  defp forms(kind) do
    config = [input: {:features, 2}, hidden: [8, 8], outputs: 2]

    more =
      case kind do
        :mlp -> [context: 2]
        :attention -> [context: 3]
        :jamba -> [context: 3, attention_every: 2]
        _ -> []
      end

    backbone = Backbone.init(kind, config ++ more)
    frame = Tensor.tensor([[1.0, 2.0], [3.0, 4.0]])
    frames = Nitrox.stack([frame, frame], axis: 1)
    state = Backbone.initial_state(backbone, 2)

    [
      {Backbone, :init, [kind, config ++ more]},
      {Backbone, :step, [backbone, frame, state]},
      {Backbone, :window, [backbone, frames, state]}
    ]
  end

  defp imports do
    weights = Weights.open(Path.expand("../fixtures/torch_f32.safetensors", __DIR__))

    for {name, prefix} <- [lstm: "lstm.", gru: "gru.", mamba: "mamba.", mamba_lm: "mamba_lm."] do
      {Import, name, [weights, [prefix: prefix, type: {:f, 32}, device: :cpu]]}
    end
  end

  defp junk do
    x = Tensor.tensor([1.0, 2.0])
    dead = Tensor.tensor([1.0])
    Tensor.deallocate(dead)
    program = Program.compile(fn a -> a end, [x])

    [nil, true, :junk, -1, 0, 3, 0.5, 2 ** 31, 2 ** 63, 2 ** 70, 1.0e308, "", "junk", <<255, 0>>] ++
      [[], [1], [1 | 2], [nil], [a: 1], [{:junk, 1}, 2], {}, {1}, {:f, 33}, {1, 2, 3}, %{}] ++
      [%{junk: 1}, 1..2, ~D[2026-01-01], self(), make_ref(), fn -> 1 end, &is_atom/1] ++
      [{:cuda, 4_000_000}, {:cuda, -1}, x, dead, Template.new({2}, {:f, 32})] ++
      [program, %Op.Softmax{axis: 0, log: false}]
  end

  # All terms that differ from this one in one place.
  defp changed(term, junk), do: junk ++ inside(term, junk)

  defp inside([_ | _] = list, junk) do
    [tl(list), list ++ [nil], list ++ :improper, Enum.reverse(list)] ++
      for {element, i} <- Enum.with_index(list),
          other <- changed(element, junk),
          do: List.replace_at(list, i, other)
  end

  defp inside(tuple, junk) when is_tuple(tuple) and tuple_size(tuple) > 0 do
    for i <- 0..(tuple_size(tuple) - 1),
        other <- changed(elem(tuple, i), junk),
        do: put_elem(tuple, i, other)
  end

  defp inside(map, junk) when is_map(map) and not is_struct(map) do
    for {key, value} <- map,
        other <- [Map.delete(map, key) | Enum.map(changed(value, junk), &Map.put(map, key, &1))],
        do: other
  end

  # The attributes of an op.
  defp inside(%module{} = op, junk) do
    if match?(["Nitrox", "Op", _], Module.split(module)),
      do: for(key <- Map.keys(Map.from_struct(op)), other <- junk, do: Map.put(op, key, other)),
      else: []
  end

  defp inside(_, _), do: []

  test "there is a call of every public function, and each passes" do
    calls = calls()
    called = for {module, name, _} <- calls, uniq: true, do: {module, name}

    documented =
      for module <- @modules,
          {:docs_v1, _, _, _, _, _, docs} = Code.fetch_docs(module),
          {{:function, name, _}, _, _, %{}, _} <- docs,
          uniq: true,
          do: {module, name}

    assert documented -- called == []

    # Those between the two kinds of tensor say what is missing where there is only one.
    missing = if Code.ensure_loaded?(Nx), do: [], else: [:from_nx, :to_nx]
    for {module, name, args} <- calls, name not in missing, do: apply(module, name, args)
  end

  test "what is wrong is refused with a Nitrox.Error", do: refused(calls())

  @tag :nx
  test "and so it is beside tensors of Nx" do
    refused(for {Nitrox, name, args} <- calls(), name != :to_nx, do: {Nitrox, name, to_nx(args)})
  end

  # A copy, since some are given up.
  defp to_nx(%Tensor{} = tensor), do: tensor |> Nitrox.copy() |> Nitrox.to_nx()
  defp to_nx(list) when is_list(list), do: Enum.map(list, &to_nx/1)

  defp to_nx(tuple) when is_tuple(tuple),
    do: tuple |> Tuple.to_list() |> to_nx() |> List.to_tuple()

  defp to_nx(other), do: other

  defp refused(calls) do
    junk = junk()

    answers =
      for {module, name, args} <- calls,
          {arg, i} <- Enum.with_index(args),
          other <- changed(arg, junk),
          args = List.replace_at(args, i, other),
          do: {answer(module, name, args), module, name, args}

    # One of each is enough.
    faults =
      for {{:fault, what}, module, name, args} <-
            Enum.uniq_by(answers, fn {answer, module, name, _} -> {answer, module, name} end),
          do: "#{call(module, name, args)}\n    #{what}"

    assert faults == [], Enum.join(faults, "\n")
    # Most changes are for the worse.
    assert Enum.count(answers, &(elem(&1, 0) == :refused)) > length(answers) / 2
  end

  defp answer(module, name, args) do
    apply(module, name, args)
    :passed
  rescue
    error in Error ->
      if error.reason != :internal and String.valid?(Exception.message(error)),
        do: :refused,
        else: {:fault, inspect(error)}

    error ->
      # The line of ours, and not the term that Elixir's own function did not take.
      at = Enum.find(__STACKTRACE__, &match?("Elixir.Nitrox" <> _, "#{elem(&1, 0)}"))
      place = with {_, _, _, [_ | _] = place} <- at, do: "#{place[:file]}:#{place[:line]}"
      {:fault, "#{inspect(error.__struct__)} at #{inspect(place)}"}
  catch
    kind, reason -> {:fault, "#{kind} #{inspect(reason)}"}
  end

  defp call(module, name, args) do
    args = Enum.map_join(args, ", ", &inspect(&1, limit: 8, printable_limit: 40))
    "#{inspect(module)}.#{name}(#{args})" |> String.replace(~r/\s+/, " ") |> String.slice(0, 500)
  end
end
