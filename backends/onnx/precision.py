"""In which numbers does the model compute, and how are its matrices stored?

auto   as the IR is; bf16, which ONNX Runtime's CPU provider does not load, becomes what the provider likes, f16 or f32
fp32   fp16      numbers that are not encoded, in that dtype
int4   int8      as auto, and matrices that are not encoded yet are, as `quantize{scheme=...}` does it
"""

from __future__ import annotations

from typing import Final

from irlab.errors import LegalityError
from irlab.ir import Module, Weight
from irlab.ops.nn import NNOp, QuantizeActivation
from irlab.passmgr import Context
from irlab.precision import compute_dtype
from irlab.registry import pass_class
from irlab.types import DType, bf16, f16, f32
from irlab.weight_uses import graphs
from irlab.weights import static_shape

_FLOATS: Final[dict[str, DType]] = {"fp32": f32, "fp16": f16}


def apply(module: Module, precision: str, group: int, hybrid: bool, half: DType, ctx: Context) -> None:
    """Cast and encode the module's numbers as the option says; `half` is what bf16 becomes."""
    wanted = _FLOATS.get(precision)
    if wanted is None and compute_dtype(module) is bf16:
        wanted = half
    rounds = any(graph.find(QuantizeActivation) for graph in graphs(module.graph))
    if (hybrid or rounds) and (wanted or compute_dtype(module)) is not f32:
        # Only f32 has kernels for 8-bit activations.
        wanted = f32
    if wanted is not None and compute_dtype(module) is not wanted:
        pass_class("cast").configure({"dtype": wanted.name}).run(module, ctx)
    if plain_matrices(module) and (precision in ("int4", "int8") or (hybrid and not encoded(module))):
        scheme = precision if precision in ("int4", "int8") else "int4"
        quantize = {"scheme": scheme, "group": str(group), "indivisible": "keep"}
        pass_class("quantize").configure(quantize).run(module, ctx)
        kept = plain_matrices(module)
        if kept and not encoded(module):
            widths = sorted({static_shape(module.weights[name].type)[-1] for name in kept})
            raise LegalityError(
                f"onnx{{precision={scheme} group={group}}}: no matrix has rows of whole groups, all stay as they are",
                f"choose a group that divides {', '.join(map(str, widths))}",
            )
        if kept:
            module.metadata.setdefault("notes", []).append(f"{len(kept)} matrices are not encoded, such as {kept[0]}")
    if hybrid and not encoded(module):
        raise LegalityError("hybrid=true found no matrix to encode", "it is for models with linear layers")


def plain_matrices(module: Module) -> list[str]:
    """The names of weight matrices of linear layers that are not encoded."""
    operands = ((op, name) for op in module.graph.ops() if isinstance(op, NNOp) for name in op.matrices)
    values = (op.operands[op.operand_names.index(name)] for op, name in operands)
    producers = [v.op for v in values if v is not None and v.type.encoding is None]
    return sorted({op.symbol.name for op in producers if isinstance(op, Weight)})


def encoded(module: Module) -> bool:
    """Whether some weight is encoded."""
    return any(symbol.type.encoding is not None for symbol in module.weights.values())
