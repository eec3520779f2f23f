"""What becomes of keys and values that are kept in fewer bits? llama.cpp decides when it runs; a file cannot say."""

from __future__ import annotations

from irlab.ir import Graph
from irlab.ops import nn


def without_codes(graph: Graph) -> str:
    """Let caches hold numbers again; returns what to tell the user, or nothing."""
    found = graph.find(nn.DequantizeCache)
    for op in found:
        made = op.codes.op
        if isinstance(made, nn.QuantizeCache):
            graph.replace(op, made.x)
        elif isinstance(made, nn.KVUpdate) and isinstance(made.new.op, nn.QuantizeCache):
            # The cache is an input, which no file has: it may as well hold what the codes stood for.
            made.cache.type = op.result.type.with_shape((*made.cache.type.shape[:3], op.result.type.shape[3]))
            whole = nn.kv_update(made.cache, made.new.op.x)
            graph.replace(op, whole)
            graph.replace(made, whole)
    if not found:
        return ""
    kind = f"q{found[0].bits}_0"
    return f"the file keeps nothing of quantize-cache: run with --cache-type-k {kind} --cache-type-v {kind}"
