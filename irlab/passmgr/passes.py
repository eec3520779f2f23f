"""What a pass is: a frozen dataclass whose fields are its options, with what it promises and requires."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from ..errors import UsageError
from ..ir import Module
from ..options import Bounds, Configurable
from ..overlay import LayerPattern, LayerRow, Overlay

if TYPE_CHECKING:
    from ..rewrite import Rule
    from .context import Context


Exactness = Literal["exact", "close", "lossy"]


class Pass(Configurable, ABC):
    """A change of a module. Subclasses are frozen dataclasses whose fields are the options.

    `exactness` is what the pass promises of the numbers: "exact", "close" (within `rtol`, by reordered arithmetic) or
    "lossy". `requires` names passes that must have run before and are inserted if they have not, `before` passes that
    this one may not follow; each with the reason, which users are told. `per_layer` names the options that may differ
    between layers: such a pass asks `self.at(name)` for the options of a weight or module. `saves_work` says that the
    pass is there to leave out work (pruning, sparsity, low rank): what that gains is measured by `--measure-speed`.
    """

    exactness: ClassVar[Exactness] = "exact"
    rtol: ClassVar[float] = 0.0
    requires: ClassVar[Mapping[str, str]] = {}
    before: ClassVar[Mapping[str, str]] = {}
    per_layer: ClassVar[tuple[str, ...]] = ()
    saves_work: ClassVar[bool] = False
    layers: Overlay = Overlay()

    def __init_subclass__(
        cls,
        name: str = "",
        exactness: Exactness = "exact",
        rtol: float = 1e-4,
        requires: Reasons = (),
        before: Reasons = (),
        per_layer: tuple[str, ...] = (),
        saves_work: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(**kwargs)
        if name:
            cls.name, cls.exactness, cls.per_layer = name, exactness, per_layer
            cls.requires, cls.before = _reasons(requires), _reasons(before)
            cls.saves_work = cls.saves_work if saves_work is None else saves_work
            cls.rtol = rtol if exactness == "close" else 0.0

    @abstractmethod
    def run(self, module: Module, ctx: Context) -> None:
        """Change `module` in place."""

    def computes(self, ctx: Context) -> bool:
        """Whether the weights that it changes become numbers that were computed, and stand in no file or text."""
        return False

    def explain(self, module: Module) -> str:
        """What the pass would do to `module`, as far as that can be told without doing it: for `--explain`."""
        return ""

    def at(self, name: str) -> Self:
        """This pass with the options that hold for the weight or module path `name`."""
        return self.layers.at(self, name)

    def with_layers(self, rows: Iterable[LayerRow]) -> Self:
        """A copy whose options differ for some layers."""
        made = copy.copy(self)
        object.__setattr__(made, "layers", Overlay((*self.layers.rows, *rows)))
        return made

    @classmethod
    def layer_row(cls, pattern: str, given: Mapping[str, str]) -> LayerRow:
        """The options `given` as text for the layers that `pattern` names. Raises UsageError."""
        values = cls.read_options(given)
        for field_name in values:
            if field_name not in cls.per_layer:
                allowed = f"per layer: {', '.join(cls.per_layer)}" if cls.per_layer else "it takes no options per layer"
                raise UsageError(f"option '{field_name}' of {cls.name} is one for all layers", allowed)
        return LayerRow(LayerPattern(pattern), values)

    def resolved_text(self) -> str:
        """The pass as pipeline text with every option, whether default or not."""
        return f"{self.name}{self.option_text(resolved=True)}{self.layers}"

    def __str__(self) -> str:
        return f"{super().__str__()}{self.layers}"


Reasons = Mapping[str, str] | Sequence[str]
"""Names of passes, each with a reason or without."""


def _reasons(given: Reasons) -> Mapping[str, str]:
    return given if isinstance(given, Mapping) else dict.fromkeys(given, "")


class RulePass(Pass):
    """A pass that applies rewrite rules until none fires."""

    @abstractmethod
    def rules(self) -> Sequence[Rule]:
        """The rules, tried in this order at each op."""

    def run(self, module: Module, ctx: Context) -> None:
        ctx.rewrite(module.graph, self.rules())


@dataclass(frozen=True)
class Repeat(Pass, name="repeat"):
    """Runs the pipeline in parentheses until nothing changes, at most n times."""

    n: Annotated[int, Bounds(1)] = 8
    body: tuple[Pass, ...] = field(default=(), init=False)

    def run(self, module: Module, ctx: Context) -> None:
        for _ in range(self.n):
            before = ctx.rewrites
            for step in self.body:
                ctx.manager.run_pass(step, module)
            if ctx.rewrites == before:
                return

    def resolved_text(self) -> str:
        return f"{super().resolved_text()}({','.join(step.resolved_text() for step in self.body)})"

    def __str__(self) -> str:
        return f"{super().__str__()}({','.join(map(str, self.body))})"
