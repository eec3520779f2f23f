"""One comparison as a line of the table and of the JSON file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """What ours lost beside what the peer lost. Bytes are of files; 0 where no file is compared."""

    name: str
    metric: str
    ours: float
    peer_name: str
    peer: float
    bytes: int = 0
    peer_bytes: int = 0
    cpu_seconds: float = 0.0

    @property
    def ratio(self) -> float:
        """The peer's loss over ours: above 1, ours is better."""
        return self.peer / self.ours

    def as_dict(self) -> dict[str, Any]:
        """For the JSON file."""
        return {**asdict(self), "ratio": self.ratio}

    def __str__(self) -> str:
        sizes = f"  {self.bytes:,} and {self.peer_bytes:,} bytes" if self.bytes else ""
        figures = f"{self.ours:.5f}  {self.peer_name} {self.peer:.5f}  ratio {self.ratio:.2f}"
        return f"{self.name:36} {self.metric:16} {figures}{sizes}  ({self.cpu_seconds:.1f} CPU s)"
