"""What a pass may know, and where it reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..ir import Graph, Module, Value
from ..timing import Clock
from .instrument import Progress
from .record import PassRecord

if TYPE_CHECKING:
    from ..analysis import A, RowAnalysis
    from ..calibration import Batch, NewIds, Sample
    from ..collect import Kept
    from ..rewrite import Match, Observer, Rule
    from ..target import Backend
    from ..weights.recipe import AnyArray
    from .manager import PassManager


@dataclass
class Context:
    """What a pass may know: where the result must run, what it may learn from, how to compute, how to report.

    With `is_plan` only types and sizes of the result are asked for: weights need no values. `outputs` are the backends
    of `targets` where they are configured already, `size_limits` what a pass promised that their files are no larger
    than. `tell` is for what the user should read while passes run.
    """

    targets: tuple[str, ...] = ()
    seed: int = 0
    device: str = "cpu"
    jobs: int = 2
    progress: Progress = field(default_factory=Progress)
    check_rewrite: Observer | None = None
    clock: Clock = field(default_factory=Clock)
    calibration: Sample | None = None
    cache_dir: Path | None = None
    is_plan: bool = False
    outputs: tuple[Backend, ...] = ()
    size_limits: dict[str, int] = field(default_factory=dict)
    tell: Callable[[str], None] = lambda text: None
    manager: PassManager = field(init=False, repr=False)
    rewrites: int = field(default=0, init=False)
    new_ids: NewIds | None = field(default=None, init=False, repr=False)
    """What the ids of tokens have become, where a pass changed them."""
    _batches: list[Batch] | None = field(default=None, init=False, repr=False)
    record: PassRecord = field(default_factory=lambda: PassRecord(""), init=False)

    def __post_init__(self) -> None:
        from .manager import PassManager

        self.manager = PassManager((), self)

    def rewrite(self, graph: Graph, rules: Sequence[Rule]) -> int:
        """Apply `rules` until none fires; returns the number of rewrites."""
        from ..rewrite import rewrite

        watchers = [i.on_rewrite for i in self.manager.instruments if i.wants_rewrites]

        def notify(rule: Rule, match: Match, values: tuple[Value, ...]) -> None:
            for watcher in watchers:
                watcher(rule, match, values)

        result = rewrite(
            graph,
            rules,
            on_event=notify if watchers else None,
            check=self.check_rewrite,
            timing=self.manager.timing,
        )
        self.note_rewrites(result.hits)
        for name, (wall, cpu) in result.seconds.items():
            earlier = self.record.rule_seconds.get(name, (0.0, 0.0))
            self.record.rule_seconds[name] = (earlier[0] + wall, earlier[1] + cpu)
        return result.total

    @contextmanager
    def recording(self, record: PassRecord) -> Iterator[None]:
        """Note in `record` what is noted meanwhile."""
        outer, self.record = self.record, record
        try:
            yield
        finally:
            self.record = outer

    def note_rewrites(self, hits: dict[str, int]) -> None:
        """Count changes made by hand, by the name of what made them."""
        for name, count in hits.items():
            if count:
                self.rewrites += count
                self.record.rewrites += count
                self.record.rules[name] = self.record.rules.get(name, 0) + count

    def analysis(self, kind: type[A]) -> Kept[A]:
        """`kind` for every weight matrix of the module that is being changed, collected on the calibration data.

        Facts are kept by what they depend on: asked for again they are read, and after a change of the module they are
        collected anew. Raises InputError without calibration data.
        """
        from ..collect import collect

        return collect(kind, self._changing, self)

    def distilled(
        self, kind: type[RowAnalysis], make: Callable[[str, Any], AnyArray], names: Set[str], *key: object
    ) -> dict[str, AnyArray]:
        """What `make` makes of `kind` for each weight of `names`: where facts of all weights would be too much to keep.

        `key`: all that `make` depends on besides the module and the data. Raises InputError without calibration data.
        """
        from ..collect import distil

        return distil(kind, make, names, self._changing, self, *key)

    @property
    def _changing(self) -> Module:
        """The module that a pass is changing."""
        if self.manager.module is None:
            raise InputError("analyses are asked for while a pass runs")
        return self.manager.module

    def calibration_batches(self, module: Module) -> list[Batch]:
        """The calibration data as inputs of `module`."""
        if self.calibration is None:
            who = f"{self.record.name}: " if self.record.name else ""
            raise InputError(f"{who}calibration data is needed", "give --calibration TEXTFILE (or self)")
        if self._batches is None:
            self._batches = self.batches(self.calibration, module)
        return self._batches

    def batches(self, sample: Sample, module: Module) -> list[Batch]:
        """`sample` as inputs of `module`, which ids are as they are by now."""
        return sample.batches(module, self.seed, self.new_ids)

    def renumber_tokens(self, module: Module, new_ids: NewIds, follow: Callable[[Module], Module]) -> None:
        """Tell, before `module` changes, that its tokens have other ids from now on. What it is compared with becomes
        what `follow` makes of that, so that it reads the same ids, and data is read anew."""
        from ..calibration import renumbered

        self.manager.original = follow(self.manager.original or module)
        self.new_ids = new_ids if self.new_ids is None else renumbered(self.new_ids, new_ids)
        self._batches = None

    @property
    def cache(self) -> Path:
        """Where long computations leave their results."""
        from ..cache import default_directory

        return self.cache_dir or default_directory()

    def note_weights_computed(self, count: int = 1) -> None:
        """Count weights whose values a pass had to compute."""
        self.record.weights_computed += count

    def backends(self) -> list[Backend]:
        """The targets' backends, as they are configured or with default options, to ask what they can hold."""
        from ..registry import backend

        configured = {output.name for output in self.outputs}
        return [*self.outputs, *(backend(target)() for target in self.targets if target not in configured)]
