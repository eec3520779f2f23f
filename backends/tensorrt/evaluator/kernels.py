"""What does each kind of layer compute? As TensorRT's API documents it, on NumPy arrays.

Floats are computed in f32 and rounded to the type of the layer's output, as tensor cores accumulate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import ml_dtypes
import numpy as np

from irlab.backends.tensorrt.evaluator.windows import convolution, pooling
from irlab.backends.tensorrt.library import ILayer
from irlab.floats import as_f32

Operands: TypeAlias = "Sequence[Any]"
Kernel: TypeAlias = "Callable[[ILayer, Operands], list[Any]]"


def _word(value: Any) -> str:
    return str(value.name)


def stored_numbers(layer: ILayer, kept: np.ndarray) -> np.ndarray:
    """The numbers of a constant in its shape. INT4 comes as i8, small floats as ml_dtypes has them. Weights that the
    API gives as an array are read from the layer, others from the memory that it refers to."""
    shape = tuple(layer.shape)
    kind = _word(layer.get_output(0).dtype)
    if kind in ("INT4", "FP4"):
        pairs = np.stack((kept << 4, kept & 0xF0), -1).reshape(*shape[:-1], -1)[..., : shape[-1]]
        return pairs.view(np.int8) >> 4 if kind == "INT4" else (pairs >> 4).view(ml_dtypes.float4_e2m1fn)
    if kind == "FP8":
        return kept.reshape(shape).view(ml_dtypes.float8_e4m3fn)
    seen = layer.weights
    return (seen if isinstance(seen, np.ndarray) else kept).reshape(shape)


def _f32(x: Any) -> Any:
    return as_f32(x) if x.dtype.kind not in "iub" else x


_ERF: Final = np.vectorize(math.erf, otypes=[np.float32])

_UNARY: Final[dict[str, Callable[[Any], Any]]] = {
    "EXP": np.exp, "LOG": np.log, "SQRT": np.sqrt, "RECIP": np.reciprocal, "ABS": np.abs, "NEG": np.negative,
    "SIN": np.sin, "COS": np.cos, "CEIL": np.ceil, "FLOOR": np.floor, "ROUND": np.rint, "SIGN": np.sign,
    "NOT": np.logical_not, "ISNAN": np.isnan, "ERF": lambda x: _erf(x),
}  # fmt: skip


def _erf(x: Any) -> Any:
    return _ERF(x) if x.size else x


def _sigmoid(x: Any) -> Any:
    return 1.0 / (1.0 + np.exp(-x))


_ACTIVATIONS: Final[dict[str, Callable[[Any], Any]]] = {
    "RELU": lambda x: np.maximum(x, 0),
    "SIGMOID": _sigmoid,
    "TANH": np.tanh,
    "GELU_ERF": lambda x: 0.5 * x * (1.0 + _erf(x * np.float32(math.sqrt(0.5)))),
    "GELU_TANH": lambda x: 0.5 * x * (1.0 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + 0.044715 * x**3))),
}


def _divide(a: Any, b: Any) -> Any:
    return np.trunc(a / b).astype(a.dtype) if a.dtype.kind == "i" else a / b


_ELEMENTWISE: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "SUM": np.add, "PROD": np.multiply, "MAX": np.maximum, "MIN": np.minimum, "SUB": np.subtract, "DIV": _divide,
    "POW": np.power, "FLOOR_DIV": np.floor_divide, "AND": np.logical_and, "OR": np.logical_or, "XOR": np.logical_xor,
    "EQUAL": np.equal, "GREATER": np.greater, "LESS": np.less,
}  # fmt: skip

_REDUCE: Final[dict[str, Callable[..., Any]]] = {
    "SUM": np.sum, "PROD": np.prod, "MAX": np.max, "MIN": np.min, "AVG": np.mean,
}  # fmt: skip


def bits(mask: int) -> tuple[int, ...]:
    """The axes whose bits are set."""
    return tuple(i for i in range(mask.bit_length()) if mask >> i & 1)


def _elementwise(layer: ILayer, x: Operands) -> list[Any]:
    a, b = _f32(x[0]), _f32(x[1])
    if a.ndim != b.ndim or a.dtype != b.dtype:
        raise ValueError(f"layer '{layer.name}' mixes {a.dtype}[{a.ndim}] and {b.dtype}[{b.ndim}]")
    return [_ELEMENTWISE[_word(layer.op)](a, b)]


def _constant_like(layer: ILayer, slot: int, x: Operands, attribute: str) -> tuple[int, ...]:
    """What an input says, or the attribute where the input is missing."""
    if slot < len(x) and x[slot] is not None:
        return tuple(int(v) for v in x[slot])
    return tuple(int(v) for v in getattr(layer, attribute))


def _shuffle(layer: ILayer, x: Operands) -> list[Any]:
    y = x[0].transpose(tuple(layer.first_transpose)[: x[0].ndim])
    said = x[1] if len(x) > 1 else layer.reshape_dims
    if said is not None:  # else it only transposes
        target = [int(n) for n in said]
        if layer.zero_is_placeholder:
            target = [y.shape[i] if n == 0 else n for i, n in enumerate(target)]
        y = y.reshape(target)
    return [y.transpose(tuple(layer.second_transpose)[: y.ndim])]


def _slice(layer: ILayer, x: Operands) -> list[Any]:
    start, sizes, steps = (
        _constant_like(layer, slot, x, name) for slot, name in ((1, "start"), (2, "shape"), (3, "stride"))
    )
    mode, y = _word(layer.mode), x[0]
    fill = x[4] if len(x) > 4 and x[4] is not None else None
    outside = np.zeros(sizes, bool)
    for axis, (first, count, step) in enumerate(zip(start, sizes, steps)):
        at = first + step * np.arange(count)
        out = (at < 0) | (at >= y.shape[axis])
        if out.any() and mode != "FILL":
            raise IndexError(f"layer '{layer.name}' reads outside axis {axis}")
        outside |= np.expand_dims(out, tuple(i for i in range(len(sizes)) if i != axis))
        y = np.take(y, np.clip(at, 0, max(0, y.shape[axis] - 1)), axis) if y.shape[axis] else _empty(y, axis, count)
    return [y if fill is None else np.where(outside, fill, y)]


def _empty(y: Any, axis: int, count: int) -> Any:
    shape = list(y.shape)
    shape[axis] = count
    return np.zeros(shape, y.dtype)


def _fill(layer: ILayer, x: Operands) -> list[Any]:
    (size,) = _constant_like(layer, 0, x, "shape")
    return [int(x[1]) + int(x[2][0]) * np.arange(size)]


def _operand(form: str, x: Any) -> Any:
    return x.swapaxes(-1, -2) if form == "TRANSPOSE" else x


def _matrix_multiply(layer: ILayer, x: Operands) -> list[Any]:
    a, b = (_operand(_word(form), _f32(v)) for form, v in ((layer.op0, x[0]), (layer.op1, x[1])))
    return [np.matmul(a, b)]


def _normalization(layer: ILayer, x: Operands) -> list[Any]:
    values, scale, bias = (_f32(v) for v in x[:3])
    axes = bits(layer.axes)
    centred = values - values.mean(axes, keepdims=True)
    spread = np.sqrt((centred * centred).mean(axes, keepdims=True) + np.float32(layer.epsilon))
    return [centred / spread * scale + bias]


def _softmax(layer: ILayer, x: Operands) -> list[Any]:
    return [softmax(_f32(x[0]), bits(layer.axes))]


def softmax(scores: Any, axes: tuple[int, ...]) -> Any:
    """exp normalised to sum 1 over `axes`, in f32."""
    e = np.exp(scores - scores.max(axes, keepdims=True))
    return e / e.sum(axes, keepdims=True)


def _attention(layer: ILayer, x: Operands) -> list[Any]:
    """The boundary that carries the result; its only input is the other boundary, which hands on all operands."""
    q, k, v, *rest = x[0]
    mask = rest[0] if rest else None
    attention = layer.attention
    groups = q.shape[1] // k.shape[1]
    kf, vf = (np.repeat(_f32(t), groups, 1) for t in (k, v))
    scores = _f32(q) @ kf.swapaxes(-1, -2)
    kind = _word(attention.causal_kind)
    if kind != "NONE":
        shift = scores.shape[-1] - scores.shape[-2] if kind == "LOWER_RIGHT" else 0
        scores = np.where(np.tri(scores.shape[-2], scores.shape[-1], shift, dtype=bool), scores, -np.inf)
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + _f32(mask)
    if _word(attention.norm_op) == "SOFTMAX":
        scores = softmax(scores, (scores.ndim - 1,))
    return [_f32(scores.astype(v.dtype)) @ vf]


def _rotary(layer: ILayer, x: Operands) -> list[Any]:
    values, cos, sin = (_f32(v) for v in x[:3])
    if len(x) > 3 and x[3] is not None:
        cos, sin = cos[x[3]], sin[x[3]]
    cos, sin = cos[:, None], sin[:, None]
    width = layer.rotary_embedding_dim or values.shape[-1]
    turning, rest = values[..., :width], values[..., width:]
    half = width // 2
    pairs = (slice(0, None, 2), slice(1, None, 2)) if layer.interleaved else (slice(0, half), slice(half, None))
    first, second = (turning[..., pair] for pair in pairs)
    turned = np.empty_like(turning)
    turned[..., pairs[0]] = first * cos - second * sin
    turned[..., pairs[1]] = second * cos + first * sin
    return [np.concatenate((turned, rest), -1)]


def _kv_cache_update(layer: ILayer, x: Operands) -> list[Any]:
    cache, new, at = x[0].copy(), x[1], x[2]
    for row, start in enumerate(at):
        if not 0 <= start <= cache.shape[2] - new.shape[2]:
            raise IndexError(f"layer '{layer.name}' writes position {start} of a cache of {cache.shape[2]}")
        cache[row, :, start : start + new.shape[2]] = new[row]
    return [cache]


def _moe(layer: ILayer, x: Operands) -> list[Any]:
    """Hidden states [..., hidden], chosen experts and scores [..., k]; weights [experts, in, out]."""
    values, chosen, scores, gate, up, down = (_f32(v) for v in x[:6])
    if _word(layer.activation_type) != "SILU":
        raise ValueError(f"layer '{layer.name}' has the activation {_word(layer.activation_type)}")
    rows = values[..., None, None, :]
    inner = rows @ gate[chosen]
    inner = inner * _sigmoid(inner) * (rows @ up[chosen])
    return [((inner @ down[chosen])[..., 0, :] * scores[..., None]).sum(-2)]


def _dequantize(layer: ILayer, x: Operands) -> list[Any]:
    codes, scale = x[0].astype(np.float32), _f32(x[1])
    if scale.ndim == codes.ndim:
        for axis, (n, groups) in enumerate(zip(codes.shape, scale.shape)):
            scale = np.repeat(scale, n // groups, axis)
    elif scale.ndim == 1:
        axis = layer.axis % codes.ndim
        scale = scale.reshape([-1 if i == axis else 1 for i in range(codes.ndim)])
    return [codes * scale]


def _quantize(layer: ILayer, x: Operands) -> list[Any]:
    kind = _word(layer.get_output(0).dtype)
    if x[1].ndim or kind not in ("INT8", "FP8"):
        raise ValueError(f"layer '{layer.name}' is not INT8 or FP8 under one scale")
    steps = _f32(x[0]) / _f32(x[1])
    return [np.clip(np.rint(steps), -128, 127) if kind == "INT8" else _rounded(steps, ml_dtypes.float8_e4m3fn)]


def _rounded(x: Any, dtype: Any) -> Any:
    """The nearest numbers of a small format, the largest for what is larger."""
    largest = np.float32(ml_dtypes.finfo(dtype).max)
    return np.clip(x, -largest, largest).astype(dtype).astype(np.float32)


def _dynamic_quantize(layer: ILayer, x: Operands) -> list[Any]:
    """NVFP4: for 16 numbers along the last axis a scale of E4M3, under one of the tensor."""
    values, unit = _f32(x[0]), _f32(x[1])
    blocks = values.reshape(*values.shape[:-1], -1, layer.block_size)
    scales = _rounded(np.abs(blocks).max(-1) / (np.float32(6) * unit), ml_dtypes.float8_e4m3fn)
    whole = (scales * unit)[..., None]
    codes = _rounded(blocks / np.where(whole == 0, 1, whole), ml_dtypes.float4_e2m1fn)
    return [codes.reshape(values.shape), scales]


def _gather(layer: ILayer, x: Operands) -> list[Any]:
    values, indices = x[0], x[1]
    if indices.size and not -values.shape[layer.axis] <= indices.min() <= indices.max() < values.shape[layer.axis]:
        raise IndexError(f"layer '{layer.name}' gathers outside its table")
    if _word(layer.mode) == "ELEMENT":
        where = list(np.indices(indices.shape, sparse=True))
        where[layer.axis] = indices
        return [values[tuple(where)]]
    return [np.take(values, indices, layer.axis)]


def _scatter(layer: ILayer, x: Operands) -> list[Any]:
    out = x[0].copy()
    where = list(np.indices(x[1].shape, sparse=True))
    where[layer.axis] = x[1]
    out[tuple(where)] = x[2]
    return [out]


def _topk(layer: ILayer, x: Operands) -> list[Any]:
    (axis,) = bits(layer.axes)
    k = int(x[1]) if len(x) > 1 and x[1] is not None else layer.k
    values = _f32(x[0])
    order = np.argsort(-values, axis=axis, kind="stable")
    order = np.take(order, np.arange(k), axis)
    return [np.take_along_axis(x[0], order, axis), order]


def _cumulative(layer: ILayer, x: Operands) -> list[Any]:
    return [np.cumsum(_f32(x[0]), int(x[1]))]


def _reduce(layer: ILayer, x: Operands) -> list[Any]:
    return [_REDUCE[_word(layer.op)](_f32(x[0]), axis=bits(layer.axes), keepdims=layer.keep_dims)]


def _activation(layer: ILayer, x: Operands) -> list[Any]:
    return [_ACTIVATIONS[_word(layer.type)](_f32(x[0]))]


def _cast(layer: ILayer, x: Operands) -> list[Any]:
    value = x[0]
    if _word(layer.to_type) == "BOOL":
        return [value != 0]
    return [np.trunc(_f32(value)) if _word(layer.to_type).startswith("INT") and value.dtype.kind != "i" else value]


KERNELS: Final[dict[str, Kernel]] = {
    "ACTIVATION": _activation,
    "ATTENTION_OUTPUT": _attention,
    "CAST": _cast,
    "CONCATENATION": lambda layer, x: [np.concatenate(x, layer.axis)],
    "CONDITIONAL_INPUT": lambda layer, x: [x[0]],
    "CONVOLUTION": convolution,
    "CUMULATIVE": _cumulative,
    "DEQUANTIZE": _dequantize,
    "DYNAMIC_QUANTIZE": _dynamic_quantize,
    "ELEMENTWISE": _elementwise,
    "FILL": _fill,
    "GATHER": _gather,
    "IDENTITY": lambda layer, x: [x[0]],
    "KV_CACHE_UPDATE": _kv_cache_update,
    "MATRIX_MULTIPLY": _matrix_multiply,
    "MOE": _moe,
    "NORMALIZATION": _normalization,
    "POOLING": pooling,
    "QUANTIZE": _quantize,
    "REDUCE": _reduce,
    "ROTARY_EMBEDDING": _rotary,
    "SCATTER": _scatter,
    "SELECT": lambda layer, x: [np.where(x[0], x[1], x[2])],
    "SHAPE": lambda layer, x: [np.array(x[0].shape, np.int64)],
    "SHUFFLE": _shuffle,
    "SLICE": _slice,
    "SOFTMAX": _softmax,
    "SQUEEZE": lambda layer, x: [np.squeeze(x[0], tuple(int(v) for v in x[1]))],
    "TOPK": _topk,
    "UNARY": lambda layer, x: [_UNARY[_word(layer.op)](_f32(x[0]))],
    "UNSQUEEZE": lambda layer, x: [np.expand_dims(x[0], tuple(int(v) for v in x[1]))],
}
"""Constants and the outputs of conditionals are the evaluator's own matter."""
