defmodule Nitrox.GuidesTest do
  # The code of README.md, guides/*.md and notebooks/*.livemd. It looks at the device's memory, so nothing else may run.
  use ExUnit.Case, async: false
  import ExUnit.CaptureIO
  alias Nitrox.TestPage

  @root Path.expand("../..", __DIR__)
  @pages for files <- ["README.md", "guides/*.md", "notebooks/*.livemd"],
             file <- @root |> Path.join(files) |> Path.wildcard(),
             do: Path.relative_to(file, @root)

  # What a page needs that is not on every machine.
  @needs %{
    "guides/axon.md" => [:nx, :axon],
    "guides/axon_layers.md" => [:nx, :axon],
    "guides/nx.md" => [:nx, :telemetry],
    "guides/serving.md" => [:nx, :axon],
    "notebooks/nitrox.livemd" => [:nx, :axon, :telemetry]
  }

  for page <- @pages do
    for need <- Map.get(@needs, page, []), do: @tag(need)

    test page do
      page = unquote(page)

      # What a page prints is none of the tests' output.
      {count, _printed} =
        with_io(fn -> TestPage.check(page, File.read!(Path.join(@root, page))) end)

      assert count > 0 or page == "guides/architecture.md"
    end
  end

  test "README.md names every function of Nitrox" do
    [_, functions] =
      @root |> Path.join("README.md") |> File.read!() |> String.split("## Functions")

    {:docs_v1, _, _, _, _, _, docs} = Code.fetch_docs(Nitrox)

    for {{:function, name, _}, _, _, %{}, _} <- docs,
        do: assert(functions =~ "`#{name}`", "#{name} is not there")
  end

  describe "a page is refused" do
    defp page(language, code),
      do: TestPage.check("page.md", "# A page\n\n```#{language}\n#{code}\n```\n")

    defp failure(language, code) do
      assert_raise(ExUnit.AssertionError, fn -> page(language, code) end).message
    end

    test "where a result is another one" do
      assert page("elixir", "x = 1\n#=> 1\n\n[x, 2]\n#=> [1, …]") == 1
      assert failure("elixir", "x = 1\n\nx\n#=> 2") == "page.md:4: expected 2, got 1"
      assert failure("elixir", "[1, 2]\n#=> [1,\n#    3]") =~ "expected [1, 3], got [1, 2]"
      assert failure("elixir", "12\n#=> 1") =~ "got 12"
    end

    test "where it raises what it does not say, or does not raise what it says" do
      assert page("elixir", ~s{raise "no"\n#=> ** (RuntimeError) no}) == 1
      assert failure("elixir", ~s{raise "no"\n#=> ** (ArgumentError) no}) =~ "(RuntimeError) no"
      assert failure("elixir", "1\n#=> ** (RuntimeError) no") =~ "got 1"
      assert failure("elixir", ~s(raise "no"\n#=> 1)) =~ "(RuntimeError) no"
      # Nothing is said of the first of the two, nor of this one.
      assert_raise RuntimeError, fn ->
        page("elixir", ~s{raise "no"\n1\n#=> ** (RuntimeError) no})
      end

      assert_raise RuntimeError, fn -> page("elixir", ~s(raise "no")) end
    end

    test "where it quotes what is not there" do
      file = "lib/nitrox/session.ex"

      assert page(
               "rust",
               "// #{file}\ndefmodule Nitrox.Session do\n…\ndefstruct [:ref, :program, :blank]"
             ) == 1

      assert failure(
               "elixir",
               "# #{file}\ndefstruct [:ref, :program, :blank]\n…\n@moduledoc \"\"\""
             ) =~
               "order"

      assert failure("rust", "// #{file}\n@moduledoc \"\"\"\ndefstruct [:ref, :program, :blank]") =~
               "order"

      assert failure("rust", "// #{file}\n…") =~ "nothing of #{file}"
      assert_raise File.Error, fn -> page("rust", "// native/none.rs\nfn main() {}") end
    end

    test "where a block has no end" do
      assert_raise ExUnit.AssertionError, ~r/line 1: .* no end/, fn ->
        TestPage.check("page.md", "```elixir\n1")
      end
    end
  end
end
