"""Which passes run, in which order, and why? From pipeline text to configured passes.

What a pass requires is inserted before it, and an order that a pass forbids is refused, with the reasons that passes
declare.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import UsageError
from .passmgr import Pass, Repeat
from .pipeline import Step, parse_pipeline
from .registry import pass_class

if TYPE_CHECKING:
    from .target import Backend


@dataclass(frozen=True)
class Scheduled:
    """A pass that will run. `needed_by` is the pass that required it, empty for one that was asked for."""

    step: Pass
    needed_by: str = ""
    reason: str = ""


def build_pipeline(pipeline: str | Pass | Sequence[Pass], targets: Iterable[Backend] = ()) -> list[Pass]:
    """The passes that a pipeline names as text, or that are given, with those that they or `targets` require inserted
    and orders checked.

    Raises UsageError or ParseError: an unknown pass, option or value, or an order that cannot work.
    """
    return [scheduled.step for scheduled in scheduled_pipeline(pipeline, targets)]


def scheduled_pipeline(pipeline: str | Pass | Sequence[Pass], targets: Iterable[Backend] = ()) -> list[Scheduled]:
    """As `build_pipeline`, with why each pass is there."""
    given = (pipeline,) if isinstance(pipeline, Pass) else pipeline
    return schedule(configure(given) if isinstance(given, str) else given, targets)


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
        if not step.body:
            raise UsageError("repeat needs a pipeline", "write repeat{n=3}(canonicalize,cse)")
        object.__setattr__(instance, "body", body)
    elif step.body:
        raise UsageError(f"{step.name} takes no pipeline in parentheses")
    for option in instance.options():
        if option.idle is not None and getattr(instance, option.field) == option.idle and not step.layers:
            raise UsageError(
                f"{instance.name}{{{option.text_name}={option.idle:g}}} leaves everything as it is",
                "it is for some layers, where others have another",
            )
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


def schedule(passes: Sequence[Pass], targets: Iterable[Backend] = ()) -> list[Scheduled]:
    """`passes` with those that they require inserted before them, and those that `targets` require and nobody asked
    for in front of all. Raises UsageError for an order that some pass forbids."""
    out: list[Scheduled] = []
    asked = {step.name for step in flat(passes)}
    for target in targets:
        _require(target, out, asked)
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


def _require(user: Pass | Backend, out: list[Scheduled], within: Set[str]) -> None:
    """Add to `out` what `user` requires that is neither there nor `within`."""
    for needed, reason in user.requires.items():
        if needed not in _names(out) and needed not in within:
            made = schedule([pass_class(needed)()])
            out += [s for s in made[:-1] if s.step.name not in _names(out)]
            out.append(Scheduled(made[-1].step, user.name, reason))


def _names(scheduled: Sequence[Scheduled]) -> set[str]:
    return {step.name for step in flat(s.step for s in scheduled)}
