"""Which nodes of an emitted graph would a provider leave to the CPU? Those that it has no kernel for."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from irlab.backends.onnx.kernels import kernel_name, refusal
from irlab.backends.onnx.providers import Provider, since_version
from irlab.backends.onnx.storage import INT4, ONNX_TYPE, UINT4

if TYPE_CHECKING:
    import onnx

_NAME_OF: Final = {code: dtype.name for dtype, code in ONNX_TYPE.items()} | {INT4: "i4", UINT4: "u4"}

_NOT_FOLDED: Final = ("DequantizeLinear", "If", "MatMulNBits", "GatherBlockQuantized")
"""Of constants that stand in the file these are computed where they are read."""


def fallbacks(model: onnx.ModelProto, provider: Provider) -> Counter[tuple[str, str]]:
    """How many nodes fall back to the CPU, by op ("ms:FusedMatMul") and reason.

    Types are those that shape inference finds; where it finds none, only the op counts. Local functions are looked
    through, branches of If too.
    """
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model).graph
    kept = {tensor.name for tensor in inferred.initializer}
    ranks = _ranks(inferred)
    functions = {(f.domain, f.name): f for f in model.functions}
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    found: Counter[tuple[str, str]] = Counter()

    def visit(nodes: list[onnx.NodeProto], types: dict[str, str]) -> None:
        for node in nodes:
            function = functions.get((node.domain, node.op_type))
            if function is not None:
                visit(list(function.node), {})
                continue
            if kept.issuperset(filter(None, node.input)) and node.op_type not in _NOT_FOLDED:
                kept.update(node.output)  # ONNX Runtime folds it when it loads the file
                continue
            operands = {at: types[name] for at, name in enumerate(node.input) if name in types}
            result = types.get(node.output[0], "")
            since = since_version(node.op_type, node.domain, opset)
            stored = {at for at, name in enumerate(node.input) if name in kept}
            reason = refusal(provider.kernels, node.op_type, node.domain, since, operands, result, stored)
            if not reason and provider.max_rank:
                rank = max(ranks.get(name, 0) for name in (*node.input, *node.output))
                reason = f"no kernel for {rank} axes" if rank > provider.max_rank else ""
            if reason:
                found[kernel_name(node.op_type, node.domain), reason] += 1
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    visit(list(attribute.g.node), types | _types(attribute.g))

    visit(list(inferred.node), _types(inferred))
    return found


def _ranks(graph: onnx.GraphProto) -> dict[str, int]:
    """How many axes values have, where that was found."""
    infos = (*graph.input, *graph.output, *graph.value_info)
    return {v.name: len(v.type.tensor_type.shape.dim) for v in infos if v.type.tensor_type.HasField("shape")}


def _types(graph: onnx.GraphProto) -> dict[str, str]:
    """The IR's name of the element type of every value and tensor of `graph`."""
    infos = (*graph.input, *graph.output, *graph.value_info)
    codes = [(v.name, v.type.tensor_type.elem_type) for v in infos] + [(t.name, t.data_type) for t in graph.initializer]
    return {name: _NAME_OF[code] for name, code in codes if code in _NAME_OF}
