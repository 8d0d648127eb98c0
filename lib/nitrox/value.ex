defmodule Nitrox.Value do
  @moduledoc """
  A tensor that is not there yet: what a function sees in place of its arguments while
  `Nitrox.Program.compile/3` traces it.

  Every function of `Nitrox` that takes a tensor takes a value, and gives values then. Their type
  and shape are known; their elements are not, so a traced function can't branch on them.
  """

  defmodule Node do
    @moduledoc false
    # `op` is an op's struct, `{:input, i}`, `{:state, i}`, or a step of a `defn` on the host. An input
    # is a value, a tensor (a parameter), `{:constant, binary, type}`, or nil.
    @enforce_keys [:id, :op, :inputs]
    defstruct [:id, :op, :inputs]
  end

  @type t :: %__MODULE__{
          node: struct(),
          index: non_neg_integer(),
          type: Nitrox.Tensor.type(),
          shape: Nitrox.Tensor.shape()
        }
  @enforce_keys [:node, :type, :shape]
  defstruct [:node, :type, :shape, index: 0]

  @doc false
  def source(op, %{type: type, shape: shape}) do
    %__MODULE__{node: %Node{id: make_ref(), op: op, inputs: []}, type: type, shape: shape}
  end

  @doc false
  # What a new node of a graph gives.
  def outputs(op, inputs, specs) do
    node = %Node{id: make_ref(), op: op, inputs: inputs}

    for {{type, shape}, index} <- Enum.with_index(specs),
        do: %__MODULE__{node: node, index: index, type: type, shape: shape}
  end

  defimpl Inspect do
    def inspect(%{node: %{op: op}} = value, _opts) do
      origin =
        case op do
          {kind, i} -> "#{kind} #{i}"
          op -> Nitrox.Op.name(op)
        end

      "#Nitrox.Value<#{Nitrox.Tensor.spec_text(value)} of #{origin}>"
    end
  end
end
