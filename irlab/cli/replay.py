"""How does `irlab-opt FILE` replay a reproducer? Its options come first, those of the command line after them."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ..errors import InputError
from .options import build_parser

REPLAYED: Final = (
    "--passes", "--seed", "--check", "--device", "--target", "--verify-each", "--no-verify-each",
    "--calibration", "--calibration-tokens", "--calibration-length",
)  # fmt: skip
"""What a reproducer may set: nothing that writes files, or runs code that comes with a model."""


def replay_options(args: argparse.Namespace) -> list[str]:
    """The options in `args`, beside the pipeline, that a failure may depend on."""
    targets = [*args.target, *(output.target.partition("{")[0] for output in args.outputs or ())]
    return [
        f"--seed={args.seed}",
        f"--check={args.check}",
        f"--device={args.device}",
        *_calibration_options(args),
        *(f"--target={name}" for name in dict.fromkeys(targets) if name != "ir"),
        *([] if args.verify_each else ["--no-verify-each"]),
    ]


def _calibration_options(args: argparse.Namespace) -> list[str]:
    if not args.calibration:
        return []
    source = Path(args.calibration)
    return [
        f"--calibration={source.resolve() if source.exists() else args.calibration}",
        f"--calibration-tokens={args.calibration_tokens}",
        f"--calibration-length={args.calibration_length}",
    ]


def replayed(args: argparse.Namespace, words: Sequence[str]) -> argparse.Namespace:
    """`args`, which `words` were parsed into, with the options of INPUT before them if it is a reproducer."""
    if not args.input or not args.input.endswith(".ir"):
        return args
    from ..reproducer import read_replay

    replay = read_replay(Path(args.input))
    if replay is None:
        return args
    for word in replay.options:
        if word.partition("=")[0] not in REPLAYED:
            raise InputError(f"{args.input}: a reproducer cannot set {word}", f"it may set {', '.join(REPLAYED)}")
    new = build_parser().parse_args([*replay.options, *words])
    new.is_replay = True
    if replay.load and not args.load:
        if not replay.is_ours:
            raise InputError(
                f"{args.input} runs the code of {shlex.join(replay.load)}, and you did not write it on this machine",
                f"if you trust that code, add --load {replay.load[0]}",
            )
        new.load = list(replay.load)
    if not args.quiet:
        print(f"replaying {args.input}: {shlex.join(replay.options)}; it failed with {replay.error}", file=sys.stderr)
    return new
