"""What does ONNX Runtime's kernel registry hold, by its own document? python tools/kernel_registry.py CHECKOUT

CHECKOUT is one of github.com/microsoft/onnxruntime. Its docs/OperatorKernels.md is written from the registries of the
CPU, CUDA and DirectML providers; this writes backends/onnx/tables/{cpu,cuda,directml}.txt from it. A test compares the
CPU's with the registry of the ONNX Runtime that is installed.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[1]))

from irlab.backends.onnx.kernels import Kernel, Kernels, Types, kernel_name, line

TABLES: Final = Path(__file__).parents[1] / "backends" / "onnx" / "tables"
PROVIDERS: Final = {
    "CPUExecutionProvider": "cpu",
    "CUDAExecutionProvider": "cuda",
    "DmlExecutionProvider": "directml",
}
"""The providers of the document, and their tables."""
_DOMAINS: Final = {"ai.onnx": "", "com.microsoft": "com.microsoft"}
_NO_END: Final = 2**31 - 1
"""The last version of a kernel that has none. It holds the version it was made for only: a later one may mean something
else (KernelRegistry::VerifyKernelDef)."""
_TYPE_NAMES: Final = {
    "float": "f32", "float16": "f16", "double": "f64", "bfloat16": "bf16", "bool": "bool",
    "float8e4m3fn": "f8e4m3", "float8e5m2": "f8e5m2",
    **{f"{word}{bits}": f"{word[0]}{bits}" for word in ("int", "uint") for bits in (2, 4, 8, 16, 32, 64)},
}  # fmt: skip
"""ONNX Runtime's words for element types, and the IR's."""


def read(document: str) -> dict[str, Kernels]:
    """The kernels of each provider (by its table) in a text of docs/OperatorKernels.md."""
    found: dict[str, dict[str, list[Kernel]]] = {}
    kernels: dict[str, list[Kernel]] = {}
    domain: str | None = None
    op = parameters = ""
    for text in document.splitlines():
        if heading := re.match(r"## Operators implemented by (\w+)", text):
            kernels = found.setdefault(PROVIDERS[heading[1]], defaultdict(list))
        elif heading := re.match(r"\|\*\*Operator Domain:\*\* \*([\w.]+)\*", text):
            domain = _DOMAINS.get(heading[1])
        elif (row := _row(text)) and domain is not None:
            if row[0]:
                op, parameters = row[0], row[1]
            kernels[kernel_name(op, domain)].append(_kernel(op, domain, parameters, row[2], row[3]))
    return {table: {op: _merged(rows) for op, rows in ops.items()} for table, ops in found.items()}


def _row(text: str) -> list[str]:
    """The four cells of a row of a table; empty for headings and other lines."""
    cells = [cell.strip() for cell in text.split("|")[1:-1]]
    return cells if len(cells) == 4 and re.fullmatch(r"\d+\+?|\[\d+, \d+\]", cells[2]) else []


def _kernel(op: str, domain: str, parameters: str, versions: str, constraints: str) -> Kernel:
    span = [int(version) for version in re.findall(r"\d+", versions)]
    types = {
        name: _element_types(words.split(", ")) for name, words in re.findall(r"\*\*(\w+)\*\* = ([^<]*)", constraints)
    }
    inputs, outputs = _form(op, domain, span[-1]) or _stated_form(parameters)
    return _of_form((span[0], span[-1]), inputs, outputs, types)


def _form(op: str, domain: str, opset: int) -> tuple[list[str], list[str]] | None:
    """The types of an op's operands and results in `opset`; None for ops that are not ONNX's. The document lists all
    forms that an op has had, and does not say which is a kernel's."""
    import onnx

    if domain or not onnx.defs.has(op):
        return None
    try:
        schema = onnx.defs.get_schema(op, max_inclusive_version=opset)
    except onnx.defs.SchemaError:
        return None
    return [v.type_str for v in schema.inputs], [v.type_str for v in schema.outputs]


def _stated_form(parameters: str) -> tuple[list[str], list[str]]:
    form = re.findall(r"\*(in|out)\* \S+:\*\*([^*]+)\*\*", parameters.split("<br><br>or<br><br>")[0])
    return [name for side, name in form if side == "in"], [name for side, name in form if side == "out"]


def _of_form(span: tuple[int, int], inputs: list[str], outputs: list[str], types: Mapping[str, Types]) -> Kernel:
    """A kernel of an op whose operands and results have these types, or type variables with values in `types`."""

    def of(name: str) -> Types:
        return types.get(name, _element_types([name]) if "(" in name else None)

    operands = [of(name) for name in inputs]
    while len(operands) > 1 and operands[-1] == operands[-2]:
        operands.pop()
    result = of(outputs[0]) if outputs and outputs[0] not in inputs else None
    return Kernel((span,), tuple(operands), result if result and len(result) > 1 else None)


def _element_types(words: Iterable[str]) -> frozenset[str]:
    inner = (word.strip().removeprefix("tensor(").removesuffix(")") for word in words)
    return frozenset(_TYPE_NAMES[word] for word in inner if word in _TYPE_NAMES)


def _merged(kernels: list[Kernel]) -> tuple[Kernel, ...]:
    """Kernels that differ by version only as one."""
    spans: dict[tuple[tuple[Types, ...], Types], list[tuple[int, int]]] = defaultdict(list)
    for kernel in kernels:
        if frozenset() in kernel.operands:
            continue  # of strings or sequences
        spans[kernel.operands, kernel.result] += kernel.versions
    return tuple(Kernel(_joined(versions), operands, result) for (operands, result), versions in spans.items())


def _joined(spans: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Spans without a gap between them as one."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return tuple(joined)


def installed() -> Kernels:
    """The kernels that the installed ONNX Runtime registers for the CPU."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema, get_all_opkernel_def

    schemas = defaultdict(list)
    for schema in get_all_operator_schema():
        schemas[schema.domain, schema.name].append(schema)
    found: dict[str, list[Kernel]] = defaultdict(list)
    for kernel in get_all_opkernel_def():
        domain = kernel.domain.removeprefix("ai.onnx")
        known = [s for s in schemas[domain, kernel.op_name] if s.since_version <= kernel.version_range[1]]
        if kernel.provider != "CPUExecutionProvider" or domain not in _DOMAINS.values() or not known:
            continue
        schema = max(known, key=lambda schema: schema.since_version)
        types = {name: _element_types(words) for name, words in kernel.type_constraints.items()}
        first, last = kernel.version_range
        span = (first, first if last == _NO_END else last)
        inputs, outputs = ([value.typeStr for value in values] for values in (schema.inputs, schema.outputs))
        found[kernel_name(kernel.op_name, domain)].append(_of_form(span, inputs, outputs, types))
    return {op: tuple(kernels) for op, kernels in found.items()}


def lines(kernels: Kernels) -> Iterator[str]:
    """The lines of a table, by op."""
    for op in sorted(kernels, key=lambda op: (op.lower(), op)):
        for kernel in kernels[op]:
            yield line([op], kernel)


def write(table: str, source: str, kernels: Kernels) -> None:
    """Write the table called `table`, with its source above it."""
    (TABLES / f"{table}.txt").write_text("\n".join((f"# {source}", *lines(kernels), "")), "utf-8")


def main() -> int:
    """Write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("checkout", type=Path, help="of github.com/microsoft/onnxruntime")
    parser.add_argument("--commit", required=True, help="what the checkout is of, for the tables' heading")
    options = parser.parse_args()
    version = (options.checkout / "VERSION_NUMBER").read_text("utf-8").strip()
    for table, kernels in read((options.checkout / "docs" / "OperatorKernels.md").read_text("utf-8")).items():
        source = f"ONNX Runtime {version} at {options.commit}, docs/OperatorKernels.md: by tools/kernel_registry.py"
        write(table, source, kernels)
    return 0


if __name__ == "__main__":
    sys.exit(main())
