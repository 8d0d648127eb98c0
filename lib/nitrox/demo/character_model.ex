defmodule Nitrox.Demo.CharacterModel do
  @moduledoc false
  # One trained network of the demo: compared with PyTorch, timed frame by frame, made to write.

  alias Nitrox.{Backbone, Session, Weights}
  alias Nitrox.Demo.Timing

  @names ~w(mlp lstm gru mamba attention jamba)
  @written 300
  # How many frames are paced beside those that run back to back: two seconds of a game.
  @paced 120

  @doc "The networks that there are weights for."
  def names, do: @names

  @doc "The tokens and PyTorch's answers on them: `priv/demo/golden.safetensors`."
  def golden do
    weights = Weights.open(path("golden"))
    tokens = Weights.fetch(weights, "tokens", device: :cpu) |> Nitrox.to_list()
    %{weights: weights, tokens: tokens}
  end

  @doc """
  Everything the demo says about one network. `opts`: `:device`, `:frames`, `:fps`, `:paced`,
  `:sample`; `progress` is told what is being done.

  In a process of its own, so that the memory of one network is given back before the next one's is
  measured.
  """
  def run(name, golden, opts, progress) do
    task =
      Task.async(fn ->
        try do
          {:ok, run_here(name, golden, opts, progress)}
        rescue
          error in Nitrox.Error -> {:error, error}
        end
      end)

    case Task.await(task, :infinity) do
      {:ok, result} -> result
      {:error, error} -> raise error
    end
  end

  defp run_here(name, golden, opts, progress) do
    progress.("#{name}: loading")
    before = memory(opts.device)
    backbone = Backbone.load(path(name), device: opts.device)
    session = Backbone.session(backbone, sample: opts.sample)
    :erlang.garbage_collect()
    held = memory(opts.device) - before
    start = Session.snapshot(session)

    {bits, difference} = read(name, session, golden, progress)

    charset = backbone.metadata["charset"] |> String.graphemes() |> List.to_tuple()
    Session.restore(session, start)
    {times, written} = frames(name, session, opts.frames, if(opts.paced, do: opts.fps), progress)

    paced =
      if not opts.paced do
        {times, _} = frames(name, session, min(@paced, opts.frames), opts.fps, progress)
        {length(times), Timing.summary(times)}
      end

    text =
      for <<token::signed-32-native>> <- Enum.take(written, @written),
          into: "",
          do: elem(charset, token)

    %{
      name: name,
      input: backbone.input,
      context: backbone.sizes[:context],
      hidden: backbone.hidden,
      bits_per_character: bits,
      reference_bits_per_character: reference_bits(golden, name),
      max_logit_difference: difference,
      times: times,
      frame_us: Timing.summary(times),
      paced: paced,
      over_budget: Enum.count(times, &(&1 > 1.0e6 / opts.fps)),
      memory_bytes: held,
      text: text
    }
  end

  # Reads the held-out text, one character a frame, and is asked at each for the next: bits per
  # character over all of them, and how far the first logits are from PyTorch's.
  defp read(name, session, golden, progress) do
    logits = Weights.fetch(golden.weights, "#{name}.logits", device: :cpu) |> Nitrox.to_list()
    pairs = Enum.zip(golden.tokens, tl(golden.tokens))

    {bits, difference, _} =
      Enum.reduce(pairs, {0.0, 0.0, {0, logits}}, fn {token, next},
                                                     {bits, difference, {n, expected}} ->
        if rem(n, 100) == 0,
          do: progress.("#{name}: reading, #{n} of #{length(pairs)} characters")

        {_action, binary} = Session.step(session, [<<token::signed-32-native>>])
        logits = floats(binary)

        {difference, expected} =
          case expected do
            [] -> {difference, []}
            [row | rest] -> {max(difference, largest_difference(logits, row)), rest}
          end

        {bits + surprise(logits, next), difference, {n + 1, expected}}
      end)

    {bits / length(pairs), difference}
  end

  defp frames(name, session, count, fps, progress) do
    pace = if fps, do: " at #{fps} a second", else: ""

    Timing.measure(
      count,
      <<0::signed-32-native>>,
      fn token ->
        {action, _logits} = Session.step(session, [token])
        action
      end,
      fps: fps,
      prepare: if(fps, do: &Session.prepare_until(session, &1)),
      tick: &progress.("#{name}: writing#{pace}, #{&1} of #{count} frames")
    )
  end

  @doc "−log₂ of the probability that the logits give to a token."
  def surprise(logits, token) do
    most = Enum.max(logits)
    sum = Enum.reduce(logits, 0.0, &(&2 + :math.exp(&1 - most)))
    (most + :math.log(sum) - Enum.at(logits, token)) / :math.log(2)
  end

  defp largest_difference(a, b) do
    Enum.zip_reduce(a, b, 0.0, fn x, y, most -> max(most, abs(x - y)) end)
  end

  # A NaN or an infinity matches no float of Erlang's: it is found by what is missing.
  defp floats(binary) do
    floats = for <<x::float-32-native <- binary>>, do: x

    if length(floats) * 4 != byte_size(binary) do
      raise Nitrox.Error,
        reason: :internal,
        op: :demo,
        message: "demo: a logit is not a finite number"
    end

    floats
  end

  defp reference_bits(golden, name) do
    String.to_float(Weights.metadata(golden.weights)["#{name}.bits_per_character"])
  end

  defp memory(device), do: Nitrox.memory_stats(device).in_use

  defp path(name), do: Application.app_dir(:nitrox, "priv/demo/#{name}.safetensors")
end
