"""How does a low-rank update come onto a weight of a graph, off it again, and into it? And into its place?

%y = nn.linear(%x, @w)   <->   %y = nn.low_rank_linear(%x, @w.lora_a, @w.lora_b, @w)
%y = nn.linear(%x, @w)   <->   %y = nn.low_rank_linear(%x, @w.a, @w.b)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .encodings import Encoding
from .errors import InputError
from .ir import Graph, Op, Value, Weight
from .ops import nn, prim
from .ops.nn import NNOp
from .weight_uses import graphs, weight_uses
from .weights import Cast, Encode, LowRankUpdate, Product, Recipe, WeightSymbol, static_shape


@dataclass(frozen=True)
class Update:
    """The two factors of an update b @ a of a weight: a[rank, in], b[out, rank]."""

    a: WeightSymbol
    b: WeightSymbol


def factor_names(weight: str) -> tuple[str, str]:
    """What the factors of the update of `weight` are called."""
    return f"{weight}.lora_a", f"{weight}.lora_b"


def attach(graph: Graph, updates: Mapping[str, Update]) -> None:
    """Let each matrix product with a weight of these names add its update; ops that hold several matrices are spelled
    out. A weight that has an update already gets the new one in its place."""
    spell_out(graph, updates)
    for op, _ in _readers(graph, updates):
        assert isinstance(op, nn.Linear | nn.LowRankLinear) and op.weight is not None and op.graph is not None
        update = updates[_name(op.weight)]
        a, b = prim.weight(update.a), prim.weight(update.b)
        op.graph.replace(op, nn.low_rank_linear(op.x, a, b, op.weight, op.bias))


def require_ranks(owner: str, ranks: Mapping[str, int], weights: Mapping[str, WeightSymbol]) -> None:
    """Refuse a rank that none of the matrices has which are to get it: it would be the matrix itself again."""
    for rank in set(ranks.values()):
        most = max(min(static_shape(weights[name].type)) for name, wanted in ranks.items() if wanted == rank)
        if rank > most:
            raise InputError(f"{owner}: no matrix has a rank of {rank}", f"the largest possible is {most}")


def factorise(graph: Graph, factors: Mapping[str, Update], made_by: str) -> None:
    """Let each matrix product with a weight of these names use the two factors in its place."""
    spell_out(graph, factors)
    for op, _ in _readers(graph, factors):
        assert isinstance(op, nn.Linear | nn.LowRankLinear) and op.weight is not None and op.graph is not None
        pair = factors[_name(op.weight)]
        thin = nn.low_rank_linear(op.x, prim.weight(pair.a), prim.weight(pair.b), None, op.bias)
        if isinstance(op, nn.LowRankLinear):
            thin = prim.add(thin, nn.low_rank_linear(op.x, op.a, op.b))
        op.graph.replace(op, thin, made_by=made_by)


def multiply_out(graph: Graph, *, encoded: bool = False) -> int:
    """Let low-rank matrices that stand alone be whole ones again; returns how many there were. `encoded`: a product of
    factors that are encoded is stored as its first factor is, whose columns it has, and thus rounded once more."""
    count = 0
    for each in graphs(graph):
        for op in each.find(nn.LowRankLinear):
            if op.weight is None and isinstance(op.a.op, Weight) and isinstance(op.b.op, Weight):
                a, b = op.a.op.symbol, op.b.op.symbol
                product: Recipe = Product(a.recipe, b.recipe)
                if product.type.dtype is not op.x.type.dtype:
                    product = Cast(product, op.x.type.dtype)
                if encoded and a.type.encoding is not None and _takes(a.type.encoding, product):
                    product = Encode(product, a.type.encoding)
                whole = WeightSymbol(b.name.removesuffix(".b"), product)
                each.replace(op, nn.linear(op.x, prim.weight(whole), op.bias), made_by="multiply-out")
                count += 1
    return count


def _takes(encoding: Encoding, recipe: Recipe) -> bool:
    try:
        encoding.check_shape(static_shape(recipe.type))
    except InputError:
        return False
    return True


MULTIPLIED_OUT = (
    "low-rank matrices are stored multiplied out, rounded once more if they were quantised: no smaller and no faster "
    "here (ONNX and TensorRT gain)"
)
"""What to say of a target that has no form of two factors."""


def spell_out(graph: Graph, names: Mapping[str, object]) -> None:
    """Let weights of these names be read by ops of one matrix alone."""
    while compound := [op for op, operand in _readers(graph, names) if not _is_linear(op, operand)]:
        for op in dict.fromkeys(compound):
            values = op.decompose()
            assert op.graph is not None
            op.graph.replace(op, *(values if isinstance(values, tuple) else (values,)))


def _readers(graph: Graph, names: Mapping[str, object]) -> list[tuple[NNOp, str]]:
    """The ops that multiply with weights of these names, and the operand that each weight is."""
    uses = weight_uses(graph)
    users = [user for name in names if name in uses for user in uses[name].users]
    return [(op, operand) for op, operand in users if isinstance(op, NNOp) and operand in op.matrices]


def _is_linear(op: NNOp, operand: str) -> bool:
    return isinstance(op, nn.Linear | nn.LowRankLinear) and operand == "weight"


def detach(graph: Graph) -> dict[str, Update]:
    """Leave out the updates of weights; returns them by the name of the weight. Low-rank matrices that stand alone,
    and updates of values that are computed, stay."""
    found: dict[str, Update] = {}
    for each in graphs(graph):
        for op in each.find(nn.LowRankLinear):
            update = _update(op)
            if update is not None and op.weight is not None and found.setdefault(_name(op.weight), update) == update:
                each.replace(op, nn.linear(op.x, op.weight, op.bias))
    return found


def merge(graph: Graph) -> int:
    """Put the updates into the weights, which are then plain numbers; returns how many."""
    updates = detach(graph)
    for each in graphs(graph):
        for op in each.find(Weight):
            update = updates.get(op.symbol.name)
            if update is not None:
                recipe = LowRankUpdate(op.symbol.recipe, update.a.recipe, update.b.recipe)
                each.replace(op, prim.weight(WeightSymbol(op.symbol.name, recipe)))
    return len(updates)


def _update(op: nn.LowRankLinear) -> Update | None:
    weights = [v.op.symbol for v in (op.a, op.b, op.weight) if v is not None and isinstance(v.op, Weight)]
    return Update(weights[0], weights[1]) if len(weights) == 3 else None


def _name(value: Value) -> str:
    producer: Op | None = value.op
    assert isinstance(producer, Weight)
    return producer.symbol.name
