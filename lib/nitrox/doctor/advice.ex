defmodule Nitrox.Doctor.Advice do
  @moduledoc false
  # What is wrong in a report, and how it is mended, the worst first.

  # Below this part of a GPU's memory it is worth a word.
  @little 0.1

  def of(report) do
    Enum.concat([
      library(report),
      default_device(report),
      driver(report),
      cards(report),
      nvrtc(report),
      cache(report),
      cpu(report)
    ])
  end

  defp library(%{library: {:error, why}}) do
    [say("the library of Nitrox can't be used: #{why}", "build it here with `mix compile`")]
  end

  defp library(_), do: []

  defp default_device(%{default_device: {device, {:error, why}}}) do
    [
      say(
        "the default device is #{inspect(device)}, which can't be used: #{why}",
        "set another, such as `config :nitrox, default_device: :cpu`, or mend this one"
      )
    ]
  end

  defp default_device(_), do: []

  defp driver(%{library: {:error, _}}), do: []

  defp driver(%{driver: {:error, why}}) do
    mend =
      cond do
        why =~ "too old" ->
          "install an NVIDIA driver for CUDA 12 or 13"

        why =~ "shows no GPU" ->
          "#{visible()}see whether nvidia-smi lists the card"

        true ->
          "where there is an NVIDIA card, install its driver (in a container, pass the GPU through, " <>
            "as `--gpus all` does); where there is none, all is well: programs run on :cpu"
      end

    [say("no GPU can be used: #{why}", mend)]
  end

  defp driver(%{driver: {:ok, _}, cards: []}) do
    [say("the driver shows no GPU", "#{visible()}see whether nvidia-smi lists the card")]
  end

  defp driver(_), do: []

  defp visible do
    case System.get_env("CUDA_VISIBLE_DEVICES") do
      nil -> ""
      value -> "CUDA_VISIBLE_DEVICES is #{inspect(value)}, which hides cards: unset it; else "
    end
  end

  defp cards(%{cards: cards}) do
    Enum.flat_map(cards, fn
      {:error, why} ->
        [
          say(
            "a card does not answer: #{why}",
            "see what nvidia-smi says of it, and restart the VM"
          )
        ]

      %{usable: {:error, why}} = card ->
        [say("#{card.name} can't be used: #{why}", "the message says what it needs")]

      %{memory: %{total: total, free: free}} = card when is_integer(free) ->
        if free < @little * total, do: [full(card)], else: []

      _ ->
        []
    end)
  end

  defp full(card) do
    say(
      "#{card.name} has #{percent(card.memory)} of its memory left",
      "end what holds it, or have it take less (EXLA takes 90 % unless it is given " <>
        "`preallocate: false`); give Nitrox a `memory_limit`"
    )
  end

  defp percent(%{total: total, free: free}), do: "#{Float.round(100 * free / max(total, 1), 1)} %"

  # Without a card it is of no use.
  defp nvrtc(%{cards: cards, libraries: libraries}) do
    case Enum.find(libraries, &(&1.name == "libnvrtc")) do
      %{found: nil} when cards != [] ->
        [
          say(
            "libnvrtc is missing, which compiles the kernels",
            "install the CUDA toolkit, or the Python package nvidia-cuda-nvrtc " <>
              "(nvidia-cuda-nvrtc-cu12 for a driver of CUDA 12), or set NITROX_NVRTC_PATH to it"
          )
        ]

      _ ->
        []
    end
  end

  defp cache(%{library: {:error, _}}), do: []

  defp cache(%{cache: {:error, why}}) do
    [
      say(
        "the cache of kernels can't be read: #{why}",
        "set NITROX_CACHE to a folder of this user's; until then each VM compiles its kernels anew"
      )
    ]
  end

  defp cache(%{cache: %{folder: nil}}) do
    [
      say(
        "there is no place for the cache of kernels: NITROX_CACHE, XDG_CACHE_HOME and HOME are unset",
        "set NITROX_CACHE to a folder; until then each VM compiles its kernels anew"
      )
    ]
  end

  defp cache(%{cache: %{writable: {:error, why}}}) do
    [
      say(
        "the cache of kernels can't be written: #{why}",
        "set NITROX_CACHE to a folder of this user's; until then each VM compiles its kernels anew"
      )
    ]
  end

  defp cache(%{cache: cache, cards: cards}) do
    damaged =
      if cache.damaged == [] and cache.drafts == 0 do
        []
      else
        [
          say(
            "#{length(cache.damaged)} damaged and #{cache.drafts} unfinished files in #{cache.folder}",
            "nothing has to be done: a damaged entry is compiled again when it is needed; both may " <>
              "be deleted"
          )
        ]
      end

    usable? = Enum.any?(cards, &match?(%{usable: :ok}, &1))

    empty =
      if usable? and cache.entries == 0 do
        [
          say(
            "no kernel is compiled yet",
            "run `mix nitrox.warmup`, or the first calls will wait"
          )
        ]
      else
        []
      end

    damaged ++ empty
  end

  defp cpu(%{cpu: %{instruction_set: "base"}}) do
    [
      say(
        "the CPU has no AVX2, or it is hidden: the CPU device is several times slower",
        "in a virtual machine, pass the host's CPU features through"
      )
    ]
  end

  defp cpu(_), do: []

  defp say(problem, mend), do: %{problem: problem, mend: mend}
end
