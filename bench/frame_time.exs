# How long a policy's frame takes, from the Elixir call to the action on the host.
#
#     make bench BENCH_ARGS="--device cuda"
#     mix run bench/frame_time.exs --device cpu --backbone lstm --frames 1000 --json frames.jsonl
#
# The networks have the shapes of a 60 FPS game's: 288 numbers in, 53 logits out; an MLP of two layers
# of 512; an LSTM and a GRU of two layers of 256 with layer norms; two Mamba blocks of 256; two layers of
# attention over the last 60 frames, of 256 in 4 heads; and Jamba, six layers of 256 of which every third
# attends. `least` is none of them: an MLP of one layer of 16, so that the call is most of a frame. The
# weights are random, which takes as long as trained ones. Two forms of each (--form for one of them):
#
#   step    one frame; the state stays on the device (for the MLP there is none)
#   window  the last 60 frames in every call, from the zero state; the answer to the last counts
#
# and each of them back to back; paced at 60 frames a second, when the processor and the GPU fall
# asleep between frames; and cold, after 64 MB of other memory were read, which does to the caches what
# the sleep does, in less time and also on a busy machine. The latter two prepared as well, by
# `Nitrox.Session.prepare/1` once, and paced ones by `prepare_until/2` ("ready"). `native/engine/benches/frame.rs` has the same steps from Rust.
#
# Where Benchee is there it runs the back-to-back part as well and prints its own table; the figures in
# this one, and in the JSON lines, are always from the same plain timer.

alias Nitrox.{Backbone, Program, Session}
alias Nitrox.Demo.{Json, Timing}

{opts, []} =
  OptionParser.parse!(System.argv(),
    strict: [
      device: :string,
      backbone: :string,
      form: :string,
      frames: :integer,
      paced_frames: :integer,
      cold_frames: :integer,
      json: :string,
      benchee: :boolean
    ]
  )

device =
  case Keyword.get(opts, :device, "cpu") do
    "cpu" -> :cpu
    "cuda" -> {:cuda, 0}
    "cuda:" <> n -> {:cuda, String.to_integer(n)}
  end

with {:error, error} <- Nitrox.Device.get(device), do: raise(error)

frames = Keyword.get(opts, :frames, 2000)
paced_frames = Keyword.get(opts, :paced_frames, 600)
cold_frames = Keyword.get(opts, :cold_frames, 100)

kinds =
  opts
  |> Keyword.get(:backbone, "least,mlp,lstm,gru,mamba,attention,jamba")
  |> String.split(",", trim: true)

# The kind of network, numbers in, the widths of the layers, logits out.
shape = fn
  "least" -> {:mlp, 16, [16], 4}
  "mlp" -> {:mlp, 288, [512, 512], 53}
  "jamba" -> {:jamba, 288, List.duplicate(256, 6), 53}
  name -> {String.to_existing_atom(name), 288, [256, 256], 53}
end

forms = opts |> Keyword.get(:form, "step,window") |> String.split(",", trim: true)

window = 60
sample = [temperature: 1.0, seed: 1]

step = fn backbone -> Backbone.program(backbone, sample: sample) end

windowed = fn backbone ->
  frame = fn x, state ->
    {logits, _} = Backbone.window(backbone, x, Backbone.initial_state(backbone))
    outputs = backbone.outputs
    last = Nitrox.slice(logits, [0, window - 1, 0], [1, 1, outputs])
    last = Nitrox.reshape(last, {1, outputs})
    {action, counter} = Nitrox.sample(last, state.counter, sample)
    {{action, last}, %{counter: counter}}
  end

  {:features, features} = backbone.input

  Program.compile(frame, [Nitrox.template({1, window, features}, {:f, 32})],
    device: device,
    state: %{counter: Nitrox.tensor(0, device: device)},
    outputs: :binary
  )
end

observation = fn count ->
  {numbers, _} =
    Enum.map_reduce(1..count, :rand.seed_s(:exsss, 1), fn _, rand ->
      {x, rand} = :rand.normal_s(rand)
      {<<x::float-32-native>>, rand}
    end)

  IO.iodata_to_binary(numbers)
end

cases =
  for name <- kinds,
      {form, compile, seen} <- [{"step", step, 1}, {"window", windowed, window}],
      form in forms do
    {kind, features, hidden, outputs} = shape.(name)
    config = [input: {:features, features}, hidden: hidden, outputs: outputs]
    backbone = Backbone.init(kind, config, device: device)
    program = compile.(backbone)
    session = Session.new(program)
    input = observation.(seen * features)

    %{
      name: "#{name} #{form}",
      backbone: name,
      session: session,
      form: form,
      layers: length(backbone.hidden),
      info: Program.info(program),
      call: fn _ -> Session.step(session, [input]) end
    }
  end

IO.puts(
  "#{inspect(device)}, #{System.schedulers_online()} schedulers, OTP #{System.otp_release()}\n"
)

columns =
  [{"frame", 13}, {"pace", 16}, {"frames", 7}, {"kernels", 8}] ++
    for(name <- ~w(p10 p50 p95 p99 p99.9 max), do: {name, 10})

row = fn cells ->
  Enum.zip_with(cells, columns, fn cell, {_, width} ->
    String.pad_leading(to_string(cell), width)
  end)
end

IO.puts(row.(Enum.map(columns, &elem(&1, 0))))

other = :binary.copy(<<1>>, 64 * 1024 ** 2)

# Reads all of it; then, for a frame that is prepared, as long as the moment until the frame is due.
cool = fn session ->
  :erlang.crc32(other)

  if session do
    Session.prepare(session)
    until = System.monotonic_time(:microsecond) + 300
    Enum.find(Stream.cycle([nil]), fn _ -> System.monotonic_time(:microsecond) >= until end)
  end
end

# "prepared": Nitrox.Session.prepare/1 is called a moment before a frame is due; "ready":
# prepare_until/2 waits for it.
paces = [
  {"back to back", frames, fn _ -> [] end},
  {"60 Hz", paced_frames, fn _ -> [fps: 60] end},
  {"60 Hz, prepared", paced_frames, &[fps: 60, prepare: fn -> Session.prepare(&1) end]},
  {"60 Hz, ready", paced_frames,
   &[fps: 60, prepare: fn due -> Session.prepare_until(&1, due) end]},
  {"cold", cold_frames, fn _ -> [prepare: fn -> cool.(nil) end] end},
  {"cold, prepared", cold_frames, &[prepare: fn -> cool.(&1) end]}
]

# --paced-frames 0 and --cold-frames 0 leave those out.
paces = for {_, count, _} = pace <- paces, count > 0, do: pace

lines =
  for %{call: call} = c <- cases, {pace, count, opts} <- paces do
    Timing.measure(max(div(count, 10), 20), nil, call)
    {times, _} = Timing.measure(count, nil, call, opts.(c.session))
    us = Timing.summary(times)
    # No kernels are launched on the CPU.
    kernels = if device == :cpu, do: "-", else: c.info.kernel_nodes

    IO.puts(
      row.(
        [c.name, pace, count, kernels] ++
          Enum.map([us.p10, us.p50, us.p95, us.p99, us.p999, us.max], &Timing.text/1)
      )
    )

    [
      case: "frame/#{c.backbone}-#{c.form}",
      device: inspect(device),
      pace: pace,
      frames: count,
      layers: c.layers,
      kernel_nodes: c.info.kernel_nodes,
      us: [p10: us.p10, p50: us.p50, p95: us.p95, p99: us.p99, p999: us.p999, max: us.max]
    ]
  end

if path = opts[:json] do
  File.write!(path, Enum.map(lines, &[Json.encode(&1), ?\n]))
  IO.puts("\n#{path} has these lines.")
end

if Keyword.get(opts, :benchee, true) and Code.ensure_loaded?(Benchee) do
  IO.puts("\nBenchee, back to back:\n")

  apply(Benchee, :run, [
    Map.new(cases, &{&1.name, fn -> &1.call.(nil) end}),
    [
      warmup: 0.5,
      time: 2,
      percentiles: [50, 99, 99.9],
      print: [benchmarking: false, configuration: false]
    ]
  ])
end
