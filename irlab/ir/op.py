"""Values and ops: what a graph is made of.

An op is built *detached* (`op.graph is None`) and attached when something attached reaches it, so a rewrite is a pure
expression and needs no insertion point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec

from ..errors import IRError
from ..opdef import Field, FieldKind, OpMeta
from ..types import TensorType

if TYPE_CHECKING:
    from ..weights import WeightSymbol
    from .graph import Graph

P = ParamSpec("P")


class Value:
    """One SSA value: the result of `op`, or a graph input where `op` is None.

    `uses` maps each attached op that reads the value to the number of operand slots it fills; a dict, so that
    removing a use is O(1) and iteration is in the order in which the uses were made.
    """

    __slots__ = ("name", "op", "type", "uses")

    def __init__(self, op: Op | None, type: TensorType, name: str | None = None) -> None:
        self.op = op
        self.type = type
        self.uses: dict[Op, int] = {}
        self.name = name

    def __repr__(self) -> str:
        return f"<%{self.name or '?'} = {self.op.opname if self.op else 'input'} : {self.type}>"


class Loc:
    """Where an op came from. `path` is the HF module path, `source` a file:line, `made_by` a rule or pass.

    Interned by `at`, so that a derived location costs a dict look-up.
    """

    __slots__ = ("made_by", "path", "source")
    _interned: ClassVar[dict[tuple[str, str, str], Loc]] = {}

    path: str
    source: str
    made_by: str

    @classmethod
    def at(cls, path: str = "", source: str = "", made_by: str = "") -> Loc:
        """The location with these parts; empty parts are unknown."""
        key = (path, source, made_by)
        found = cls._interned.get(key)
        if found is None:
            found = cls._interned[key] = cls()
            found.path, found.source, found.made_by = key
        return found

    def by(self, made_by: str) -> Loc:
        """This place, as rewritten by the rule or pass `made_by`."""
        return Loc.at(self.path, self.source, made_by)

    def __repr__(self) -> str:
        return f"<Loc {self.path or '?'} {self.source} {self.made_by}>"


UNKNOWN_LOC = Loc.at()


class OpState:
    """The slots that every op has. Apart from `Op`, so that type checkers do not take them for declared fields."""

    __slots__ = ("graph", "loc", "operands", "results", "seq")

    value_class: ClassVar[type] = Value
    opname: ClassVar[str]
    commutative: ClassVar[bool]
    fields: ClassVar[tuple[Field, ...]]
    operand_names: ClassVar[tuple[str, ...]]
    attribute_names: ClassVar[tuple[str, ...]]
    region_names: ClassVar[tuple[str, ...]]

    operands: tuple[Value | None, ...]
    results: tuple[Value, ...]
    graph: Graph | None
    seq: int
    loc: Loc | None


class Op(OpState, metaclass=OpMeta):
    """One operation. Subclasses declare operands and attributes by annotation (see opdef.py).

    `operands` holds None where an optional operand is missing. `seq` places the op among its peers: `topo()` is
    stable in it, and replacements inherit it.
    """

    __slots__ = ()

    @property
    def result(self) -> Value:
        """The first (usually the only) result."""
        return self.results[0]

    @property
    def attributes(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.attribute_names}

    @property
    def regions(self) -> tuple[Graph, ...]:
        return tuple(getattr(self, name) for name in self.region_names)

    def infer(self) -> TensorType | tuple[TensorType, ...]:
        """The result types; raises TypeInferenceError where operands or attributes do not fit."""
        raise IRError(f"{self.opname} does not say how its types are inferred", op=self)

    def rebuild(self, operands: Iterable[Value | None], **attributes: object) -> Op:
        """A detached copy of this op on other `operands`, with some `attributes` (or regions) replaced."""
        values = list(operands)
        arguments: dict[str, object] = {}
        position = 0
        for field in self.fields:
            if field.kind is FieldKind.VARIADIC:
                arguments[field.name] = tuple(values[position:])
            elif field.kind in (FieldKind.OPERAND, FieldKind.OPTIONAL):
                arguments[field.name] = values[position]
                position += 1
            else:
                arguments[field.name] = attributes.get(field.name, getattr(self, field.name))
        copy: Op = type(self)(**arguments)
        copy.loc = self.loc
        return copy

    def __repr__(self) -> str:
        return f"<{place_of(self)}>"


def path_of(op: Op) -> str:
    """The module path that an op comes from; "" where it is not known."""
    return op.loc.path if op.loc is not None else ""


def place_of(op: Op) -> str:
    """For messages: what an op is and, where that is known, the module path that it comes from."""
    path = path_of(op)
    return f"{op.opname} at {path}" if path else op.opname


class Return(Op, opname="return"):
    """The results of a graph, by name. A graph has exactly one."""

    values: tuple[Value, ...]
    names: tuple[str, ...]

    def infer(self) -> tuple[TensorType, ...]:
        if len(self.operands) != len(self.names):
            raise IRError(f"{len(self.operands)} values are returned under {len(self.names)} names", op=self)
        return ()


class Weight(Op, opname="prim.weight"):
    """The value of a weight symbol, printed as `@name`. Several uses of it are a tied weight."""

    symbol: WeightSymbol

    def infer(self) -> TensorType:
        return self.symbol.type


def expression(cls: Callable[P, Op]) -> Callable[P, Value]:
    """The function that builds an op of class `cls` and gives its first result: `rms_norm = expression(RMSNorm)`."""
    build: Callable[P, Value] = cls.make  # type: ignore[attr-defined]  # generated by opdef.py
    build.__name__ = build.__qualname__ = getattr(cls, "__name__", "op").lower()
    build.__doc__ = cls.__doc__
    build.__wrapped__ = cls  # type: ignore[attr-defined]
    return build


def expressions(cls: Callable[P, Op]) -> Callable[P, tuple[Value, ...]]:
    """As `expression`, for ops with several results: gives all of them."""

    def build(*args: P.args, **kwargs: P.kwargs) -> tuple[Value, ...]:
        return cls(*args, **kwargs).results

    build.__name__ = build.__qualname__ = getattr(cls, "__name__", "op").lower()
    build.__doc__ = cls.__doc__
    build.__wrapped__ = cls  # type: ignore[attr-defined]
    return build
