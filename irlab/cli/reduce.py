"""How is a failing module made small from the command line? `--reduce 'COMMAND' INPUT -o OUT.ir`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from .lift import lift
from .replay import replay_options

if TYPE_CHECKING:
    from ..reduce import Case


def reduce_input(args: argparse.Namespace) -> int:
    """Write the smallest module on which the command still fails; each smaller one at once, as it is found."""
    from ..outputs import require_writable, whole_output
    from ..reduce import Case, Command, reduce_case

    if args.input is None:
        raise UsageError(
            "--reduce needs an INPUT to make smaller", "irlab-opt --reduce 'irlab-opt {} -p fuse' m.ir -o s.ir"
        )
    command = Command.parse(args.reduce, args.reduce_timeout)
    if args.is_replay and command.pipeline is None:
        # The command would find its options in the file; smaller files say nothing of them.
        load = [f"--load={file}" for file in args.load]
        command = Command(
            (*command.words, f"--passes={args.passes}", *replay_options(args), *load), args.reduce_timeout
        )
    out: Path | None = args.ir_output
    if out is not None:
        require_writable(out, directory=False, force=args.force)
    first = best = Case(lift(args), command)

    def improved(case: Case, tries: int) -> None:
        nonlocal best
        best = case
        if out is not None:
            with whole_output(out, directory=False, force=True) as temporary:
                temporary.write_text(case.result(out.parent), encoding="utf-8")
        if not args.quiet:
            print(f"reduce: {_size(case)} after {tries} tries", file=sys.stderr)

    status = 0
    try:
        best = reduce_case(first, match=args.reduce_match, improved=improved)
    except KeyboardInterrupt:
        print("irlab-opt: interrupted; this is the smallest so far", file=sys.stderr)
        status = 130
    if out is None:
        sys.stdout.write(best.result(Path.cwd()))
    if not args.quiet:
        print(f"reduced from {_size(first)} to {_size(best)}", file=sys.stderr)
        print(f"run again: {str(best.command).replace('{}', str(out or 'FILE'))}", file=sys.stderr)
    return status


def _size(case: Case) -> str:
    pipeline = case.command.pipeline
    return f"{case.op_count} ops" + (f" and -p {pipeline!r}" if pipeline is not None else "")
