"""What is in a module, and what does running it take? Ops, parameters, work, caches and memory, for `--stats`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from .cost import DEFAULT_SIZES, Sizes, at, flops
from .dims import Dim, Size, product, symbols
from .errors import UsageError
from .ir import Graph, Module, Return, Value, Weight
from .liveness import Peak, peak_memory
from .ops import nn
from .options import did_you_mean
from .weight_uses import graphs

MAX_DIGITS = 12
"""Sizes of more digits are a slip of the hand."""


@dataclass(frozen=True)
class Stored:
    """The weights of one element type: numbers and the bytes that they take as stored."""

    parameters: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Statistics:
    """What `--stats` prints and `--report` holds.

    `stored` is by element ("bf16", an encoding). `flops` is a polynomial, of which one `unit` ("token", or "sample" for
    a model that reads no ids) takes `flops_per_unit` at `sizes`. `uncounted` are ops whose work nobody knows, by name.
    `cache_bytes_per_token` is what one more position of a key/value cache takes, for all layers; None without one.
    """

    ops: dict[str, int]
    stored: dict[str, Stored]
    sizes: dict[str, int]
    flops: Size
    unit: str
    flops_per_unit: float
    uncounted: dict[str, int] = field(default_factory=dict)
    cache_bytes_per_token: int | None = None
    peak: Peak | None = None

    @property
    def parameters(self) -> int:
        return sum(stored.parameters for stored in self.stored.values())

    @property
    def bytes(self) -> int:
        return sum(stored.bytes for stored in self.stored.values())

    def as_dict(self) -> dict[str, Any]:
        """For `--report`: numbers, and polynomials as text."""
        return {
            "ops": self.ops,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "stored": {element: vars(stored) for element, stored in self.stored.items()},
            "sizes": self.sizes,
            "flops": str(self.flops),
            f"flops_per_{self.unit}": self.flops_per_unit,
            "uncounted": self.uncounted,
            "cache_bytes_per_token": self.cache_bytes_per_token,
            "peak_activation_bytes": self.peak.bytes if self.peak else 0,
            "peak_activation": str(self.peak.formula) if self.peak else "0",
        }


def statistics(module: Module, sizes: Sizes | None = None) -> Statistics:
    """The statistics of `module`, with its symbolic sizes taken to be `sizes` (`DEFAULT_SIZES` where it names none).

    Raises UsageError for a size that the module does not have.
    """
    graph = module.graph
    taken = _sizes(graph, sizes or {})
    ops: Counter[str] = Counter()
    for each in graphs(graph):
        ops.update(op.opname for op in each.ops() if not isinstance(op, Return | Weight))
    uncounted: Counter[str] = Counter()
    work: Size = 0
    for op in graph.ops():
        cost = flops(op)
        if cost is None:
            uncounted[getattr(op, "target", op.opname)] += 1
        else:
            work = work + cost
    unit, count = _unit(graph)
    return Statistics(
        ops=dict(ops.most_common()),
        stored=_stored(module),
        sizes=taken,
        flops=work,
        unit=unit,
        flops_per_unit=at(work, taken) / max(1, at(count, taken)),
        uncounted=dict(uncounted),
        cache_bytes_per_token=_cache_bytes(graph),
        peak=peak_memory(graph, taken),
    )


def parse_sizes(text: str) -> dict[str, int]:
    """The sizes in "batch=1 seq=128" (or with commas); raises UsageError."""
    found = {}
    for item in text.replace(",", " ").split():
        name, equals, number = item.partition("=")
        if not equals or not number.isdecimal() or len(number) > MAX_DIGITS:
            raise UsageError(f"'{item}' is no size", 'write sizes as "batch=1 seq=128"')
        found[name] = int(number)
    return found


def _sizes(graph: Graph, given: Sizes) -> dict[str, int]:
    names = sorted({name for value in graph.inputs for size in value.type.shape for name in symbols(size)})
    for name in given:
        if name not in names:
            known = f"it has {', '.join(names)}" if names else "all its sizes are known"
            raise UsageError(f"the model has no size '{name}'", did_you_mean(name, names) or known)
    return {name: given.get(name, DEFAULT_SIZES.get(name, 1)) for name in names}


def _stored(module: Module) -> dict[str, Stored]:
    numbers: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for symbol in module.weights.values():
        element, size = str(symbol.type.element), symbol.type.size
        # Tables of integers (positions, say) are stored, but nobody counts them as parameters.
        numbers[element] += size if isinstance(size, int) and symbol.type.dtype.is_float else 0
        sizes[element] += symbol.size_bytes
    return {element: Stored(count, sizes[element]) for element, count in numbers.most_common()}


def _unit(graph: Graph) -> tuple[str, Size]:
    """What a model is fed by: the ids of its first input that holds any, else the rows of its first input."""
    for value in graph.inputs:
        if value.type.dtype.is_int and value.type.rank in (1, 2):
            return "token", value.type.size
    first = graph.inputs[0].type.shape[:1] if graph.inputs else ()
    return "sample", product(first)


def _cache_bytes(graph: Graph) -> int | None:
    """The bytes of one position of every cache; of a decoder without one, of the keys and values it would hold."""
    caches: list[Value] = [op.new for op in graph.find(nn.KVUpdate)]
    if not caches:
        causal = [op for op in graph.find(nn.Attention) if op.causal]
        caches = list(dict.fromkeys(value for op in causal for value in (op.k, op.v)))
    total = 0
    for value in caches:
        _, heads, _, width = value.type.shape
        if isinstance(heads, Dim) or isinstance(width, Dim):
            return None
        one = value.type.with_shape((heads, width)).size_bytes
        total += one if isinstance(one, int) else 0
    return total if caches else None
