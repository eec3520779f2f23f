"""How does a module become what ONNX can say? Precision first, then attention; what no table holds is decomposed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from irlab import integer_products
from irlab.backends.onnx import forms, hybrid, precision
from irlab.backends.onnx.attention import AttentionRewriter
from irlab.backends.onnx.codes import integer_encoding
from irlab.backends.onnx.dialect import FlatAttention
from irlab.backends.onnx.emitter import Lowering
from irlab.backends.onnx.lowerings import calls, experts, integer, lowerings
from irlab.backends.onnx.providers import PROVIDERS, Provider
from irlab.backends.onnx.storage import ONNX_TYPE
from irlab.backends.onnx.vocabulary import Vocabulary
from irlab.dense_experts import compute_every_expert
from irlab.errors import LegalityError
from irlab.ir import Graph, Module, Op, Return, Weight
from irlab.ops import nn
from irlab.ops.call import Call
from irlab.ops.nn import NNOp
from irlab.passmgr import Context
from irlab.precision import compute_dtype
from irlab.types import bf16


@dataclass(frozen=True)
class Settings:
    """What legalisation needs to know of the backend's options."""

    provider: Provider = PROVIDERS["cpu"]
    portable: bool = False
    precision: str = "auto"
    hybrid: bool = False
    group: int = 32
    max_length: int = 0
    fixed: tuple[str, ...] = ()
    accuracy_level: int = 4

    def vocabulary(self, module: Module) -> Vocabulary:
        """What a file of `module`, in the dtype that it computes in, may say."""
        return Vocabulary(self.provider, self.portable, compute_dtype(module))


def legalise(module: Module, settings: Settings, ctx: Context) -> Module:
    """Change `module` into what the tables of its profile hold. Raises LegalityError naming op and place."""
    from irlab.registry import pass_class

    if settings.fixed:
        pass_class("specialize").configure({"sizes": ",".join(settings.fixed)}).run(module, ctx)
    precision.apply(module, settings.precision, settings.group, settings.hybrid, settings.provider.half, ctx)
    vocabulary = settings.vocabulary(module)
    forms.apply(module, vocabulary.blocks)
    if vocabulary.has("ms:GroupQueryAttention") and settings.provider.rope == "attention":
        pass_class("fuse-qkv")().run(module, ctx)
    held = lowerings(vocabulary)
    _legalise_graph(module.graph, settings, vocabulary, held)
    if FlatAttention not in held:
        # Attention that is taken apart makes its mask, and rope its angles, in every layer.
        pass_class("cse")().run(module, ctx)
    return module


def _legalise_graph(
    graph: Graph, settings: Settings, vocabulary: Vocabulary, held: Mapping[type[Op], Lowering]
) -> None:
    AttentionRewriter(graph, vocabulary, settings.max_length).run()
    compute_every_expert(
        graph,
        "onnx-decompose",
        lambda op: isinstance(op, nn.MoE) and experts.fits(op, vocabulary, settings.accuracy_level),
    )
    decompose(graph, held)
    integer_products.prepare(graph, integer.able(vocabulary), "onnx-integers")
    if settings.hybrid:
        hybrid.rewrite(graph)
    graph.erase_dead()
    check(graph, held)
    for op in list(graph.region_ops()):
        for region in op.regions:
            _legalise_graph(region, settings, vocabulary, held)


def decompose(graph: Graph, held: Mapping[type[Op], Lowering]) -> None:
    """Replace every op of a dialect with a meaning that `held` lacks by what it means, until none is left."""
    while missing := [op for op in graph.ops() if isinstance(op, NNOp) and type(op) not in held]:
        for op in missing:
            values = op.decompose()
            graph.replace(op, *(values if isinstance(values, tuple) else (values,)), made_by="onnx-decompose")


def check(graph: Graph, held: Mapping[type[Op], Lowering]) -> None:
    """Raise LegalityError, naming op and place, for what has no ONNX form."""
    for op in graph.topo():
        if isinstance(op, Weight) and op.symbol.type.encoding is not None:
            integer_encoding(op.symbol)
        if isinstance(op, Return | Weight):
            continue
        reason = refusal(op, held)
        if reason:
            where = op.loc.path if op.loc and op.loc.path else "the graph"
            hint = "cast{dtype=f32} makes it legal" if "compute in" in reason else ""
            raise LegalityError(f"{op.opname} in {where}: {reason}", hint)


def refusal(op: Op, held: Mapping[type[Op], Lowering]) -> str:
    """Why `op` cannot be written; empty if it can."""
    if type(op) not in held:
        return "ONNX has no form of it"
    for value in (*op.operands, *op.results):
        if value is not None and (value.type.dtype is bf16 or value.type.dtype not in ONNX_TYPE):
            return f"ONNX Runtime's CPU provider does not compute in {value.type.dtype}"
    return calls.refusal(op.target) if isinstance(op, Call) else ""
