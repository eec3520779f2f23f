"""By what should channels be multiplied before they are rounded? AWQ: by a power of how large their inputs are.

Lin et al. 2023 (arXiv 2306.00978): a column that reads large inputs is multiplied by s > 1, so that its error, divided
by s afterwards, is smaller; what makes the channel is divided by s. s = mean(|x|)^alpha, with the alpha of a grid that
loses least of the layer's output on calibration data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from irlab.analysis import InputHessian, InputStatistics, LayerStatistics
from irlab.encodings import Encoding
from irlab.floats import as_f32
from irlab.layers import Layer
from irlab.passes.quantize.folds import Fold, folds
from irlab.weights import Array, WeightSymbol, numpy_dtype

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

ALPHAS: Final = np.linspace(0, 1, 21)
_ROWS: Final = 1024
"""Alphas are compared on at most so many rows of each matrix, evenly spread."""


@dataclass(frozen=True)
class Scaled:
    """What scaling made of a layer. `matrices`: f32[out, in], still to be encoded; `others`: weights that are stored
    as they are."""

    matrices: dict[str, Floats]
    others: dict[str, WeightSymbol]


def scale_channels(layer: Layer, statistics: LayerStatistics, chosen: Mapping[str, Encoding]) -> Scaled:
    """Scale channels of `layer` for the encodings `chosen`, and tell `statistics` how the inputs have changed."""
    matrices = {name: np.array(as_f32(layer.weights[name].recipe.read())) for name in chosen if name in layer.weights}
    others: dict[str, WeightSymbol] = {}
    for fold in folds(layer):
        if not all(name in matrices for name in fold.matrices) or not _may_divide(fold, layer, matrices):
            continue
        scales = _best_scales(fold, matrices, statistics, chosen)
        if scales is None:
            continue
        scales = _divide_sources(fold, layer, scales, matrices, others, statistics)
        for name in fold.matrices:
            matrices[name] *= scales[fold.channels].astype(np.float32)
            statistics.scale_columns(name, scales[fold.channels])
    return Scaled(matrices, others)


def _may_divide(fold: Fold, layer: Layer, matrices: Mapping[str, Floats]) -> bool:
    """Whether the sources can take the scales: vectors, and matrices that are encoded anyway, from f32."""
    return all(name in matrices or layer.weights[name].type.rank == 1 for name in fold.sources)


def _best_scales(
    fold: Fold, matrices: Mapping[str, Floats], statistics: LayerStatistics, chosen: Mapping[str, Encoding]
) -> Doubles | None:
    """The scale of each source channel, f64[channels], or None where not scaling is best."""
    first = fold.matrices[0]
    sizes = statistics[InputStatistics][first].mean_abs
    channels = int(fold.channels.max()) + 1
    # A channel that several columns read is as large as its largest reader.
    shared = np.zeros(channels)
    np.maximum.at(shared, fold.channels, sizes)
    if not shared.any():
        return None
    shared = np.maximum(shared, 1e-4 * shared.max())
    hessian = statistics[InputHessian][first].matrix
    best, least = None, np.inf
    for alpha in ALPHAS:
        scales = shared**alpha
        scales /= np.sqrt(scales.max() * scales.min())
        loss = sum(_losses(fold, scales, matrices, hessian, chosen))
        if loss < least:
            best, least = (scales if alpha else None), loss
    return best


def _losses(
    fold: Fold, scales: Doubles, matrices: Mapping[str, Floats], hessian: Doubles, chosen: Mapping[str, Encoding]
) -> Iterator[float]:
    columns = scales[fold.channels].astype(np.float32)
    importance = (np.diagonal(hessian) / np.square(columns)).astype(np.float32)
    for name in fold.matrices:
        rows = matrices[name][:: max(1, len(matrices[name]) // _ROWS)]
        encoding = chosen[name]
        scaled = rows * columns
        off = (encoding.decode(encoding.encode(scaled, importance)) - scaled) / columns
        yield float(np.vdot(off @ hessian.astype(np.float32), off)) * len(matrices[name]) / len(rows)


def _divide_sources(
    fold: Fold,
    layer: Layer,
    scales: Doubles,
    matrices: dict[str, Floats],
    others: dict[str, WeightSymbol],
    statistics: LayerStatistics,
) -> Doubles:
    """Divide what makes the channels; returns the scales that rounding of the sources has made of `scales`."""
    exact = scales
    for name in fold.sources:
        if name in matrices:
            matrices[name] /= scales[:, None].astype(np.float32)
            statistics.divide_rows(name, scales)
    for position, name in enumerate(n for n in fold.sources if n not in matrices):
        symbol = others.get(name, layer.weights[name])
        before = as_f32(symbol.recipe.read()).astype(np.float64)
        after = (before / exact).astype(numpy_dtype(symbol.type.dtype))
        others[name] = WeightSymbol(name, Array(symbol.type, after))
        if position == 0 and len(fold.sources) == 1:
            # The vector is stored rounded: columns make up for exactly what it became.
            stored = as_f32(after).astype(np.float64)
            exact = np.where(stored != 0, before / np.where(stored != 0, stored, 1), scales)
    return exact
