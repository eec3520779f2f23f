"""What does `irlab-opt` do when it is called, and how does it fail? In one line, with the exit status of errors.py."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence

from ..collector import skip_at_exit
from ..errors import IrlabError, UsageError
from .answers import ANSWERS
from .options import build_parser
from .replay import replayed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status (see errors.py and the contract in the README)."""
    if argv is None:  # the process is the command's own
        skip_at_exit()
    words = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(words)
    try:
        return _dispatch(_completed(args, words))
    except IrlabError as error:
        if args.verbose:
            traceback.print_exc()
        if error.details:
            print(error.details.rstrip(), file=sys.stderr)
        print(f"irlab-opt: error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("irlab-opt: interrupted; outputs that were not finished were removed", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as error:
        if args.verbose:
            traceback.print_exc()
        print(f"irlab-opt: error: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 1
    except Exception as error:
        # A fault of irlab or of a loaded pass: its author needs to see where.
        traceback.print_exc()
        print(f"irlab-opt: error: {type(error).__name__}: {error}", file=sys.stderr)
        return 1


def _completed(args: argparse.Namespace, words: Sequence[str]) -> argparse.Namespace:
    """`args` with what a reproducer or a recipe says where the command line says nothing."""
    from .. import registry

    args = replayed(args, words)
    for file in args.load:
        registry.load_file(file)
    if args.recipe:
        from .recipe import with_recipe

        args = with_recipe(args, words)
    return args


def _dispatch(args: argparse.Namespace) -> int:
    for option, answer in ANSWERS.items():
        if getattr(args, option) not in (None, False):
            return answer(args)
    if args.input is None:
        raise UsageError("no INPUT was given", "try irlab-opt demo, or irlab-opt --help")
    from .compile import compile_input

    return compile_input(args)
