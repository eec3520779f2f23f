"""How does a module become what TensorRT's layers say? Precision first; what no layer says is decomposed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from irlab import integer_products
from irlab.backends.tensorrt import codes, small_floats
from irlab.backends.tensorrt.emitter import location
from irlab.backends.tensorrt.lowerings import LOWERINGS, attention, experts
from irlab.backends.tensorrt.numbers import NAMES
from irlab.dense_experts import compute_every_expert
from irlab.errors import LegalityError
from irlab.expansion import decode_shared
from irlab.ir import Graph, Module, Op, Return, Weight
from irlab.ops import nn, prim
from irlab.ops.call import Call
from irlab.ops.nn import NNOp
from irlab.passmgr import Context, note
from irlab.precision import compute_dtype
from irlab.registry import pass_class
from irlab.types import DType, bf16, bool_, f16, f32
from irlab.weight_uses import graphs

PRECISIONS: Final[dict[str, DType]] = {"fp32": f32, "fp16": f16, "bf16": bf16}
_MADE_BY: Final = "tensorrt-decompose"

_FITS: Final[dict[type[Op], Callable[[Any], bool]]] = {nn.Attention: attention.fits, nn.Experts: experts.fits}
"""Of the ops that layers say only in part: which."""

EVERY_EXPERT: Final = "every expert is computed for every token: the builder makes no MoE layer for them"

ABLE: Final = integer_products.Able(lambda op: op.scale > 0 and not op.zero, zero_points=False)
"""Quantize layers have one scale, a constant, and no zero point."""


def legalise(
    module: Module, precision: str, ctx: Context, builds_experts: Callable[[Module], bool] = lambda module: False
) -> Module:
    """Change `module` into what LOWERINGS hold. `builds_experts`: whether the builder makes MoE layers for a module.
    Raises LegalityError naming op and place."""
    if module.graph.find(nn.QuantizeCache):
        raise LegalityError("TensorRT: its attention reads no caches of codes", "leave out quantize-cache")
    wanted = PRECISIONS.get(precision)
    if wanted is not None and compute_dtype(module) is not wanted:
        pass_class("cast").configure({"dtype": wanted.name}).run(module, ctx)
    _spell_experts_out(module, builds_experts)
    expanded = decode_shared(module.graph, compute_dtype(module))
    if expanded:
        note(module, expanded)
    for graph in list(graphs(module.graph)):
        small_floats.prepare(graph)
        decompose(graph)
        integer_products.prepare(graph, ABLE, "tensorrt-integers")
        graph.erase_dead()
        check(graph)
    _note_rounded_scales(module)
    return module


def _spell_experts_out(module: Module, builds_experts: Callable[[Module], bool]) -> None:
    """Leave those mixtures of experts that become MoE layers, and compute every expert of the others."""
    mixtures = [op for graph in graphs(module.graph) for kind in (nn.MoE, nn.Experts) for op in graph.find(kind)]
    layers = bool(mixtures) and builds_experts(module)
    for graph in list(graphs(module.graph)):
        if compute_every_expert(graph, _MADE_BY, lambda op: layers and isinstance(op, nn.Experts) and experts.fits(op)):
            note(module, EVERY_EXPERT)


def _note_rounded_scales(module: Module) -> None:
    """Say where scales lose digits: Dequantize takes them in the type that it gives."""
    dtype = compute_dtype(module)
    if dtype is f32:
        return
    encodings = {name: symbol.type.encoding for name, symbol in module.weights.items()}
    finer = [name for name, encoding in encodings.items() if encoding and not codes.keeps_scales(encoding, dtype)]
    if finer:
        note = f"the scales of {len(finer)} weights, such as {finer[0]}, are rounded to {dtype}"
        module.metadata.setdefault("notes", []).append(note)


def decompose(graph: Graph) -> None:
    """Replace every op that no layer says by what it means, until none is left."""
    while missing := [op for op in graph.ops() if isinstance(op, NNOp) and not is_held(op)]:
        for op in missing:
            values = op.decompose()
            graph.replace(op, *(values if isinstance(values, tuple) else (values,)), made_by=_MADE_BY)


def is_held(op: Op) -> bool:
    """Whether `op` is said as it is."""
    if isinstance(op, nn.QuantizeActivationFloat):
        # DynamicQuantize layers take matrices, and batches of them.
        return op.scale > 0 and (op.element == "e4m3" or op.x.type.rank in (2, 3))
    fits = _FITS.get(type(op))
    return type(op) in LOWERINGS and (fits is None or fits(op))


def check(graph: Graph) -> None:
    """Raise LegalityError, naming op and place, for what has no TensorRT form."""
    for op in graph.topo():
        reason, hint = _weight_refusal(op) if isinstance(op, Weight) else refusal(op)
        if reason:
            raise LegalityError(f"{location(op)}: {reason}", hint)


def _weight_refusal(op: Weight) -> tuple[str, str]:
    encoding = op.symbol.type.encoding
    reason = "" if encoding is None else codes.refusal(encoding)
    if not reason:
        return "", ""
    return f"weight '{op.symbol.name}' is {encoding}, and {reason}", "use quantize{scheme=int4}, int8, fp8 or nvfp4"


def refusal(op: Op) -> tuple[str, str]:
    """Why `op` cannot be said, and a way out; empty if it can."""
    if isinstance(op, Return):
        return "", ""
    if isinstance(op, Call):
        return f"TensorRT has no layer for the ATen op {op.target}", "emit onnx, which has torch's function library"
    if type(op) not in LOWERINGS:
        return "TensorRT has no layer for it", "decompose turns nn ops into primitives"
    if isinstance(op, prim.And | prim.Or | prim.Xor) and op.result.type.dtype is not bool_:
        return "TensorRT combines truth values, not the bits of integers", "compare with 0 first, in the model"
    if isinstance(op, prim.MaxPool) and any(d != 1 for d in op.dilation):
        return "TensorRT's pooling has no dilation", "emit onnx"
    for value in (*op.operands, *op.results):
        if value is None or value.type.encoding is not None or value.type.dtype in NAMES:
            continue
        wide = "cast{dtype=f32}" if value.type.dtype.is_float else "a cast to i32 or i64 in the model"
        return f"TensorRT does not compute in {value.type.dtype}", f"{wide} makes it legal"
    return "", ""
