defmodule Mix.Tasks.Nitrox.Demo do
  @shortdoc "Six trained networks read and write text, one character a frame"
  @moduledoc """
  Six small networks that were trained on the King James Bible (an MLP, an LSTM, a GRU, Mamba,
  attention, and Jamba, which has both) read 2,000 characters they have never seen, one a frame, and
  then write on their own. Their state stays on the device; a frame is one call that takes a character
  and answers with the next.

      mix nitrox.demo
      mix nitrox.demo --device cuda --backbone lstm --temperature 0.5

  For each it prints how well it predicts, beside what PyTorch says of the same weights; the largest
  difference between its logits and PyTorch's over 200 characters; the time of a frame, from the
  Elixir call to the action on the host; how many frames were over the budget; the memory held; and
  what it wrote. The same goes into `demo.json`, and with a chart into `demo.html`.

  It fails when a logit differs by more than 1e-3 or the bits per character by more than 0.01.

  ## Options

    * `--device` - `cpu` (default), `cuda` or `cuda:1`
    * `--backbone` - `mlp`, `lstm`, `gru`, `mamba`, `attention`, `jamba`, or some of them with commas
      between (default: all)
    * `--frames` - how many frames are timed (default 2000)
    * `--paced` - a frame starts when a game's would, 60 times a second, instead of right after the
      one before (2,000 frames take 33 seconds then; without it, 120 frames are paced as well)
    * `--fps` - frames a second (default 60); the budget of a frame follows from it
    * `--temperature` (default 0.7), `--top-k`, `--seed` - how a character is drawn
    * `--out` - the folder of the two files (default `_build`)
  """
  use Mix.Task

  alias Nitrox.Demo.{CharacterModel, Html, Json, Timing}

  @switches [
    device: :string,
    backbone: :string,
    frames: :integer,
    paced: :boolean,
    fps: :integer,
    temperature: :float,
    top_k: :integer,
    seed: :integer,
    out: :string
  ]

  @max_difference 1.0e-3
  @max_bits 0.01

  @impl true
  def run(args) do
    opts = options(args)
    Mix.Task.run("app.start")

    case Nitrox.Device.get(opts.device) do
      {:ok, _} -> :ok
      {:error, error} -> Mix.raise(Exception.message(error))
    end

    golden = CharacterModel.golden()
    say(introduction(opts, length(golden.tokens) - 1))

    results =
      for name <- opts.backbones do
        result = CharacterModel.run(name, golden, opts, &progress/1)
        progress(nil)
        say(describe(result, opts))
        result
      end

    write(results, opts)

    case Enum.flat_map(results, &complaints/1) do
      [] -> :ok
      complaints -> Mix.raise("out of bounds: " <> Enum.join(complaints, "; "))
    end
  end

  @doc false
  def options(args) do
    {given, rest} = OptionParser.parse!(args, strict: @switches)

    if rest != [],
      do: Mix.raise("mix nitrox.demo takes options only, got #{Enum.join(rest, " ")}")

    opts =
      Enum.into(given, %{
        device: "cpu",
        backbone: Enum.join(CharacterModel.names(), ","),
        frames: 2000,
        paced: false,
        fps: 60,
        temperature: 0.7,
        top_k: nil,
        seed: 0,
        out: "_build"
      })

    for name <- [:frames, :fps], opts[name] < 1, do: Mix.raise("--#{name} must be at least 1")
    sample = [temperature: opts.temperature, top_k: opts.top_k, seed: opts.seed]

    Map.merge(opts, %{
      device: device(opts.device),
      backbones: backbones(opts.backbone),
      sample: sample
    })
  end

  defp device("cpu"), do: :cpu
  defp device("cuda"), do: {:cuda, 0}

  defp device("cuda:" <> n = text) do
    case Integer.parse(n) do
      {n, ""} when n >= 0 -> {:cuda, n}
      _ -> Mix.raise("--device must be cpu, cuda or cuda:1, got #{text}")
    end
  end

  defp device(text), do: Mix.raise("--device must be cpu, cuda or cuda:1, got #{text}")

  defp backbones(text) do
    chosen = String.split(text, ",", trim: true)

    case {chosen, chosen -- CharacterModel.names()} do
      {[_ | _], []} ->
        chosen

      _ ->
        Mix.raise(
          "--backbone must be some of #{Enum.join(CharacterModel.names(), ", ")}, got #{text}"
        )
    end
  end

  # ── What it says ───────────────────────────────────────────────────────────────────────────────

  defp introduction(opts, characters) do
    """
    Networks trained on the King James Bible read #{grouped(characters)} characters they have not seen,
    one a frame, then write on their own. Weights and state stay on #{inspect(opts.device)}.
    """
  end

  defp describe(result, opts) do
    """
    #{result.name}  #{shape(result)}
      bits per character  #{decimals(result.bits_per_character, 4)}   PyTorch #{decimals(result.reference_bits_per_character, 4)}
      largest difference  #{scientific(result.max_logit_difference)}, of a logit from PyTorch's
      a frame             #{times(result.frame_us)}
                          #{grouped(length(result.times))} frames #{pace(opts)}, #{over(result, opts)}
    #{paced(result.paced, opts)}  memory held         #{bytes(result.memory_bytes)}
      it wrote
    #{indent(result.text)}
    """
  end

  defp shape(result) do
    {:tokens, vocabulary, width} = result.input
    seen = if result.context, do: "the last #{result.context} characters, ", else: ""

    layers =
      case Enum.uniq(result.hidden) do
        [width] -> "#{length(result.hidden)} layers of #{width}"
        widths -> "layers of #{Enum.join(widths, " and ")}"
      end

    "#{seen}#{vocabulary} characters as #{width} numbers, #{layers}"
  end

  defp times(us) do
    "p50 #{Timing.text(us.p50)}   p95 #{Timing.text(us.p95)}   p99 #{Timing.text(us.p99)}   " <>
      "max #{Timing.text(us.max)}"
  end

  defp pace(%{paced: true, fps: fps}), do: "at #{fps} a second"
  defp pace(_), do: "back to back"

  defp over(result, opts) do
    "#{result.over_budget} over #{decimals(1000 / opts.fps, 2)} ms"
  end

  defp paced(nil, _opts), do: ""

  defp paced({count, us}, opts) do
    """
      at #{opts.fps} a second      #{times(us)}
                          #{count} frames, each after Nitrox.Session.prepare_until/2
    """
  end

  # Broken at spaces, into lines of at most 76 characters.
  defp indent(text) do
    text
    |> String.trim()
    |> String.replace(~r/(.{1,76})(?:\s+|$)/u, "    │ \\1\n")
    |> String.trim_trailing()
  end

  @doc false
  def complaints(result) do
    off = abs(result.bits_per_character - result.reference_bits_per_character)

    [
      result.max_logit_difference > @max_difference &&
        "#{result.name}'s logits differ by #{scientific(result.max_logit_difference)} " <>
          "(at most #{scientific(@max_difference)})",
      off > @max_bits &&
        "#{result.name}'s bits per character are off by #{decimals(off, 4)} (at most #{@max_bits})"
    ]
    |> Enum.filter(& &1)
  end

  # ── Files ──────────────────────────────────────────────────────────────────────────────────────

  defp write(results, opts) do
    File.mkdir_p!(opts.out)
    json = Path.join(opts.out, "demo.json")
    html = Path.join(opts.out, "demo.html")
    File.write!(json, Json.encode(summary(results, opts)) <> "\n")
    File.write!(html, Html.page(results, opts))
    say("#{json} has these figures, #{html} a chart of them.")
  end

  @doc false
  def summary(results, opts) do
    backbones =
      for result <- results do
        us = result.frame_us

        [
          name: result.name,
          bits_per_character: result.bits_per_character,
          reference_bits_per_character: result.reference_bits_per_character,
          max_logit_difference: result.max_logit_difference,
          frames: length(result.times),
          frame_us: [p50: us.p50, p95: us.p95, p99: us.p99, max: us.max],
          over_budget: result.over_budget,
          memory_bytes: result.memory_bytes,
          text: result.text
        ]
      end

    [device: device_name(opts.device), backbones: backbones]
  end

  @doc false
  def device_name(:cpu), do: "cpu"
  def device_name({:cuda, n}), do: "cuda:#{n}"

  # ── Words ──────────────────────────────────────────────────────────────────────────────────────

  # A terminal shows one line that is written over; a log gets none of them.
  defp progress(text) do
    if IO.ANSI.enabled?(), do: IO.write(["\r\e[2K", text || ""])
  end

  defp say(text), do: Mix.shell().info(text)

  defp decimals(x, n), do: :erlang.float_to_binary(x / 1, decimals: n)
  defp scientific(x), do: :erlang.float_to_binary(x / 1, scientific: 1)

  defp bytes(n), do: "#{decimals(n / 1_000_000, 2)} MB"

  @doc false
  def grouped(n) do
    n |> Integer.to_string() |> String.replace(~r/(?<=\d)(?=(\d{3})+$)/, ",")
  end
end
