"""How does ONNX hold each kind of op and each encoding of a module? Found without reading a weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from irlab.backends.onnx import codes, genai
from irlab.backends.onnx.forms import form
from irlab.backends.onnx.lowerings import FAST, STANDARD
from irlab.ir import Graph, Module, Op, Return, Weight
from irlab.ops import nn
from irlab.ops.call import Call
from irlab.ops.control import If
from irlab.ops.nn import NNOp
from irlab.precision import compute_dtype
from irlab.target import Holding, PlanRow
from irlab.types import bf16

if TYPE_CHECKING:
    from irlab.backends.onnx.backend import ONNX

_REWRITTEN: Final[dict[type[Op], tuple[str, str]]] = {
    nn.Attention: ("GroupQueryAttention with a cache and heads of a multiple of 16, else Attention", "Attention"),
    nn.Rope: ("inside GroupQueryAttention, else RotaryEmbedding", "RotaryEmbedding"),
    nn.KVUpdate: ("inside attention", "inside attention"),
}
"""What attention takes along, in the fast and in the portable profile."""


def plan(module: Module, backend: ONNX) -> list[PlanRow]:
    """A row per kind of op, per encoding, and for what the options change."""
    fast = backend.profile == "fast"
    held = FAST if fast else STANDARD
    rows = []
    for cls, count in sorted(_kinds(module.graph).items(), key=lambda item: item[0].opname):
        holding, note = _holding(cls, fast, held)
        rows.append(PlanRow(f"{cls.opname} x {count}", holding, note))
    rows += _calls(module.graph)
    rows += _encodings(module, fast)
    if compute_dtype(module) is bf16 and backend.precision != "fp16":
        rows.append(PlanRow("bf16", "emulated", "computed and stored in f32: the CPU provider does not load bf16"))
    if backend.writes_genai(module) and genai.caches_differ(module.graph):
        rows.append(PlanRow("genai_config.json", "native", genai.DIFFERENT_CACHES))
    if fast and any(isinstance(op, nn.KVUpdate) for op in module.graph.ops()):
        rows.append(PlanRow("padding", "special", "must come last in a row; profile=portable takes any mask"))
    return rows


def _kinds(graph: Graph) -> Counter[type[Op]]:
    counts: Counter[type[Op]] = Counter()
    for cls, partition in graph.index.items():
        if partition and cls not in (Return, Weight, Call):
            counts[cls] += len(partition)
    for holder in graph.region_ops():
        for region in holder.regions:
            counts += _kinds(region)
    return counts


def _holding(cls: type[Op], fast: bool, held: Mapping[type[Op], object]) -> tuple[Holding, str]:
    if cls in _REWRITTEN:
        return "native", _REWRITTEN[cls][0 if fast else 1]
    if cls in held:
        return ("special", "subgraphs") if cls is If else ("native", "")
    if issubclass(cls, NNOp):
        return "emulated", "by what it decomposes into"
    return "none", "no ONNX form"


def _calls(graph: Graph) -> list[PlanRow]:
    if Call not in graph.index:
        return []
    from irlab.backends.onnx.lowerings.calls import refusal

    rows = []
    for target, count in sorted(Counter(op.target for op in graph.find(Call)).items()):
        reason = refusal(target)
        note = reason or "torch's ONNX function library"
        rows.append(PlanRow(f"call @{target} x {count}", "none" if reason else "emulated", note))
    return rows


def _encodings(module: Module, fast: bool) -> list[PlanRow]:
    rows: dict[str, PlanRow] = {}
    for op in module.graph.find(Weight):
        encoding = op.symbol.type.encoding
        if encoding is None or str(encoding) in rows:
            continue
        held = form(encoding, fast)
        how = ""
        if held.integers is not None:
            how = "MatMulNBits, " if fast and held.integers.group in codes.BLOCKS else "DequantizeLinear and MatMul, "
        row = PlanRow(str(encoding), held.holding, how + held.note)
        rows[str(encoding)] = row
    return list(rows.values())
