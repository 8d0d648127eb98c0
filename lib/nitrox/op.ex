defmodule Nitrox.Op do
  @moduledoc """
  The ops: one struct each, such as `%Nitrox.Op.LayerNorm{epsilon: 1.0e-5}`, with the attributes of
  the op. Applied to tensors an op runs at once; applied to a value of a traced function it becomes
  a part of the program.

  The functions of `Nitrox` are made of these, and are what to call.
  """

  import Nitrox.Options, only: [fail!: 2, fail!: 3]

  alias Nitrox.{Device, Element, Native, Options, Telemetry, Template, Tensor, Value}
  require Telemetry

  # Only where Nx is; without it no tensor of Nx gets here.
  @compile {:no_warn_undefined, Nitrox.Nx.Fused}

  @type t :: struct()
  @typedoc "`nil` stands for an optional input that is not given."
  @type input :: Tensor.t() | Value.t() | number() | nil

  @doc """
  Applies an op, and gives its outputs as a list.

  A number among the inputs becomes a scalar of the type of the first tensor or value, on its
  device. Where any input is a value the op is traced, and tensors among its inputs become
  parameters of the program; else it is run on the device of its first tensor. Tensors of Nx are
  given to Nx, as a block (see `Nitrox.Backend`).
  """
  @spec apply(t(), [input()]) :: [Tensor.t()] | [Value.t()] | [struct()]
  def apply(op, inputs) do
    check!(op, inputs)
    first = Enum.find(inputs, &is_struct/1)

    if is_struct(first, Nx.Tensor) do
      Nitrox.Nx.Fused.apply(op, inputs)
    else
      check_input!(op, first)

      if Enum.any?(inputs, &is_struct(&1, Value)),
        do: trace(op, inputs, first.type),
        else: run(op, inputs, first)
    end
  end

  @doc """
  The outputs of an op that takes no inputs, such as `Nitrox.Op.Iota`, made on a device.
  """
  @spec create(t(), Device.t()) :: [Tensor.t()]
  def create(op, device) do
    check!(op, [])

    for output <- Native.call(:run, [device, wire(op), []]),
        do: Tensor.from_native(output, device)
  end

  defp check!(op, inputs) do
    if not is_struct(op),
      do: fail!(:op, "expected the struct of an op, got #{inspect(op)}")

    if not Options.list?(inputs),
      do: fail!(name(op), "expected a list of inputs, got #{inspect(inputs)}")
  end

  defp run(op, inputs, %{device: device, type: type}) do
    operands =
      Enum.map(inputs, fn
        %Tensor{ref: ref} -> ref
        nil -> nil
        other -> {type, constant(op, other, type)}
      end)

    Telemetry.span [:nitrox, :op, :run], %{op: name(op), device: device} do
      for output <- Native.call(:run, [device, wire(op), operands]),
          do: Tensor.from_native(output, device)
    end
  end

  defp trace(op, inputs, type) do
    values(
      op,
      Enum.map(inputs, fn
        %module{} = input when module in [Tensor, Value] -> input
        nil -> nil
        other -> {:constant, constant(op, other, type), type}
      end)
    )
  end

  defp values(op, inputs) do
    specs =
      Enum.map(inputs, fn
        nil -> nil
        {:constant, _, type} -> {type, []}
        input -> Tensor.to_spec(input)
      end)

    Value.outputs(op, inputs, Native.call(:infer, [wire(op), specs]))
  end

  @doc false
  # As `apply/2` where the inputs are checked already and a number is `{type, element}`. Gives each
  # output with its spec.
  def record(op, inputs, device) do
    outputs =
      if Enum.any?(inputs, &is_struct(&1, Value)) do
        values(
          op,
          Enum.map(inputs, fn
            {type, element} -> {:constant, element, type}
            input -> input
          end)
        )
      else
        refs =
          Enum.map(inputs, fn
            %Tensor{ref: ref} -> ref
            input -> input
          end)

        for output <- Native.call(:run, [device, wire(op), refs]),
            do: Tensor.from_native(output, device)
      end

    for output <- outputs, do: {output, {output.type, output.shape}}
  end

  @doc false
  # The bytes of a number as a scalar.
  def constant(op, number, type) when is_number(number) do
    case Element.encode(number, type) do
      :error ->
        fail!(
          name(op),
          "the number #{inspect(number)} is no #{inspect(type)}, the type of its tensor"
        )

      bytes ->
        bytes
    end
  end

  def constant(op, other, _), do: check_input!(op, other)

  defp check_input!(_, %module{}) when module in [Tensor, Value], do: :ok

  defp check_input!(op, %Template{}) do
    fail!(
      name(op),
      "a template has no elements",
      "give it to Nitrox.Program.compile/3, and use the value that the function gets for it"
    )
  end

  defp check_input!(op, %{__struct__: Nx.Tensor}) do
    fail!(
      name(op),
      "takes tensors of Nx or of Nitrox, not both",
      "Nitrox.to_nx/1 and Nitrox.from_nx/1 give the one for the other"
    )
  end

  defp check_input!(op, nil) do
    fail!(name(op), "takes at least one tensor, got none")
  end

  defp check_input!(op, other) do
    fail!(name(op), "takes tensors, numbers and nil, got #{inspect(other)}")
  end

  @doc """
  The kernel that an op would use on inputs like these, and why. Templates serve as inputs too.

  `launches` is the number of kernels launched, 0 on the CPU.

  ## Options

    * `:device` — by default that of the first tensor, and `Nitrox.Device.default/0` where there is
      none
  """
  @spec explain(t(), [Tensor.t() | Template.t() | Value.t() | nil], device: Device.t()) :: %{
          variant: String.t(),
          why: String.t(),
          launches: non_neg_integer()
        }
  def explain(op, inputs, options \\ []) do
    check!(op, inputs)
    options = Options.known!(:explain, options, [:device])

    device =
      options[:device] ||
        Enum.find_value(inputs, Device.default(), fn
          %Tensor{device: device} -> device
          # Of Nx, on our backend.
          %{data: %{device: device}} -> device
          _ -> nil
        end)

    specs =
      Enum.map(inputs, fn
        nil ->
          nil

        %module{} = input when module in [Tensor, Template, Value, Nx.Tensor] ->
          Tensor.to_spec(input)

        other ->
          check_input!(op, other)
      end)

    {variant, why, launches} = Native.call(:explain, [device, wire(op), specs])
    %{variant: variant, why: why, launches: launches}
  end

  @doc false
  # What the library takes for an op: `{:layer_norm, %{epsilon: 1.0e-5}}`.
  def wire(op), do: {name(op), Map.from_struct(op)}

  @doc false
  # `:layer_norm`, from the module's name; kept, as making it takes microseconds.
  def name(%module{}) do
    key = {__MODULE__, module}

    case :persistent_term.get(key, nil) do
      nil ->
        name = module |> Module.split() |> List.last() |> Macro.underscore() |> String.to_atom()
        :persistent_term.put(key, name)
        name

      name ->
        name
    end
  end
end
