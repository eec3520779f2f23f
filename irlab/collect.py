"""How are analyses collected? Layer by layer on the calibration data, kept in the cache item by item."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from . import __version__
from .activations import Activations
from .analysis import A, ByWeight, GradientAnalysis, LayerStatistics, OriginalInputs, RowAnalysis
from .cache import Shelf
from .fingerprint import fingerprint
from .gradients import gradient_steps
from .ir import Module
from .layers import Layer
from .original import Original, tap_keys
from .types import bf16
from .walk import Tap, Walk, require_finite, tapped, working_dtypes

if TYPE_CHECKING:
    from .calibration import Batch
    from .passmgr import Context
    from .weights.recipe import AnyArray


def module_key(module: Module, batches: Sequence[Batch], ctx: Context, *more: object) -> str:
    """The name of what is computed from `module` and `batches` as `ctx` says."""
    working = str(working_dtypes(ctx.device)(bf16))
    return fingerprint(__version__, module.graph, list(batches), ctx.device, working, ctx.seed, *more)


def collect_rows(
    walk: Walk,
    layer: Layer,
    kinds: Sequence[type[RowAnalysis | OriginalInputs]],
    of: Collection[str] | None = None,
    original: Original | None = None,
    without: Collection[str] = frozenset(),
) -> Generator[None, None, LayerStatistics]:
    """What the matrices of `layer` (those named in `of`, none of `without`) read, in the facts of `kinds`; a step for
    each batch. `original` has entered the layer, for facts about what was read before."""
    piece = tapped(layer)
    chosen = {
        tap: key
        for tap, key in zip(piece.taps, tap_keys(piece.taps))
        if (of is None or of & set(tap.weights)) and not without >= set(tap.weights)
    }
    facts: dict[type[RowAnalysis | OriginalInputs], dict[str, Any]] = {kind: {} for kind in kinds}
    if chosen and kinds:
        piece.graph.set_outputs({tap.name: tap.linears[0].x for tap in chosen})
        for batch, results in enumerate(walk.outputs(layer, piece.graph)):
            for tap, key in chosen.items():
                x = results[tap.name]
                require_finite(x, f"the input of {tap.weights[0]}")
                rows = x.reshape(-1, x.shape[-1]).float()
                for kind, found in facts.items():
                    if tap.name not in found:
                        found[tap.name] = kind.empty(rows.shape[1])
                    fact = found[tap.name]
                    if original is not None and kind is OriginalInputs:
                        fact.add(original.rows(key, batch), rows)
                    else:
                        fact.add(rows)
            yield
    weights = {name: taps for name, taps in taps_by_weight(chosen).items() if name not in without}
    return LayerStatistics({kind: ByWeight(kind, found, weights) for kind, found in facts.items()}, layer.weights)


def taps_by_weight(taps: Iterable[Tap]) -> dict[str, tuple[str, ...]]:
    """The taps that each weight reads."""
    found: dict[str, tuple[str, ...]] = {}
    for tap in taps:
        for weight in tap.weights:
            found[weight] = (*found.get(weight, ()), tap.name)
    return found


def collect(kind: type[A], module: Module, ctx: Context) -> Kept[A]:
    """`kind` for every weight matrix of `module`, read from the cache as it is asked for."""
    batches = ctx.calibration_batches(module)
    what = "gradients" if issubclass(kind, GradientAnalysis) else kind.name
    shelf = Shelf.open(ctx.cache, "analyses", module_key(module, batches, ctx, what))
    with Activations() as store:
        walk = Walk(module.graph, batches, ctx.device, store)
        total = 2 * walk.batches * len(walk.layers)
        work = _row_steps(kind, walk, shelf) if issubclass(kind, RowAnalysis) else gradient_steps(walk, shelf, ctx.seed)
        for _ in ctx.progress.track(work, f"collecting {what}", total):
            pass
    return Kept(kind, shelf)


def _row_steps(kind: type[RowAnalysis], walk: Walk, shelf: Shelf) -> Iterator[None]:
    missing = [layer.index for layer in walk.layers if not shelf.has(layer.item)]
    for layer in walk.layers[: max(missing, default=-1) + 1]:
        if layer.index in missing:
            facts = (yield from collect_rows(walk, layer, [kind]))[kind]
            arrays = {f"{tap}/{part}": a for tap, fact in facts.taps.items() for part, a in fact.arrays().items()}
            shelf.put_arrays(layer.item, arrays, {"weights": {kind.name: facts.weights}})
        yield from walk.advance(layer)


def distil(
    kind: type[RowAnalysis],
    make: Callable[[str, Any], AnyArray],
    names: Collection[str],
    module: Module,
    ctx: Context,
    *key: object,
) -> dict[str, AnyArray]:
    """What `make` makes of the name of each weight of `names` and its facts of `kind`. Only that is kept in the cache,
    under `key`, which is all that `make` depends on: the facts are there for one layer at a time, however large they
    are. Weights that read nothing of the calibration data are missing."""
    batches = ctx.calibration_batches(module)
    shelf = Shelf.open(ctx.cache, "distilled", module_key(module, batches, ctx, kind.name, sorted(names), *key))
    with Activations() as store:
        walk = Walk(module.graph, batches, ctx.device, store)
        work = _distilling(kind, make, frozenset(names), walk, shelf)
        for _ in ctx.progress.track(work, f"collecting {kind.name}", 2 * walk.batches * len(walk.layers)):
            pass
        items = [layer.item for layer in walk.layers]
    symbols = (symbol for item in items for symbol in shelf.symbols(item).items())
    return {name: np.array(symbol.recipe.read()) for name, symbol in symbols}


def _distilling(
    kind: type[RowAnalysis], make: Callable[[str, Any], AnyArray], names: frozenset[str], walk: Walk, shelf: Shelf
) -> Iterator[None]:
    missing = [layer for layer in walk.layers if not shelf.has(layer.item)]
    wanted = names & {name for layer in missing for name in layer.weights}
    last = {name: layer.index for layer in walk.layers for name in layer.weights}
    waiting: dict[str, RowAnalysis] = {}
    """Facts about weights that later layers read too."""
    for layer in walk.layers[: missing[-1].index + 1 if missing else 0]:
        made: dict[str, AnyArray] = {}
        if wanted & layer.weights.keys():
            facts = (yield from collect_rows(walk, layer, [kind], wanted))[kind]
            for name in wanted & facts.keys():
                fact = facts[name]
                if name in waiting:
                    fact = kind.from_arrays(fact.arrays())  # what weights share stays as it is
                    fact.merge(waiting.pop(name))
                if layer.index < last[name]:
                    waiting[name] = fact
                else:
                    made[name] = make(name, fact)
        if layer in missing:
            shelf.put_arrays(layer.item, made)
        yield from walk.advance(layer)


class Kept(Mapping[str, A]):
    """Facts by weight that lie on a shelf: read one at a time."""

    def __init__(self, kind: type[A], shelf: Shelf) -> None:
        self._kind, self._shelf = kind, shelf
        self._items: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
        for file in sorted(shelf.directory.glob("layer-*.safetensors")):
            for weight, taps in shelf.note(file.stem)["weights"].get(kind.name, {}).items():
                self._items.setdefault(weight, []).append((file.stem, tuple(taps)))

    def __getitem__(self, weight: str) -> A:
        found: A | None = None
        for item, taps in self._items[weight]:
            symbols = self._shelf.symbols(item)
            for tap in taps:
                parts = {n.partition("/")[2]: s for n, s in symbols.items() if n.partition("/")[0] == tap}
                fact = self._kind.from_arrays({part: np.array(s.recipe.read()) for part, s in parts.items()})
                if found is None:
                    found = fact
                else:
                    found.merge(fact)
        assert found is not None
        return found

    def sharing(self) -> list[list[str]]:
        """The weights in groups of the same facts."""
        groups: dict[tuple[tuple[str, tuple[str, ...]], ...], list[str]] = {}
        for weight, places in self._items.items():
            groups.setdefault(tuple(places), []).append(weight)
        return list(groups.values())

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)
