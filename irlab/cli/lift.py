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
    return load(args.input, revision=args.revision, trust_remote_code=args.trust_remote_code)
