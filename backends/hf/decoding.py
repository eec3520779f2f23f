"""How does a graph with encoded weights become one with plain numbers of the same values?"""

from __future__ import annotations

from collections import Counter

from irlab.errors import IRError, LegalityError
from irlab.ir import Graph, Op, Value, Weight
from irlab.low_rank import merge, multiply_out
from irlab.ops import nn, prim
from irlab.types import DType, f32
from irlab.weights import Cast, WeightSymbol

_COMPUTES = (nn.Linear, nn.LowRankLinear, nn.GatedMLP, nn.RMSNorm, nn.LayerNorm, prim.MatMul)
"""The ops whose first operand tells in which dtype a model computes."""


def model_dtype(graph: Graph) -> DType:
    """The dtype that most matrix products and norms of `graph` read; f32 for a graph without any."""
    votes = Counter(op.operands[0].type.dtype for cls in _COMPUTES for op in graph.find(cls) if op.operands[0])
    return votes.most_common(1)[0][0] if votes else f32


def encodings(graph: Graph) -> Counter[str]:
    """How many weights are stored in each encoding, by its text."""
    encoded = [symbol.type.encoding for symbol in graph.weights().values()]
    return Counter(str(encoding) for encoding in encoded if encoding is not None)


def decoded(graph: Graph) -> Graph:
    """A copy of `graph` in which each encoded weight is decoded, with its low-rank correction, and rounded to the dtype
    that the model computes in. Low-rank matrices are multiplied out.

    Raises LegalityError where an op cannot take a weight of that dtype.
    """
    copy = _copy(graph, model_dtype(graph))
    multiply_out(copy)
    merge(copy)
    return copy


def _copy(graph: Graph, dtype: DType) -> Graph:
    copy = Graph()
    mapping: dict[Value, Value] = {value: copy.input(value.name or "", value.type) for value in graph.inputs}
    for op in graph.topo():
        try:
            new = _decoded_op(op, mapping, dtype)
        except IRError as error:
            raise LegalityError(f"hf: the decoded weights do not fit: {error}") from error
        copy.attach(new, op.seq)
        mapping.update(zip(op.results, new.results))
    return copy


def _decoded_op(op: Op, mapping: dict[Value, Value], dtype: DType) -> Op:
    if isinstance(op, Weight) and op.symbol.type.encoding is not None:
        new: Op = Weight(WeightSymbol(op.symbol.name, Cast(op.symbol.recipe, dtype)))
        new.loc = op.loc
        return new
    regions = {name: _copy(getattr(op, name), dtype) for name in op.region_names}
    return op.rebuild([None if v is None else mapping[v] for v in op.operands], **regions)
