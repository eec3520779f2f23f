"""Running passes in order, with instruments around each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ..ir import Module
from .context import Context
from .instrument import Instrument
from .passes import Pass
from .record import PassRecord, recipes, stored_bytes

BETWEEN: Final = "verifying, checking, printing"
"""What instruments do around passes, in the tree of times."""


class PassManager:
    """Runs passes in order, with instruments around each, the first one outermost."""

    def __init__(self, passes: Sequence[Pass], ctx: Context, instruments: Sequence[Instrument] = ()) -> None:
        self.passes = tuple(passes)
        self.ctx = ctx
        self.instruments = tuple(instruments)
        self.records: list[PassRecord] = []
        self.timing = False
        self.module: Module | None = None
        self.original: Module | None = None
        """The module as it was before the first lossy pass: what passes that repair learn from."""
        ctx.manager = self

    def run(self, module: Module) -> list[PassRecord]:
        """Run all passes on `module`, in place."""
        from ..sweep import shared

        for instrument in self.instruments:
            instrument.begin(module)
        for step in shared(self.passes):
            self.run_pass(step, module)
        return self.records

    def run_pass(self, step: Pass, module: Module) -> None:
        """Run one pass with instruments around it; nested pipelines come back here."""
        record = PassRecord(step.name, str(step), bytes_before=stored_bytes(module), ops_before=len(module.graph))
        outer, self.ctx.record = self.ctx.record, record
        self.records.append(record)
        self.module = module
        before = module.clone() if self.original is None and step.exactness == "lossy" else None
        try:
            with self.ctx.clock.aside(BETWEEN):
                for instrument in self.instruments:
                    instrument.before_pass(step, module)
            with self.ctx.clock.span(record.text) as span:
                step.layers.begin(step.name, module)
                recipes_before = recipes(module) if step.exactness == "lossy" else {}
                step.run(module, self.ctx)
                step.layers.end(step.name)
            self.original = self.original or before
            record.bytes_after, record.ops_after = stored_bytes(module), len(module.graph)
            record.note_span(span)
            if recipes_before and recipes_before == recipes(module) and record.ops_before == record.ops_after:
                self.ctx.tell(f"{record.text} changed nothing")
            with self.ctx.clock.aside(BETWEEN):
                for instrument in reversed(self.instruments):
                    instrument.after_pass(step, module, record)
        except Exception as error:
            for instrument in self.instruments:
                instrument.pass_failed(step, module, error)
            raise
        finally:
            self.ctx.record = outer


def note(module: Module, text: str) -> None:
    """Say something once of `module` that its user must know: shown by `--plan` and with every output."""
    notes = module.metadata.setdefault("notes", [])
    if text not in notes:
        notes.append(text)
