"""By what should channels be divided before activations are rounded? SmoothQuant: what is hard to round moves into
the weights, which are easy.

Xiao et al. 2022 (arXiv 2211.10438): s_j = max|X_j|^alpha / max|W_j|^(1 - alpha). Activations are divided by s, the
columns of the weights that read them multiplied. Here s is rounded to a power of two: multiplying by it is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt

from irlab.analysis import Analysis, InputStatistics, LayerStatistics
from irlab.errors import InputError
from irlab.floats import as_f32
from irlab.ir import Graph, Module, Value, Weight
from irlab.layers import Layer, layers
from irlab.ops import nn, prim
from irlab.options import Bounds
from irlab.passes.quantize.folds import Fold, folds
from irlab.passes.quantize.selection import before_encoding
from irlab.passmgr import Context
from irlab.sweep import LayerPass
from irlab.weight_uses import graphs, replace_weights
from irlab.weights import Array, WeightSymbol, numpy_dtype, pending

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

ALPHAS: Final = np.linspace(0, 1, 21)
STEPS: Final = 127
"""Integers between 0 and the largest number, of activations and of weights, that `alpha=search` reckons with."""


_FLOATS: Final = "the weights must still be floats: their scales are chosen after columns were multiplied"


@dataclass(frozen=True)
class SmoothQuant(
    LayerPass,
    name="smooth-quant",
    exactness="exact",
    requires={"fuse": "it looks for norms, attention and gated MLPs"},
    before={
        "quantize-activations": "what is rounded must be smooth before",
        **before_encoding(_FLOATS),
        "decompose": "it looks for norms, attention and gated MLPs",
    },
    per_layer=("alpha",),
):
    """Moves outliers of activations into the weights that read them, so that both are easy to round.

        h = nn.rms_norm(x, @n)               h = nn.rms_norm(x, @n / s)
        y = nn.linear(h, @w)          ->     y = nn.linear(h, @w * s)         s = max|h|^alpha / max|w|^(1 - alpha)

    (SmoothQuant: Xiao et al. 2022.) Needs calibration data. Scales are powers of two, so that the model computes the
    same numbers, to the last bit. They fold into the norm before, or into the matrix before: values behind attention
    (shared by the query heads of a group) and the up projection of a gated MLP.

    `alpha`: how much of the difficulty moves, from 0 to 1; or search: the alpha for each fold by which, as the
    statistics predict, rounding both to 8 bits loses least; 0 and no folding among them.
    `copy-norms`: a norm that the residual stream reads as well (BERT) is computed twice, and the copy is folded into.
    """

    changes_inputs: ClassVar[bool] = True

    alpha: Annotated[float, Bounds(0, 1)] | Literal["search"] = 0.5
    copy_norms: bool = field(default=True, metadata={"text": "copy-norms"})

    def needs(self) -> tuple[type[Analysis], ...]:
        return (InputStatistics,)

    def in_order(self) -> bool | None:
        return False  # what makes a channel changes with what reads it

    def prepare(self, module: Module, ctx: Context) -> None:
        if self.copy_norms:
            copied = sum(_copy_shared_norms(graph) for graph in graphs(module.graph))
            ctx.note_rewrites({"copy-norm": copied})
        if ctx.is_plan:
            found = [fold for layer in layers(module.graph) for fold in folds(layer)]
            names = {name for fold in found for name in (*fold.matrices, *fold.sources)}
            replace_weights(module.graph, pending({n: s for n, s in module.weights.items() if n in names}))

    def apply(self, layer: Layer, statistics: LayerStatistics) -> dict[str, WeightSymbol]:
        made: dict[str, WeightSymbol] = {}
        for fold in folds(layer):
            weights = layer.weights | made
            names = (*fold.matrices, *fold.sources)
            if not all(name in weights for name in names):
                continue  # across layers: the one is still to come, or gone already
            encoded = [name for name in names if weights[name].type.encoding is not None]
            if encoded:
                raise InputError(f"smooth-quant: weight '{encoded[0]}' is encoded", "run smooth-quant before quantize")
            values = {name: as_f32(weights[name].recipe.read()) for name in names}
            scaled = Scaling(fold, values, {name: numpy_dtype(weights[name].type.dtype) for name in names})
            scales = self._scales(scaled, statistics)
            for name, array in scaled.by(scales).items():
                made[name] = WeightSymbol(name, Array(weights[name].type, array))
            for name in fold.matrices:
                statistics.scale_columns(name, scales[fold.channels])
            for name in fold.sources:
                if values[name].ndim == 2:
                    statistics.divide_rows(name, scales)
        return made

    def _scales(self, scaling: Scaling, statistics: LayerStatistics) -> Doubles:
        """By what each source channel is divided: powers of two, f64[channels]."""
        facts = statistics[InputStatistics][scaling.fold.matrices[0]]
        inputs, weights = scaling.largest(facts.max_abs), scaling.largest(scaling.columns())
        alpha = self.at(scaling.fold.matrices[0]).alpha
        if alpha != "search":
            return scaling.exact(_smoothing(inputs, weights, alpha))
        tried = [np.ones(len(inputs)), *(scaling.exact(_smoothing(inputs, weights, float(a))) for a in ALPHAS)]
        return min(tried, key=lambda scales: scaling.predicted_loss(scales, facts))


@dataclass(frozen=True)
class Scaling:
    """The weights of a fold, f32 by name, and the dtypes they are stored in."""

    fold: Fold
    values: Mapping[str, Floats]
    dtypes: Mapping[str, np.dtype[Any]]

    @property
    def channels(self) -> int:
        return int(self.fold.channels.max()) + 1

    def columns(self) -> Doubles:
        """The largest weight of each column, f64[in]."""
        found: Doubles = np.max([np.abs(self.values[name]).max(0) for name in self.fold.matrices], 0).astype(np.float64)
        return found

    def largest(self, sizes: Doubles) -> Doubles:
        """The largest of `sizes`, f64[in], among the columns that read each source channel: f64[channels]."""
        found = np.zeros(self.channels)
        np.maximum.at(found, self.fold.channels, sizes)
        return found

    def by(self, scales: Doubles) -> dict[str, npt.NDArray[Any]]:
        """The weights with what makes the channels divided, and what reads them multiplied, in their own dtypes."""
        return {name: self._scaled(name, scales).astype(dtype) for name, dtype in self.dtypes.items()}

    def exact(self, scales: Doubles) -> Doubles:
        """`scales`, with 1 for channels that some weight could not follow exactly: half types have a short range."""
        kept = np.ones(self.channels, bool)
        for name, dtype in self.dtypes.items():
            wanted = self._scaled(name, scales)
            with np.errstate(over="ignore", under="ignore"):
                same = wanted.astype(dtype).astype(np.float64) == wanted
            if name in self.fold.matrices:
                np.logical_and.at(kept, self.fold.channels, same.all(0))
            else:
                kept &= same.reshape(self.channels, -1).all(1)
        return np.where(kept, scales, 1.0)

    def _scaled(self, name: str, scales: Doubles) -> Doubles:
        value = self.values[name].astype(np.float64)
        if name in self.fold.matrices:
            return value * scales[self.fold.channels]
        return value / (scales if value.ndim == 1 else scales[:, None])

    def predicted_loss(self, scales: Doubles, facts: InputStatistics) -> float:
        """The squared error of what the matrices compute of a row of inputs, if inputs and weights, scaled, are rounded
        to 8 bits: each rounding errs evenly by up to half a step."""
        columns = scales[self.fold.channels]
        step, spread = (facts.max_abs / columns).max() / STEPS, float((facts.mean_square / columns**2).sum())
        loss = 0.0
        for name in self.fold.matrices:
            scaled = self.values[name] * columns
            loss += (
                step**2 * float(np.square(scaled).sum())
                + float(np.square(np.abs(scaled).max(1) / STEPS).sum()) * spread
            )
        return loss / 12


def _smoothing(inputs: Doubles, weights: Doubles, alpha: float) -> Doubles:
    """max|X|^alpha / max|W|^(1 - alpha) as powers of two around 1; 1 for channels that are 0."""
    used = (inputs > 0) & (weights > 0)
    exponents = np.zeros(len(inputs))
    if used.any():
        exponents[used] = alpha * np.log2(inputs[used]) - (1 - alpha) * np.log2(weights[used])
        # A factor for all channels changes nothing in what is rounded, but would leave the range of half types.
        exponents[used] -= np.median(exponents[used])
    return np.exp2(np.rint(exponents))


def _copy_shared_norms(graph: Graph) -> int:
    """Give the matrices behind a norm a norm of their own where something else reads it too; returns how many."""
    count = 0
    norms: list[nn.LayerNorm | nn.RMSNorm] = [*graph.find(nn.LayerNorm), *graph.find(nn.RMSNorm)]
    for norm in norms:
        readers = [op for op in norm.result.uses if isinstance(op, nn.Linear | nn.GatedMLP) and _reads_once(op, norm)]
        parameters = [v for v in norm.operands[1:] if v is not None]
        if not readers or len(readers) == len(norm.result.uses) or not parameters:
            continue
        if not all(isinstance(v.op, Weight) for v in parameters):
            continue
        copied = [norm.x, *(v and _renamed(v) for v in norm.operands[1:])]
        twin = norm.rebuild(copied).result
        # It belongs to the layer of its readers, which may be the one after the norm's.
        twin.op.loc = readers[0].loc  # type: ignore[union-attr]
        for reader in readers:
            graph.set_operand(reader, 0, twin)
        count += 1
    return count


def _reads_once(op: nn.Linear | nn.GatedMLP, norm: nn.LayerNorm | nn.RMSNorm) -> bool:
    return op.x is norm.result and sum(v is norm.result for v in op.operands) == 1


def _renamed(value: Value) -> Value:
    assert isinstance(value.op, Weight)
    symbol = value.op.symbol
    return prim.weight(WeightSymbol(f"{symbol.name}.smooth", symbol.recipe))
