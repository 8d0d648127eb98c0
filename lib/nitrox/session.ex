defmodule Nitrox.Session do
  @moduledoc """
  A program with a state that stays on the device from call to call: a policy's frame is one
  `step/2`.

      program =
        Nitrox.Program.compile(
          fn x, {c, h} ->
            {seq, {c, h}} = Nitrox.lstm(x, {c, h}, wi, wh, b)
            {seq, {c, h}}
          end,
          [Nitrox.template({1, 1, 256}, {:f, 32})],
          state: {zeros, zeros},
          outputs: :binary
        )

      session = Nitrox.Session.new(program)
      frame = Nitrox.Session.step(session, [frame_bytes])

  Any process may call a session; calls are answered one after the other, in the order in which they
  came. `snapshot/1` and `restore/2` are exact: a session that was restored repeats its outputs bit
  for bit. `fork/1` makes a second session that goes on from the same state.

  A step that raises `Nitrox.Error`, for want of memory or for arguments that do not fit, leaves the
  state as it was.
  """

  alias Nitrox.{Container, Element, Native, Options, Program, Telemetry, Tensor}
  require Telemetry

  defmodule Snapshot do
    @moduledoc """
    The state of a session at one time.
    """

    @type t :: %__MODULE__{tensors: [Nitrox.Tensor.t()]}
    @enforce_keys [:tensors]
    defstruct [:tensors]

    defimpl Inspect do
      def inspect(%{tensors: tensors}, _opts) do
        "#Nitrox.Session.Snapshot<#{Enum.map_join(tensors, ", ", &Nitrox.Tensor.spec_text/1)}>"
      end
    end
  end

  @type t :: %__MODULE__{ref: reference(), program: Program.t(), blank: [Program.container()]}
  @enforce_keys [:ref, :program, :blank]
  defstruct [:ref, :program, :blank]

  @doc """
  A session in the initial state of a program, which was compiled with `state:`.
  """
  @spec new(Program.t()) :: t()
  def new(program) do
    %{ref: ref} = Options.struct!(:session, program, Program)
    %__MODULE__{ref: Native.call(:session_new, [ref]), program: program, blank: blank(program)}
  end

  # Arguments of a step that is made for nobody.
  defp blank(%{arguments: skeletons, inputs: inputs}) do
    sizes = for {type, shape} <- inputs, do: Tuple.product(shape) * Element.bytes(type)
    zeros = :binary.copy(<<0>>, Enum.max(sizes, fn -> 0 end))
    leaves = Enum.map(sizes, &binary_part(zeros, 0, &1))
    Container.build({:list, skeletons}, leaves)
  end

  # In the place of a step's arguments, for `prepare/1`.
  @rehearsal {__MODULE__, :rehearsal}

  @doc """
  One run: reads the state and leaves the next one. Arguments and outputs are as with
  `Nitrox.Program.run/2`.
  """
  @spec step(t(), [Program.container()]) :: Program.container()
  def step(%__MODULE__{blank: blank} = session, @rehearsal), do: frame(session, blank, true)
  def step(%__MODULE__{} = session, args), do: frame(session, args, false)
  def step(other, _args), do: ours!(other)

  # One function for steps and for what prepares them: it is to leave the code of a step in the caches.
  defp frame(%{ref: ref, program: program} = session, args, prepare?) do
    Telemetry.span event(prepare?), %{session: session} do
      case Native.step(ref, Program.feeds(program, args), prepare?) do
        nil -> nil
        results -> Program.outputs(program, results)
      end
    end
  end

  defp event(true), do: [:nitrox, :session, :prepare]
  defp event(false), do: [:nitrox, :session, :step]

  @doc """
  Makes ready for a step that is due in a moment: makes the step once for nobody, on zeros, and throws
  its results and its new state away. On a GPU it then queues the session's next step there, to wait
  for its inputs. The step waits for 5 ms; one that comes later, or with tensors instead of binaries,
  is launched as ever. No state changes, but that a ring which steps write in place may hold anything
  at the one place that the next step overwrites.

  A process that slept for a frame finds the code and the data of the VM, the library and the driver
  gone from the caches of its core, and the GPU at rest. An agent that knows when the next observation
  comes calls this a millisecond or two before (`bench/results/frames.md`).

  Of what one call brings back a part is gone again a millisecond later, and the first call of some is
  not enough to make the code as fast as it is back to back. So it may be called again and again while
  the observation is waited for: `prepare_until/2` does so.

  Nothing is done before the session's first step, where steps take more than half a millisecond, where
  one is under way, where a step can't be made twice (its input says where a ring is written, say), and
  on a GPU for a program without `outputs: :binary`.
  """
  @spec prepare(t()) :: :ok
  def prepare(session) do
    # By way of what the caller of a step goes through, the table of the modules' functions included.
    __MODULE__.step(session, @rehearsal)
    :ok
  end

  # Microseconds. A sleep may be some milliseconds late, and the step must not be.
  @awake 2_000
  # From one rehearsal to the next, and after the last. On an H200 a step after ones 100 µs apart was
  # no faster than after ones 250 apart.
  @pause 250
  @spare 50
  @longest 3_600_000_000
  # With less left there is no time for one that finds nothing in the caches.
  @least 250

  @doc """
  Waits until `due`, a time as of `System.monotonic_time/0` within an hour, and keeps the session's next
  step ready meanwhile: it sleeps for as long as that may be, and for the last two milliseconds calls `prepare/1`
  again and again, a quarter of one apart.

      period = System.convert_time_unit(1, :second, :native) / 60

      for n <- 1..600 do
        Nitrox.Session.prepare_until(session, start + round(n * period))
        act(Nitrox.Session.step(session, [observation()]))
      end

  A step finds more in the caches then than after one `prepare/1` a millisecond ago, and on a busy
  machine most of all (`bench/results/frames.md`). It costs an eighth of a core at 60 frames a second,
  and on the GPU up to 10 steps a frame. Each `prepare/1` is a telemetry event of its own.

  Where `due` is over or nearly so, it only waits until then.
  """
  @spec prepare_until(t(), integer()) :: :ok
  def prepare_until(session, due) do
    session = ours!(session)
    left = left!(due)
    if left >= @awake + 1_000, do: Process.sleep(div(left - @awake, 1_000))

    [pause, spare, least] =
      for us <- [@pause, @spare, @least], do: System.convert_time_unit(us, :microsecond, :native)

    if due - System.monotonic_time() >= least, do: ready_until(session, due, pause, spare)
    wait(due)
  end

  # Of a time that is of another clock or unit, hours are left at the least.
  defp left!(due) do
    us =
      is_integer(due) &&
        System.convert_time_unit(due - System.monotonic_time(), :native, :microsecond)

    if us && us < @longest,
      do: us,
      else:
        Options.fail!(
          :prepare_until,
          "expected a time as of System.monotonic_time/0, within an hour, got #{inspect(due)}"
        )
  end

  defp ready_until(session, due, pause, spare) do
    began = System.monotonic_time()
    prepare(session)
    ended = System.monotonic_time()
    # So that the next one is over in time even if it takes twice as long.
    next = min(ended + pause, due - 2 * (ended - began) - spare)

    if next > ended do
      wait(next)
      ready_until(session, due, pause, spare)
    end
  end

  defp wait(time), do: if(System.monotonic_time() < time, do: wait(time), else: :ok)

  @doc """
  Copies of the state's tensors, in the structure of `state:`.
  """
  @spec state(t()) :: Program.container()
  def state(session) do
    %{program: %{state: {skeleton, _}}} = ours!(session)
    Container.build(skeleton, copies(session))
  end

  @doc """
  The state as it is now, to come back to with `restore/2`.
  """
  @spec snapshot(t()) :: Snapshot.t()
  def snapshot(session), do: %Snapshot{tensors: session |> ours!() |> copies()}

  defp copies(%{ref: ref, program: %{state: {_, specs}, device: device}}) do
    Program.tensors(Native.call(:session_snapshot, [ref]), specs, device)
  end

  @doc """
  Sets the state to that of a snapshot: one of this session, or of another of the same structure.
  """
  @spec restore(t(), Snapshot.t()) :: :ok
  def restore(session, snapshot) do
    %{tensors: tensors} = Options.struct!(:restore, snapshot, Snapshot)
    Native.call(:session_restore, [ours!(session).ref, Enum.map(tensors, & &1.ref)])
  end

  @doc """
  A second session of the same program that starts from this one's state. Neither disturbs the
  other.
  """
  @spec fork(t()) :: t()
  def fork(session) do
    %{session | ref: Native.call(:session_fork, [ours!(session).ref])}
  end

  defp ours!(session), do: Options.struct!(:session, session, __MODULE__)

  defimpl Inspect do
    def inspect(%{program: program}, _opts) do
      {_, states} = program.state

      specs =
        Enum.map_join(states, ", ", fn {type, shape} ->
          Tensor.spec_text(%{type: type, shape: shape})
        end)

      "#Nitrox.Session<state (#{specs}) on #{Kernel.inspect(program.device)}>"
    end
  end
end
