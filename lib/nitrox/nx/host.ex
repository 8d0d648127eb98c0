if Code.ensure_loaded?(Nx.Tensor) do
  defmodule Nitrox.Nx.Host do
    @moduledoc false
    # The calls that no kernel serves: operands are brought to the host, `Nx.BinaryBackend` computes,
    # and the result goes back to the device. Each tells so: `[:nitrox, :fallback]`.

    alias Nitrox.Backend, as: B
    alias Nitrox.Nx.{Data, Routes, Step}
    alias Nitrox.Telemetry
    alias Nx.Tensor, as: T

    @doc "Calls the callback `name` with `[out | arguments]`."
    def run(name, [out | arguments]) do
      tensors = tensors(arguments)

      case Data.device(tensors) do
        {:traced, _} = device -> Step.host(name, out, arguments, tensors, device)
        device -> run(name, out, arguments, tensors, device)
      end
    end

    defp run(name, out, arguments, tensors, device) do
      arguments = Enum.map(arguments, &to_host/1)

      # What it makes of numbers on the way belongs on the host as well.
      result =
        Nx.with_default_backend(Nx.BinaryBackend, fn ->
          apply(Nx.BinaryBackend, name, [out | arguments])
        end)

      Telemetry.execute([:nitrox, :fallback], %{count: 1}, %{
        op: name,
        why: Routes.why(name, [out | tensors]),
        device: device
      })

      Data.upload(out, Nx.BinaryBackend.to_binary(result, Nx.size(out)), device)
    end

    @doc "What is made on the host and then kept on the device."
    def make(name, [out | _] = arguments, device) do
      made = apply(Nx.BinaryBackend, name, arguments ++ [[]])
      Data.upload(out, Nx.BinaryBackend.to_binary(made, Nx.size(out)), device)
    end

    defp tensors(arguments) do
      Enum.flat_map(arguments, fn
        %T{} = tensor -> [tensor]
        list when is_list(list) -> for %T{} = tensor <- list, do: tensor
        _ -> []
      end)
    end

    defp to_host(%T{data: %B{}} = tensor),
      do: Nx.BinaryBackend.from_binary(tensor, Data.download(tensor, Nx.size(tensor)), [])

    defp to_host(list) when is_list(list), do: Enum.map(list, &to_host/1)
    defp to_host(other), do: other
  end
end
