"""Does an execution provider hold a node? By op, opset and element type, as a table or a registry says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final, TypeAlias

from irlab.backends.onnx import kernel_tables

INTEGERS: Final = frozenset(f"{sign}{bits}" for sign in "iu" for bits in (8, 16, 32, 64))
_GROUPS: Final[dict[str, frozenset[str]]] = {
    "F": frozenset(("f16", "f32")),
    "D": frozenset(("f64",)),
    "B": frozenset(("bf16",)),
    "I": INTEGERS,
    "b": frozenset(("bool",)),
}
_GROUPS["A"] = frozenset[str]().union(*_GROUPS.values())

_REGISTRY_TYPES: Final = {
    "float": "f32", "float16": "f16", "double": "f64", "bfloat16": "bf16", "bool": "bool",
    **{f"{word}{bits}": f"{word[0]}{bits}" for word in ("int", "uint") for bits in (4, 8, 16, 32, 64)},
}  # fmt: skip
"""ONNX Runtime's words for element types, and the IR's."""

_NO_END: Final = 2**31 - 1
"""The last version of a kernel that has none, in ONNX Runtime's registry."""

_DATA_OPERAND: Final = {"Where": 1, "GatherBlockQuantized": 2}
"""Which operand has the data type, where that is not the first: behind a condition; the scales of codes."""


@dataclass(frozen=True)
class Kernel:
    """What a provider computes of one op: spans of versions (None: no end), and element types (None: any)."""

    versions: tuple[tuple[int, int | None], ...]
    types: frozenset[str] | None

    def refusal(self, since: int, dtype: str) -> str:
        """Why a node of an op that is as it is since opset `since`, on data of `dtype` ("": not known), is not held;
        empty if it is.

        A kernel without an end holds the version it was made for only: a later one may mean something else (ONNX
        Runtime, KernelRegistry::VerifyKernelDef).
        """
        if self.versions and not any(a <= since <= b if b is not None else a == since for a, b in self.versions):
            return f"no kernel of its version in opset {since}"
        if self.types is not None and dtype and dtype not in self.types:
            return f"no kernel for {dtype}"
        return ""


Kernels: TypeAlias = "Mapping[str, tuple[Kernel, ...]]"
"""By op: "Add", "ms:MatMulNBits"."""


def kernel_name(op_type: str, domain: str) -> str:
    """The name of an op in the tables."""
    return f"ms:{op_type}" if domain == "com.microsoft" else op_type


@cache
def kernels(table: str) -> Kernels:
    """The kernels in the table of kernel_tables.py that is called `table`; those of the CPU provider come from the
    registry of the installed ONNX Runtime."""
    if table == "CPU":
        return _registry("CPUExecutionProvider")
    found: dict[str, tuple[Kernel, ...]] = {}
    for ops, kernel in _read(getattr(kernel_tables, table)):
        found |= dict.fromkeys(ops, (kernel,))
    return found


def _read(text: str) -> Iterator[tuple[list[str], Kernel]]:
    for line in text.strip().splitlines():
        head, types = line.split(": ")
        ops, *versions = head.split()
        spans = tuple(_span(version) for version in versions if version != "*")
        yield ops.split(","), Kernel(spans, _types(types.split()))


def _span(text: str) -> tuple[int, int | None]:
    first, _, last = text.partition("-")
    return int(first), int(last) if last else None


def _types(words: list[str]) -> frozenset[str] | None:
    if words == ["*"]:
        return None
    return frozenset[str]().union(*(_GROUPS.get(word, {word}) for word in words))


def _registry(provider: str) -> Kernels:
    """What the installed ONNX Runtime registers for `provider`."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema, get_all_opkernel_def

    # The type variable of the operand that chooses the kernel, as the op's newest schema calls it.
    variables = {
        (schema.domain, schema.name): schema.inputs[min(data_operand(schema.name), len(schema.inputs) - 1)].typeStr
        for schema in sorted(get_all_operator_schema(), key=lambda schema: schema.since_version)
        if schema.inputs
    }
    found: dict[str, tuple[Kernel, ...]] = {}
    for kernel in get_all_opkernel_def():
        if kernel.provider != provider or kernel.domain not in ("", "com.microsoft"):
            continue
        first, last = kernel.version_range
        types = _words(kernel.type_constraints.get(variables.get((kernel.domain, kernel.op_name), ""), []))
        if "f32" in types:
            types |= {"f16"}  # where a kernel lacks half, ONNX Runtime casts before and after it
        span = (first, None if last >= _NO_END else last)
        name = kernel_name(kernel.op_name, kernel.domain)
        found[name] = (*found.get(name, ()), Kernel((span,), types or None))
    return found


def _words(names: list[str]) -> frozenset[str]:
    inner = (name.removeprefix("tensor(").removesuffix(")") for name in names)
    return frozenset(_REGISTRY_TYPES[name] for name in inner if name in _REGISTRY_TYPES)


def refusal(held: Kernels, op_type: str, domain: str, since: int, dtype: str) -> str:
    """Why no kernel of `held` computes the node; empty if one does."""
    found = held.get(kernel_name(op_type, domain), ())
    if not found:
        return "no kernel"
    reasons = [kernel.refusal(since, dtype) for kernel in found]
    # Where some kernel is of the right version, its types are the reason.
    return "" if "" in reasons else min(reasons, key=lambda reason: "version" in reason)


def data_operand(op_type: str) -> int:
    """The index of the operand whose element type chooses the kernel."""
    return _DATA_OPERAND.get(op_type, 0)
