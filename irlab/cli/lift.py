"""How does INPUT become a module?"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..ir import Module


def lift(args: argparse.Namespace) -> Module:
    """The module that INPUT names: a model, a file, or `-` for IR on standard input."""
    from ..api import load, parse

    if args.input == "-":
        return parse(sys.stdin.read(), Path.cwd(), "<stdin>")
    module = load(args.input, revision=args.revision, trust_remote_code=args.trust_remote_code)
    if args.is_replay:
        from ..reproducer import fill_in

        filled = fill_in(module)
        if filled and not args.quiet:
            print(f"random numbers stand in for {len(filled)} weights whose files are not here", file=sys.stderr)
    return module
