"""How do passes that learn from data change a model? In one sweep over its layers, each seeing what the ones before
it have become.

    @dataclass(frozen=True)
    class Sparsify(LayerPass, name="sparsify", exactness="lossy"):
        def needs(self): return (InputHessian,)
        def apply(self, layer, statistics): return {name: WeightSymbol(name, ...), ...}

For every layer: collect what its matrices read, let each pass change weights, keep them in the cache, and run the layer
again to make the inputs of the next one. Neighbouring passes share a sweep and its statistics. What is in the cache is
not computed again, so that a run that was killed goes on where it stopped, and ends in the same bits. A pass may ask to
change the matrices of a layer in the order in which they run, and for what they read in the model as it was
(original.py): its matrices then make up for the errors before them.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from .analysis import Analysis, LayerStatistics, OriginalInputs
from .errors import InputError, IrlabError
from .ir import Graph, Module
from .layers import Layer
from .passmgr import Context, Pass, PassRecord, stored_bytes
from .weight_uses import replace_weights
from .weights import WeightSymbol

if TYPE_CHECKING:
    from .cache import Shelf
    from .original import Original
    from .walk import Walk


class LayerPass(Pass):
    """A pass that changes the weights of one layer at a time, by what calibration data shows of it.

    `alone`: it changes which matrices there are, so that passes after it need a sweep of their own. `changes_inputs`:
    it changes what matrices read (which channels there are, or how large they are), so that passes after it that
    compare inputs with those of the original need one.
    """

    alone: ClassVar[bool] = False
    changes_inputs: ClassVar[bool] = False

    @abstractmethod
    def needs(self) -> tuple[type[Analysis], ...]:
        """The statistics that `apply` is to see; none lets the pass run by itself, without a sweep."""

    @abstractmethod
    def apply(self, layer: Layer, statistics: LayerStatistics) -> dict[str, WeightSymbol]:
        """New weights for some of `layer.weights`, by name. Must depend on nothing but these arguments and the options:
        what it computed may be read from the cache instead."""

    def in_order(self) -> bool | None:
        """Whether matrices are to be changed in the order in which they run, each seeing what the ones before it have
        become, also inside a layer (True), or all those of a layer together (False); None: either will do."""
        return None

    def decided(self, module: Module, ctx: Context) -> LayerPass:
        """This pass with what it must decide for the whole model before the sweep, as options per layer; or the pass
        that does what was decided."""
        return self

    def depends_on(self, ctx: Context) -> tuple[object, ...]:
        """What `apply` depends on besides the module, the data, the device, the seed and the options: targets, say."""
        return ()

    def install(self, graph: Graph, symbols: Mapping[str, WeightSymbol]) -> None:
        """Let `graph` read what `apply` made, perhaps in a second time, and with what other passes made. A weight of
        another shape is left to the pass that changes shapes."""
        now = graph.weights()
        same = {n: s for n, s in symbols.items() if n in now and s.type.shape == now[n].type.shape}
        replace_weights(graph, same)

    def effective(self, layer: Layer, made: Mapping[str, WeightSymbol]) -> Mapping[str, WeightSymbol]:
        """What the report compares with the weights before the sweep; `layer` reads what `apply` made by now."""
        return made

    def computes(self, ctx: Context) -> bool:
        return bool(self.needs())

    def finish(self, module: Module, record: PassRecord) -> None:
        """After the sweep: say if it was in vain."""

    def prepare(self, module: Module, ctx: Context) -> None:
        """Before the sweep: refuse what cannot be done, and change what needs no statistics. For a plan (`ctx.is_plan`)
        there is no sweep: let weights have the types that they will have."""

    def run(self, module: Module, ctx: Context) -> None:
        if self.needs() and not ctx.is_plan:
            sweep(module, ctx, [(self, ctx.record)])
        else:
            self.prepare(module, ctx)


@dataclass(frozen=True)
class Sweep(Pass, name="sweep", exactness="lossy"):
    """Neighbouring layer passes, run as one sweep over the layers."""

    body: tuple[LayerPass, ...] = field(default=(), init=False)

    @classmethod
    def of(cls, body: Iterable[LayerPass]) -> Sweep:
        made = cls()
        object.__setattr__(made, "body", tuple(body))
        return made

    def computes(self, ctx: Context) -> bool:
        return True

    def run(self, module: Module, ctx: Context) -> None:
        records = [PassRecord(step.name, str(step)) for step in self.body]
        ctx.manager.records += records
        for step in self.body:
            step.layers.begin(step.name, module)
        if ctx.is_plan:
            for step in self.body:
                step.prepare(module, ctx)
        else:
            sweep(module, ctx, list(zip(self.body, records)))
        for step in self.body:
            step.layers.end(step.name)

    def resolved_text(self) -> str:
        return ",".join(step.resolved_text() for step in self.body)

    def __str__(self) -> str:
        return ",".join(map(str, self.body))


def shared(passes: Iterable[Pass]) -> Iterator[Pass]:
    """`passes`, with neighbouring layer passes as one `Sweep` where they may share it."""
    run: list[LayerPass] = []
    for step in passes:
        if isinstance(step, LayerPass) and step.needs() and not step.alone:
            if OriginalInputs in step.needs() and any(before.changes_inputs for before in run):
                yield from _together(run)
                run = []
            run.append(step)
        else:
            yield from _together(run)
            yield step
            run = []
    yield from _together(run)


def _together(run: list[LayerPass]) -> Sequence[Pass]:
    return [Sweep.of(run)] if len(run) > 1 else run


Recorded = Sequence[tuple[LayerPass, PassRecord]]
"""Passes, each with the record of what it did."""


def sweep(module: Module, ctx: Context, steps: Recorded) -> None:
    """Run layer passes over `module`, in place. Raises InputError without calibration data, and where a pass does."""
    from .activations import Activations
    from .cache import Shelf
    from .collect import module_key
    from .original import Original
    from .walk import Walk

    require_calibration([step for step, _ in steps], ctx)
    batches = ctx.calibration_batches(module)
    steps = [(_deciding(step, module, ctx, record), record) for step, record in steps]
    key = module_key(module, batches, ctx, [(step.resolved_text(), *step.depends_on(ctx)) for step, _ in steps])
    shelf = Shelf.open(ctx.cache, "sweeps", key)
    for step, record in steps:
        record.bytes_before = record.bytes_before or stored_bytes(module)
        with ctx.recording(record):
            step.prepare(module, ctx)
    with Activations() as store, Activations() as originals:
        walk = Walk(module.graph, batches, ctx.device, store)
        wanted = any(OriginalInputs in step.needs() for step, _ in steps)
        original = Original(module.graph, batches, ctx.device, originals) if wanted else None
        label = "sweep: " + ", ".join(step.name for step, _ in steps)
        work = _Sweep(ctx, walk, shelf, steps, original)
        for _ in ctx.progress.track(work.run(), label, 2 * walk.batches * len(walk.layers)):
            pass
    for step, record in steps:
        step.finish(module, record)
        record.bytes_after = stored_bytes(module)


def require_calibration(steps: Sequence[Pass], ctx: Context) -> None:
    """Raise InputError where there is no data for `steps` to learn from."""
    if steps and ctx.calibration is None:
        names = ", ".join(map(str, steps))
        raise InputError(f"{names} needs calibration data", "give --calibration TEXTFILE (or self)")


def _deciding(step: LayerPass, module: Module, ctx: Context, record: PassRecord) -> LayerPass:
    with ctx.recording(record):
        return step.decided(module, ctx)


@dataclass
class _Sweep:
    """One sweep in progress; `run` is a generator of a step per batch, twice for each layer."""

    ctx: Context
    walk: Walk
    shelf: Shelf
    steps: Recorded
    original: Original | None
    changed: set[str] = field(default_factory=set)
    """The weights that earlier layers read too, or were made of such: each is changed once."""

    def run(self) -> Iterator[None]:
        for index in range(len(self.walk.layers)):
            layer = self.walk.layers[index]
            if not self.shelf.has(layer.item):
                yield from self.change(index)
            elif self.original is not None:
                _finish(self.original.skip(index))
            kept = self.shelf.symbols(layer.item)
            self.changed |= kept.keys()
            self.install(kept)
            self.take_note(self.shelf.note(layer.item))
            yield from self.walk.advance(self.walk.layers[index])

    def install(self, symbols: Mapping[str, WeightSymbol]) -> None:
        for step, _ in self.steps:
            step.install(self.walk.graph, symbols)
        self.walk.refresh()

    def change(self, index: int) -> Iterator[None]:
        """Let every pass change the weights of layer `index`, and keep what they made."""
        if self.original is not None:
            _finish(self.original.enter(index))
        changed: dict[str, WeightSymbol] = {}
        notes: list[dict[str, Any]] = [{"layers": {}, "weights": 0, "cpu_seconds": 0.0} for _ in self.steps]
        for number, group in enumerate(self.groups(self.walk.layers[index])):
            work = self.change_group(index, group, changed, notes)
            if number:
                _finish(work)
            else:
                yield from work
        if self.original is not None:
            self.original.leave(index)
        item = self.walk.layers[index].item
        self.shelf.put(item, list(changed.values()), {"steps": notes}, self.ctx.jobs)

    def groups(self, layer: Layer) -> list[frozenset[str] | None]:
        """The matrices of `layer` that are changed together, in order; None: all of them."""
        from .walk import tapped

        wishes = {step.in_order() for step, _ in self.steps}
        if True not in wishes or False in wishes:
            return [None]
        return list(dict.fromkeys(frozenset(tap.weights) for tap in tapped(layer).taps)) or [None]

    def change_group(
        self,
        index: int,
        group: frozenset[str] | None,
        changed: dict[str, WeightSymbol],
        notes: list[dict[str, Any]],
    ) -> Iterator[None]:
        from .collect import collect_rows
        from .weight_errors import weight_errors

        layer = self.walk.layers[index]
        statistics = yield from collect_rows(self.walk, layer, self.kinds(), group, self.original, self.changed)
        for (step, _), note in zip(self.steps, notes):
            cpu = time.process_time()
            made = _applied(step, layer, statistics)
            self.install(made)
            layer = self.walk.layers[index]
            changed |= made
            shown = step.effective(layer, made)
            note["layers"] |= {n: weight_errors(statistics.before[n], s, statistics) for n, s in shown.items()}
            note["weights"] += len(made)
            note["cpu_seconds"] += time.process_time() - cpu

    def kinds(self) -> list[Any]:
        """The analyses that the passes need, each once."""
        return list(dict.fromkeys(kind for step, _ in self.steps for kind in step.needs()))

    def take_note(self, note: dict[str, Any]) -> None:
        for (_, record), said in zip(self.steps, note["steps"]):
            record.layers |= said["layers"]
            record.weights_computed += said["weights"]
            record.rewrites += said["weights"]
            self.ctx.rewrites += said["weights"]


def _finish(steps: Iterable[None]) -> None:
    """Take all steps of work that shows no progress of its own."""
    for _ in steps:
        pass


def _applied(step: LayerPass, layer: Layer, statistics: LayerStatistics) -> dict[str, WeightSymbol]:
    """What `step` makes of the weights of `layer`; its errors name the layer."""
    try:
        return step.apply(layer, statistics)
    except IrlabError as error:
        if layer.name not in error.message:
            error.message = f"{layer.name}: {error.message}"
        raise
