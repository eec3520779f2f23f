"""How do passes that learn from data change a model? In one sweep over its layers, each seeing what the ones before
it have become.

    @dataclass(frozen=True)
    class Sparsify(LayerPass, name="sparsify", exactness="lossy"):
        def needs(self): return (InputHessian,)
        def apply(self, layer, statistics): return {name: WeightSymbol(name, ...), ...}

For every layer: collect what its matrices read, let each pass change weights, keep them in the cache, and run the layer
again to make the inputs of the next one. Neighbouring passes share a sweep and its statistics. What is in the cache is
not computed again, so that a run that was killed goes on where it stopped, and ends in the same bits.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

from .analysis import Analysis, LayerStatistics
from .errors import InputError, IrlabError
from .ir import Graph, Module
from .layers import Layer
from .passmgr import Context, Pass, PassRecord, stored_bytes
from .weight_uses import replace_weights
from .weights import WeightSymbol

if TYPE_CHECKING:
    from .cache import Shelf
    from .walk import Walk


class LayerPass(Pass):
    """A pass that changes the weights of one layer at a time, by what calibration data shows of it."""

    @abstractmethod
    def needs(self) -> tuple[type[Analysis], ...]:
        """The statistics that `apply` is to see; none lets the pass run by itself, without a sweep."""

    @abstractmethod
    def apply(self, layer: Layer, statistics: LayerStatistics) -> dict[str, WeightSymbol]:
        """New weights for some of `layer.weights`, by name. Must depend on nothing but these arguments and the options:
        what it computed may be read from the cache instead."""

    def install(self, graph: Graph, symbols: Mapping[str, WeightSymbol]) -> None:
        """Let `graph` read what `apply` made, perhaps in a second time, and with what other passes made."""
        replace_weights(graph, symbols)

    def effective(self, layer: Layer, made: Mapping[str, WeightSymbol]) -> Mapping[str, WeightSymbol]:
        """What the report compares with the weights before the sweep; `layer` reads what `apply` made by now."""
        return made

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
    """`passes`, with neighbouring layer passes as one `Sweep`."""
    for in_sweep, run in groupby(passes, lambda step: isinstance(step, LayerPass) and bool(step.needs())):
        steps = list(run)
        if in_sweep and len(steps) > 1:
            yield Sweep.of(step for step in steps if isinstance(step, LayerPass))
        else:
            yield from steps


Recorded = Sequence[tuple[LayerPass, PassRecord]]
"""Passes, each with the record of what it did."""


def sweep(module: Module, ctx: Context, steps: Recorded) -> None:
    """Run layer passes over `module`, in place. Raises InputError without calibration data, and where a pass does."""
    from .activations import Activations
    from .cache import Shelf
    from .collect import module_key
    from .walk import Walk

    if ctx.calibration is None:
        names = ", ".join(str(step) for step, _ in steps)
        raise InputError(f"{names} needs calibration data", "give --calibration TEXTFILE (or self)")
    batches = ctx.calibration_batches(module)
    key = module_key(module, batches, ctx, [step.resolved_text() for step, _ in steps])
    shelf = Shelf.open(ctx.cache, "sweeps", key)
    for step, record in steps:
        record.bytes_before = record.bytes_before or stored_bytes(module)
        step.prepare(module, ctx)
    with Activations() as store:
        walk = Walk(module.graph, batches, ctx.device, store)
        label = "sweep: " + ", ".join(step.name for step, _ in steps)
        for _ in ctx.progress.track(_Sweep(ctx, walk, shelf, steps).run(), label, 2 * walk.batches * len(walk.layers)):
            pass
    for step, record in steps:
        step.finish(module, record)
        record.bytes_after = stored_bytes(module)


@dataclass
class _Sweep:
    """One sweep in progress; `run` is a generator of a step per batch, twice for each layer."""

    ctx: Context
    walk: Walk
    shelf: Shelf
    steps: Recorded

    def run(self) -> Iterator[None]:
        for index in range(len(self.walk.layers)):
            layer = self.walk.layers[index]
            if not self.shelf.has(layer.item):
                yield from self.change(layer)
            self.install(self.shelf.symbols(layer.item))
            self.take_note(self.shelf.note(layer.item))
            yield from self.walk.advance(self.walk.layers[index])

    def install(self, symbols: Mapping[str, WeightSymbol]) -> None:
        for step, _ in self.steps:
            step.install(self.walk.graph, symbols)
        self.walk.refresh()

    def change(self, layer: Layer) -> Iterator[None]:
        """Let every pass change the weights of `layer`, and keep what they made."""
        from .collect import collect_rows
        from .weight_errors import weight_errors

        statistics = yield from collect_rows(self.walk, layer, self.kinds())
        changed: dict[str, WeightSymbol] = {}
        notes: list[dict[str, Any]] = []
        for step, _ in self.steps:
            cpu = time.process_time()
            made = _applied(step, layer, statistics)
            self.install(made)
            layer = self.walk.layers[layer.index]
            changed |= made
            shown = step.effective(layer, made)
            errors = {name: weight_errors(statistics.before[name], s, statistics) for name, s in shown.items()}
            notes.append({"layers": errors, "weights": len(made), "cpu_seconds": time.process_time() - cpu})
        self.shelf.put(layer.item, list(changed.values()), {"steps": notes}, self.ctx.jobs)

    def kinds(self) -> list[Any]:
        """The analyses that the passes need, each once."""
        return list(dict.fromkeys(kind for step, _ in self.steps for kind in step.needs()))

    def take_note(self, note: dict[str, Any]) -> None:
        for (_, record), said in zip(self.steps, note["steps"]):
            record.layers |= said["layers"]
            record.weights_computed += said["weights"]
            record.rewrites += said["weights"]
            self.ctx.rewrites += said["weights"]


def _applied(step: LayerPass, layer: Layer, statistics: LayerStatistics) -> dict[str, WeightSymbol]:
    """What `step` makes of the weights of `layer`; its errors name the layer."""
    try:
        return step.apply(layer, statistics)
    except IrlabError as error:
        if layer.name not in error.message:
            error.message = f"{layer.name}: {error.message}"
        raise
