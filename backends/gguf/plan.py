"""What `--plan` says of a module for GGUF: architecture, types, size; no weight is read but rotary tables."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from irlab.backends.gguf import adapter
from irlab.backends.gguf.anatomy import dissect
from irlab.backends.gguf.blocks import missing_blocks
from irlab.backends.gguf.cache import without_codes
from irlab.backends.gguf.encoding import exact
from irlab.backends.gguf.ggml import GGMLType
from irlab.backends.gguf.legalise import architecture_of
from irlab.backends.gguf.names import named_weights
from irlab.backends.gguf.weight_types import tensor_types
from irlab.backends.gguf.writer import TensorInfo
from irlab.encodings import Encoding
from irlab.errors import IrlabError
from irlab.expansion import decode_shared
from irlab.ir import Module
from irlab.low_rank import MULTIPLIED_OUT
from irlab.ops import nn
from irlab.passmgr import Context
from irlab.target import Holding, PlanRow
from irlab.types import DType, f32
from irlab.weights import static_shape

if TYPE_CHECKING:
    from irlab.backends.gguf import GGUF


def plan(module: Module, options: GGUF) -> list[PlanRow]:
    """A row for the architecture, one for each way in which weights are stored, one for the size of the file."""
    corrected, whole, told, expanded = 0, 0, "", ""
    try:
        module = module.clone()
        expanded = decode_shared(module.graph, f32)
        if any(isinstance(op, nn.LowRankLinear | nn.DequantizeCache) for op in module.graph.ops()):
            told = without_codes(module.graph)
            whole = adapter.multiply_out(module, Context())
            corrected = adapter.take_off(module, Context())
        decoder = dissect(module)
        architecture, _, reason = architecture_of(decoder, module)
    except IrlabError as error:
        return [PlanRow("the graph", "none", str(error))]
    holding: Holding = "special" if architecture.per_layer else "native"
    note = f"architecture '{architecture.name}'" + (f": {reason}" if reason else "")
    rows = [PlanRow(f"{len(decoder.layers)} layers", holding, note)]
    rows += [PlanRow(f"{whole} products of two factors", "emulated", MULTIPLIED_OUT)] if whole else []
    rows += [PlanRow("shared numbers", "emulated", expanded)] if expanded else []
    rows += [PlanRow("a missing block", "emulated", text) for text in missing_blocks(decoder, architecture)]
    fallbacks: list[str] = []
    try:
        types = tensor_types(decoder, architecture, options, fallbacks)
    except IrlabError as error:
        return [*rows, PlanRow("the types of the weights", "none", str(error))]
    counts: Counter[tuple[str, str]] = Counter()
    size_bytes = 0
    for name, value in named_weights(decoder):
        shape, element = static_shape(value.type), value.type.element
        what = f"weights of {element}, {shape[-1]} columns" if len(shape) > 1 else f"vectors of {element}"
        counts[what, _how(element, shape[-1], types[name])] += 1
        size_bytes += TensorInfo(name, shape, types[name]).size_bytes
    rows += [PlanRow(f"{count} {what}", "native", note) for (what, note), count in counts.items()]
    if told:
        rows.append(PlanRow("a quantised cache", "none", told))
    if corrected:
        rows.append(PlanRow(f"{corrected} low-rank corrections", "native", "a LoRA adapter beside the file"))
    rows += [PlanRow("a fallback", "native", text) for text in fallbacks]
    return [*rows, PlanRow("the weights in the file", "native", f"{size_bytes:,} bytes")]


def _how(element: DType | Encoding, columns: int, type: GGMLType) -> str:
    """How weights are stored as `type`."""
    if isinstance(element, DType):
        return f"stored as {type}"
    held = exact(element, columns)
    shared = held.blocks_per_scale if held is not None else 1
    return f"the same codes as {type}" + (f", each scale in {shared} blocks" if shared > 1 else "")
