"""What would a pipeline do? Its passes in order, with resolved options, promises and reasons: for `--explain`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import indent, wrap
from typing import Final

from .ir import Module
from .options import format_value
from .overlay import LayerRow, known_names
from .passmgr import Exactness, Pass, Repeat, RulePass
from .schedule import Scheduled, configure, schedule
from .sweep import LayerPass

_FROM_BEST: Final[tuple[Exactness, ...]] = ("exact", "close", "lossy")


def explain_pipeline(text: str, module: Module | None = None) -> str:
    """What pipeline `text` would run. With a `module`, what each pass can tell of it and what layer patterns name.

    Raises UsageError or ParseError for what cannot run: an unknown pass or option, or an order that some pass forbids.
    """
    scheduled = schedule(configure(text))
    if not scheduled:
        return "no passes: the module stays as it is"
    names = known_names(module) if module is not None else None
    lines = [line for i, each in enumerate(scheduled, 1) for line in _scheduled(i, each, module, names)]
    return "\n".join([*lines, "", _promise([each.step for each in scheduled])])


def _scheduled(number: int, scheduled: Scheduled, module: Module | None, names: Sequence[str] | None) -> Iterator[str]:
    lines = list(_step(scheduled.step, module, names))
    yield f"{number}. {lines[0]}"
    if scheduled.needed_by:
        because = f", because {scheduled.reason}" if scheduled.reason else ""
        yield f"   added: {scheduled.needed_by} requires it{because}"
    yield from (f"   {line}" for line in lines[1:])


def _step(step: Pass, module: Module | None, names: Sequence[str] | None) -> Iterator[str]:
    yield f"{step.name:24} {_exactness(step)}"
    yield f"  {step.summary()}"
    for option in step.options():
        value = getattr(step, option.field)
        default = "   (default)" if value == option.default else ""
        yield f"    {option.text_name} = {format_value(value)}{default}"
    for row in step.layers.rows:
        yield f"    {row}{_reach(row, names)}"
    if isinstance(step, RulePass):
        names_of_rules = ", ".join(dict.fromkeys(rule.name for rule in step.rules()))
        text = f"rules: {names_of_rules}"
        yield from wrap(text, 110, initial_indent=" " * 4, subsequent_indent=" " * 11, break_on_hyphens=False)
    if isinstance(step, LayerPass) and step.needs():
        yield f"    learns from calibration data: {', '.join(need.__name__ for need in step.needs())}"
    if isinstance(step, Repeat):
        for inner in step.body:
            yield from (f"    {line}" for line in _step(inner, module, names))
    if module is not None and (told := step.explain(module)):
        yield from indent(told, "    ").splitlines()


def _exactness(step: Pass) -> str:
    if isinstance(step, Repeat):
        return f"{_worst(step.body)}, at most {step.n} times"
    return f"{step.exactness} (within {step.rtol:g})" if step.rtol else step.exactness


def _reach(row: LayerRow, names: Sequence[str] | None) -> str:
    if names is None:
        return ""
    return f"   (names {sum(map(row.pattern.matches, names))} weights and modules of this model)"


def _worst(steps: Sequence[Pass]) -> Exactness:
    each = [_worst(step.body) if isinstance(step, Repeat) else step.exactness for step in steps]
    return max(each, key=_FROM_BEST.index, default="exact")


def _promise(steps: Sequence[Pass]) -> str:
    lossy = [step.name for step in steps if _worst([step]) == "lossy"]
    if lossy:
        return f"numbers: lossy, by {', '.join(dict.fromkeys(lossy))}"
    return {"exact": "numbers: stay as they are", "close": "numbers: stay close (sums in another order)"}[_worst(steps)]
