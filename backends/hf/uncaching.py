"""How does a cached decoder become the causal graph that it was made from? The kv-cache pass, backwards."""

from __future__ import annotations

from irlab.decoder import cache_inputs
from irlab.dims import Size
from irlab.errors import LegalityError
from irlab.ir import Graph, Op, Return, Value
from irlab.ops import nn, prim
from irlab.types import i64

_MASK, _POSITIONS, _IDS = "attention_mask", "position_ids", "input_ids"


def uncached(graph: Graph) -> Graph:
    """`graph` with an empty cache, positions from 0 and nothing masked: a copy without the inputs and outputs for
    them, or `graph` itself if it has no cache. Raises LegalityError where they are used for anything else."""
    caches = cache_inputs(graph)
    return _Uncaching(graph, caches).run() if caches else graph


class _Uncaching:
    """`copies` maps values to those of the new graph; `visible` holds the ones that are true for every position."""

    def __init__(self, graph: Graph, caches: dict[str, str]) -> None:
        self.graph, self.caches = graph, caches
        self.new = Graph()
        self.copies: dict[Value, Value] = {}
        self.visible: set[Value] = set()

    def run(self) -> Graph:
        for value in self.graph.inputs:
            name = value.name or ""
            if name == _MASK:
                self.visible.add(value)
            elif name == _POSITIONS:
                self.copies[value] = prim.Iota(self._sequence(), i64).result
            elif name not in self.caches:
                self.copies[value] = self.new.input(name, value.type)
        for op in self.graph.topo():
            if not isinstance(op, Return):
                self._copy(op)
        dropped = set(self.caches.values())
        self.new.set_outputs({n: self._of(v, None) for n, v in self.graph.outputs.items() if n not in dropped})
        self.new.erase_dead()
        return self.new

    def _sequence(self) -> Size:
        return next(value.type.shape[1] for value in self.graph.inputs if value.name == _IDS)

    def _copy(self, op: Op) -> None:
        if isinstance(op, nn.KVUpdate) and op.pos is None and op.cache.name in self.caches:
            self.copies[op.result] = self._of(op.new, op)
            return
        shown = [value in self.visible for value in op.operands]
        if shown[:1] == [True] and (isinstance(op, prim.Reshape | prim.Expand | prim.Cast) or _asks_for_ones(op)):
            self.visible.add(op.result)
        elif isinstance(op, prim.And) and any(shown):
            rest = [value for value, is_shown in zip(op.operands, shown) if not is_shown]
            if rest:
                self.copies[op.result] = self._of(rest[0], op)
            else:
                self.visible.add(op.result)
        else:
            self._rebuild(op, shown)

    def _rebuild(self, op: Op, shown: list[bool]) -> None:
        mask = op.operand_names.index("mask") if isinstance(op, nn.Attention) else -1
        operands = [
            None if value is None or (i == mask and shown[i]) else self._of(value, op)
            for i, value in enumerate(op.operands)
        ]
        regions = {name: getattr(op, name).clone() for name in op.region_names}
        new = op.rebuild(operands, **regions)
        self.new.attach(new, op.seq)
        self.copies.update(zip(op.results, new.results))

    def _of(self, value: Value | None, user: Op | None) -> Value:
        assert value is not None
        found = self.copies.get(value)
        if found is None:
            where = f"{user.opname} at {user.loc.path}" if user is not None and user.loc is not None else "an output"
            raise LegalityError(
                f"hf: {where} reads the cache or its mask in a way of its own", "transformers keeps its own cache"
            )
        return found


def _asks_for_ones(op: Op) -> bool:
    """Whether `op` turns the mask of ones and zeros into true and false."""
    zero = op.y.op if isinstance(op, prim.Ne) else None
    return isinstance(zero, prim.Constant) and zero.value == 0
