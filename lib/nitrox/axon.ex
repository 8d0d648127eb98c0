if Code.ensure_loaded?(Axon) do
  defmodule Nitrox.Axon do
    @kinds Nitrox.Axon.Rewrite.kinds()

    @moduledoc """
    Axon models on the fused ops of Nitrox.

        model = Nitrox.Axon.accelerate(model)

    and what `Axon.build/2`, `Axon.predict/4` or a training loop makes of it runs its layers by
    `Nitrox.lstm/6`, `Nitrox.dense/4`, `Nitrox.flash_attention/4` and so on: one kernel each where the
    tensors are on `Nitrox.Backend`, and the same in plain Nx on every other backend and compiler.
    `explain/1` tells which layers those are, and why the others are not.
    """

    alias Axon.ModelState
    alias Nitrox.{Error, Options}
    alias Nitrox.Axon.{Graph, Recurrent, Report, Rewrite}

    use Nitrox.Axon.Layers

    @typedoc "A model, or a container of models as `Axon.container/2` takes it."
    @type model :: %Axon{} | tuple() | map()

    @doc """
    The same model, its layers computed by the ops of Nitrox where these do the same.

    Names, parameters, their initial values, hooks and outputs stay what they are: a model state, a
    checkpoint or a frozen parameter of the one model is that of the other. `model` may also be a
    container of models, such as what `Axon.lstm/3` gives. Accelerate last: what changes a model's
    layers (`Axon.Quantization`, LoRA) looks for those of Axon.

    | kind | layers | becomes |
    |---|---|---|
    | `:lstm`, `:gru` | `Axon.lstm/4` and `Axon.gru/4`, with any state, mask and unroll, with tanh and sigmoid | `Nitrox.lstm/6`, `Nitrox.gru/6`; in `Axon.bidirectional/4` with `reverse: true` |
    | `:layer_norm`, `:rms_norm` | `Axon.layer_norm/2`, `Axon.rms_norm/2` and that of Bumblebee, over the last axis | `Nitrox.layer_norm/4`, `Nitrox.rms_norm/3` |
    | `:dense` | `Axon.dense/3` | `Nitrox.dense/4` |
    | `:activation` | relu, silu, gelu, tanh or sigmoid after a dense layer, and Bumblebee's `:gelu_approx_tanh` | its `:activation` |
    | `:residual` | `Axon.add/3` of a dense layer and something of the same shape | its `:residual` |
    | | `Axon.add/3` of two that a norm reads, alone or with others | the norm's `:residual`, the sum a second result |
    | `:attention` | attention as Bumblebee writes it: masks, bias, window, the causal rule with its offset into a cache | `Nitrox.flash_attention/4` |

    Layers inside of `Axon.block/2` are taken too. A dense layer that others read as well, or that has
    a hook behind it, keeps its activation and its sum apart. Types are f32, bf16 and f16, as they come
    or as a policy of `Axon.MixedPrecision` has them; sums are f32 within a layer whatever they are.

    ## What is decided when the model runs

    Some things only the inputs tell. A layer runs as Axon has it where they are of another type (f64),
    are vectorized, or have a shape that the op does not take (such as a head of more than 256 features);
    each time the model is traced, the event `[:nitrox, :axon, :fallback]` says so (see
    `Nitrox.Telemetry`).

    In training everything differentiates, by the ops' reference in plain Nx. What stays plain then:
    attention whose weights have a dropout, a sum behind a dropout, and a sigmoid, of which Axon's losses
    want to know what it was taken of.

    Attention stays plain where the model is built to give out its weights,
    `global_layer_options: [output_attentions: true]`. A query that may attend to nothing gets zeros,
    where Bumblebee gives it the mean of all values, hidden ones too. That can be seen at padding
    alone.

    ## Gates

    Axon keeps a matrix for each gate of a recurrent layer, and the kernels take them side by side. They
    are put together in each call unless that was done before, once, by `pack/2`.

    ## Options

      * `:only` - a list of the kinds to replace (default: all)
      * `:except` - a list of those to leave alone
      * `:weights` - what becomes of attention whose weights are an output of the model whatever it is
        asked for, as in Bumblebee's encoder and decoder models (T5, Bart, Whisper). `:keep` leaves it
        plain (the default). `:beside` replaces it, and the weights are computed besides where somebody
        reads them, which a loop that generates text does not
    """
    @spec accelerate(model(), only: [atom()], except: [atom()], weights: :keep | :beside) ::
            model()
    def accelerate(model, opts \\ []) do
      opts =
        Options.validate!(:accelerate, opts,
          only: {nil, kinds()},
          except: {[], kinds()},
          weights: {:keep, Options.one_of([:keep, :beside])}
        )

      kinds = (opts.only || @kinds) -- opts.except
      Rewrite.model(model, %{kinds: kinds, weights: opts.weights})
    end

    defp kinds do
      {"a list of some of #{Enum.map_join(@kinds, ", ", &inspect/1)}",
       &(is_list(&1) and Enum.all?(&1, fn kind -> kind in @kinds end))}
    end

    @doc """
    What `accelerate/2` did to a model; of one that it was not given, what it would do.

    A `Nitrox.Axon.Report`, which `inspect/2` and `IO.puts/1` show as a table.
    """
    @spec explain(model()) :: Report.t()
    def explain(model) do
      case model |> Graph.new() |> Rewrite.layers() do
        nil -> %Report{layers: model |> accelerate() |> Graph.new() |> Rewrite.layers() || []}
        layers -> %Report{accelerated: true, layers: layers}
      end
    end

    @doc """
    A model state whose gates are packed: for each recurrent layer that `accelerate/2` replaced, the
    matrices of its gates side by side in one tensor.

        state = Nitrox.Axon.pack(model, state)

    That is what the kernels take, so that nothing has to be put together in a call. `model` is the
    accelerated one, which takes the state either way; Axon's own takes it only as it was, and so do
    `Axon.Loop` and what walks through parameters by name. Keep the one that was given for these, or get
    it back by `unpack/2`.
    """
    @spec pack(%Axon{}, %ModelState{}) :: %ModelState{}
    def pack(model, state), do: change(:pack, model, state, &Recurrent.pack/2)

    @doc "The model state that `pack/2` was given, bit for bit."
    @spec unpack(%Axon{}, %ModelState{}) :: %ModelState{}
    def unpack(model, state), do: change(:unpack, model, state, &Recurrent.unpack/2)

    defp change(name, model, %ModelState{} = state, fun) do
      report = explain(model)

      if not report.accelerated do
        message = "expected a model that was accelerated"
        raise Error.argument(name, message, "give it to Nitrox.Axon.accelerate/2 first")
      end

      for %{op: op, path: path} <- report.layers, op in [:lstm, :gru], reduce: state do
        state ->
          keys = Enum.map(path, &Access.key(&1, %{}))

          with %{} = parameters <- get_in(state.data, keys),
               {:ok, changed} <- fun.(op, parameters) do
            put_in(state.data, put_in(state.data, keys, changed))
          else
            _ ->
              raise Error.argument(
                      name,
                      "the state has no parameters of the layer #{inspect(Enum.join(path, "."))}",
                      "give it the state of this model"
                    )
          end
      end
    end

    defp change(name, _, other, _),
      do: raise(Error.argument(name, "expected an Axon.ModelState, got #{inspect(other)}"))
  end
end
