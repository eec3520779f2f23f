"""Writes docs/reference/ from docstrings and declarations, so that it cannot say anything else than the code does.

    python tools/build_docs.py            # write the pages
    python tools/build_docs.py --check    # exit status 1 if a page would change

A page for passes, ops, targets, weights, options and the command line. Only irlab's own plug-ins are described.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

from irlab.describe import default_text, promises
from irlab.encodings import SCHEMES, Encoding, scheme_encoding
from irlab.opdef import OPS, REQUIRED, FieldKind
from irlab.ops import call, control, nn, prim  # noqa: F401  # imported so that OPS is filled
from irlab.options import Configurable, Option
from irlab.passmgr import Pass, Repeat, RulePass
from irlab.weights import Recipe

REFERENCE: Final = Path(__file__).parents[1] / "docs" / "reference"
COMMAND: Final = "python tools/build_docs.py"
NOTICE: Final = f"<!-- Written by `{COMMAND}`: change the docstrings, not this page. -->\n"

DIALECTS: Final = {
    "prim": "Tensor primitives: a small orthogonal set with the semantics of Core ATen and ONNX. Frontends normalise "
    "into it.",
    "nn": "What language models are made of. Each has a decomposition into primitives, which is its meaning.",
    "ctl": "Ops with regions. What a region uses from outside is an operand.",
    "": "What belongs to no dialect.",
}


CODE_TARGETS = ("gguf", "onnx", "tensorrt")
"""The backends that store codes."""


def plugins(group: str) -> dict[str, Any]:
    """irlab's own plug-ins of a group by name; somebody else's may be installed beside it."""
    points = entry_points(group=f"irlab.{group}")
    found = {point.name: point.load() for point in points if point.value.startswith(f"irlab.{group}.")}
    if group == "passes":
        found["repeat"] = Repeat
    return dict(sorted(found.items()))


def passes_page() -> str:
    """Every pass: what it does, its options, what it promises, its rules."""
    parts = [
        "# Passes",
        "A pipeline names passes in order: `fuse,quantize{scheme=int4 group=32},kv-cache`. "
        "`irlab-opt --help-pass NAME` says the same as this page. "
        "[Writing passes](../writing-passes.md) tells how to add one.",
        _contents(plugins("passes")),
    ]
    for name, cls in plugins("passes").items():
        parts += [f"## {name}", docstring(cls), "\n".join(f"* {_prose(line)}" for line in promises(cls))]
        parts += option_table(cls)
        parts += rule_table(cls)
    return page(parts)


def targets_page() -> str:
    """Every backend with its options, and every frontend."""
    parts = [
        "# Backends and frontends",
        'A backend writes what `--emit` names: `--emit "gguf{type=q8_0}" -o model.gguf`. A frontend reads INPUT.',
        _contents(plugins("backends")),
    ]
    for name, cls in plugins("backends").items():
        parts += [f"## {name}", docstring(cls), *option_table(cls)]
    parts.append("## Frontends")
    parts.append("\n".join(f"* `{name}`: {_line(docstring(cls))}" for name, cls in plugins("frontends").items()))
    return page(parts)


def ops_page() -> str:
    """Every op: its signature and meaning, by dialect."""
    parts = [
        "# Ops",
        "Operands come first, then attributes with their types, as in the constructors `nn.rms_norm(x, weight, "
        "eps=1e-5)` and in patterns. An operand that may be missing is `= None`, `*xs` takes any number. Axes are "
        "stored counted from the end. How ops are written as text: [the IR](../ir.md).",
    ]
    for dialect, meaning in DIALECTS.items():
        parts += [f"## {dialect or 'others'}", meaning]
        for name, cls in sorted(OPS.items()):
            ours = cls.__module__.startswith("irlab.")
            if ours and (name.partition(".")[0] if "." in name else "") == dialect:
                parts += [f"### {name}", f"```text\n{signature(cls)}\n```", docstring(cls)]
                parts += ["Commutative: patterns try both orders."] if cls.commutative else []
    return page(parts)


def weights_page() -> str:
    """Every encoding and every recipe."""
    parts = ["# Weights", "What a weight is, and how it is written: [the IR](../ir.md#weights).", "## Encodings"]
    for name, cls in sorted(_core(Encoding.families).items()):
        parts += [f"### {name}", f"```text\n{_constructor(cls)}\n```", docstring(cls)]
    parts += ["## Schemes", *scheme_table()]
    parts += ["## Recipes", "As expressions in IR text; fields with a default are written by name."]
    for name, cls in sorted(_core(Recipe.registry).items()):
        parts += [f"### {name}", f"```text\n{name}({', '.join(map(_field, fields(cls)))})\n```", docstring(cls)]
    return page(parts)


def scheme_table() -> Iterator[str]:
    """Every scheme as an encoding, its size, and the targets that store its codes as they are."""
    targets = {name: cls() for name, cls in plugins("backends").items() if name in CODE_TARGETS}
    yield (
        "What `quantize{scheme=...}` stores, in bits a number of a row of 4096, and the targets that hold the very\n"
        "codes natively. Other targets store the same numbers in more bits, or refuse: `--plan` says which."
    )
    rows = [f"| scheme | encoding | bits | {' | '.join(targets)} |", "|---|---|---|" + "---|" * len(targets)]
    for name in SCHEMES:
        encoding = scheme_encoding(name)
        held = " | ".join("yes" if target.holds(encoding) else "" for target in targets.values())
        rows.append(f"| `{name}` | `{encoding}` | {encoding.bits_per_weight(4096):.4g} | {held} |")
    yield "\n".join(rows)


def _core(found: Mapping[str, type]) -> dict[str, Any]:
    """Those that the core declares: what plug-ins add is there only once one of them is imported."""
    plug_ins = ("irlab.passes.", "irlab.frontends.", "irlab.backends.")
    modules = {name: cls.__module__ for name, cls in found.items()}
    return {name: found[name] for name, m in modules.items() if m.startswith("irlab.") and not m.startswith(plug_ins)}


def _constructor(cls: Any) -> str:
    return f"{cls.__name__}({', '.join(map(_field, fields(cls)))})"


def _field(field: Field[Any]) -> str:
    default = "" if field.default is MISSING else f" = {_value(field.default)}"
    return f"{field.name}: {field.type}{default}"


def options_page() -> str:
    """How values are written, and every option of every pass and backend."""
    parts = [
        "# Options",
        "Options follow a pass or target in braces, separated by spaces: `quantize{scheme=int4 group=32}`. Quote an "
        "argument with braces or commas, or the shell expands them.",
        "\n".join(
            [
                "| value | written |",
                "|---|---|",
                "| integer, number | `32`, `1e-4` |",
                "| true or false | `sym=false` |",
                "| name | `scheme=int4` |",
                "| list | `targets=sm80,sm89` |",
                '| size | `700MB`, `1.5GiB`, or bytes |\n| text with spaces or braces | `"in quotes"` |',
            ]
        ),
    ]
    for group in ("passes", "backends"):
        rows = [
            f"| `{option.text_name}` | [{name}]({group}.md#{name}) | {cell(option.type_text)} "
            f"| {cell(default_text(cls, option))} |"
            for name, cls in plugins(group).items()
            for option in cls.options()
        ]
        parts += [f"## Of {group}", "\n".join(["| option | of | takes | |", "|---|---|---|---|", *sorted(rows)])]
    return page(parts)


def cli_page() -> str:
    """The options of irlab-opt, as its parser declares them."""
    from irlab.cli.options import EXAMPLES, build_parser

    parser = build_parser()
    parts = ["# irlab-opt", "```text\nirlab-opt INPUT [-p PIPELINE] [--emit TARGET -o OUT]... [options]\n```"]
    parts.append(parser.description or "")
    titles = {"positional arguments": "Input", "options": "Compiling"}
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
        if actions:
            parts += [f"## {titles.get(group.title or '', (group.title or '').capitalize())}", _actions(actions)]
    parts += ["## Examples", "```text\n" + inspect.cleandoc(EXAMPLES.removeprefix("examples:\n")) + "\n```"]
    parts += [
        "## Exit status",
        "| | |\n|---|---|\n| 0 | done |\n| 1 | the input or the request is at fault; one line says what |\n"
        "| 2 | the command line is wrong |\n| 3 | a verification, check or parity gate failed |\n| 130 | interrupted |",
    ]
    return page(parts)


def _actions(actions: list[argparse.Action]) -> str:
    rows = ["| option | meaning |", "|---|---|"]
    for action in actions:
        names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.metavar}`"
        takes = _takes(action)
        meaning = (action.help or "").replace("%%", "%")  # as argparse prints it
        rows.append(f"| {names}{f' `{cell(takes)}`' if takes else ''} | {cell(_prose(meaning))} |")
    return "\n".join(rows)


def _takes(action: argparse.Action) -> str:
    if not action.option_strings or action.nargs == 0:
        return ""
    if isinstance(action.metavar, tuple):
        return " ".join(action.metavar)
    return action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())


PAGES: Final[dict[str, Callable[[], str]]] = {
    "passes.md": passes_page,
    "ops.md": ops_page,
    "backends.md": targets_page,
    "weights.md": weights_page,
    "options.md": options_page,
    "cli.md": cli_page,
}


# Parts of pages


def page(parts: list[str]) -> str:
    """The text of a page: the notice, and the parts with blank lines between."""
    return NOTICE + "\n" + "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def docstring(cls: type) -> str:
    """The docstring as Markdown. What is indented in it stays so, and reads as code; `<` in prose is kept from HTML."""
    text = inspect.cleandoc(cls.__doc__ or "")
    assert text, f"{cls.__name__} has no docstring"
    lines = [line if line.startswith("    ") else _prose(line) for line in text.splitlines()]
    return "\n".join(lines)


def _prose(line: str) -> str:
    """A line with what Markdown would take for markup escaped, outside of `code`."""
    pieces = re.split(r"(`[^`]*`)", line)
    return "".join(piece if piece.startswith("`") else re.sub(r"(?<=.)\*|<", r"\\\g<0>", piece) for piece in pieces)


def _line(text: str) -> str:
    return " ".join(text.split())


def _contents(found: dict[str, Any]) -> str:
    return "\n".join(f"* [{name}](#{name}): {_prose(cls.summary())}" for name, cls in found.items())


def cell(text: str) -> str:
    """Text for the cell of a table."""
    return text.replace("|", "\\|")


def signature(cls: Any) -> str:
    """`nn.rms_norm(x, weight = None, eps: float = 1e-06)`, over several lines if it is long: operands without types."""
    fields = []
    for field in cls.fields:
        default = "" if field.default is REQUIRED else f" = {_value(field.default)}"
        kind = f": {field.annotation}" if field.kind in (FieldKind.ATTRIBUTE, FieldKind.REGION) else ""
        fields.append(f"{'*' if field.kind is FieldKind.VARIADIC else ''}{field.name}{kind}{default}")
    text = f"{cls.opname}({', '.join(fields)})"
    return text if len(text) < 100 else f"{cls.opname}(\n    " + ",\n    ".join(fields) + ",\n)"


def _value(default: object) -> str:
    return f'"{default}"' if isinstance(default, str) else str(default)


def option_table(cls: type[Configurable]) -> Iterator[str]:
    """A table of the options of a pass or backend, if it has any."""
    options: list[Option] = cls.options()
    if options:
        rows = [f"| `{o.text_name}` | {cell(o.type_text)} | {cell(default_text(cls, o))} |" for o in options]
        yield "\n".join(["| option | takes | |", "|---|---|---|", *rows])


def rule_table(cls: type[Pass]) -> Iterator[str]:
    """A table of the rules of a pass, by the names that --why-not and --timing use, if it has any."""
    if not issubclass(cls, RulePass):
        return
    rows: dict[str, None] = {}  # rules for several ops may share a name and a description
    for rule in cls().rules():
        text = _line(inspect.cleandoc(type(rule).__doc__ or ""))
        assert text, f"rule {rule.name} has no docstring"
        rows[f"| `{rule.name}` | {cell(_prose(text))} |"] = None
    yield "\n".join(["| rule | |", "|---|---|", *rows])


def main() -> int:
    """Write the pages, or say which would change."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a page would change")
    check = parser.parse_args().check
    REFERENCE.mkdir(parents=True, exist_ok=True)
    changed = []
    for name, build in PAGES.items():
        file, text = REFERENCE / name, build()
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            changed.append(name)
            if not check:
                file.write_text(text, encoding="utf-8")
    print(f"{'would change' if check else 'written'}: {', '.join(changed) or 'nothing'}")
    return int(check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
