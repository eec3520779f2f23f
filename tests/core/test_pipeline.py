"""Pipeline text and options: what is read, and how what is wrong is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irlab.errors import IrlabError, ParseError, UsageError
from irlab.ir import Graph, Module
from irlab.options import Bytes, parse_bytes
from irlab.passmgr import Context, Pass, PassManager
from irlab.pipeline import Step, parse_pipeline, parse_target
from irlab.schedule import build_pipeline, configure, schedule


@dataclass(frozen=True)
class Example(Pass, name="example"):
    """Shows every kind of option."""

    count: int = 1
    rate: float = 0.5
    fast: bool = False
    scheme: Literal["int4", "int8"] = "int4"
    names: tuple[str, ...] = ()
    size: Bytes | None = None

    def run(self, module: Module, ctx: Context) -> None:
        module.metadata["ran"] = module.metadata.get("ran", 0) + 1
        ctx.note_rewrites({"example": int(module.metadata["ran"] < 3)})


def test_steps_options_and_bodies_are_read() -> None:
    steps = parse_pipeline('fuse, quantize{scheme=int4 group=32 exclude="a b"},repeat{n=3}(canonicalize,cse)')
    assert [s.name for s in steps] == ["fuse", "quantize", "repeat"]
    assert parse_pipeline("repeat{n=3}(canonicalize,cse)")[0].body == (
        Step("canonicalize", column=13),
        Step("cse", column=26),
    )


def test_options_are_read_by_their_annotations() -> None:
    given = {"count": "3", "rate": "1e-3", "fast": "true", "scheme": "int8", "names": "a,b.*", "size": "700MB"}
    example = Example.configure(given)
    assert example == Example(3, 1e-3, True, "int8", ("a", "b.*"), Bytes(700_000_000))
    steps = parse_pipeline(str(example))
    assert Example.configure(dict(steps[0].options)) == example


@given(
    names=st.lists(st.text(alphabet='ab.*" \\{}', min_size=1).filter(lambda text: "," not in text)).map(tuple),
    size=st.none() | st.integers(0, 1 << 40).map(Bytes),
    fast=st.booleans(),
)
def test_a_pass_with_every_option_written_out_reads_back(
    names: tuple[str, ...], size: Bytes | None, fast: bool
) -> None:
    example = Example(names=names, size=size, fast=fast)
    for text in (str(example), example.resolved_text()):
        (step,) = parse_pipeline(text)
        assert Example.configure(dict(step.options)) == example


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cuont": "3"}, "did you mean 'count'"),
        ({"count": "many"}, "takes an integer"),
        ({"fast": "yes"}, "takes true or false"),
        ({"scheme": "int5"}, "int4 | int8"),
    ],
)
def test_wrong_options_are_named(options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        Example.configure(options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "text", ["fuse,,cse", "fuse{", "fuse{x}", "fuse(cse", "fuse)", "fuse{a=1 a=2}", "{", "(" * 100, "a(" * 100]
)
def test_broken_text_is_refused_with_a_column(text: str) -> None:
    with pytest.raises(ParseError, match="pipeline:1:"):
        parse_pipeline(text)


@given(st.text(alphabet='fuse,{}()="\\ \n=x1', max_size=40))
def test_no_text_crashes_the_parser(text: str) -> None:
    try:
        parse_pipeline(text)
        parse_target(text)
    except IrlabError:
        pass


def test_unknown_passes_are_suggested() -> None:
    with pytest.raises(UsageError, match="did you mean 'quantize'"):
        build_pipeline("quantise")


def test_required_passes_are_inserted_and_forbidden_orders_refused() -> None:
    assert [p.name for p in build_pipeline("kv-cache")] == ["fuse", "kv-cache"]

    @dataclass(frozen=True)
    class Early(Pass, name="early", before=("example",)):
        """Must come first."""

        def run(self, module: Module, ctx: Context) -> None:
            raise AssertionError

    with pytest.raises(UsageError, match="early cannot run after example"):
        build_pipeline([Example(), Early()])


def test_reasons_are_told() -> None:
    (fuse, cache) = schedule(configure("kv-cache"))
    assert (fuse.step.name, fuse.needed_by, cache.needed_by) == ("fuse", "kv-cache", "")
    assert "nn.attention" in fuse.reason
    with pytest.raises(UsageError, match=r"kv-cache cannot run after decompose: it looks for nn\.attention"):
        build_pipeline("fuse,decompose,kv-cache")
    with pytest.raises(UsageError, match="cannot run after decompose"):
        build_pipeline("fuse,repeat(decompose),kv-cache")


def test_order_holds_inside_of_a_repeat_too() -> None:
    @dataclass(frozen=True)
    class Young(Pass, name="young", before=("example",)):
        """Must come before example."""

        def run(self, module: Module, ctx: Context) -> None: ...

    with pytest.raises(UsageError, match="young cannot run after example"):
        build_pipeline("repeat{n=1}(example,young)")
    with pytest.raises(UsageError, match=r"young cannot run after example.*ahead of the repeat"):
        build_pipeline("repeat{n=2}(young,example)")  # it does in the second round
    assert len(build_pipeline("young,repeat{n=2}(example)")) == 2
    assert len(build_pipeline("repeat{n=1}(young,example)")) == 1


def test_a_pass_declared_in_this_process_is_found_by_its_name() -> None:
    assert build_pipeline("example{count=3}") == [Example(3)]
    with pytest.raises(UsageError, match=r"pipeline:1:1: unknown pass 'exampel'.*did you mean 'example'"):
        build_pipeline("exampel")


def test_what_a_repeated_pass_requires_runs_once_before_it() -> None:
    assert [str(p) for p in build_pipeline("repeat(fuse-qkv,fuse-gate-up)")] == [
        "fuse",
        "repeat(fuse-qkv,fuse-gate-up)",
    ]


@pytest.mark.parametrize("text", ["repeat{n=3}", "repeat{n=0}(cse)"])
def test_an_empty_repeat_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"repeat (needs a pipeline|takes an integer of at least 1)"):
        build_pipeline(text)


def test_repeat_runs_its_body_until_nothing_changes() -> None:
    from irlab.passmgr import Repeat

    repeat = Repeat(n=7)
    object.__setattr__(repeat, "body", (Example(),))
    graph = Graph()
    graph.set_outputs({})
    module = Module(graph)
    records = PassManager([repeat], Context()).run(module)
    assert module.metadata["ran"] == 3
    assert [r.text for r in records] == ["repeat{n=7}(example)"] + ["example"] * 3


@pytest.mark.parametrize(("text", "size"), [("4096", 4096), ("700MB", 700_000_000), ("1.5GiB", 3 << 29), ("2k", 2000)])
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size
