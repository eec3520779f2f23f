"""How do matrices make up for a residual stream that became narrower? Each is fitted to what the original one computed.

Layer by layer, in the order in which matrices run, on what they read by now: those that read a norm are fitted to their
outputs in the original model; those that add up to a stream, its shortcut among them, are fitted together to where the
stream was, in the directions that are left of it. So what earlier matrices got wrong is made up for, as far as it can
be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from irlab.activations import Activations
from irlab.cache import Shelf
from irlab.errors import InputError
from irlab.floats import as_f32
from irlab.ir import Graph, Op, Value, Weight
from irlab.ops import nn, prim
from irlab.passmgr import Context
from irlab.walk import Tap, TappedLayer, Walk, require_finite, tapped
from irlab.weight_uses import replace_weights, weight_uses
from irlab.weights import Array, Recipe, WeightSymbol, numpy_dtype

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Narrowed:
    """A value of the stream in the original graph, what it became, and its directions f32[width, features]."""

    original: Value
    now: Value
    directions: Recipe


@dataclass(frozen=True)
class Site:
    """Matrices of a tapped layer that are fitted together: `linears` read one value, or (`total`) make the stream
    number `stream` as their sum, with what else is added to it."""

    linears: tuple[nn.Linear, ...]
    stream: int = -1
    total: Value | None = None


class StreamRefit:
    """A narrowed graph beside its original, on their way through the same batches."""

    def __init__(
        self, graph: Graph, original: Graph, narrowed: Sequence[Narrowed], damping: float, shelf: Shelf, ctx: Context
    ) -> None:
        self._graph, self._original, self._narrowed = graph, original, narrowed
        self._damping, self._shelf, self._ctx = damping, shelf, ctx
        uses = weight_uses(graph)
        self._free = {name for name in uses if len(uses[name].users) == 1}

    def run(self) -> int:
        """Fit all matrices, in place; returns how many."""
        module, ctx = self._ctx.manager.module, self._ctx
        assert module is not None
        batches = ctx.calibration_batches(module)
        fitted = 0
        with Activations() as store, Activations() as goals:
            walk, original = (
                Walk(self._graph, batches, ctx.device, store),
                Walk(self._original, batches, ctx.device, goals),
            )
            label = "fitting matrices to the narrower stream"
            for index in ctx.progress.track(range(len(walk.layers)), label, len(walk.layers)):
                item = walk.layers[index].item
                if not self._shelf.has(item):
                    self._shelf.put(item, list(self._layer(walk, original, index).values()), jobs=ctx.jobs)
                made = self._shelf.symbols(item)
                self._install(walk, made)
                fitted += len(made)
                for each in (walk, original):
                    for _ in each.advance(each.layers[index]):
                        pass
        return fitted

    def _install(self, walk: Walk, symbols: Mapping[str, WeightSymbol]) -> None:
        replace_weights(walk.graph, symbols)
        walk.refresh()

    def _layer(self, walk: Walk, original: Walk, index: int) -> dict[str, WeightSymbol]:
        before = original.layers[index]
        goals = self._piece(original, index, [n.original for n in self._narrowed])
        goals.graph.set_outputs(_streams(goals) | {tap.name: tap.linears[0].x for tap in goals.taps})
        for batch, results in enumerate(original.outputs(before, goals.graph)):
            for name, x in results.items():
                require_finite(x, f"what {before.name} computes")
                original.store.put(f"goal {name}", batch, x)
        made: dict[str, WeightSymbol] = {}
        for number in range(len(self._sites(self._now(walk, index)))):
            piece = self._now(walk, index)
            site = self._sites(piece)[number]
            if site.total is None:
                fitted = self._fit_readers(walk, original, index, piece, site, goals.taps)
            else:
                fitted = self._fit_writers(walk, original, index, piece, site)
            made |= fitted
            self._install(walk, fitted)
        for name in goals.graph.outputs:
            original.store.drop(f"goal {name}")
        return made

    def _now(self, walk: Walk, index: int) -> TappedLayer:
        return self._piece(walk, index, [n.now for n in self._narrowed])

    def _piece(self, walk: Walk, index: int, streams: Sequence[Value]) -> TappedLayer:
        """Layer `index` with those of `streams` that it makes as outputs."""
        layer = walk.layers[index]
        inside = set(layer.ops)
        return tapped(layer, {f"stream{i}": value for i, value in enumerate(streams) if value.op in inside})

    def _sites(self, piece: TappedLayer) -> list[Site]:
        """What is fitted, in order."""
        order = {op: i for i, op in enumerate(piece.graph.topo())}
        found = [
            Site(tuple(linears), int(name.removeprefix("stream")), value)
            for name, value in _streams(piece).items()
            if (linears := [op for op in _terms(value) if self._may_change(op)])
        ]
        writers = {op for site in found for op in site.linears}
        for tap in piece.taps:
            readers = tuple(op for op in tap.linears if op not in writers and self._may_change(op))
            found += [Site(readers)] if readers else []
        return sorted(found, key=lambda site: max(order[op] for op in site.linears))

    def _may_change(self, op: nn.Linear) -> bool:
        return isinstance(op.weight.op, Weight) and op.weight.op.symbol.name in self._free

    def _fit_writers(
        self, walk: Walk, original: Walk, index: int, piece: TappedLayer, site: Site
    ) -> dict[str, WeightSymbol]:
        """Fit the matrices that add up to a stream to where it was."""
        assert site.total is not None
        directions = torch.tensor(as_f32(self._narrowed[site.stream].directions.read()), device=walk.device)
        reads = {f"z{i}": op.x for i, op in enumerate(site.linears)}
        piece.graph.set_outputs({**reads, "total": site.total})
        sums = _Sums()
        for batch, results in enumerate(walk.outputs(walk.layers[index], piece.graph)):
            goal = _rows(original.store.get(f"goal stream{site.stream}", batch).to(walk.device)) @ directions.T
            sums.add(torch.cat([_rows(results[name]) for name in reads], 1), goal - _rows(results["total"]))
        change = sums.solved(sums.cross, self._damping)
        made: dict[str, WeightSymbol] = {}
        start = 0
        for op in site.linears:
            values = _values(op.weight)
            made |= _changed(op, values + change[:, start : start + values.shape[1]])
            start += values.shape[1]
        return made

    def _fit_readers(
        self, walk: Walk, original: Walk, index: int, piece: TappedLayer, site: Site, taps: Sequence[Tap]
    ) -> dict[str, WeightSymbol]:
        """Fit matrices that read one value to what the original ones computed; or to that value, where one of them
        only leads back to it."""
        tap = _tap_of(site, taps)
        if tap is None:
            return {}
        piece.graph.set_outputs({"x": site.linears[0].x})
        sums = _Sums()
        for batch, results in enumerate(walk.outputs(walk.layers[index], piece.graph)):
            goal = _rows(original.store.get(f"goal {tap.name}", batch).to(walk.device))
            sums.add(_rows(results["x"]), goal)
        made: dict[str, WeightSymbol] = {}
        for op in site.linears:
            first = next((each for each in tap.linears if _matches(each, op)), None)
            now, bias = _values(op.weight), _bias(op)
            if first is not None:
                cross, bias = _values(first.weight) @ sums.cross, _bias(first) - bias
            elif len(now) == len(sums.cross):
                cross, bias = sums.cross, -bias
            else:
                continue
            cross = cross + np.outer(np.broadcast_to(bias, len(now)), sums.mean) - now @ sums.inner
            made |= _changed(op, now + sums.solved(cross, self._damping))
        return made


def _tap_of(site: Site, taps: Sequence[Tap]) -> Tap | None:
    """What the matrices of a site read in the original model: where they did by name, or behind the norm of that
    name."""
    names = {_name(op) for op in site.linears}
    norm = _gain(site.linears[0].x)
    by_name = (tap for tap in taps if names & set(tap.weights))
    by_norm = (tap for tap in taps if norm and _gain(tap.linears[0].x) == norm)
    return next(by_name, None) or next(by_norm, None)


def _gain(x: Value) -> str:
    """The name of the gain of the norm that gives `x`; empty if none does."""
    norm = x.op
    if isinstance(norm, nn.RMSNorm | nn.LayerNorm) and norm.weight is not None and isinstance(norm.weight.op, Weight):
        return norm.weight.op.symbol.name
    return ""


def _matches(original: nn.Linear, now: nn.Linear) -> bool:
    """Whether `now` is what became of `original`, which may have shared its weight."""
    if _name(original) == _name(now):
        return True
    before, after = (op.loc.path if op.loc is not None else "" for op in (original, now))
    return before == after and _name(now) == f"{after}.weight"


class _Sums:
    """Sums over rows z of what matrices read, and of y beside them: of z z^T, y z^T and z; f64."""

    def __init__(self) -> None:
        self.inner = self.cross = self.mean = np.zeros(())

    def add(self, z: torch.Tensor, y: torch.Tensor) -> None:
        self.inner = self.inner + (z.T @ z).double().cpu().numpy()
        self.cross = self.cross + (y.T @ z).double().cpu().numpy()
        self.mean = self.mean + z.double().sum(0).cpu().numpy()

    def solved(self, cross: Doubles, damping: float) -> Doubles:
        """The matrix that gives y best from z, where `cross` is the sum of y z^T: f64[out, in]."""
        inner = self.inner.copy()
        inner[np.diag_indices_from(inner)] += damping * (float(np.diagonal(inner).mean()) or 1.0)
        try:
            return np.asarray(np.linalg.solve(inner, cross.T).T)
        except np.linalg.LinAlgError:
            raise InputError(
                "prune-hidden: a Hessian is singular", "calibrate on more text, or raise damping"
            ) from None


def _streams(piece: TappedLayer) -> dict[str, Value]:
    return {name: value for name, value in piece.graph.outputs.items() if name.startswith("stream")}


def _terms(value: Value) -> Iterator[nn.Linear]:
    """The matrix products that `value` is the sum of, beside other things."""
    stack: list[Op | None] = [value.op]
    while stack:
        op = stack.pop()
        if isinstance(op, nn.Linear):
            yield op
        elif isinstance(op, prim.Add):
            stack += [v.op for v in (op.y, op.x) if v is value or len(v.uses) == 1]


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1]).float()


def _name(op: nn.Linear) -> str:
    assert isinstance(op.weight.op, Weight)
    return op.weight.op.symbol.name


def _values(weight: Value) -> Doubles:
    assert isinstance(weight.op, Weight)
    return as_f32(weight.op.symbol.recipe.read()).astype(np.float64)


def _bias(op: nn.Linear) -> Doubles:
    return np.zeros(()) if op.bias is None else _values(op.bias)


def _changed(op: nn.Linear, values: Doubles) -> dict[str, WeightSymbol]:
    kind = op.weight.type
    recipe = Array(kind, np.ascontiguousarray(values.astype(numpy_dtype(kind.dtype))))
    return {_name(op): WeightSymbol(_name(op), recipe)}
