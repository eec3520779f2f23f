"""Which options are questions of their own, and who answers them? Each answer takes the options, gives the status."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Final


def _list_passes(args: argparse.Namespace) -> int:
    from ..describe import list_plugins

    print(list_plugins("passes"))
    return 0


def _list_backends(args: argparse.Namespace) -> int:
    from ..describe import list_plugins

    print(list_plugins("backends"))
    return 0


def _help_pass(args: argparse.Namespace) -> int:
    from ..describe import describe_plugin

    print(describe_plugin(args.help_pass))
    return 0


def _explain(args: argparse.Namespace) -> int:
    from ..preview import explain_pipeline
    from .lift import lift

    print(explain_pipeline(args.explain, lift(args) if args.input else None))
    return 0


def _new_plugin(args: argparse.Namespace) -> int:
    import shlex

    from ..scaffold import new_plugin

    folder = new_plugin(args.new_plugin, args.directory)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        print(file)
    if not args.quiet:
        quoted = shlex.quote(str(folder))
        print(
            f"next: pip install -e {quoted} && irlab-opt demo -p {args.new_plugin} && pytest {quoted}", file=sys.stderr
        )
    return 0


def _reduce(args: argparse.Namespace) -> int:
    from .reduce import reduce_input

    return reduce_input(args)


def _print_completion(args: argparse.Namespace) -> int:
    from .completion import completion_script

    print(completion_script(args.print_completion))
    return 0


def _diff(args: argparse.Namespace) -> int:
    import difflib

    from ..api import load

    a, b = args.diff
    old, new = (str(load(source)).splitlines(keepends=True) for source in (a, b))
    sys.stdout.writelines(difflib.unified_diff(old, new, a, b))
    return 0


ANSWERS: Final[dict[str, Callable[[argparse.Namespace], int]]] = {
    "list_passes": _list_passes,
    "list_backends": _list_backends,
    "help_pass": _help_pass,
    "explain": _explain,
    "print_completion": _print_completion,
    "reduce": _reduce,
    "diff": _diff,
    "new_plugin": _new_plugin,
}
"""The first of these options that is given is answered, and nothing else is done."""
