"""How an op class is made from its annotations: the schema, the slots, the constructor, the accessors.

    class RMSNorm(Op, opname="nn.rms_norm"):
        x: Value                      # an operand
        weight: Value | None = None   # an operand that may be missing
        eps: float = 1e-6             # an attribute

gives `RMSNorm(x, weight, eps=1e-5)`, which sets the fields and infers the result types, so that no op exists without
its types. `tuple[Value, ...]` is a variadic operand (at most one, and the last operand); `Graph` is a region.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, TypeAlias, dataclass_transform

from .errors import TypeInferenceError

Axis: TypeAlias = int
"""An attribute that counts a dimension of the first operand; stored negative, which stays right when leading
dimensions come or go."""

Axes: TypeAlias = tuple[int, ...]
"""As `Axis`, several, stored sorted."""

ARGUMENT_DEFAULT_PREFIX: Final = "default_"


class FieldKind(Enum):
    """What a field of an op class declares."""

    OPERAND = "operand"
    OPTIONAL = "optional operand"
    VARIADIC = "variadic operand"
    REGION = "region"
    ATTRIBUTE = "attribute"


_KIND_OF_ANNOTATION: Final = {
    "Value": FieldKind.OPERAND,
    "Value | None": FieldKind.OPTIONAL,
    "tuple[Value, ...]": FieldKind.VARIADIC,
    "Graph": FieldKind.REGION,
}

REQUIRED: Final = object()
"""The default of a field that has none."""


class Field:
    """One declared field of an op class."""

    __slots__ = ("annotation", "default", "kind", "name")

    def __init__(self, name: str, annotation: str, kind: FieldKind, default: object) -> None:
        self.name, self.annotation, self.kind, self.default = name, annotation, kind, default

    def __repr__(self) -> str:
        return f"{self.name}: {self.annotation}"


def _canonical_axis(op: Any, axis: int) -> int:
    rank = op.operands[0].type.rank
    if not -rank <= axis < rank:
        raise TypeInferenceError(f"{op.opname}: axis {axis} is outside rank {rank}", op=op)
    return axis if axis < 0 else axis - rank


def _canonical_axes(op: Any, axes: tuple[int, ...] | list[int]) -> tuple[int, ...]:
    return tuple(sorted({_canonical_axis(op, axis) for axis in axes}))


_CANONICAL_FORM: Final[dict[str, Callable[[Any, Any], object]]] = {"Axis": _canonical_axis, "Axes": _canonical_axes}
"""What the constructor does to an attribute of this annotation before it stores it."""


def canonical_attribute(op: Any, annotation: str, attribute: Any) -> object:
    """`attribute` as the constructor of `op` would store it; None where it does not fit the op."""
    try:
        return _CANONICAL_FORM[annotation](op, attribute)
    except TypeInferenceError:
        return None


OPS: Final[dict[str, Any]] = {}
"""Every declared op class by its name in IR text ("nn.rms_norm")."""


_QUALIFIER: Final = re.compile(r"\b(?:\w+\.)+(?=[A-Za-z_])")


def _annotation_text(annotation: object) -> str:
    """The annotation as it is written; modules without `from __future__ import annotations` give it as an object."""
    if isinstance(annotation, str):
        return annotation
    return annotation.__name__ if isinstance(annotation, type) else _QUALIFIER.sub("", str(annotation))


def _constructors(cls: Any) -> tuple[Callable[..., None], Callable[..., Any]]:
    """Generate `__init__`, and the function that makes an op and gives its first result: straight-line code, because
    rewriting builds millions of ops, and calling a class costs more than calling a function."""
    opname, fields = cls.opname, cls.fields
    operands = [f for f in fields if f.kind in (FieldKind.OPERAND, FieldKind.OPTIONAL, FieldKind.VARIADIC)]
    if [f for f in operands if f.kind is FieldKind.VARIADIC] not in ([], operands[-1:]):
        raise TypeError(f"{opname}: only the last operand may be variadic")
    parameters = ", ".join(
        f.name if f.default is REQUIRED else f"{f.name}={ARGUMENT_DEFAULT_PREFIX}{f.name}" for f in fields
    )
    if operands and operands[-1].kind is FieldKind.VARIADIC:
        packed = "(" + "".join(f"{f.name}, " for f in operands[:-1]) + f"*{operands[-1].name},)"
    else:
        packed = "(" + "".join(f"{f.name}, " for f in operands) + ")"
    attributes = [f for f in fields if f not in operands]
    body = [
        f"    self.operands = {packed}",
        "    self.graph = None",
        "    self.seq = 0",
        "    self.loc = None",
        *(
            f"    self.{f.name} = canonical_{f.annotation}(self, {f.name})"
            if f.annotation in _CANONICAL_FORM
            else f"    self.{f.name} = {f.name}"
            for f in attributes
        ),
        *(["    self.canonicalise_attributes()"] if hasattr(cls, "canonicalise_attributes") else []),
        "    _types = self.infer()",
        "    if _types.__class__ is tuple:",
        "        self.results = tuple([_Value(self, t) for t in _types])",
        "    else:",
        "        _value = _new(_Value)",
        "        _value.op = self",
        "        _value.type = _types",
        "        _value.uses = {}",
        "        _value.name = None",
        "        self.results = (_value,)",
    ]
    # Names with an underscore cannot meet a field's name.
    scope: dict[str, Any] = {"_Value": cls.value_class, "_cls": cls, "_new": object.__new__}
    scope.update({f"canonical_{annotation}": convert for annotation, convert in _CANONICAL_FORM.items()})
    scope.update({ARGUMENT_DEFAULT_PREFIX + f.name: f.default for f in fields if f.default is not REQUIRED})
    initialise = [f"def __init__(self, {parameters}):", *body]
    make = [f"def make({parameters}):", "    self = _new(_cls)", *body, "    return self.results[0]"]
    exec("\n".join([*initialise, *make]), scope)
    scope["__init__"].__qualname__ = f"{opname}.__init__"
    scope["__init__"].__doc__ = f"Build a detached {opname} and infer its result types."
    return scope["__init__"], scope["make"]


def _operand_accessor(index: int, kind: FieldKind) -> property:
    if kind is FieldKind.VARIADIC:
        return property(lambda op: op.operands[index:])
    return property(lambda op: op.operands[index])


@dataclass_transform()
class OpMeta(type):
    """Turns the annotations of an `Op` subclass into its schema. `opname` is the name in IR text.

    `commutative=True` says that the two operands may be exchanged; patterns then try both orders.
    A class without `opname` is an abstract base that only passes methods on.
    """

    def __new__(
        mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], opname: str = "", commutative: bool = False
    ) -> Any:
        if name == "Op":
            return super().__new__(mcs, name, bases, namespace)
        inherited: tuple[Field, ...] = getattr(bases[0], "fields", ())
        own = []
        for field, annotation in namespace.get("__annotations__", {}).items():
            text = _annotation_text(annotation)
            if not text.startswith("ClassVar"):
                kind = _KIND_OF_ANNOTATION.get(text, FieldKind.ATTRIBUTE)
                own.append(Field(field, text, kind, namespace.pop(field, REQUIRED)))
        # Operands first, so that inherited and own operands are numbered together.
        fields = (*inherited, *own)
        operands = [f for f in fields if f.kind in (FieldKind.OPERAND, FieldKind.OPTIONAL, FieldKind.VARIADIC)]
        namespace["__slots__"] = tuple(f.name for f in own if f not in operands)
        namespace["fields"] = fields
        namespace["operand_names"] = tuple(f.name for f in operands)
        namespace["attribute_names"] = tuple(f.name for f in fields if f.kind is FieldKind.ATTRIBUTE)
        namespace["region_names"] = tuple(f.name for f in fields if f.kind is FieldKind.REGION)
        for index, operand in enumerate(operands):
            namespace[operand.name] = _operand_accessor(index, operand.kind)
        cls: Any = super().__new__(mcs, name, bases, namespace)
        cls.opname, cls.commutative = opname, commutative
        if opname:
            if opname in OPS:
                raise TypeError(f"two op classes are called {opname}: {OPS[opname].__module__} and {cls.__module__}")
            cls.__init__, make = _constructors(cls)
            cls.make = staticmethod(make)
            OPS[opname] = cls
        return cls

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **_: object) -> None:
        super().__init__(name, bases, namespace)
