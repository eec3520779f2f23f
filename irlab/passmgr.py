"""Passes and how they are run: the base class, the context a pass sees, the manager and its instruments.

@dataclass(frozen=True)
class QuantizeEmbeddings(Pass, name="quantize-embeddings", exactness="lossy"):
    \"\"\"Stores the embedding table in 8 bits.\"\"\"
    bits: int = 8
    def run(self, module: Module, ctx: Context) -> None: ...
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, Self

from .errors import InputError, UsageError
from .ir import Graph, Module, Value
from .options import Bounds, Configurable
from .overlay import LayerPattern, LayerRow, Overlay
from .timing import Clock, Span

if TYPE_CHECKING:
    from .analysis import A, RowAnalysis
    from .calibration import Batch, NewIds, Sample
    from .collect import Kept
    from .rewrite import Match, Observer, Rule
    from .target import Backend
    from .weights import Recipe
    from .weights.recipe import AnyArray

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


@dataclass
class PassRecord:
    """What one run of a pass did. Bytes are of stored weights; `rules` counts hits by rule.

    `text` is the pass with its options, as a pipeline has it. `layers` says, by weight, what a lossy pass cost:
    "weight_error" and "output_error" (relative), "bits" per weight (see weight_errors.py).
    """

    name: str
    text: str = ""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    rewrites: int = 0
    weights_computed: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    ops_before: int = 0
    ops_after: int = 0
    rules: dict[str, int] = field(default_factory=dict)
    rule_seconds: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Wall and CPU seconds of each rule that was timed."""
    metrics: dict[str, float] = field(default_factory=dict)
    series: dict[str, list[float]] = field(default_factory=dict)
    """What was measured step by step: the loss of a training, say."""
    layers: dict[str, dict[str, float]] = field(default_factory=dict)
    """What was measured of single layers: figures by name, by module path or weight name. Where that would cost more
    than the pass itself it is measured only for --report and --eval (weight_errors.py)."""
    plan: dict[str, Any] = field(default_factory=dict)
    """What the pass decided before it changed anything, where it decides by looking at the whole module."""

    def note_span(self, span: Span) -> None:
        """Take over the times of a pass that ran, and tell its span what it did, rule by rule."""
        self.seconds, self.cpu_seconds = span.seconds, span.cpu_seconds
        span.rewrites, span.weights_computed = self.rewrites, self.weights_computed
        span.ops = (self.ops_before, self.ops_after)
        names = sorted(
            {*self.rules, *self.rule_seconds}, key=lambda name: self.rule_seconds.get(name, (0.0,)), reverse=True
        )
        for name in names:
            span.children.append(Span(name, *self.rule_seconds.get(name, (0.0, 0.0)), rewrites=self.rules.get(name, 0)))

    def as_dict(self) -> dict[str, Any]:
        """For `--report`."""
        out = {key: value for key, value in vars(self).items() if key not in ("rule_seconds", "metrics")}
        return out | self.metrics


class Instrument:
    """Watches the manager. All hooks do nothing here; instruments override what they need."""

    def begin(self, module: Module) -> None:
        """Called once with what the passes are given, also where there are none."""

    def before_pass(self, step: Pass, module: Module) -> None:
        """Called before each pass, outermost first for nested pipelines."""

    def after_pass(self, step: Pass, module: Module, record: PassRecord) -> None:
        """Called after each pass that succeeded."""

    def pass_failed(self, step: Pass, module: Module, error: Exception) -> None:
        """Called when a pass, or an instrument after it, raised."""

    def on_rewrite(self, rule: Rule, match: Match, values: tuple[Value, ...]) -> None:
        """Called for each rewrite, while the matched ops are still in place, if `wants_rewrites`."""

    wants_rewrites: bool = False


class Progress:
    """Reports long work; the CLI puts rich's bars behind it. The base is silent."""

    def track(self, items: Iterable[Any], label: str, total: int | None = None) -> Iterable[Any]:
        """`items`, with progress shown."""
        return items


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
        self.manager = PassManager((), self)

    def rewrite(self, graph: Graph, rules: Sequence[Rule]) -> int:
        """Apply `rules` until none fires; returns the number of rewrites."""
        from .rewrite import rewrite

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
        from .collect import collect

        return collect(kind, self._changing, self)

    def distilled(
        self, kind: type[RowAnalysis], make: Callable[[str, Any], AnyArray], names: Set[str], *key: object
    ) -> dict[str, AnyArray]:
        """What `make` makes of `kind` for each weight of `names`: where facts of all weights would be too much to keep.

        `key`: all that `make` depends on besides the module and the data. Raises InputError without calibration data.
        """
        from .collect import distil

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
        from .calibration import renumbered

        self.manager.original = follow(self.manager.original or module)
        self.new_ids = new_ids if self.new_ids is None else renumbered(self.new_ids, new_ids)
        self._batches = None

    @property
    def cache(self) -> Path:
        """Where long computations leave their results."""
        from .cache import default_directory

        return self.cache_dir or default_directory()

    def note_weights_computed(self, count: int = 1) -> None:
        """Count weights whose values a pass had to compute."""
        self.record.weights_computed += count

    def backends(self) -> list[Backend]:
        """The targets' backends, as they are configured or with default options, to ask what they can hold."""
        from .registry import backend

        configured = {output.name for output in self.outputs}
        return [*self.outputs, *(backend(target)() for target in self.targets if target not in configured)]


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
        from .sweep import shared

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
                recipes = _recipes(module) if step.exactness == "lossy" else {}
                step.run(module, self.ctx)
                step.layers.end(step.name)
            self.original = self.original or before
            record.bytes_after, record.ops_after = stored_bytes(module), len(module.graph)
            record.note_span(span)
            if recipes and recipes == _recipes(module) and record.ops_before == record.ops_after:
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


def _recipes(module: Module) -> dict[str, Recipe]:
    return {name: symbol.recipe for name, symbol in module.weights.items()}


def stored_bytes(module: Module) -> int:
    """The bytes that the module's weights take as stored: the codes of encoded ones."""
    return sum(symbol.size_bytes for symbol in module.weights.values())
