if Code.ensure_loaded?(Nx.Tensor) do
  defmodule Nitrox.Nx.Step do
    @moduledoc false
    # What a compiled `defn` does beside running programs: calls that no kernel serves, loops and
    # branches, whose conditions are read, and functions of the caller.
    #
    # While a `defn` is traced a step is the op of a node among those of the program. Its inputs are
    # tensors on `{:traced, device}`, of which `Nitrox.Nx.Plan` keeps type, shape and names.

    alias Nitrox.Backend, as: B
    alias Nitrox.Nx.{Data, Host, Plan, Routes}
    alias Nitrox.{Error, Value}
    alias Nx.Defn.Composite
    alias Nx.Tensor, as: T

    @enforce_keys [:name, :why, :inputs, :work]
    defstruct [:name, :why, :inputs, :work, effect?: false]

    @type t :: %__MODULE__{
            name: atom(),
            why: term(),
            inputs: [Nx.Tensor.t()],
            work: tuple(),
            effect?: boolean()
          }

    @doc "A node of the graph, and the tensors it gives."
    def record(%__MODULE__{} = step, outs, {:traced, _} = device) do
      values = for %T{data: %B{ref: %Value{} = value}} <- step.inputs, do: value
      specs = Enum.map(outs, &Data.spec/1)

      case Value.outputs(step, values, specs) do
        [] ->
          {%Value.Node{id: make_ref(), op: step, inputs: values}, []}

        [%Value{node: node} | _] = outputs ->
          {node, Enum.zip_with(outs, outputs, &Data.put(&1, &2, device))}
      end
    end

    @doc """
    A call that goes through the host: a step, or made at once where all that it takes is there.
    """
    def host(name, out, arguments, tensors, {:traced, real} = device) do
      if Enum.all?(tensors, &Data.present/1) do
        arguments = fill(arguments, Enum.map(tensors, &%{&1 | data: Data.present(&1)}))
        result = Host.run(name, [out | arguments])
        Data.upload(out, Data.download(result, Nx.size(out)), {:traced, real})
      else
        out = Nx.to_template(out)
        why = Routes.why(name, [out | tensors])
        step = %__MODULE__{name: name, why: why, inputs: tensors, work: {:host, out, arguments}}
        {_, [result]} = record(step, [out], device)
        result
      end
    end

    # The arguments of a call, with the tensors given in the places of those they have.
    defp fill(arguments, tensors) do
      {arguments, []} = Enum.map_reduce(arguments, tensors, &fill_one/2)
      arguments
    end

    defp fill_one(%T{}, [tensor | rest]), do: {tensor, rest}

    defp fill_one(list, tensors) when is_list(list),
      do: Enum.map_reduce(list, tensors, &fill_one/2)

    defp fill_one(other, tensors), do: {other, tensors}

    @doc "Without what only tracing needs."
    def settle(%__MODULE__{inputs: inputs, work: work} = step) do
      work =
        case work do
          {:host, out, arguments} -> {:host, out, fill(arguments, Enum.map(inputs, &bare/1))}
          work -> work
        end

      %{step | inputs: Enum.map(inputs, &bare/1), work: work}
    end

    # Without its data, which is a value of the trace.
    defp bare(%T{} = tensor), do: %{tensor | data: nil}

    @doc "What a step gives for its inputs, all as the data of tensors."
    def run(%__MODULE__{} = step, data, context) do
      case step.work do
        {:host, out, arguments} ->
          %T{data: data} = Host.run(step.name, [out | fill(arguments, tensors(step, data))])
          [data]

        {:while, body} ->
          [%T{} = condition | _] = step.inputs
          while(body, condition, data, context)

        {:cond, yes, no, count} ->
          [%T{} = condition | _] = step.inputs
          [chosen | data] = data
          {for_yes, for_no} = Enum.split(data, count)

          if Nx.to_number(put(condition, chosen)) != 0,
            do: Plan.run(yes, for_yes, context),
            else: Plan.run(no, for_no, context)

        {:io_call, callback, container} ->
          function =
            case callback do
              {:fn, function} -> function
              {:named, name, default} -> context.hooks[name] || default
            end

          function && function.(rebuild(container, data))
          []

        {:runtime_call, function, container, template, options} ->
          result = function.(rebuild(container, data), options)

          unless Nx.compatible?(template, result) do
            raise Error.argument(
                    :compiler,
                    "the function of an Nx.runtime_call/4 must give #{inspect(template)}, " <>
                      "got #{inspect(result)}"
                  )
          end

          for tensor <- Composite.flatten_list([result]) do
            here = tensor |> Nx.to_tensor() |> Nx.devectorize() |> Data.here(context.device)
            Plan.device!(here.data, context.device, "the result of a runtime_call")
          end
      end
    end

    defp tensors(step, data), do: Enum.zip_with(step.inputs, data, &put/2)
    defp put(template, data), do: %{template | data: data}

    @doc "What a function of the caller's gets, as a container of templates. It knows no vectors."
    def container(expr) do
      Composite.traverse(expr, &(&1 |> Nx.to_tensor() |> Nx.to_template() |> Nx.devectorize()))
    end

    @doc "A container of templates with the data given, leaf by leaf."
    def rebuild(container, data) do
      {container, []} =
        Composite.traverse(container, data, fn leaf, [data | rest] ->
          {%{leaf | data: data}, rest}
        end)

      container
    end

    # A body gives the next condition before its variables.
    defp while(body, condition, [first | variables], context) do
      if Nx.to_number(put(condition, first)) == 0 do
        variables
      else
        while(body, condition, Plan.run(body, variables, context), context)
      end
    end

    @doc "The plans within a step."
    def plans(%__MODULE__{work: {:while, body}}), do: [body]
    def plans(%__MODULE__{work: {:cond, yes, no, _}}), do: [yes, no]
    def plans(_), do: []
  end
end
