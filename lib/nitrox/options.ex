defmodule Nitrox.Options do
  @moduledoc false
  # Checks the keyword lists of public functions. A schema gives each option a default and a check;
  # a check is what is expected, in words, and a function that says whether a value is that.

  @type check :: {String.t(), (term() -> boolean())}
  @type schema :: [{atom(), {term(), check()}}]

  @doc "The options as a map, with defaults; raises for what the schema does not know or accept."
  @spec validate!(atom(), term(), schema()) :: map()
  def validate!(op, opts, schema) do
    if not Keyword.keyword?(opts) do
      fail!(op, "options must be a keyword list, got #{inspect(opts)}")
    end

    defaults = Map.new(schema, fn {name, {default, _check}} -> {name, default} end)

    Enum.reduce(opts, defaults, fn {name, value}, taken ->
      put!(op, schema, taken, name, value)
    end)
  end

  defp put!(op, schema, taken, name, value) do
    case Keyword.fetch(schema, name) do
      {:ok, {default, {expected, valid?}}} ->
        if value === default or valid?.(value) do
          Map.put(taken, name, value)
        else
          fail!(op, "#{name}: expected #{expected}, got #{inspect(value)}")
        end

      :error ->
        fail_unknown!(op, name, schema)
    end
  end

  @doc "As `Keyword.validate!/2`, with an error of ours: for values that the caller checks."
  @spec known!(atom(), term(), [atom() | {atom(), term()}]) :: keyword()
  def known!(op, opts, schema) do
    case Keyword.keyword?(opts) && Keyword.validate(opts, schema) do
      {:ok, opts} -> opts
      {:error, [name | _]} -> fail_unknown!(op, name, schema)
      false -> fail!(op, "options must be a keyword list, got #{inspect(opts)}")
    end
  end

  defp fail_unknown!(op, name, schema) do
    names = Enum.map(schema, &if(is_tuple(&1), do: elem(&1, 0), else: &1))
    known = Enum.map_join(names, ", ", &inspect/1)
    known = if known == "", do: "it takes none", else: "known are #{known}"
    fail!(op, "unknown option #{inspect(name)}; #{known}")
  end

  @doc "Raises the error of an argument that the function `op` does not take."
  @spec fail!(atom(), String.t(), String.t() | nil) :: no_return()
  def fail!(op, message, hint \\ nil) do
    raise Nitrox.Error.argument(op, message, hint)
  end

  @doc "The argument `term`, which has to be a struct of `module`."
  @spec struct!(atom(), term(), module()) :: struct()
  def struct!(op, term, module) do
    if is_struct(term, module),
      do: term,
      else: fail!(op, "expected a #{inspect(module)}, got #{inspect(term)}")
  end

  @doc "Whether a term is a list that ends."
  @spec list?(term()) :: boolean()
  def list?(term), do: is_list(term) and not List.improper?(term)

  @spec one_of([atom()]) :: check()
  def one_of(values), do: {"one of #{Enum.map_join(values, ", ", &inspect/1)}", &(&1 in values)}

  @spec boolean() :: check()
  def boolean, do: {"true or false", &is_boolean/1}

  @spec tensor() :: check()
  def tensor, do: {"a tensor", &tensor?/1}

  @spec integer() :: check()
  def integer, do: {"an integer", &is_integer/1}

  @spec integer(integer()) :: check()
  def integer(least), do: {"an integer of at least #{least}", &(is_integer(&1) and &1 >= least)}

  @spec not_negative() :: check()
  def not_negative, do: {"a number that is not negative", &(is_number(&1) and &1 >= 0)}

  @spec number() :: check()
  def number, do: {"a number", &is_number/1}

  @spec range() :: check()
  def range do
    {"{low, high}, two numbers in order",
     fn
       {low, high} -> is_number(low) and is_number(high) and low <= high
       _ -> false
     end}
  end

  @spec norm() :: check()
  def norm do
    {"{:layer_norm, gamma, beta} or {:rms_norm, gamma, nil}",
     fn
       {:layer_norm, gamma, beta} -> tensor?(gamma) and tensor?(beta)
       {:rms_norm, gamma, beta} -> tensor?(gamma) and (beta == nil or tensor?(beta))
       _ -> false
     end}
  end

  @spec axes() :: check()
  def axes do
    {"a list of at least one axis",
     &(&1 != [] and list?(&1) and Enum.all?(&1, fn a -> is_integer(a) end))}
  end

  @spec device() :: check()
  def device do
    {":cpu or {:cuda, n}",
     fn
       :cpu -> true
       {:cuda, n} when is_integer(n) and n >= 0 -> true
       _ -> false
     end}
  end

  @spec type() :: check()
  def type do
    {"a type, such as {:f, 32}",
     fn
       {kind, bits} -> is_atom(kind) and is_integer(bits)
       _ -> false
     end}
  end

  @spec tensor?(term()) :: boolean()
  def tensor?(%Nitrox.Tensor{}), do: true
  def tensor?(%Nitrox.Value{}), do: true
  def tensor?(%{__struct__: Nx.Tensor}), do: true
  def tensor?(_), do: false
end
