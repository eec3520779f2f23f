"""What do --calibration, --eval and --measure-speed ask for, and what is said about what was measured?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..calibration import Sample
from ..errors import UsageError

if TYPE_CHECKING:
    from ..emission import Emitted
    from ..ir import Module
    from ..passmgr import Context, Pass, PassRecord
    from ..speed import SpeedGain
    from ..target import Backend

EVAL_LENGTH = 512
"""Tokens to a piece of the text that models are evaluated on."""


def calibration(args: argparse.Namespace) -> Sample | None:
    """The sample that passes learn from."""
    if args.calibration is None:
        return None
    return Sample(args.calibration, args.calibration_tokens, args.calibration_length)


class Measurements:
    """Everything that --eval and --measure-speed ask for, as it is measured: an instrument around passes, then once for
    each output."""

    def __init__(self, args: argparse.Namespace, ctx: Context, passes: Sequence[Pass], targets: Sequence[str]) -> None:
        missing = [name for name in args.eval_in if name not in targets]
        if missing or (args.eval_in and args.eval is None):
            raise UsageError(
                f"--eval-in {(missing or args.eval_in)[0]} has nothing to run",
                "write --emit TARGET -o OUT --eval FILE --eval-in TARGET",
            )
        self._quiet, self._ctx = args.quiet, ctx
        self._passes = passes if args.measure_speed else None
        self._gain: SpeedGain | None = None
        self.speeds: dict[str, Any] = {}
        self._runtimes = tuple(args.eval_in)
        self.found: dict[str, Any] = {}
        self.instrument = None
        if args.eval is not None:
            from ..quality import EvaluateEach  # imports torch

            self.instrument = EvaluateEach(Sample(args.eval, args.eval_tokens, EVAL_LENGTH), ctx, self._note)

    def _note(self, name: str, quality: Any) -> None:
        self.found[name] = quality.as_dict()
        if not self._quiet:
            print(f"{name}: {quality}", file=sys.stderr)

    def before_passes(self, module: Module) -> None:
        """Keep what speed is compared with."""
        if self._passes is not None:
            from ..speed import SpeedGain

            self._gain = SpeedGain(module.clone(), self._passes, self._ctx)

    def after_passes(self, module: Module, records: Sequence[PassRecord]) -> None:
        """Say what lossy passes cost each layer; measure a module that none of them changed."""
        from ..weight_errors import layers_table

        if self.instrument is not None:
            self.instrument.finish(module)
        if not self._quiet:
            for record in records:
                if record.layers:
                    print(layers_table(record), file=sys.stderr)

    def after_output(self, backend: Backend, emitted: Emitted) -> None:
        """Measure what was written, in its runtime, if that was asked for."""
        if self.instrument is not None and backend.name in self._runtimes:
            self.instrument.measure_output(emitted)
        if self._gain is not None:
            measured = self._gain.measure(backend, emitted)
            self.speeds[str(emitted.out)] = measured.as_dict()
            if not self._quiet:
                print(f"{emitted.out}: {measured}", file=sys.stderr)
            if measured.warning:
                print(f"irlab-opt: warning: {emitted.out}: {measured.warning}", file=sys.stderr)
