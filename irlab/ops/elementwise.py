"""Primitives that work element by element. They broadcast as NumPy does and never promote: frontends insert casts."""

from __future__ import annotations

from typing import Final

from ..ir import Op, Value
from ..types import DTYPES, DType, TensorType, bool_, tensor
from .shapes import broadcast, broadcast_shapes, require, require_float, require_numbers, same_dtype

_PLAIN_NUMBERS: Final = frozenset(DTYPES.values()) - {bool_}


class Binary(Op):
    """An elementwise op on two operands of one dtype."""

    x: Value
    y: Value


class Arithmetic(Binary):
    """A binary op on numbers; bool is none."""

    def infer(self) -> TensorType:
        x, y = self.operands
        assert x is not None and y is not None
        a = x.type
        # The short way for equal plain types: rewriting builds millions of these.
        if a is y.type and a.element in _PLAIN_NUMBERS:
            return a
        require_numbers(self, x)
        return broadcast(self, a, y.type)


class Add(Arithmetic, opname="prim.add", commutative=True):
    """x + y."""


class Sub(Arithmetic, opname="prim.sub"):
    """x - y."""


class Mul(Arithmetic, opname="prim.mul", commutative=True):
    """x * y."""


class Div(Arithmetic, opname="prim.div"):
    """x / y; for integers rounded toward zero."""


class FloorDiv(Arithmetic, opname="prim.floordiv"):
    """floor(x / y)."""


class Mod(Arithmetic, opname="prim.mod"):
    """x - floor(x / y) * y: the sign of y, as in Python."""


class Pow(Arithmetic, opname="prim.pow"):
    """x ** y; an integer exponent is not negative."""


class Maximum(Arithmetic, opname="prim.maximum", commutative=True):
    """The larger of x and y."""


class Minimum(Arithmetic, opname="prim.minimum", commutative=True):
    """The smaller of x and y."""


class Compare(Binary):
    """An elementwise comparison; the result is bool."""

    def infer(self) -> TensorType:
        return tensor(bool_, broadcast(self, self.x.type, self.y.type).shape)


class Eq(Compare, opname="prim.eq", commutative=True):
    """x == y."""


class Ne(Compare, opname="prim.ne", commutative=True):
    """x != y."""


class Lt(Compare, opname="prim.lt"):
    """x < y."""


class Le(Compare, opname="prim.le"):
    """x <= y."""


class Gt(Compare, opname="prim.gt"):
    """x > y."""


class Ge(Compare, opname="prim.ge"):
    """x >= y."""


class Bitwise(Binary):
    """A binary op on the bits of integers, or on truth values."""

    def infer(self) -> TensorType:
        require(self, not self.x.type.dtype.is_float, "needs integers or bool")
        return broadcast(self, self.x.type, self.y.type)


class And(Bitwise, opname="prim.and", commutative=True):
    """Bitwise and; logical on bool."""


class Or(Bitwise, opname="prim.or", commutative=True):
    """Bitwise or; logical on bool."""


class Xor(Bitwise, opname="prim.xor", commutative=True):
    """Bitwise exclusive or; logical on bool."""


class Unary(Op):
    """An elementwise op on one operand of numbers; bool is none."""

    x: Value

    def infer(self) -> TensorType:
        return tensor(require_numbers(self, self.x).dtype, self.x.type.shape)


class FloatUnary(Unary):
    """An elementwise op that is defined on floating-point numbers only."""

    def infer(self) -> TensorType:
        return tensor(require_float(self, self.x).dtype, self.x.type.shape)


class Not(Unary, opname="prim.not"):
    """Bitwise not; logical on bool."""

    def infer(self) -> TensorType:
        require(self, not self.x.type.dtype.is_float, "needs integers or bool")
        return tensor(self.x.type.dtype, self.x.type.shape)


class Neg(Unary, opname="prim.neg"):
    """-x."""


class Abs(Unary, opname="prim.abs"):
    """The magnitude of x."""


class Sign(Unary, opname="prim.sign"):
    """-1, 0 or 1; 0 for nan."""


class Relu(Unary, opname="prim.relu"):
    """max(x, 0)."""


class Exp(FloatUnary, opname="prim.exp"):
    """e ** x."""


class Log(FloatUnary, opname="prim.log"):
    """The natural logarithm."""


class Sqrt(FloatUnary, opname="prim.sqrt"):
    """The square root."""


class Rsqrt(FloatUnary, opname="prim.rsqrt"):
    """1 / sqrt(x)."""


class Reciprocal(FloatUnary, opname="prim.reciprocal"):
    """1 / x."""


class Sin(FloatUnary, opname="prim.sin"):
    """The sine of x radians."""


class Cos(FloatUnary, opname="prim.cos"):
    """The cosine of x radians."""


class Tanh(FloatUnary, opname="prim.tanh"):
    """The hyperbolic tangent."""


class Erf(FloatUnary, opname="prim.erf"):
    """The error function."""


class Sigmoid(FloatUnary, opname="prim.sigmoid"):
    """1 / (1 + exp(-x))."""


class Floor(FloatUnary, opname="prim.floor"):
    """Rounded down."""


class Ceil(FloatUnary, opname="prim.ceil"):
    """Rounded up."""


class Round(FloatUnary, opname="prim.round"):
    """Rounded to the nearest integer, halves to even."""


class IsNan(FloatUnary, opname="prim.isnan"):
    """Whether x is not a number."""

    def infer(self) -> TensorType:
        return tensor(bool_, require_float(self, self.x).shape)


class Where(Op, opname="prim.where"):
    """x where `condition` holds, else y; all three broadcast."""

    condition: Value
    x: Value
    y: Value

    def infer(self) -> TensorType:
        require(self, self.condition.type.dtype is bool_, "the condition must be bool")
        dtype = same_dtype(self, (self.x, self.y))
        shape = broadcast_shapes(self, self.x.type.shape, self.y.type.shape)
        return tensor(dtype, broadcast_shapes(self, self.condition.type.shape, shape))


class Cast(Op, opname="prim.cast"):
    """x converted to `dtype`: to integers toward zero, to bool by comparison with 0. An encoded x is decoded first."""

    x: Value
    dtype: DType

    def infer(self) -> TensorType:
        return tensor(self.dtype, self.x.type.shape)
