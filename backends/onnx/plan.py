"""How does ONNX hold each kind of op and each encoding of a module? Found without reading a weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from irlab.backends.onnx import codes, genai
from irlab.backends.onnx.dialect import FlatAttention, FlatRope, GroupQueryAttention
from irlab.backends.onnx.forms import form
from irlab.backends.onnx.lowerings import integer, lowerings
from irlab.backends.onnx.providers import PROVIDERS, Blocks
from irlab.backends.onnx.vocabulary import Vocabulary
from irlab.dims import symbols
from irlab.errors import IrlabError
from irlab.integer_products import multiplies_integers, products
from irlab.ir import Graph, Module, Op, Return, Weight
from irlab.ops import nn
from irlab.ops.call import Call
from irlab.ops.control import If
from irlab.ops.nn import NNOp
from irlab.passmgr import Context
from irlab.precision import compute_dtype
from irlab.target import Holding, PlanRow
from irlab.types import bf16, f16
from irlab.weight_uses import graphs

if TYPE_CHECKING:
    from irlab.backends.onnx.backend import ONNX

_ATTENTION: Final = {
    "GroupQueryAttention": "GroupQueryAttention with a cache and heads of a multiple of 16, else {otherwise}",
    "Attention": "Attention",
    "": "by what it decomposes into",
}
"""What nn.attention becomes, by the best op that the vocabulary has for it."""


def plan(module: Module, backend: ONNX) -> list[PlanRow]:
    """A row per kind of op, per encoding, for what the options change, and for nodes that fall back to the CPU."""
    vocabulary = backend.settings(module).vocabulary(module)
    if vocabulary.dtype is bf16:
        vocabulary = replace(vocabulary, dtype=f16 if backend.precision == "fp16" else backend.provider.half)
    held = lowerings(vocabulary)
    rows = []
    for cls, count in sorted(_kinds(module.graph).items(), key=lambda item: item[0].opname):
        if cls is nn.QuantizeActivation:
            rows += _roundings(module.graph, vocabulary)
            continue
        holding, note = _holding(cls, vocabulary, held)
        rows.append(PlanRow(f"{cls.opname} x {count}", holding, note))
    rows += _calls(module.graph)
    rows += _encodings(module, vocabulary.blocks)
    if compute_dtype(module) is bf16 and backend.precision != "fp16":
        rows.append(
            PlanRow(
                "bf16", "emulated", f"computed and stored in {vocabulary.dtype}: the CPU provider does not load bf16"
            )
        )
    if backend.writes_genai(module) and genai.caches_differ(module.graph):
        rows.append(PlanRow("genai_config.json", "native", genai.DIFFERENT_CACHES))
    if GroupQueryAttention in held and any(isinstance(op, nn.KVUpdate) for op in module.graph.ops()):
        rows.append(PlanRow("padding", "special", "must come last in a row; profile=portable takes any mask"))
    return rows + _placement(module, backend)


def _placement(module: Module, backend: ONNX) -> list[PlanRow]:
    """What the provider makes of the nodes that would be written; no weight is read for it."""
    from irlab.backends.onnx.placement import fallbacks
    from irlab.backends.onnx.writer import emit

    provider = backend.provider
    try:
        legal = backend.legalise(module.clone(), Context(targets=("onnx",), is_plan=True))
    except IrlabError as error:
        return [PlanRow("the graph", "none", str(error))]
    model, _, _ = emit(legal, backend.emitter(legal), values=False)
    rows = [PlanRow(f"ep={backend.ep}", "native" if "not run" not in provider.checked else "special", provider.checked)]
    left = fallbacks(model, provider)
    nowhere = {op for op, _ in fallbacks(model, PROVIDERS["cpu"])} if left else set()
    total = len(model.graph.node)
    for (op, reason), count in sorted(left.items()):
        what = f"{op} x {count} of {total} nodes"
        if op in nowhere:
            rows.append(PlanRow(what, "none", f"{reason}, nor one of the CPU: cast{{dtype=f32}} makes types legal"))
        else:
            rows.append(PlanRow(what, "emulated", f"falls back to the CPU: {reason}"))
    if not left:
        rows.append(PlanRow(f"{total} nodes", "native", f"none falls back to the CPU from {provider.runtime_name}"))
    free = sorted({name for v in legal.graph.inputs for size in v.type.shape for name in symbols(size)})
    if provider.static and free:
        example = ",".join(f"{name}:1" for name in free)
        rows.append(PlanRow("shapes", "special", f"{', '.join(free)} must be known: fixed={example}"))
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


def _holding(cls: type[Op], vocabulary: Vocabulary, held: Mapping[type[Op], object]) -> tuple[Holding, str]:
    grouped = GroupQueryAttention in held
    otherwise = "Attention" if FlatAttention in held else ""
    if cls is nn.Attention:
        note = _ATTENTION["GroupQueryAttention" if grouped else otherwise]
        note = note.format(otherwise=otherwise or "decomposed")
        return ("native" if grouped or otherwise else "emulated"), note
    if cls is nn.MoE and cls in held:
        return "native", "MoE, or QMoE of codes in blocks, if it is gated by silu; else every expert is computed"
    if cls in (nn.MoE, nn.Experts):
        return "emulated", "every expert is computed for every token"
    if cls is nn.LowRankLinear:
        return "native", "two thin MatMuls, beside that of a weight"
    if cls in (nn.QuantizeCache, nn.DequantizeCache) and grouped and vocabulary.provider.table == "cpu":
        return "native", "inside GroupQueryAttention with a cache, else decomposed"
    if cls is nn.KVUpdate:
        return ("native", "inside attention") if grouped or otherwise else ("native", "Concat")
    if cls is nn.Rope:
        if grouped and vocabulary.provider.rope == "attention":
            return "native", "inside GroupQueryAttention, else RotaryEmbedding"
        return (
            ("native", "RotaryEmbedding") if (grouped or otherwise) and FlatRope in held else ("emulated", "decomposed")
        )
    if cls in held:
        return ("special", "subgraphs") if cls is If else ("native", "")
    if issubclass(cls, NNOp):
        return "emulated", "by what it decomposes into"
    return "none", "no ONNX form"


def _roundings(graph: Graph, vocabulary: Vocabulary) -> list[PlanRow]:
    """Rounded activations, by whether a product of integers reads them."""
    counts: Counter[tuple[Holding, str]] = Counter()
    for each in graphs(graph):
        for op in each.find(nn.QuantizeActivation):
            counts[_rounding(op, vocabulary)] += 1
    return [PlanRow(f"nn.quantize_activation x {n}", holding, note) for (holding, note), n in sorted(counts.items())]


def _rounding(op: nn.QuantizeActivation, vocabulary: Vocabulary) -> tuple[Holding, str]:
    if op.bits != 8 or not products(op):
        return "emulated", "rounded in floats, which gains nothing: no weight of 8 bits under one scale a row reads it"
    held = integer.able(vocabulary).holds(op)
    how = "as they are" if held else "with what varies by token, or has no form, behind products"
    return "native", f"integers {how} (fast where a CPU has VNNI or AMX)"


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


def _encodings(module: Module, blocks: Blocks) -> list[PlanRow]:
    rows: dict[str, PlanRow] = {}
    for op in module.graph.find(Weight):
        encoding = op.symbol.type.encoding
        if encoding is None or str(encoding) in rows:
            continue
        held = form(encoding, blocks)
        how = ""
        if held.integers is not None:
            nbits = blocks == "nbits" and held.integers.group in codes.BLOCKS
            how = "MatMulNBits, " if nbits else "DequantizeLinear and MatMul, "
            if any(isinstance(user, nn.Linear) and multiplies_integers(user) for user in op.result.uses):
                how = "products of integers, "
        row = PlanRow(str(encoding), held.holding, how + held.note)
        rows[str(encoding)] = row
    return list(rows.values())
