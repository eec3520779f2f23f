"""How does the residual stream get narrower? By leaving out directions in which it hardly moves, or single features."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from irlab.axes import Axis, AxisAnalysis, keep
from irlab.cache import Shelf
from irlab.errors import InputError
from irlab.ir import Graph, Module, Op, Value, Weight
from irlab.ops import nn
from irlab.passes.prune.base import PruneUnits
from irlab.passes.prune.bottlenecks import Bottleneck, Norm, narrow, require_means_unread, spell_out
from irlab.passes.prune.cuts import Cut
from irlab.passes.prune.elimination import Doubles
from irlab.passes.quantize.gptq import Damping
from irlab.passes.quantize.selection import before_encoding
from irlab.passes.rotate.folds import Folds, Projection
from irlab.passes.rotate.stream import Residual, ops_by_axis
from irlab.passmgr import Context, stored_bytes
from irlab.types import f32, tensor
from irlab.weight_uses import replace_weights
from irlab.weights import Affine, Random, Recipe, Slice, Transpose, WeightSymbol

_BISECTIONS = 10


@dataclass(frozen=True)
class PruneHidden(
    PruneUnits,
    name="prune-hidden",
    exactness="lossy",
    requires={"fuse": "it looks for norms, linears and attention"},
    before={
        **before_encoding("codes would be cut"),
        "sparsify": "zeros do not stay where they are",
        "dynamic-sparsity": "thresholds are those of single features",
        "tie-layers": "each layer's norm goes into its matrices, which must be its own for that",
        "kv-cache": "calibration runs whole texts",
    },
):
    """Makes the residual stream narrower: the directions in which it hardly moves go, from all weights at once.

        nn.embedding(%ids, @embed[49152, 576]) ... nn.rms_norm(.., @norm[576]) ... nn.linear(.., @q[576, 576])
        ->   nn.embedding(%ids, @embed[49152, 448]) ... nn.rms_norm(.., @norm[448]) ... nn.linear(.., @q[576, 448])

    `method`: pca turns the stream to its principal components on calibration data and leaves out the last (Ashkboos et
    al. 2024, SliceGPT, arXiv 2401.15024). select leaves out the features with the smallest weights, which any model
    allows; little of a model survives that without training.
    `rotation`: global turns the stream of all layers alike, so that nothing is added between them and every target
    holds the result; refused, naming the op, where something acts on single features, such as a norm that subtracts the
    mean. layer, as published, gives each norm the directions of its own stream, with a matrix on each residual
    connection, from the directions of one norm to those of the next: for ONNX and TensorRT; it takes any graph, norms
    that subtract the mean and norms on the stream (BERT) too.
    `refit`: fit all matrices, one after the other, to what the original model computed (least squares); `damping` is
    added to the diagonal of Hessians, relative to its mean.
    `tied`: where rotation=layer meets a table that is the head as well: keep leaves it whole, with a matrix behind it
    and before it; untie makes two narrow ones of it, which are larger together, but a head that is faster.

    `ratio`: the share of features that goes; or `size`: the bytes that all weights may take; or `speedup`: by how much
    fewer bytes are to be read. `multiple`: the width that is left is a multiple of it; by default of the blocks of the
    targets' formats where the width allows it.
    """

    method: Literal["pca", "select"] = "pca"
    rotation: Literal["global", "layer"] = "global"
    refit: bool = True
    damping: Damping = 0.01
    tied: Literal["keep", "untie"] = "keep"

    role: ClassVar[str] = "features"
    prefers_blocks: ClassVar[bool] = True

    def computes(self, ctx: Context) -> bool:
        return self.method == "pca"

    @property
    def _per_layer(self) -> bool:
        return self.method == "pca" and self.rotation == "layer"

    def prepare(self, module: Module, ctx: Context) -> None:
        if self.method == "select":
            super().prepare(module, ctx)
            return
        spell_out(module.graph)
        found = self._cuts(AxisAnalysis(module.graph))
        left = self._allocate(module, AxisAnalysis(module.graph), found, ctx)
        work = self._narrow if self._per_layer else self._slice
        for name in [cut.name for cut in found]:
            # Weights may have been untied, and are others now.
            axes = AxisAnalysis(module.graph)
            cut = next(cut for cut in self._cuts(axes) if cut.name == name)
            if left[name] < cut.group.size:
                work(module, axes, cut, left[name], ctx)

    def _cuts(self, axes: AxisAnalysis) -> list[Cut]:
        if not self._per_layer:
            return super()._cuts(axes)
        # A map leads back to the features where their number may not change.
        groups = [group for group in axes.groups.values() if group.role == self.role]
        found = [Cut(group) for group in groups if _streams(axes.graph, axes, group.leaf)]
        if not found:
            raise _no_norms()
        return found

    def _ratio(self, module: Module, axes: AxisAnalysis, found: list[Cut]) -> float:
        if self.ratio is not None or not self._per_layer:
            return super()._ratio(module, axes, found)
        now = stored_bytes(module)
        wanted = int(self.size) if self.size is not None else int(now / (self.speedup or 1))
        low, high = 0.0, 1.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            planned, ctx = module.clone(), Context(is_plan=True)
            for cut in found:
                width = max(1, round(cut.group.size * (1 - middle)))
                self._narrow(planned, AxisAnalysis(planned.graph), cut, width, ctx)
            low, high = (low, middle) if stored_bytes(planned) <= wanted else (middle, high)
        if high == 1:
            raise InputError(f"{self.name}: {wanted:,} bytes cannot be reached", "drop-layers leaves out more")
        return high

    def _slice(self, module: Module, axes: AxisAnalysis, cut: Cut, width: int, ctx: Context) -> None:
        """One rotation for all layers."""
        graph, leaf, size = module.graph, cut.group.leaf, cut.group.size
        ops = ops_by_axis(graph, axes, [leaf])[leaf]
        # Refused before anything is measured.
        _folds(axes, leaf, ops, Random(tensor(f32, (size, size))))
        streams = _streams(graph, axes, leaf)
        if not streams:
            raise _no_norms()
        directions = self._directions(module, {"all": list(streams)}, size, ctx)["all"]
        original = graph.clone()
        norms = [norm for found in streams.values() for norm in found]
        _folds(axes, leaf, ops, Transpose(directions, (1, 0))).apply(graph, untie=True)
        gains = {_gain(op): None for op in norms}
        turned = AxisAnalysis(graph)
        group = turned.group_of(turned.of(norms[0].x)[-1])
        assert group is not None
        keep(graph, {group.name: range(width)}, turned)
        # The mean of squares is over fewer features, which have nearly all of the energy.
        weights, scale = graph.weights(), math.sqrt(size / width)
        replace_weights(graph, {n: WeightSymbol(n, Affine(weights[n].recipe, scale)) for n in gains})
        ctx.note_rewrites({"prune": size - width})
        firsts = [_gain(found[0]) for found in streams.values()]
        self._fit(graph, original, cut.name, firsts, [Slice(directions, 0, 0, width)] * len(firsts), ctx)

    def _narrow(self, module: Module, axes: AxisAnalysis, cut: Cut, width: int, ctx: Context) -> None:
        """A rotation for each norm, and a matrix on each residual connection."""
        graph, size = module.graph, cut.group.size
        streams = _streams(graph, axes, axes.groups[cut.name].leaf)
        require_means_unread(streams)
        names = dict(zip(streams, _names(streams.values())))
        found = self._directions(module, {names[value]: [value] for value in streams}, size, ctx)
        original = graph.clone()
        directions = {name: Slice(recipe, 0, 0, width) for name, recipe in found.items()}
        bottlenecks = [
            Bottleneck(names[value], value, tuple(norms), directions[names[value]]) for value, norms in streams.items()
        ]
        narrow(graph, bottlenecks, ctx, keep_tied=self.tied == "keep")
        ctx.note_rewrites({"prune": size - width})
        gains = [f"{name}.weight" for name in names.values()]
        self._fit(graph, original, cut.name, gains, list(directions.values()), ctx)

    def _directions(
        self, module: Module, values: Mapping[str, Sequence[Value]], size: int, ctx: Context
    ) -> dict[str, Recipe]:
        """All directions of some streams together, by a name, the one in which most moves first: f32[size, size]."""
        if ctx.is_plan:
            return dict.fromkeys(values, Random(tensor(f32, (size, size))))
        from irlab.collect import module_key
        from irlab.passes.prune.principal import principal_components, second_moments

        key = module_key(module, ctx.calibration_batches(module), ctx)
        shelf = Shelf.open(ctx.cache, "directions", key)
        totals: dict[str, Doubles] = {}
        left = {name: len(streams) for name, streams in values.items() if not shelf.has(name)}
        owners = {value: name for name, streams in values.items() for value in streams if name in left}

        def take(value: Value, moment: Doubles, rows: int) -> None:
            name = owners[value]
            totals[name] = totals.get(name, 0) + moment / max(1, rows)
            left[name] -= 1
            if not left[name]:
                found = principal_components(totals.pop(name)).T
                shelf.put_arrays(name, {"directions": np.ascontiguousarray(found, np.float32)})

        if owners:
            centred = {value: any(isinstance(user, nn.LayerNorm) for user in value.uses) for value in owners}
            second_moments(module.graph, centred, take, ctx)
        return {name: shelf.symbols(name)["directions"].recipe for name in values}

    def _fit(
        self,
        graph: Graph,
        original: Graph,
        group: str,
        gains: Sequence[str],
        directions: Sequence[Recipe],
        ctx: Context,
    ) -> None:
        """Let the weights of `graph` make up for what it lost of `original`."""
        if not self.refit or ctx.is_plan:
            return
        from irlab.collect import module_key
        from irlab.passes.prune.stream_refit import Narrowed, StreamRefit

        axes = AxisAnalysis(original)
        before = _streams(original, axes, axes.groups[group].leaf)
        after = {_gain(op): op.x for op in graph.find(nn.RMSNorm) if op.weight is not None}
        narrowed = [Narrowed(value, after[gain], each) for value, gain, each in zip(before, gains, directions)]
        module = Module(original)
        batches = ctx.calibration_batches(module)
        key = module_key(module, batches, ctx, self.resolved_text(), ctx.targets)
        shelf = Shelf.open(ctx.cache, "narrow", key)
        ctx.note_weights_computed(StreamRefit(graph, original, narrowed, self.damping, shelf, ctx).run())


def _folds(axes: AxisAnalysis, leaf: Axis, ops: Sequence[Op], basis: Recipe) -> Folds:
    """What turns the features `leaf` by `basis`. Raises InputError, naming an op that acts on single features."""
    folds = Folds()
    try:
        Residual(axes, leaf, folds, lambda axis: Projection(axis, basis)).follow(ops)
    except InputError as error:
        message = error.message.replace("rotate: ", "prune-hidden: ", 1)
        raise InputError(message, error.hint or "method=select leaves out single features") from None
    return folds


def _gain(op: Norm) -> str:
    """The name of the gain of a norm."""
    if op.weight is None or not isinstance(op.weight.op, Weight):
        raise InputError(f"prune-hidden: the norm at {op.loc.path if op.loc else '?'} has no gain, which must change")
    return op.weight.op.symbol.name


def _streams(graph: Graph, axes: AxisAnalysis, leaf: Axis) -> dict[Value, list[Norm]]:
    """What norms over the features `leaf` normalise, in order, with those that do."""
    norms: list[Norm] = [*graph.find(nn.RMSNorm), *graph.find(nn.LayerNorm)]
    found: dict[Value, list[Norm]] = {}
    for norm in sorted(norms, key=lambda op: op.seq):
        if norm.x in axes and axes.of(norm.x)[-1] is leaf:
            found.setdefault(norm.x, []).append(norm)
    return found


def _no_norms() -> InputError:
    return InputError("prune-hidden: no norm goes over the features", "method=select, or run fuse first")


def _names(streams: Iterable[Sequence[Norm]]) -> Iterator[str]:
    """What the directions of streams are called: as the norm, by its module."""
    taken: set[str] = set()
    for norms in streams:
        gain = None if norms[0].weight is None else norms[0].weight.op
        name = gain.symbol.name.removesuffix(".weight") if isinstance(gain, Weight) else "stream"
        while name in taken:
            name += ".again"
        taken.add(name)
        yield name
