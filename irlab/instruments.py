"""The instruments of the command line: printing IR, verifying and checking each pass, timing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from typing import TextIO

from .ir import Module
from .passmgr import Instrument, Pass, PassRecord


class VerifyEach(Instrument):
    """Verifies the module after each pass, so that a broken invariant is blamed on the pass that broke it."""

    def after_pass(self, step: Pass, module: Module, record: PassRecord) -> None:
        from .errors import IRError
        from .verify import verify

        try:
            verify(module)
        except IRError as error:
            raise IRError(f"after {step}: {error.message}", error.hint, error.op) from error


class PrintIR(Instrument):
    """Prints the IR around passes. `before` and `after` hold pass names, or None for every pass."""

    def __init__(
        self,
        before: Collection[str] | None = (),
        after: Collection[str] | None = (),
        *,
        on_change: bool = False,
        on_failure: bool = False,
        out: TextIO | None = None,
    ) -> None:
        self.before, self.after, self.on_change, self.on_failure = before, after, on_change, on_failure
        self.out = out or sys.stderr
        self._last: list[str] = []

    def before_pass(self, step: Pass, module: Module) -> None:
        if self.on_change or self.on_failure:
            self._last.append(str(module))
        if self.before is None or step.name in self.before:
            self._print(f"before {step}", module)

    def after_pass(self, step: Pass, module: Module, record: PassRecord) -> None:
        before = self._last.pop() if self._last else None
        wanted = self.after is None or step.name in self.after
        if wanted or (self.on_change and before != str(module)):
            self._print(f"after {step}", module)

    def pass_failed(self, step: Pass, module: Module, error: Exception) -> None:
        before = self._last.pop() if self._last else ""
        if self.on_failure:
            self.out.write(f"// ---- {step} failed: {error}; the IR before it:\n{before}")

    def _print(self, when: str, module: Module) -> None:
        self.out.write(f"// ---- IR {when}\n{module}")


class CheckEach(Instrument):
    """Compares the whole graph before and after each pass on small random inputs (`--check=passes`)."""

    def __init__(self, seed: int, note: Callable[[str], None], device: str = "cpu") -> None:
        self.seed, self.note, self.device = seed, note, device
        self._before: list[Module] = []

    def before_pass(self, step: Pass, module: Module) -> None:
        self._before.append(module.clone())

    def after_pass(self, step: Pass, module: Module, record: PassRecord) -> None:
        from .diff import check_pass

        result = check_pass(self._before.pop(), module, step, seed=self.seed, device=self.device)
        record.metrics.update(result.metrics)
        self.note(f"check {step}: {result}")

    def pass_failed(self, step: Pass, module: Module, error: Exception) -> None:
        if self._before:
            self._before.pop()
