"""What do convolution and pooling layers compute? Sums and extremes over windows, in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from irlab.backends.tensorrt.library import ILayer
from irlab.floats import as_f32


def _windows(x: Any, kernel: tuple[int, ...], stride: Any, padding: Any, dilation: Any, fill: float) -> Any:
    """x[batch, channels, spatial...] -> [batch, channels, out..., kernel...]."""
    width = [(0, 0), (0, 0), *((p, p) for p in padding)]
    padded = np.pad(x, width, constant_values=fill)
    spans = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation))
    axes = tuple(range(2, x.ndim))
    seen = np.lib.stride_tricks.sliding_window_view(padded, spans, axes)
    step = (
        slice(None),
        slice(None),
        *(slice(None, None, s) for s in stride),
        *(slice(None, None, d) for d in dilation),
    )
    return seen[step]


def convolution(layer: ILayer, x: Sequence[Any]) -> list[Any]:
    """Cross-correlation with the kernel of input 1, in groups."""
    values, kernel = as_f32(x[0]), as_f32(x[1])
    spatial, groups = kernel.ndim - 2, layer.num_groups
    seen = _windows(values, kernel.shape[2:], layer.stride_nd, layer.padding_nd, layer.dilation_nd, 0.0)
    parts = []
    for g in range(groups):
        inputs = seen[:, g * kernel.shape[1] : (g + 1) * kernel.shape[1]]
        outputs = kernel.shape[0] // groups
        weights = kernel[g * outputs : (g + 1) * outputs]
        window = tuple(range(2 + spatial, 2 + 2 * spatial))
        y = np.tensordot(inputs, weights, ((1, *window), (1, *range(2, 2 + spatial))))
        parts.append(np.moveaxis(y, -1, 1))
    return [np.concatenate(parts, 1)]


def pooling(layer: ILayer, x: Sequence[Any]) -> list[Any]:
    """The largest number or the mean of each window."""
    values, kernel = as_f32(x[0]), tuple(layer.window_size_nd)
    ones = (1,) * len(kernel)
    axes = tuple(range(-len(kernel), 0))
    if layer.type.name == "MAX":
        return [_windows(values, kernel, layer.stride_nd, layer.padding_nd, ones, -np.inf).max(axes)]
    total = _windows(values, kernel, layer.stride_nd, layer.padding_nd, ones, 0.0).sum(axes)
    counted = np.ones_like(values) if layer.average_count_excludes_padding else None
    if counted is None:
        return [total / np.prod(kernel)]
    return [total / _windows(counted, kernel, layer.stride_nd, layer.padding_nd, ones, 0.0).sum(axes)]
