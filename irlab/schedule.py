"""Which passes run, in which order, and why? From pipeline text to configured passes.

What a pass requires is inserted before it, and an order that a pass forbids is refused, with the reasons that passes
declare.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass

from .errors import UsageError
from .passmgr import Pass, Repeat
from .pipeline import Step, parse_pipeline
from .registry import pass_class


@dataclass(frozen=True)
class Scheduled:
    """A pass that will run. `needed_by` is the pass that required it, empty for one that was asked for."""

    step: Pass
    needed_by: str = ""
    reason: str = ""


def build_pipeline(pipeline: str | Pass | Sequence[Pass]) -> list[Pass]:
    """The passes that a pipeline names as text, or that are given, with required ones inserted and orders checked.

    Raises UsageError or ParseError: an unknown pass, option or value, or an order that cannot work.
    """
    given = (pipeline,) if isinstance(pipeline, Pass) else pipeline
    return arrange(configure(given) if isinstance(given, str) else given)


def configure(text: str) -> list[Pass]:
    """The passes that pipeline `text` names, and no others. Raises UsageError or ParseError."""
    return [_configure(step) for step in parse_pipeline(text)]


def _configure(step: Step) -> Pass:
    body = tuple(_configure(inner) for inner in step.body)
    try:
        return _configured(step, body)
    except UsageError as error:
        error.message = f"pipeline:1:{step.column}: {error.message}"
        raise


def _configured(step: Step, body: tuple[Pass, ...]) -> Pass:
    instance = pass_class(step.name).configure(dict(step.options))
    if isinstance(instance, Repeat):
        if not step.body or instance.n < 1:
            raise UsageError("repeat needs a pipeline and at least one round", "write repeat{n=3}(canonicalize,cse)")
        object.__setattr__(instance, "body", body)
    elif step.body:
        raise UsageError(f"{step.name} takes no pipeline in parentheses")
    if step.layers:
        return instance.with_layers(instance.layer_row(pattern, dict(options)) for pattern, options in step.layers)
    return instance


def flat(passes: Iterable[Pass]) -> list[Pass]:
    """`passes` with those inside of repeats, each behind the repeat that holds it."""
    out: list[Pass] = []
    for step in passes:
        out.append(step)
        if isinstance(step, Repeat):
            out.extend(flat(step.body))
    return out


def arrange(passes: Sequence[Pass]) -> list[Pass]:
    """`passes` with those that they require inserted before them; refuses an order that some pass forbids."""
    return [scheduled.step for scheduled in schedule(passes)]


def schedule(passes: Sequence[Pass]) -> list[Scheduled]:
    """As `arrange`, with why each pass is there. Raises UsageError for an order that some pass forbids."""
    out: list[Scheduled] = []
    for step in passes:
        within: set[str] = set()
        for inner in _unrolled(step):
            _require(inner, out, within)
            have = _names(out) | within
            late = [(name, reason) for name, reason in inner.before.items() if name in have]
            for name, reason in late:
                message = f"{inner.name} cannot run after {name}" + (f": {reason}" if reason else "")
                together = name in within and isinstance(step, Repeat) and step.n > 1
                place = "ahead of the repeat" if together else f"before {name} in the pipeline"
                raise UsageError(message, f"put {inner.name} {place}")
            within.add(inner.name)
        out.append(Scheduled(step))
    return out


def _unrolled(step: Pass) -> Iterator[Pass]:
    """`step` and what runs inside of it, in order; two rounds of a repeat show what follows what."""
    yield step
    if isinstance(step, Repeat):
        for _ in range(min(step.n, 2)):
            for inner in step.body:
                yield from _unrolled(inner)


def _require(step: Pass, out: list[Scheduled], within: Set[str]) -> None:
    for needed, reason in step.requires.items():
        if needed not in _names(out) and needed not in within:
            made = schedule([pass_class(needed)()])
            out += [s for s in made[:-1] if s.step.name not in _names(out)]
            out.append(Scheduled(made[-1].step, step.name, reason))


def _names(scheduled: Sequence[Scheduled]) -> set[str]:
    return {step.name for step in flat(s.step for s in scheduled)}
