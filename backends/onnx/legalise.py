"""How does a module become what ONNX can say? Precision first, then attention; what no table holds is decomposed."""

from __future__ import annotations

from dataclasses import dataclass

from irlab.backends.onnx import forms, hybrid, precision
from irlab.backends.onnx.attention import AttentionRewriter
from irlab.backends.onnx.codes import integer_encoding
from irlab.backends.onnx.emitter import Lowering
from irlab.backends.onnx.lowerings import FAST, STANDARD, calls
from irlab.backends.onnx.storage import ONNX_TYPE
from irlab.errors import LegalityError
from irlab.ir import Graph, Module, Op, Return, Weight
from irlab.ops.call import Call
from irlab.ops.nn import NNOp
from irlab.passmgr import Context
from irlab.types import bf16


@dataclass(frozen=True)
class Settings:
    """What legalisation needs to know of the backend's options."""

    precision: str = "auto"
    fast: bool = True
    hybrid: bool = False
    group: int = 32
    max_length: int = 0

    @property
    def lowerings(self) -> dict[type[Op], Lowering]:
        return FAST if self.fast else STANDARD


def legalise(module: Module, settings: Settings, ctx: Context) -> Module:
    """Change `module` into what the tables of its profile hold. Raises LegalityError naming op and place."""
    precision.apply(module, settings.precision, settings.group, settings.hybrid, ctx)
    forms.apply(module, settings.fast)
    if settings.fast:
        from irlab.registry import pass_class

        pass_class("fuse-qkv")().run(module, ctx)
    _legalise_graph(module.graph, settings)
    return module


def _legalise_graph(graph: Graph, settings: Settings) -> None:
    AttentionRewriter(graph, settings.fast, settings.max_length).run()
    decompose(graph, settings.lowerings)
    if settings.hybrid:
        hybrid.rewrite(graph)
    graph.erase_dead()
    check(graph, settings.lowerings)
    for op in list(graph.region_ops()):
        for region in op.regions:
            _legalise_graph(region, settings)


def decompose(graph: Graph, held: dict[type[Op], Lowering]) -> None:
    """Replace every op of a dialect with a meaning that `held` lacks by what it means, until none is left."""
    while missing := [op for op in graph.ops() if isinstance(op, NNOp) and type(op) not in held]:
        for op in missing:
            values = op.decompose()
            graph.replace(op, *(values if isinstance(values, tuple) else (values,)), made_by="onnx-decompose")


def check(graph: Graph, held: dict[type[Op], Lowering]) -> None:
    """Raise LegalityError, naming op and place, for what has no ONNX form."""
    for op in graph.topo():
        if isinstance(op, Weight) and op.symbol.type.encoding is not None:
            integer_encoding(op.symbol)
        if isinstance(op, Return | Weight):
            continue
        reason = refusal(op, held)
        if reason:
            where = op.loc.path if op.loc and op.loc.path else "the graph"
            raise LegalityError(f"{op.opname} in {where}: {reason}")


def refusal(op: Op, held: dict[type[Op], Lowering]) -> str:
    """Why `op` cannot be written; empty if it can."""
    if type(op) not in held:
        return "ONNX has no form of it"
    for value in (*op.operands, *op.results):
        if value is not None and (value.type.dtype is bf16 or value.type.dtype not in ONNX_TYPE):
            return f"ONNX Runtime's CPU provider does not compute in {value.type.dtype}"
    return calls.refusal(op.target) if isinstance(op, Call) else ""
