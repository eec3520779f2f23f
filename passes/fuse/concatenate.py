"""Layout passes that read an activation once: q, k, v (or gate, up) as one linear over concatenated weights."""

from __future__ import annotations

from dataclasses import dataclass

from irlab.ir import Graph, Module, Value, Weight
from irlab.ops import nn, prim
from irlab.passmgr import Context, Pass
from irlab.weights import Concat, WeightSymbol


@dataclass(frozen=True)
class FuseQKV(Pass, name="fuse-qkv", requires={"fuse": "it looks for nn.linear"}):
    """Concatenates the q, k and v projections of an attention into one linear, split afterwards.

        %q = nn.linear(%h, @q)              %qkv = nn.linear(%h, @q+k+v)
        %k = nn.linear(%h, @k)      ->      %q, %k, %v = prim.split(%qkv)
        %v = nn.linear(%h, @v)

    A layout for targets whose attention takes packed inputs. Weights stay lazy.
    """

    def run(self, module: Module, ctx: Context) -> None:
        hits = 0
        for op in module.graph.find(nn.Attention):
            sources = [_projection(value) for value in (op.q, op.k, op.v)]
            if all(s is not None for s in sources):
                hits += join_linears(module.graph, [s for s in sources if s is not None], "fuse-qkv")
        ctx.note_rewrites({"fuse-qkv": hits})


@dataclass(frozen=True)
class FuseGateUp(Pass, name="fuse-gate-up", requires={"fuse": "it looks for nn.gated_mlp"}):
    """Spells a gated MLP out with gate and up as one linear over concatenated weights."""

    def run(self, module: Module, ctx: Context) -> None:
        graph, hits = module.graph, 0
        for op in graph.find(nn.GatedMLP):
            pieces = joined([nn.Linear(op.x, op.gate, op.gate_bias), nn.Linear(op.x, op.up, op.up_bias)])
            if pieces:
                gate, up = pieces
                inner = prim.mul(nn.activate(gate, op.activation), up)
                graph.replace(op, nn.linear(inner, op.down, op.down_bias), made_by="fuse-gate-up")
                hits += 1
        ctx.note_rewrites({"fuse-gate-up": hits})


def _projection(value: Value) -> nn.Linear | None:
    """The linear that a query, key or value comes from, through rope, norm, cache and layout."""
    op = value.op
    while op is not None and not isinstance(op, nn.Linear):
        if isinstance(op, nn.Rope | nn.RMSNorm | nn.QuantizeCache | prim.Reshape | prim.Transpose):
            op = op.x.op
        elif isinstance(op, nn.KVUpdate):
            op = op.new.op
        elif isinstance(op, nn.DequantizeCache):
            op = op.codes.op
        else:
            return None
    return op


def join_linears(graph: Graph, linears: list[nn.Linear], made_by: str) -> int:
    """Replace linears that read one value by one linear and a split; 1 if done, 0 if they do not fit together."""
    pieces = joined(linears)
    for op, piece in zip(linears, pieces):
        graph.replace(op, piece, made_by=made_by)
    return int(bool(pieces))


def joined(linears: list[nn.Linear]) -> tuple[Value, ...]:
    """The results of linears that read one value as pieces of one linear's, detached; () if they do not fit."""
    x = linears[0].x
    if len({id(op) for op in linears}) < len(linears) or any(op.x is not x for op in linears):
        return ()
    weights = _joined([op.weight for op in linears])
    biases = [op.bias for op in linears]
    present = [b for b in biases if b is not None]
    bias = _joined(present) if present else None
    if weights is None or len(present) not in (0, len(linears)) or (present and bias is None):
        return ()
    return prim.split(nn.linear(x, weights, bias), tuple(op.weight.type.shape[0] for op in linears), -1)


def _joined(values: list[Value]) -> Value | None:
    """One weight of the weights `values`, one below the other; None if one of them is not a plain weight."""
    symbols = [v.op.symbol for v in values if isinstance(v.op, Weight)]
    if len(symbols) < len(values) or len({s.type.element for s in symbols}) > 1:
        return None
    name = "_and_".join([symbols[0].name, *(s.name.rpartition(".")[0].rpartition(".")[2] for s in symbols[1:])])
    return prim.weight(WeightSymbol(name, Concat(tuple(s.recipe for s in symbols), 0)))
