"""What `irlab-opt` prints about plug-ins, plans, statistics and rules that did not match."""

from __future__ import annotations

import inspect
import io
from collections.abc import Sequence
from dataclasses import MISSING
from typing import TYPE_CHECKING

from . import registry
from .errors import InputError, LegalityError, UsageError
from .ir import Module, path_of
from .options import Configurable, Option, did_you_mean, format_value
from .passmgr import Context, Pass, RulePass
from .target import PlanRow

if TYPE_CHECKING:
    from rich.table import Table

    from .rewrite import Rule
    from .statistics import Statistics
    from .target import Backend


def list_plugins(group: str) -> str:
    """A line for each pass or backend: name and summary."""
    lines = []
    for name in registry.names(group):
        try:
            summary = registry.lookup(group, name).summary()
        except InputError as error:  # a broken plug-in must not hide the others
            summary = str(error)
        lines.append(f"{name:20} {summary}")
    return "\n".join(lines)


def describe_plugin(name: str) -> str:
    """Docstring and options of a pass or backend."""
    group = "backends" if name in registry.names("backends") and name not in registry.names("passes") else "passes"
    cls: type[Configurable] = registry.lookup(group, name)
    lines = [f"{name}: {inspect.cleandoc(cls.__doc__ or '')}"]
    if issubclass(cls, Pass):
        lines += ["", *promises(cls)]
    if cls.options():
        lines.append("\noptions:")
    for option in cls.options():
        lines.append(f"  {option.text_name:16} {option.type_text}; {default_text(cls, option)}")
    return "\n".join(lines)


def promises(cls: type[Pass]) -> list[str]:
    """What a pass promises of the numbers, and where in a pipeline it can stand; a line each."""
    lines = [f"exactness: {cls.exactness}" + (f" (relative tolerance {cls.rtol:g})" if cls.rtol else "")]
    for needed, reason in cls.requires.items():
        lines.append(f"runs after {needed} (inserted if missing)" + (f": {reason}" if reason else ""))
    for late, reason in cls.before.items():
        lines.append(f"cannot run after {late}" + (f": {reason}" if reason else ""))
    return lines


def default_text(cls: type[Configurable], option: Option) -> str:
    """The default of an option, and whether it may differ between layers."""
    default = "required" if option.default is MISSING else f"default {format_value(option.default)}"
    return default + ("; also per layer" if option.field in getattr(cls, "per_layer", ()) else "")


def print_plan(module: Module, backends: Sequence[Backend]) -> int:
    """Print how each target holds the module; 1 if one of them cannot."""
    from rich.console import Console
    from rich.table import Table

    letters = {"native": "N", "emulated": "E", "special": "A", "none": "-"}
    impossible = False
    for backend in backends:
        table = Table(title=f"plan for {backend}", title_justify="left")
        for column in ("what", "held", "note"):
            table.add_column(column)
        for row in _plan_rows(module, backend):
            table.add_row(row.what, letters[row.holding], row.note)
            impossible |= row.holding == "none"
        Console().print(table)
    print("N native, E emulated without gain, A through a special architecture, - not at all")
    for note in module.metadata.get("notes", ()):
        print(f"note: {note}")
    return int(impossible)


def _plan_rows(module: Module, backend: Backend) -> list[PlanRow]:
    """What `backend` tells of `module`; where that refuses nothing, what it would refuse when it came to write it."""
    rows = backend.plan(module)
    if all(row.holding != "none" for row in rows):
        try:
            backend.legalise(module.clone(), Context(targets=(backend.name,), is_plan=True))
        except LegalityError as error:
            rows.append(PlanRow("the module", "none", str(error)))
    return rows


def rendered(table: Table, width: int = 100) -> str:
    """The table as text."""
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue().rstrip()


def stats_table(found: Statistics, name: str) -> str:
    """Ops by kind, parameters and bytes by element, and what a run takes."""
    from rich.table import Table

    table = Table("what", title=f"statistics of {name}")
    table.add_column("count", justify="right")
    table.add_column("bytes", justify="right")
    for op, count in found.ops.items():
        table.add_row(op, f"{count:,}", "")
    table.add_section()
    for element, stored in found.stored.items():
        table.add_row(f"parameters in {element}", f"{stored.parameters:,}", f"{stored.bytes:,}")
    table.add_row("parameters", f"{found.parameters:,}", f"{found.bytes:,}")
    table.add_section()
    sizes = " ".join(f"{size}={value}" for size, value in found.sizes.items())
    where = f" at {sizes}" if sizes else ""
    table.add_row(f"FLOPs per {found.unit}{where}", f"{round(found.flops_per_unit):,}", "")
    for op, count in found.uncounted.items():
        table.add_row(f"  not counted: {op}", f"{count:,}", "")
    if found.cache_bytes_per_token is not None:
        table.add_row("KV cache per token", "", f"{found.cache_bytes_per_token:,}")
    if found.peak is not None:
        at = found.peak.op
        table.add_row(f"peak of activations{where}", "", f"{found.peak.bytes:,}")
        table.add_row(f"  in {at.opname} of {path_of(at) or name}", "", "")
    formulas = [f"FLOPs = {found.flops}"]
    if found.peak is not None:
        formulas.append(f"peak of activations = {found.peak.formula} bytes")
    return "\n".join([rendered(table), *formulas])


def all_rules(passes: Sequence[Pass]) -> dict[str, Rule]:
    """The rules of `passes` and of every registered rule pass with default options, by name."""
    found: dict[str, Rule] = {}
    for name in registry.names("passes"):
        cls = registry.pass_class(name)
        if issubclass(cls, RulePass) and not any(o.default is MISSING for o in cls.options()):
            found.update({rule.name: rule for rule in cls().rules()})
    for step in passes:
        if isinstance(step, RulePass):
            found.update({rule.name: rule for rule in step.rules()})
    return found


def why_not(module: Module, request: str, passes: Sequence[Pass]) -> str:
    """The near misses of a rule in what the passes left: RULE, RULE@PART-OF-A-LOCATION or RULE@%12."""
    from .explain import format_near_misses, why_not
    from .places import find_ops
    from .rewrite import find

    name, _, where = request.partition("@")
    rules = all_rules(passes)
    if name not in rules:
        raise UsageError(f"no pass has a rule '{name}'", did_you_mean(name, rules))
    misses = why_not(module.graph, rules[name], at=where)
    places = set(find_ops(module.graph, where))
    matches = sum(m.root in places for m in find(module.graph, rules[name]))
    told = [f"{name}: matches {matches} time{'s'[: matches > 1]} here, and would be applied"] if matches else []
    if misses or not matches:
        told.append(format_near_misses(rules[name], misses))
    return "\n".join(told)
