"""What a rule matched and what it makes of it, on the same random tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from ..errors import CheckError, InputError, IRError
from ..extract import extract
from ..ir import Graph, Op, Value, Weight, place_of
from ..ops import prim
from ..text import print_graph
from .compare import Difference, difference, require_within

if TYPE_CHECKING:
    import torch

    from ..rewrite import Match, Rule


MAX_PIECE_BYTES: Final = 1 << 30
"""The largest weights, together, of a piece that `--check=rewrites` runs."""


_WIDER: Final = 200
"""How many ops before a match are taken along when a rule seems to rely on what lies before it."""


class RewriteChecker:
    """Checks each rewrite before it is made; the driver calls it. `checked` and `skipped` count what it saw."""

    def __init__(self, seed: int = 0, device: str = "cpu") -> None:
        self.seed, self.device = seed, device
        self.checked = 0
        self.skipped: dict[str, int] = {}

    def __call__(self, rule: Rule, m: Match, new: Sequence[Value]) -> None:
        """Raise CheckError if the `new` values differ from the results of the matched roots."""
        old = [result for root in m.roots for result in root.results]
        try:
            check_rewrite(rule.name, m.ops, old, new, seed=self.seed, device=self.device)
            self.checked += 1
        except _Unchecked as reason:
            self.skipped[str(reason)] = self.skipped.get(str(reason), 0) + 1

    def __str__(self) -> str:
        skipped = "; ".join(f"{count} skipped: {reason}" for reason, count in self.skipped.items())
        return f"{self.checked} compared" + (f"; {skipped}" if skipped else "")


class _Unchecked(Exception):
    """A piece that cannot be run on its own, with the reason."""


def check_rewrite(
    rule: str,
    matched: Sequence[Op],
    old: Sequence[Value],
    new: Sequence[Value],
    *,
    seed: int = 0,
    device: str = "cpu",
) -> Difference:
    """Run the ops that compute `old` and the expressions `new` over the same free values, and compare.

    The free values are what the match reads. If the results differ, more of the graph before the match is taken along:
    a rule may rely on what it saw there. Raises CheckError if they still differ.
    """
    try:
        return _compare_pieces(rule, old, new, _cut(matched, new, 0), seed, device)
    except CheckError as narrow:
        wider = _cut(matched, new, _WIDER)
        try:
            return _compare_pieces(rule, old, new, wider, seed, device)
        except CheckError as error:
            error.details = narrow.details  # what the rule saw and made, without what was taken along
            raise


def _cut(matched: Sequence[Op], new: Sequence[Value], extra: int) -> dict[Value, str]:
    """The values at which both pieces begin, named: what the match reads and, if the replacement reads values that the
    match does not, what those are computed from. `extra` ops before the match belong to the pieces too."""
    inside = set(matched)
    budget = extra
    edge: dict[Value, None] = {}
    level = [v for op in matched for v in op.operands if v is not None and v.op not in inside]
    while level:
        deeper: list[Value] = []
        for value in level:
            op = value.op
            if op is not None and (op in inside or isinstance(op, _LEAVES)):
                continue
            if op is None or budget <= 0 or op.region_names:
                edge[value] = None
                continue
            budget -= 1
            inside.add(op)
            deeper.extend([v for v in op.operands if v is not None])
        level = deeper
    _cut_replacement(new, inside, edge)
    # What was taken along later may have been an edge before.
    return {value: f"x{i}" for i, value in enumerate(v for v in edge if v.op is None or v.op not in inside)}


_LEAVES: Final = (prim.Constant, prim.Iota, Weight)


def _cut_replacement(new: Sequence[Value], inside: set[Op], edge: dict[Value, None]) -> None:
    """Walk back from the replacement to the edge; what it reads beyond is followed as far as `_WIDER` ops."""
    budget = _WIDER
    seen: set[Value] = set()
    stack = list(new)
    while stack:
        value = stack.pop()
        op = value.op
        if value in seen or value in edge or (op is not None and isinstance(op, _LEAVES)):
            continue
        seen.add(value)
        if op is None or (op.graph is not None and op not in inside and budget <= 0):
            edge[value] = None
            continue
        if op.graph is not None and op not in inside:
            budget -= 1
        stack.extend([v for v in op.operands if v is not None])


def _compare_pieces(
    rule: str, old: Sequence[Value], new: Sequence[Value], cut: Mapping[Value, str], seed: int, device: str
) -> Difference:
    root = next(v.op for v in old if v.op is not None)
    before, after = (extract({str(i): v for i, v in enumerate(values)}, cut) for values in (old, new))
    try:
        return _compare_extracted(f"{rule} at {place_of(root)}", before, after, seed, device)
    except CheckError as error:
        error.details = (
            f"// ---- what {rule} matched\n{print_graph(before)}// ---- its replacement\n{print_graph(after)}"
        )
        raise


def _compare_extracted(place: str, before: Graph, after: Graph, seed: int, device: str) -> Difference:
    weights = _piece_weights(before, after, seed)
    worst = Difference()
    for positive in (False, True):
        results = _run_both(before, after, weights, seed, positive, device)
        for name, value in before.outputs.items():
            found = difference(results[0][name], results[1][name], f"result {name} of {place}")
            require_within(found, value.type.dtype, 0.0)
            worst = max(worst, found, key=lambda d: d.relative)
        # Numbers of either sign say all there is to say, unless a root or logarithm made nan of them.
        if all(not t.is_floating_point() or bool(t.isfinite().all()) for t in results[0].values()):
            break
    return worst


def _run_both(
    before: Graph, after: Graph, weights: Mapping[str, torch.Tensor], seed: int, positive: bool, device: str
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Both pieces on the same tensors, at the smallest sizes that the first one accepts."""
    from ..interp import Program
    from ..probe import probe, small_sizes

    first = Program(before, weights=weights, device=device)
    second = Program(after, weights=weights, device=device, checked=True)
    reason = ""
    for scale in (1, 3, 20):
        try:
            sizes = small_sizes(before, scale)
            inputs = probe(before.inputs, sizes, seed, positive=positive)
            expected = first(inputs, sizes.known)
        except InputError as error:
            reason = error.message
            continue
        try:
            return expected, second(inputs, sizes.known)
        except (InputError, IRError) as error:
            raise CheckError(f"the replacement cannot be run: {error}") from error
    raise _Unchecked(reason)


def _piece_weights(before: Graph, after: Graph, seed: int) -> Mapping[str, torch.Tensor]:
    """Stand-ins for the weights, or nothing (so that they are read) where the rule made new ones of them."""
    from ..probe import stand_ins

    old, new = before.weights(), after.weights()
    size_bytes = sum(symbol.size_bytes for symbol in {**old, **new}.values())
    if size_bytes > MAX_PIECE_BYTES:
        raise _Unchecked(f"its weights are larger than {MAX_PIECE_BYTES >> 20} MiB")
    made = [name for name, symbol in new.items() if old.get(name) != symbol]
    return {} if made else stand_ins(list(old.values()), seed)
