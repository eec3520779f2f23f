"""The `ir` backend: a module as text, or as an `.irlab` directory of text and weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from irlab.errors import InputError
from irlab.ir import Module
from irlab.passmgr import Context
from irlab.target import Backend, PlanRow

if TYPE_CHECKING:
    from irlab.weights import Readings


@dataclass(frozen=True)
class IR(Backend, name="ir"):
    """IR text, or an .irlab directory with the computed weights (`embed=true`: with all weights)."""

    readings = 0  # text says how weights come about; what it embeds is read once

    embed: bool = False

    def plan(self, module: Module) -> list[PlanRow]:
        return [PlanRow("everything", "native")]

    def legalise(self, module: Module, ctx: Context) -> Module:
        return module

    def refuse(self, module: Module, out: Path) -> None:
        from irlab.store import owned_weights

        if not self.is_directory(out) and (computed := owned_weights(module)):
            raise InputError(
                f"the numbers of weight '{computed[0].name}' are computed and do not fit in IR text",
                f"write a directory: -o {out.with_suffix('.irlab').name}",
            )

    def estimate_bytes(self, module: Module) -> int:
        from irlab.store import owned_bytes

        return owned_bytes(module, self.embed)

    def is_directory(self, out: Path) -> bool:
        return out.suffix == ".irlab"

    def write(self, module: Module, out: Path, ctx: Context) -> Readings:
        if out.is_dir():
            from irlab.store import directory_steps

            yield from directory_steps(module, out, self.embed)
        else:
            from irlab.text import print_module

            out.write_text(print_module(module, out.parent), encoding="utf-8")
