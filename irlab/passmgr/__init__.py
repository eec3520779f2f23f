"""Passes and how they are run: the base class, the context a pass sees, the manager and its instruments.

@dataclass(frozen=True)
class QuantizeEmbeddings(Pass, name="quantize-embeddings", exactness="lossy"):
    \"\"\"Stores the embedding table in 8 bits.\"\"\"
    bits: int = 8
    def run(self, module: Module, ctx: Context) -> None: ...

    passes.py      Pass, RulePass, Repeat        context.py  what a pass may know
    record.py      what a run of a pass did      manager.py  running passes in order
    instrument.py  what watches them
"""

from __future__ import annotations

from .context import Context
from .instrument import Instrument, Progress
from .manager import PassManager, note
from .passes import Exactness, Pass, Repeat, RulePass
from .record import PassRecord, stored_bytes

__all__ = [
    "Context",
    "Exactness",
    "Instrument",
    "Pass",
    "PassManager",
    "PassRecord",
    "Progress",
    "Repeat",
    "RulePass",
    "note",
    "stored_bytes",
]
