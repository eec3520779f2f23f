"""Does an execution provider hold a node? By op, opset and element types, as its table says.

The tables are `tables/*.txt`, each with its source above it. A line is

    Gather 1-13: A, i32 i64
    Cast 19-23 25: A -> A

ops, the versions of the op that a kernel holds, the types of each operand (the last are those of all further ones) and,
where no operand says them, those of the result; `*` is any version, or any type, `=` any type if the operand stands in
the file. F is f16 f32, D f64, B bf16, I all
integers of 8 bits and more, b bool, A all of these. `ms:` is the domain com.microsoft.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Final, TypeAlias

INTEGERS: Final = frozenset(f"{sign}{bits}" for sign in "iu" for bits in (8, 16, 32, 64))
GROUPS: Final[dict[str, frozenset[str]]] = {
    "F": frozenset(("f16", "f32")),
    "D": frozenset(("f64",)),
    "B": frozenset(("bf16",)),
    "I": INTEGERS,
    "b": frozenset(("bool",)),
}
GROUPS["A"] = frozenset[str]().union(*GROUPS.values())

Types: TypeAlias = "frozenset[str] | None"
"""Names of element types; None: any."""

STORED: Final = frozenset(("=",))
"""The types of an operand that may be any, if it is a constant that stands in the file."""

_DATA_OPERAND: Final = {"Where": 1, "GatherBlockQuantized": 2, "MatMulIntegerToFloat": 2, "MatMulInteger": None}
"""Which operand has the data type, where that is not the first: behind a condition, the scales of codes; None: none."""


@dataclass(frozen=True)
class Kernel:
    """What a provider computes of one op: spans of its versions (none: any), the types of each operand, the last of
    them for all further ones, and those of the first result."""

    versions: tuple[tuple[int, int], ...]
    operands: tuple[Types, ...]
    result: Types = None

    def operand(self, index: int) -> Types:
        """The types that operand `index` may have."""
        return self.operands[min(index, len(self.operands) - 1)] if self.operands else None

    def refusal(self, since: int, operands: Mapping[int, str], result: str = "", stored: Container[int] = ()) -> str:
        """Why a node of an op that is as it is since opset `since`, on operands of these types (by index; only those
        that are known), some of them `stored` in the file, is not held; empty if it is."""
        if self.versions and not any(first <= since <= last for first, last in self.versions):
            return f"no kernel of its version in opset {since}"
        for index, dtype in sorted(operands.items()):
            types = self.operand(index)
            if types == STORED and index not in stored:
                return f"no kernel for a computed operand {index}"
            if types not in (None, STORED) and dtype not in types:
                return f"no kernel for {dtype}" + (f" in operand {index}" if index else "")
        if result and self.result is not None and result not in self.result:
            return f"no kernel that gives {result}"
        return ""


Kernels: TypeAlias = "Mapping[str, tuple[Kernel, ...]]"
"""By op: "Add", "ms:MatMulNBits"."""


def kernel_name(op_type: str, domain: str) -> str:
    """The name of an op in the tables."""
    return f"ms:{op_type}" if domain == "com.microsoft" else op_type


@cache
def kernels(table: str) -> Kernels:
    """The kernels in `tables/{table}.txt`."""
    found: dict[str, tuple[Kernel, ...]] = {}
    for ops, kernel in _read(files(__package__).joinpath("tables", f"{table}.txt").read_text("utf-8")):
        for op in ops:
            found[op] = (*found.get(op, ()), half_by_casts(kernel) if table == "cpu" else kernel)
    return found


def half_by_casts(kernel: Kernel) -> Kernel:
    """The kernel as it is on the CPU: where it lacks half, ONNX Runtime casts before and after it."""
    operands = (types | {"f16"} if types and "f32" in types else types for types in kernel.operands)
    return replace(kernel, operands=tuple(operands))


def _read(text: str) -> Iterator[tuple[list[str], Kernel]]:
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        head, types = line.split(": ")
        ops, *versions = head.split()
        spans = tuple(_span(version) for version in versions if version != "*")
        operands, _, result = types.partition(" -> ")
        read = tuple(_types(words.split()) for words in operands.split(", "))
        yield ops.split(","), Kernel(spans, read, _types(result.split()) if result else None)


def _span(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    return int(first), int(last or first)


def _types(words: list[str]) -> Types:
    if words == ["*"]:
        return None
    return frozenset[str]().union(*(GROUPS.get(word, {word}) for word in words))


def refusal(
    held: Kernels,
    op_type: str,
    domain: str,
    since: int,
    operands: Mapping[int, str],
    result: str = "",
    stored: Container[int] = (),
) -> str:
    """Why no kernel of `held` computes the node; empty if one does."""
    found = held.get(kernel_name(op_type, domain), ())
    if not found:
        return "no kernel"
    reasons = [kernel.refusal(since, operands, result, stored) for kernel in found]
    # Where some kernel is of the right version, its types are the reason.
    return "" if "" in reasons else min(reasons, key=lambda reason: "version" in reason)


def data_operand(op_type: str) -> int | None:
    """The index of the operand whose element type an op computes in; None where it computes in integers only."""
    return _DATA_OPERAND.get(op_type, 0)


def line(ops: Sequence[str], kernel: Kernel) -> str:
    """A kernel as a line of a table."""
    versions = " ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in kernel.versions) or "*"
    operands = ", ".join(map(_words, kernel.operands)) or "*"
    result = "" if kernel.result is None else f" -> {_words(kernel.result)}"
    return f"{','.join(ops)} {versions}: {operands}{result}"


def _words(types: Types) -> str:
    if types is None:
        return "*"
    words, left = [], set(types)
    for name in ("A", *GROUPS):
        if GROUPS[name] <= left:
            words.append(name)
            left -= GROUPS[name]
    return " ".join((*words, *sorted(left, key=lambda name: (len(name), name))))
