if Code.ensure_loaded?(Nx.Tensor) do
  defmodule Nitrox.Backend do
    @moduledoc """
    The backend of Nx whose tensors lie on a device of Nitrox.

        Nx.default_backend({Nitrox.Backend, device: {:cuda, 0}})

    From then on what Nx makes is on that device, and what is computed of it stays there. `:device` is
    `Nitrox.Device.default/0` where it is not given. `Nitrox.from_nx/1` and `Nitrox.to_nx/1` give the
    same buffer under the other kind of tensor, without a copy.

    A `defn` runs on it op by op; `Nitrox.Compiler` makes one program of it.

    ## What to know

      * A number, and what `Nx.broadcast/2` and functions of numbers make of it, is kept as a number
        until a tensor on the device needs it: it costs neither a launch nor device memory.
      * Operands of other types are brought to the type of the result first, as Nx defines it.
      * Operands may also be tensors of `Nx.BinaryBackend`, which are then copied to the device. Two
        tensors on two devices are an error: bring one over with `Nx.backend_copy/2`.
      * `Nx.backend_copy/2` to the same device shares the buffer and costs nothing.
      * Nothing can be raised from a device. A read out of range takes the nearest element and a write
        there is left out; an integer divided by zero gives zero, and integers wrap around. A singular
        triangle gives ∞ and NaN, where `Nx.BinaryBackend` raises.
      * A float beyond an integer type becomes the nearest end of its range, and NaN 0. A float becomes
        `bf16` by rounding, where `Nx.BinaryBackend` cuts off.
      * `config :nitrox, add_backend_on_inspect: false` leaves the device out where tensors are shown.

    ## What goes through the host

    The rest is copied to the host, computed by `Nx.BinaryBackend`, and copied back. The event
    `[:nitrox, :fallback]` (see `Nitrox.Telemetry`) tells of each.

    #{Nitrox.Nx.Routes.table()}

    Linear algebra is made of the other ops, by Nx's own definitions.
    """

    @behaviour Nx.Backend

    require Nitrox.Nx.Routes
    import Nitrox.Nx.Routes, only: [is_native: 1]

    alias Nitrox.Nx.{Blocks, Elementwise, Host, Index, Pointer, Product, Reduce, Routes, Shape}
    alias Nitrox.Nx.Transfer

    # A reference to the buffer, or the bytes of the element that a constant is made of; and the
    # device that it lies on or, of a constant, that it was made for.
    @typedoc false
    @type t :: %__MODULE__{
            ref: reference() | nil,
            constant: bitstring() | nil,
            device: Nitrox.Device.t()
          }
    @enforce_keys [:device]
    defstruct [:device, :ref, :constant]

    # ── Creation, transfer, and what is the same for all types ────────────────────────────────────

    @impl true
    defdelegate init(opts), to: Transfer
    @impl true
    defdelegate constant(out, number, opts), to: Transfer
    @impl true
    defdelegate from_binary(out, binary, opts), to: Transfer
    @impl true
    defdelegate eye(out, opts), to: Transfer
    @impl true
    defdelegate iota(out, axis, opts), to: Transfer
    @impl true
    defdelegate backend_copy(t, backend, opts), to: Transfer
    @impl true
    defdelegate backend_transfer(t, backend, opts), to: Transfer
    @impl true
    defdelegate backend_deallocate(t), to: Transfer
    @impl true
    defdelegate to_batched(out, t, opts), to: Transfer
    @impl true
    defdelegate to_binary(t, limit), to: Transfer
    @impl true
    defdelegate inspect(t, opts), to: Transfer
    @impl true
    defdelegate to_pointer(t, opts), to: Pointer
    @impl true
    defdelegate from_pointer(pointer, type, shape, backend_opts, opts), to: Pointer
    @impl true
    defdelegate reshape(out, t), to: Shape
    @impl true
    defdelegate squeeze(out, t, axes), to: Shape
    @impl true
    defdelegate block(struct, out, args, fun), to: Blocks

    # ── What the kernels do for the types they know ───────────────────────────────────────────────

    unary =
      Keyword.keys(Nx.Shared.unary_math_funs()) ++
        [:abs, :ceil, :floor, :negate, :round, :sign] ++
        [:bitwise_not, :count_leading_zeros, :population_count]

    binary =
      ~w(add subtract multiply divide quotient remainder pow atan2 min max)a ++
        ~w(bitwise_and bitwise_or bitwise_xor left_shift right_shift)a ++
        ~w(equal not_equal greater less greater_equal less_equal)a ++
        ~w(logical_and logical_or logical_xor)a

    # Callbacks that are the same but for a word: their names, the arguments they come with, and what
    # runs them, that word first.
    families = [
      {Enum.map(unary, &{&1, &1}), [:out, :t], {Elementwise, :unary}},
      {Enum.map(binary, &{&1, &1}), [:out, :a, :b], {Elementwise, :binary}},
      {[is_nan: :is_nan, is_infinity: :is_infinity], [:out, :t], {Elementwise, :non_finite}},
      {[sum: :sum, product: :product, reduce_max: :max, reduce_min: :min], [:out, :t, :opts],
       {Reduce, :reduce}},
      {[all: :all, any: :any], [:out, :t, :opts], {Reduce, :test}},
      {[window_sum: :sum, window_product: :product, window_max: :max, window_min: :min],
       [:out, :t, :window, :opts], {Reduce, :window}},
      {[window_scatter_max: false, window_scatter_min: true],
       [:out, :t, :source, :init, :window, :opts], {Reduce, :window_scatter}}
    ]

    singles = [
      {:clip, [:out, :t, :least, :most], Elementwise},
      {:select, [:out, :pred, :on_true, :on_false], Elementwise},
      {:as_type, [:out, :t], Shape},
      {:bitcast, [:out, :t], Shape},
      {:broadcast, [:out, :t, :shape, :axes], Shape},
      {:transpose, [:out, :t, :axes], Shape},
      {:reverse, [:out, :t, :axes], Shape},
      {:pad, [:out, :t, :value, :config], Shape},
      {:slice, [:out, :t, :starts, :lengths, :strides], Shape},
      {:put_slice, [:out, :t, :starts, :slice], Shape},
      {:gather, [:out, :t, :indices, :opts], Index},
      {:indexed_add, [:out, :t, :indices, :updates, :opts], Index},
      {:indexed_put, [:out, :t, :indices, :updates, :opts], Index},
      {:sort, [:out, :t, :opts], Index},
      {:argsort, [:out, :t, :opts], Index},
      {:argmax, [:out, :t, :opts], Reduce},
      {:argmin, [:out, :t, :opts], Reduce},
      {:dot, [:out, :a, :contract_a, :batch_a, :b, :contract_b, :batch_b], Product},
      {:conv, [:out, :t, :kernel, :opts], Product},
      {:triangular_solve, [:out, :a, :b, :opts], Product}
    ]

    # The tensors among them; all other arguments are options.
    tensors =
      ~w(out t a b value least most pred on_true on_false slice indices updates source init kernel)a

    callbacks =
      for({names, arguments, {module, function}} <- families, {name, word} <- names) do
        {name, arguments, {module, function, [word]}}
      end ++
        for({name, arguments, module} <- singles, do: {name, arguments, {module, name, []}})

    for {name, arguments, {module, function, fixed}} <- callbacks do
      variables = Enum.map(arguments, &Macro.var(&1, __MODULE__))

      native? =
        for(argument <- arguments, argument in tensors, do: Macro.var(argument, __MODULE__))
        |> Enum.map(&quote(do: is_native(unquote(&1))))
        |> Enum.reduce(&quote(do: unquote(&2) and unquote(&1)))

      @impl true
      def unquote(name)(unquote_splicing(variables)) when unquote(native?),
        do: unquote(module).unquote(function)(unquote_splicing(fixed ++ variables))

      def unquote(name)(unquote_splicing(variables)),
        do: Host.run(unquote(name), [unquote_splicing(variables)])
    end

    for name <- [:concatenate, :stack] do
      @impl true
      def unquote(name)(out, tensors, axis) do
        if is_native(out) and Enum.all?(tensors, &Routes.native?/1),
          do: Shape.unquote(name)(out, tensors, axis),
          else: Host.run(unquote(name), [out, tensors, axis])
      end
    end

    # ── What no kernel does ───────────────────────────────────────────────────────────────────────

    for {name, arity} <- Nx.Backend.behaviour_info(:callbacks),
        name in Keyword.keys(Routes.host()) do
      variables = Macro.generate_arguments(arity, __MODULE__)

      @impl true
      def unquote(name)(unquote_splicing(variables)),
        do: Host.run(unquote(name), [unquote_splicing(variables)])
    end
  end
end
