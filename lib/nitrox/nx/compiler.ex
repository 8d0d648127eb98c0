if Code.ensure_loaded?(Nx.Tensor) do
  defmodule Nitrox.Compiler do
    @moduledoc """
    A compiler for `defn`: a function becomes a `Nitrox.Program`, run with one call to the device.

        Nx.Defn.jit(&predict/2, compiler: Nitrox.Compiler, device: {:cuda, 0})
        Nx.Defn.default_options(compiler: Nitrox.Compiler)
        Axon.build(model, compiler: Nitrox.Compiler)

    A `defn` that is run by `Nx.Defn.Evaluator` on `Nitrox.Backend` is one call for each op. Compiled,
    all ops together are one native call, one CUDA graph on a GPU, with one arena for all that lies in
    between. The ops are the same ones, made by the same code, so results are the same bits; only
    where neighbours are fused for CUDA do they differ by rounding.

    ## Options

      * `:device` — `:cpu` or `{:cuda, n}`; by default that of `Nx.default_backend/0` where it is a
        `Nitrox.Backend`, else `Nitrox.Device.default/0`
      * `:instances` — how many calls of one function may be under way at once, 1 by default. Each has
        an arena of its own; further callers wait their turn
      * `:hooks` — functions by the names of `Nx.io_call/3`, as everywhere in `Nx.Defn`
      * `:devices`, `:max_concurrency` — for `Nx.Serving` with `partitions: true`: a partition for each
        of the devices in the list, as many times over as the number says

    Another option raises `Nitrox.Error`.

    ## What goes in and out

    Arguments are tensors of any backend. Those of `Nitrox.Backend` on the function's device do not
    leave it, those of `Nx.BinaryBackend` go over with the call, and those on another device are an
    error. An argument that the function does not use is not asked for. Results are tensors of
    `Nitrox.Backend`. A result that is an argument unchanged shares its buffer.

    Tensors that the expression holds become parameters of the program, on the device from then on.
    What depends on those alone, such as a table made of `Nx.iota/2`, is computed when the function is
    compiled. A tensor given to `defn` by closure has to be one of `Nx.BinaryBackend`, as Nx has it; with
    `Nx.Defn.compile/3` that is the way to parameters that no call has to bring along.

    ## What one program can't hold

    A function with any of these is several programs with steps between them, all on device tensors:

    | in the function | what happens |
    |---|---|
    | `while` | a round is one program: the body and the next condition, which is then read |
    | `cond` | its condition is read, and the program of one branch is run. Later conditions are in the branch of those that say no |
    | `Nx.io_call/2`, `print_value` | its tensor is one more result of the program; the function is called after it. This alone splits nothing |
    | `Nx.runtime_call/4` | called between two programs |
    | what goes through the host in `Nitrox.Backend` | as there, with its event `[:nitrox, :fallback]` |

    A `while` is unrolled where its conditions are known when the function is compiled, such as those of
    `while x, i <- 0..4`, up to 32 rounds of together 4,096 nodes. A `cond` whose condition is known then
    is the branch that it chooses. Everything else that can run runs in the first program. `explain/3`
    tells what a function became.

    A function of the caller's gets its tensors on the device, and runs in the process of the call.
    Where several functions are called, one that another's tensor depends on comes first. What is read
    in branches of two `cond`s is computed ahead of both, and functions in it are called then.

    ## What is kept

    `Nx.Defn.jit/2` compiles once for each function, types, shapes, names and options, and keeps the
    512 programs that were used last (`config :nitrox, compiler_cache: 512`), for all processes.
    A program holds its arena on the device for as long as it is kept. `clear/0` lets all of them go.
    `Nx.Defn.compile/3` gives a function that holds its programs, of which nothing else is kept.

    The events `[:nitrox, :compile]` and `[:nitrox, :program, :run]` of `Nitrox.Telemetry` tell of
    each time a function is compiled, and of each run of a program.
    """

    @behaviour Nx.Defn.Compiler

    alias Nitrox.Backend, as: B
    alias Nitrox.{Device, Error, Options, Program, Telemetry}
    alias Nitrox.Nx.{Cache, Data, Lower, Plan}
    alias Nx.Defn.Composite
    alias Nx.Tensor, as: T

    # Nx.Serving leaves the compiler's name among them, and adds the keys of its batches.
    @known [
      :device,
      :devices,
      :max_concurrency,
      :compiler,
      :batch_keys,
      instances: 1,
      hooks: %{}
    ]

    @impl true
    def __jit__(key, vars, fun, args_list, opts) do
      options = options!(opts)
      compile = fn -> compile(vars, fun, options) end

      compiled =
        if expression?(key) do
          compile.()
        else
          inputs = Enum.map(vars, &template/1)
          names = options.hooks |> Map.keys() |> Enum.sort()
          Cache.fetch({key, inputs, options.device, options.instances, names}, compile)
        end

      Enum.map(args_list, &run(compiled, &1, options))
    end

    # Whether a function has an expression with it, as those of Nx.Defn.Graph do. Its parts are shared,
    # and to compare it as a term may take forever; nor would the same one come again.
    defp expression?(%T{data: data}), do: is_struct(data, Nx.Defn.Expr)
    defp expression?([head | tail]), do: expression?(head) or expression?(tail)
    defp expression?(tuple) when is_tuple(tuple), do: tuple |> Tuple.to_list() |> expression?()
    defp expression?(%Nx.Defn.Expr{}), do: true
    defp expression?(map) when is_map(map), do: map |> :maps.values() |> expression?()

    defp expression?(fun) when is_function(fun) do
      {:env, env} = Function.info(fun, :env)
      expression?(env)
    end

    defp expression?(_), do: false

    @impl true
    def __compile__(_key, vars, fun, opts) do
      options = options!(opts)
      compiled = compile(vars, fun, options)
      fn args_list -> Enum.map(args_list, &run(compiled, &1, options)) end
    end

    @impl true
    def __partitions_options__(opts) do
      options = options!(opts)
      opts = Keyword.drop(opts, [:devices, :max_concurrency])

      for device <- options[:devices] || [options.device],
          _ <- 1..options.max_concurrency,
          do: Keyword.put(opts, :device, device)
    end

    @impl true
    def __to_backend__(opts), do: {B, device: options!(opts).device}

    @doc """
    What a function would be compiled to for arguments like these, templates among them.

        Nitrox.Compiler.explain(&Nx.LinAlg.qr/1, [Nx.template({3, 3}, :f32)])

    Gives a map:

      * `device`
      * `programs` — how many there are, those of loops and branches included
      * `steps`, `kernels`, `arena_bytes`, `parameter_bytes` — of all of them together, as in
        `Nitrox.Program.info/1`
      * `ops` — what each step is and which kernel it uses, as in `Nitrox.Program.explain/1`
      * `host` — what is done between the programs, in order, as `%{op: name, why: reason}`: `:while`,
        `:cond`, `:io_call`, `:runtime_call`, and the calls that go through the host, with the reason
        as in the event `[:nitrox, :fallback]`. Empty where the function is one program

    It compiles the function, and keeps nothing.
    """
    @spec explain(function(), [term()], keyword()) :: map()
    def explain(fun, args, opts \\ []) when is_function(fun) and is_list(args) do
      options = options!(opts)
      {plan, _} = fun |> Nx.Defn.debug_expr_apply(args) |> lower(options)
      {programs, steps} = Plan.contents(plan)
      infos = Enum.map(programs, &Program.info/1)
      sum = fn key -> infos |> Enum.map(& &1[key]) |> Enum.sum() end

      %{
        device: options.device,
        programs: length(programs),
        steps: sum.(:steps),
        kernels: sum.(:kernel_nodes),
        arena_bytes: sum.(:arena_bytes),
        parameter_bytes: sum.(:parameter_bytes),
        ops: Enum.flat_map(programs, &Program.explain/1),
        host: Enum.map(steps, &%{op: &1.name, why: &1.why})
      }
    end

    @doc """
    Forgets what was compiled for `Nx.Defn.jit/2`, and gives its memory on the device back.

    Calls that are under way go on. The next one compiles again.
    """
    @spec clear() :: :ok
    def clear, do: Cache.clear()

    # ── Options ───────────────────────────────────────────────────────────────────────────────────

    defp options!(opts) do
      options = :compiler |> Options.known!(opts, @known) |> Map.new()
      options = Map.put_new_lazy(options, :device, &default_device/0)
      devices = List.wrap(options[:devices]) ++ [options.device]
      Enum.each(devices, &check!(:device, &1, Options.device()))
      check!(:instances, options.instances, Options.integer(1))
      count = Map.get(options, :max_concurrency, 1)
      check!(:max_concurrency, count, Options.integer(1))
      Map.put(options, :max_concurrency, count)
    end

    defp check!(name, value, {expected, valid?}) do
      unless valid?.(value),
        do: Options.fail!(:compiler, "#{name}: expected #{expected}, got #{inspect(value)}")
    end

    defp default_device do
      case Nx.default_backend() do
        {B, opts} -> opts[:device] || Device.default()
        _ -> Device.default()
      end
    end

    # ── Compiling ─────────────────────────────────────────────────────────────────────────────────

    # A container of variables as what it is compiled for.
    defp template(vars) do
      Composite.traverse(vars, fn %T{} = t -> %{Nx.to_template(t) | donatable?: false} end)
    end

    defp compile(vars, fun, options) do
      started = System.monotonic_time()
      {plan, _} = compiled = vars |> fun.() |> lower(options)

      if Telemetry.on?() do
        {programs, steps} = Plan.contents(plan)

        Telemetry.execute(
          [:nitrox, :compile],
          %{duration: System.monotonic_time() - started},
          %{device: options.device, programs: length(programs), host: Enum.map(steps, & &1.name)}
        )
      end

      compiled
    end

    # A plan, and the container of its results.
    defp lower(expr, options) do
      expr = Composite.traverse(expr, &Nx.Defn.Expr.tensor/1)
      names = Map.keys(options.hooks)

      plan =
        [expr]
        |> Composite.flatten_list()
        |> Enum.map(&Nx.devectorize/1)
        |> Lower.plan(%{device: options.device, instances: options.instances, hooks: names})

      {plan, template(expr)}
    end

    # ── Running ───────────────────────────────────────────────────────────────────────────────────

    defp run({plan, container}, arguments, %{hooks: hooks}) do
      arguments = List.to_tuple(arguments)

      slots =
        Map.new(plan.inputs, fn {i, program?} ->
          {i, given(elem(arguments, i).(), program?, i, plan.device)}
        end)

      data = Plan.run_slots(plan, slots, %{device: plan.device, hooks: hooks})

      {result, []} =
        Composite.traverse(container, data, fn template, [data | rest] ->
          {%{template | data: data}, rest}
        end)

      result
    end

    # An argument as data on the device, or as host bytes where a program alone reads it.
    defp given(%T{data: %B{} = data}, _, i, device),
      do: Plan.device!(data, device, "argument #{i + 1}")

    defp given(%T{data: %Nx.Defn.Expr{}} = tensor, _, _, _) do
      raise Error.argument(
              :compiler,
              "a tensor expression is no argument, got #{inspect(tensor)}",
              "inside defn call the function itself, not one that is compiled"
            )
    end

    defp given(%T{} = tensor, program?, _, device) do
      tensor = Nx.devectorize(tensor)

      if program?,
        do: Data.host_bytes(tensor),
        else: Data.here(tensor, device).data
    end
  end
end
