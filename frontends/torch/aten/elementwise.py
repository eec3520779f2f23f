"""ATen ops that work element by element. The IR never promotes, so dtypes are made equal here, as torch would."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from irlab.ir import Value
from irlab.ops import prim
from irlab.types import bool_

if TYPE_CHECKING:
    from irlab.frontends.torch.lower import Lowered, Lowering, Site

Operand = object
"""A tensor (Value), a number or a symbolic size."""


def _unary(build: Callable[[Value], Value]) -> Lowering:
    """A function of one tensor, which torch converts to the dtype of the result first (sqrt of integers is a float)."""

    def lower(site: Site, x: Value) -> Lowered:
        return build(site.cast(x))

    return lower


def _binary(build: Callable[[Value, Value], Value]) -> Lowering:
    def lower(site: Site, x: Operand, y: Operand) -> Lowered:
        return build(site.value(x), site.value(y))

    return lower


def _comparison(build: Callable[[Value, Value], Value]) -> Lowering:
    def lower(site: Site, x: Operand, y: Operand) -> Lowered:
        dtype = site.promoted(0, 1)
        return build(site.value(x, dtype), site.value(y, dtype))

    return lower


def _logical(build: Callable[..., Value]) -> Lowering:
    def lower(site: Site, *xs: Value) -> Lowered:
        return build(*[site.cast(x, bool_) for x in xs])

    return lower


def _is_number(x: Operand, number: float) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and x == number


def _scaled(site: Site, y: Operand, alpha: Operand) -> Value:
    y = site.value(y)
    return y if _is_number(alpha, 1) else prim.mul(y, site.value(alpha))


def _add(site: Site, x: Operand, y: Operand, *, alpha: Operand = 1) -> Lowered:
    # Integer positions come as arange + 0; a float + 0 is not always the same float (-0.0).
    if _is_number(y, 0) and isinstance(x, Value) and x.type is site.type and site.type.dtype.is_int:
        return x
    return prim.add(site.value(x), _scaled(site, y, alpha))


def _sub(site: Site, x: Operand, y: Operand, *, alpha: Operand = 1) -> Lowered:
    return prim.sub(site.value(x), _scaled(site, y, alpha))


def _rsub(site: Site, x: Operand, y: Operand, alpha: Operand = 1) -> Lowered:
    return prim.sub(site.value(y), _scaled(site, x, alpha))


def _mul(site: Site, x: Operand, y: Operand) -> Lowered:
    if site.type.dtype is bool_:
        return prim.and_(site.value(x), site.value(y))
    if _is_number(y, 1) and isinstance(x, Value) and x.type is site.type:
        return x
    return prim.mul(site.value(x), site.value(y))


def _div(site: Site, x: Operand, y: Operand, *, rounding_mode: str | None = None) -> Lowered:
    a, b = site.value(x), site.value(y)
    if rounding_mode == "floor":
        return prim.floordiv(a, b)
    if rounding_mode == "trunc" and site.type.dtype.is_float:
        quotient = prim.div(a, b)
        return prim.mul(prim.sign(quotient), prim.floor(prim.abs(quotient)))
    return prim.div(a, b)


def _clamp(site: Site, x: Value, min: Operand = None, max: Operand = None) -> Lowered:
    out = site.cast(x)
    out = out if min is None else prim.maximum(out, site.value(min))
    return out if max is None else prim.minimum(out, site.value(max))


def _hardtanh(site: Site, x: Value, min_val: float = -1, max_val: float = 1) -> Lowered:
    return _clamp(site, x, min_val, max_val)


def _relu6(site: Site, x: Value) -> Lowered:
    return _clamp(site, x, 0, 6)


def _where(site: Site, condition: Value, x: Operand = None, y: Operand = None) -> Lowered:
    if x is None or y is None:
        return None  # the indices of true elements: as many as there are at run time
    return prim.where(site.cast(condition, bool_), site.value(x), site.value(y))


def _masked_fill(site: Site, x: Value, mask: Value, value: Operand) -> Lowered:
    return prim.where(mask, site.value(value), site.cast(x))


def _leaky_relu(site: Site, x: Value, negative_slope: float = 0.01) -> Lowered:
    return prim.where(prim.gt(x, site.value(0)), x, prim.mul(x, site.value(negative_slope)))


def _elu(site: Site, x: Value, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Lowered:
    if (scale, input_scale) != (1, 1):
        return None
    negative = prim.mul(site.value(alpha), prim.sub(prim.exp(prim.minimum(x, site.value(0))), site.value(1)))
    return prim.where(prim.gt(x, site.value(0)), x, negative)


def _softplus(site: Site, x: Value, beta: float = 1, threshold: float = 20) -> Lowered:
    # max(x, 0) + log(1 + exp(-|x|)) does not overflow; above the threshold it is x to the last digit.
    if beta != 1:
        return None
    tail = prim.log(prim.add(prim.exp(prim.neg(prim.abs(x))), site.value(1)))
    return prim.add(prim.relu(x), tail)


def _isinf(site: Site, x: Value) -> Lowered:
    if not x.type.dtype.is_float:
        return prim.constant(False, bool_, x.type.shape)
    return prim.eq(prim.abs(x), prim.constant(math.inf, x.type.dtype))


def _convert(site: Site, x: Value, *_: object, **__: object) -> Lowered:
    """`to`, `type_as`, `float` ...: torch has worked out the dtype."""
    return site.cast(x)


def _identity(site: Site, x: Value, *_: object, **__: object) -> Lowered:
    return x


def _cast_like(function: Callable[[Value], Value]) -> Lowering:
    """For functions that have a value for integers too: no conversion."""

    def lower(site: Site, x: Value) -> Lowered:
        return function(x)

    return lower


def _square(x: Value) -> Value:
    return prim.mul(x, x)


def _log_of_base(base: float) -> Lowering:
    def lower(site: Site, x: Value) -> Lowered:
        return prim.mul(prim.log(site.cast(x)), site.value(1 / math.log(base)))

    return lower


_LOGICAL: dict[str, Callable[..., Value]] = {"and": prim.and_, "or": prim.or_, "xor": prim.xor, "not": prim.not_}

TABLE: dict[str, Lowering] = {
    # Functions of one tensor.
    **{
        f"aten.{name}": _unary(build)
        for name, build in {
            "abs": prim.abs,
            "neg": prim.neg,
            "sign": prim.sign,
            "relu": prim.relu,
            "exp": prim.exp,
            "log": prim.log,
            "sqrt": prim.sqrt,
            "rsqrt": prim.rsqrt,
            "reciprocal": prim.reciprocal,
            "sin": prim.sin,
            "cos": prim.cos,
            "tanh": prim.tanh,
            "erf": prim.erf,
            "sigmoid": prim.sigmoid,
            "floor": prim.floor,
            "ceil": prim.ceil,
            "round": prim.round,
            "square": _square,
        }.items()
    },
    "aten.bitwise_not": _cast_like(prim.not_),
    "aten.isnan": _cast_like(prim.isnan),
    "aten.isinf": _isinf,
    "aten.log2": _log_of_base(2.0),
    "aten.log10": _log_of_base(10.0),
    # Functions of two tensors, or of a tensor and a number.
    **{
        f"aten.{name}": _binary(build)
        for name, build in {
            "pow": prim.pow,
            "maximum": prim.maximum,
            "minimum": prim.minimum,
            "remainder": prim.mod,
            "floor_divide": prim.floordiv,
            "bitwise_and": prim.and_,
            "bitwise_or": prim.or_,
            "bitwise_xor": prim.xor,
            "__and__": prim.and_,
            "__or__": prim.or_,
        }.items()
    },
    **{
        f"aten.{name}": _comparison(build)
        for name, build in {
            "eq": prim.eq,
            "ne": prim.ne,
            "lt": prim.lt,
            "le": prim.le,
            "gt": prim.gt,
            "ge": prim.ge,
        }.items()
    },
    **{f"aten.logical_{name}": _logical(build) for name, build in _LOGICAL.items()},
    "aten.add": _add,
    "aten.sub": _sub,
    "aten.rsub": _rsub,
    "aten.mul": _mul,
    "aten.div": _div,
    "aten.true_divide": _div,
    "aten.clamp": _clamp,
    "aten.clamp_min": lambda site, x, min: _clamp(site, x, min),
    "aten.clamp_max": lambda site, x, max: _clamp(site, x, None, max),
    "aten.hardtanh": _hardtanh,
    "aten.relu6": _relu6,
    "aten.leaky_relu": _leaky_relu,
    "aten.elu": _elu,
    "aten.softplus": _softplus,
    "aten.where": _where,
    "aten.masked_fill": _masked_fill,
    # Conversions, and what changes nothing: memory, gradients, and dropout, which evaluation leaves out.
    **dict.fromkeys(
        ("aten.to", "aten._to_copy", "aten.type_as", "aten.float", "aten.half", "aten.bfloat16"),
        _convert,
    ),
    **dict.fromkeys(
        (
            "aten.alias",
            "aten.clone",
            "aten.contiguous",
            "aten.detach",
            "aten.detach_",
            "aten.dropout",
            "aten.feature_dropout",
            "aten.lift_fresh",
            "aten.lift_fresh_copy",
            "aten.positive",
            "aten.resolve_conj",
            "aten.resolve_neg",
        ),
        _identity,
    ),
}
