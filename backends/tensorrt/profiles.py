"""Which sizes must an engine take? An optimization profile gives each input a smallest, a usual and a largest shape.

A cached decoder has two: `prefill`, for prompts of 1 to max-seq tokens, and `decode`, for one token more. A graph
without a cache has one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from irlab import dims
from irlab.dims import Size
from irlab.errors import LegalityError, UsageError
from irlab.ir import Graph, Value
from irlab.options import did_you_mean

_DEFAULT_CONTEXT: Final = 4096
"""Positions where the model does not say, and at most by default: caches are buffers of that length."""
_DEFAULT_OPT_SEQ: Final = 128


@dataclass(frozen=True)
class Span:
    """The sizes that one symbol may have: smallest, usual, largest."""

    smallest: int
    usual: int
    largest: int

    def __post_init__(self) -> None:
        if not 0 <= self.smallest <= self.usual <= self.largest:
            raise ValueError(f"{self.smallest} <= {self.usual} <= {self.largest} does not hold")


@dataclass(frozen=True)
class Limits:
    """What the options say of sizes; 0 leaves it to the model's context, up to 4096 positions."""

    max_batch: int = 4
    max_seq: int = 0
    max_past: int = 0
    opt_batch: int = 1
    opt_seq: int = 0
    opt_past: int = 0
    others: Mapping[str, Span] | None = None

    def resolved(self, context: int) -> Limits:
        """With every 0 filled in, for a model of `context` positions (0: unknown). Raises UsageError where the usual
        size exceeds the largest."""
        context = min(context or _DEFAULT_CONTEXT, _DEFAULT_CONTEXT)
        max_seq = self.max_seq or context
        max_past = self.max_past or max(1, context - 1)
        found = Limits(
            self.max_batch,
            max_seq,
            max_past,
            self.opt_batch,
            self.opt_seq or min(_DEFAULT_OPT_SEQ, max_seq),
            self.opt_past or max(1, max_past // 2),
            self.others,
        )
        for name, usual, largest in (
            ("batch", found.opt_batch, found.max_batch),
            ("seq", found.opt_seq, found.max_seq),
            ("past", found.opt_past, found.max_past),
        ):
            if not 1 <= usual <= largest:
                raise UsageError(
                    f"opt-{name}={usual} and max-{name}={largest} contradict each other", "1 <= opt <= max must hold"
                )
        return found

    def stated(self) -> dict[str, Any]:
        """As JSON."""
        others = {name: list(vars(span).values()) for name, span in (self.others or {}).items()}
        return vars(self) | {"others": others}

    @classmethod
    def read(cls, stated: Mapping[str, Any]) -> Limits:
        """The inverse of `stated`."""
        return cls(**(dict(stated) | {"others": {name: Span(*n) for name, n in stated["others"].items()}}))

    @property
    def capacity(self) -> int:
        """The positions that a cache buffer holds."""
        return max(self.max_seq, self.max_past + 1)


def read_spans(texts: Sequence[str]) -> dict[str, Span]:
    """The spans in texts such as "frames:1:16:64". Raises UsageError."""
    found: dict[str, Span] = {}
    for text in texts:
        name, *numbers = text.split(":")
        try:
            smallest, usual, largest = map(int, numbers)
            found[name] = Span(smallest, usual, largest)
        except ValueError as error:
            reason = str(error) if "hold" in str(error) else "it reads NAME:SMALLEST:USUAL:LARGEST"
            raise UsageError(f"sizes={text}: {reason}") from None
    return found


@dataclass(frozen=True)
class Profile:
    """One profile: its name, and the numbers that symbols stand for at its three points."""

    name: str
    smallest: Mapping[str, int]
    usual: Mapping[str, int]
    largest: Mapping[str, int]

    def shapes(self, shape: tuple[Size, ...]) -> tuple[tuple[int, ...], ...]:
        """The three shapes of an input whose type has `shape`."""
        return tuple(tuple(_number(d, point) for d in shape) for point in (self.smallest, self.usual, self.largest))


def _number(size: Size, point: Mapping[str, int]) -> int:
    found = dims.substitute(size, point)
    if not isinstance(found, int) or found < 0:
        raise LegalityError(f"the size {size} has no value for {', '.join(f'{k} = {v}' for k, v in point.items())}")
    return found


def _names(graph: Graph) -> set[str]:
    """The symbols in the sizes of inputs."""
    return {name for value in graph.inputs for size in value.type.shape for name in dims.symbols(size)}


def require_sizes(graph: Graph, stated: Iterable[str]) -> None:
    """Raise UsageError for a size that is `stated` by name and that no input has."""
    free = _names(graph) - {"past"}
    for name in stated:
        if name not in free:
            hint = "max-past and opt-past bound it" if name == "past" else did_you_mean(name, free)
            raise UsageError(f"sizes={name}: no input has a size '{name}' that is free", hint)


def profiles(graph: Graph, limits: Limits, buffered: bool) -> list[Profile]:
    """The profiles of a graph, for resolved `limits`. `buffered`: caches are buffers, so that only the sum of past and
    seq is bounded. Raises LegalityError for a symbol whose sizes nobody states."""
    names = _names(graph)
    spans = {
        "batch": Span(1, limits.opt_batch, limits.max_batch),
        "seq": Span(1, limits.opt_seq, limits.max_seq),
        **(limits.others or {}),
    }
    for name in sorted(names - spans.keys() - {"past"}):
        where = next(value for value in graph.inputs if any(name in dims.symbols(d) for d in value.type.shape))
        raise LegalityError(
            f"nothing says how large '{name}' of the input '{where.name}' may be", f"add sizes={name}:1:16:64"
        )
    others = {name: span for name, span in spans.items() if name in names}
    if "past" not in names:
        return [_profile("default", others)]
    found = []
    for name, seq in (("prefill", spans["seq"]), ("decode", Span(1, 1, 1))):
        most = limits.capacity - seq.largest if buffered else limits.max_past
        usual = 0 if name == "prefill" else min(limits.opt_past, most)
        found.append(_profile(name, {**others, "seq": seq, "past": Span(0, usual, most)}))
    return found


def _profile(name: str, spans: Mapping[str, Span]) -> Profile:
    points = ({n: getattr(s, part) for n, s in spans.items()} for part in ("smallest", "usual", "largest"))
    return Profile(name, *points)


def buffered_caches(graph: Graph) -> dict[Value, str]:
    """The cache inputs that can be buffers, each with the output that hands it back: those that one growing update
    alone reads, in a graph whose other inputs tell every size."""
    from irlab.decoder import cache_inputs
    from irlab.ops import nn

    pairs = cache_inputs(graph)
    by_name = {value.name: value for value in graph.inputs}
    found: dict[Value, str] = {}
    for name, output in pairs.items():
        cache, update = by_name[name], graph.outputs[output].op
        if isinstance(update, nn.KVUpdate) and update.pos is None and update.cache is cache and len(cache.uses) == 1:
            found[cache] = output
    told = {name for value in graph.inputs if value not in found for d in value.type.shape for name in dims.symbols(d)}
    asked = {name for cache in found for d in cache.type.shape for name in dims.symbols(d)}
    return found if asked <= told else {}
