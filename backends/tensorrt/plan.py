"""How does TensorRT hold each kind of op and each encoding of a module? Found without reading a weight."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from irlab.backends.tensorrt import codes, small_floats
from irlab.backends.tensorrt.legalise import is_held, refusal
from irlab.backends.tensorrt.profiles import buffered_caches
from irlab.errors import IrlabError
from irlab.expansion import SHARED
from irlab.integer_products import products
from irlab.ir import Graph, Module, Op, Return, Weight
from irlab.ops import nn
from irlab.ops.control import If
from irlab.ops.nn import NNOp
from irlab.target import Holding, PlanRow
from irlab.weight_uses import graphs

if TYPE_CHECKING:
    from irlab.backends.tensorrt.backend import TensorRT

_NOTES: Final[dict[type[Op], str]] = {
    nn.Attention: "an IAttention",
    nn.Rope: "a RotaryEmbedding layer",
    nn.LayerNorm: "a Normalization layer, in f32",
    nn.Linear: "a MatrixMultiply with the weight transposed",
    If: "an IIfConditional",
}


def plan(module: Module, backend: TensorRT) -> list[PlanRow]:
    """A row per kind of op and way of holding it, per encoding, and for targets and sizes."""
    kinds: Counter[tuple[str, Holding, str]] = Counter()
    for graph in graphs(module.graph):
        buffers = buffered_caches(graph) if graph is module.graph else {}
        for op in graph.ops():
            if not isinstance(op, Return | Weight):
                kinds[(op.opname, *_holding(op, {cache.name or "" for cache in buffers}))] += 1
    rows = [PlanRow(f"{name} x {n}", holding, note) for (name, holding, note), n in sorted(kinds.items())]
    rows += _encodings(module.graph)
    for what, ask in (("targets", backend.chosen_targets), ("sizes", backend.limits)):
        try:
            found = ask(module)
        except IrlabError as error:
            rows.append(PlanRow(what, "none", str(error)))
            continue
        told = ", ".join(found) if isinstance(found, tuple) else _told(found)
        rows.append(PlanRow(what, "native", told))
    return rows


def _told(limits: object) -> str:
    return ", ".join(f"{name.replace('_', '-')}={n}" for name, n in vars(limits).items() if isinstance(n, int))


def _holding(op: Op, buffers: set[str]) -> tuple[Holding, str]:
    reason, hint = refusal(op) if not isinstance(op, NNOp) else ("", "")
    if reason:
        return "none", f"{reason}: {hint}"
    if isinstance(op, nn.KVUpdate):
        in_place = op.pos is not None or op.cache.name in buffers
        return "native", "a KVCacheUpdate of a buffer, in place" if in_place else "a Concatenation"
    if isinstance(op, nn.QuantizeActivation):
        if op.bits == 8 and products(op):
            return "native", "Quantize and Dequantize around integers" + (
                "" if op.scale else ", scales behind products"
            )
        return "emulated", "rounded in floats, which gains nothing: no weight of 8 bits under one scale a row reads it"
    if isinstance(op, nn.MoE | nn.Experts):
        return "emulated", "every expert is computed for every token, where the builder makes no MoE layer"
    if isinstance(op, nn.QuantizeActivationFloat):
        return small_floats.holding(op)
    if is_held(op):
        return "native", _NOTES.get(type(op), "")
    return "emulated", "by the layers that it decomposes into"


def _encodings(graph: Graph) -> list[PlanRow]:
    rows: dict[str, PlanRow] = {}
    for name, symbol in graph.weights().items():
        encoding = symbol.type.encoding
        if encoding is None or str(encoding) in rows:
            continue
        refused = codes.refusal(encoding)
        if isinstance(encoding, SHARED):
            row = PlanRow(str(encoding), "emulated", "stored expanded: no smaller than floats")
        elif refused:
            row = PlanRow(str(encoding), "none", f"weight '{name}': {refused}")
        elif codes.emulated(encoding):
            row = PlanRow(str(encoding), "emulated", f"the same numbers, stored as {codes.stored_type(encoding)}")
        else:
            row = PlanRow(str(encoding), "native", f"{codes.stored_type(encoding)} and Dequantize, the same codes")
        rows[str(encoding)] = row
    return list(rows.values())
