"""How are elementwise ops, comparisons, reductions and literals said in ONNX?"""

from __future__ import annotations

from typing import Final

from irlab.backends.onnx.emitter import Emitter, Lowering
from irlab.backends.onnx.storage import ONNX_TYPE
from irlab.ir import Op
from irlab.ops import prim
from irlab.types import DType, bool_, f32, f64, i32, i64

_SAME: Final[dict[type[Op], str]] = {
    prim.Add: "Add", prim.Sub: "Sub", prim.Mul: "Mul", prim.Pow: "Pow", prim.Maximum: "Max", prim.Minimum: "Min",
    prim.Neg: "Neg", prim.Abs: "Abs", prim.Sign: "Sign", prim.Relu: "Relu", prim.Exp: "Exp", prim.Log: "Log",
    prim.Sqrt: "Sqrt", prim.Reciprocal: "Reciprocal", prim.Sin: "Sin", prim.Cos: "Cos", prim.Tanh: "Tanh",
    prim.Erf: "Erf", prim.Sigmoid: "Sigmoid", prim.Floor: "Floor", prim.Ceil: "Ceil", prim.Round: "Round",
    prim.IsNan: "IsNaN", prim.Eq: "Equal", prim.Lt: "Less", prim.Le: "LessOrEqual", prim.Gt: "Greater",
    prim.Ge: "GreaterOrEqual", prim.Where: "Where", prim.MatMul: "MatMul", prim.Div: "Div",
}  # fmt: skip
"""Ops whose ONNX form has the same operands and meaning."""

_LOGICAL: Final[dict[type[Op], str]] = {prim.And: "And", prim.Or: "Or", prim.Xor: "Xor", prim.Not: "Not"}
"""Logical on bool, Bitwise... on integers."""

_REDUCTIONS: Final[dict[type[Op], str]] = {
    prim.Sum: "ReduceSum", prim.Mean: "ReduceMean", prim.Max: "ReduceMax", prim.Min: "ReduceMin",
    prim.Prod: "ReduceProd",
}  # fmt: skip

_REDUCIBLE: Final = (f32, f64, i32, i64)
"""What the reductions of ONNX Runtime's CPU provider take; other integers go through i64, half through f32."""

_WHERE: Final = frozenset(["f16", "f32", "f64", "i32", "i64", "i8", "u32", "u8"])


def _same(op: Op, e: Emitter) -> None:
    e.result(op, _SAME[type(op)], *(e[v] for v in op.operands if v is not None))


def _cast(e: Emitter, name: str, dtype: DType) -> str:
    return e.node("Cast", name, to=ONNX_TYPE[dtype])


def _ne(op: prim.Ne, e: Emitter) -> None:
    e.result(op, "Not", e.node("Equal", e[op.x], e[op.y]))


def _logical(op: Op, e: Emitter) -> None:
    name = _LOGICAL[type(op)]
    value = op.operands[0]
    assert value is not None
    e.result(op, name if value.type.dtype is bool_ else f"Bitwise{name}", *(e[v] for v in op.operands if v is not None))


def _rsqrt(op: prim.Rsqrt, e: Emitter) -> None:
    e.result(op, "Reciprocal", e.node("Sqrt", e[op.x]))


def _mod(op: prim.Mod, e: Emitter) -> None:
    x, y = e[op.x], e[op.y]
    if op.x.type.dtype.is_int:
        e.result(op, "Mod", x, y)
    else:
        e.result(op, "Sub", x, e.node("Mul", e.node("Floor", e.node("Div", x, y)), y))


def _floordiv(op: prim.FloorDiv, e: Emitter) -> None:
    x, y = e[op.x], e[op.y]
    if op.x.type.dtype.is_int:  # Div rounds toward zero
        e.result(op, "Div", e.node("Sub", x, e.node("Mod", x, y)), y)
    else:
        e.result(op, "Floor", e.node("Div", x, y))


def _where(op: prim.Where, e: Emitter) -> None:
    dtype = op.x.type.dtype
    if dtype.name in _WHERE:
        _same(op, e)
        return
    wide = i32 if dtype is bool_ else i64
    chosen = e.node("Where", e[op.condition], _cast(e, e[op.x], wide), _cast(e, e[op.y], wide))
    e.result(op, "Cast", chosen, to=ONNX_TYPE[dtype])


def _convert(op: prim.Cast, e: Emitter) -> None:
    source = op.x.type.dtype
    if source is op.dtype:
        e.bind(op.result, e[op.x])
    else:
        e.result(op, "Cast", e[op.x], to=ONNX_TYPE[op.dtype])


def _reduce(op: prim.Reduce, e: Emitter) -> None:
    dtype = op.x.type.dtype
    if not op.axes:
        e.result(op, "Identity", e[op.x])
        return
    x, wide = e[op.x], dtype if dtype in _REDUCIBLE else f32 if dtype.is_float else i64
    if wide is not dtype:
        x = _cast(e, x, wide)
    inputs, keep = (x, e.ints(*op.axes)), int(op.keepdims)
    if wide is dtype:
        e.result(op, _REDUCTIONS[type(op)], *inputs, keepdims=keep)
    else:
        e.result(op, "Cast", e.node(_REDUCTIONS[type(op)], *inputs, keepdims=keep), to=ONNX_TYPE[dtype])


def _any(op: prim.Reduce, e: Emitter) -> None:
    x = e[op.x] if op.x.type.dtype is bool_ else _cast(e, e[op.x], bool_)
    # Bool has a maximum in opset 20 and no kernel for it in every provider.
    kind = "ReduceMax" if isinstance(op, prim.Any) else "ReduceMin"
    e.result(
        op, "Cast", e.node(kind, _cast(e, x, i32), e.ints(*op.axes), keepdims=int(op.keepdims)), to=ONNX_TYPE[bool_]
    )


def _argmax(op: prim.ArgMax, e: Emitter) -> None:
    e.result(op, "ArgMax", e[op.x], axis=op.axis, keepdims=int(op.keepdims))


def _cumsum(op: prim.CumSum, e: Emitter) -> None:
    import numpy as np

    dtype = op.x.type.dtype
    axis = e.array(np.array(op.axis, np.int64))
    if dtype in _REDUCIBLE:
        e.result(op, "CumSum", e[op.x], axis)
    else:
        total = e.node("CumSum", _cast(e, e[op.x], f32 if dtype.is_float else i64), axis)
        e.result(op, "Cast", total, to=ONNX_TYPE[dtype])


def _topk(op: prim.TopK, e: Emitter) -> None:
    e.result(op, "TopK", e[op.x], e.sizes.size(op.k), axis=op.axis)


def _constant(op: prim.Constant, e: Emitter) -> None:
    from irlab.types import tensor

    scalar = e.scalar(op.value, tensor(op.type.dtype, ()))
    if op.type.rank:
        e.result(op, "Expand", scalar, e.sizes.shape(op.type.shape))
    else:
        e.bind(op.result, scalar)


def _iota(op: prim.Iota, e: Emitter) -> None:
    start, size = e.sizes.scalar(op.start), op.size
    stop = e.sizes.scalar(op.start + size * op.step)
    step = e.sizes.scalar(op.step)
    if op.dtype is i64:
        e.result(op, "Range", start, stop, step)
    else:
        e.result(op, "Cast", e.node("Range", start, stop, step), to=ONNX_TYPE[op.dtype])


def _dim(op: prim.DimOf, e: Emitter) -> None:
    axis = op.axis + op.x.type.rank
    e.result(op, "Squeeze", e.node("Shape", e[op.x], start=axis, end=axis + 1), e.ints(0))


LOWERINGS: Final[dict[type[Op], Lowering]] = {
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(_LOGICAL, _logical),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    prim.Ne: _ne,
    prim.Rsqrt: _rsqrt,
    prim.Mod: _mod,
    prim.FloorDiv: _floordiv,
    prim.Where: _where,
    prim.Cast: _convert,
    prim.Any: _any,
    prim.All: _any,
    prim.ArgMax: _argmax,
    prim.CumSum: _cumsum,
    prim.TopK: _topk,
    prim.Constant: _constant,
    prim.Iota: _iota,
    prim.DimOf: _dim,
}
