"""Differential checks: does a rewrite, or a pass, leave the numbers as they were?

`--check=rewrites` runs each matched piece and its replacement on small random tensors; `--check=passes` runs the whole
graph before and after each pass. Both compare relative to the largest number of a tensor, with a tolerance that its
dtype sets: a sum in another order differs by rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import unified_diff
from typing import TYPE_CHECKING, Any, Final

from .dims import Dim
from .errors import CheckError, InputError, IRError
from .extract import extract
from .ir import Graph, Module, Op, Value, Weight
from .ops import prim
from .text import print_graph
from .types import DType, bf16, f16, f32, f64

if TYPE_CHECKING:
    import torch

    from .passmgr import Pass
    from .rewrite import Match, Rule

ROUNDING: Final[dict[DType, float]] = {f64: 1e-9, f32: 1e-4, f16: 1e-2, bf16: 6e-2}
"""How far results may lie apart for rounding alone, relative to the largest number. Integers must be equal."""

MAX_PARAMETERS: Final = 200_000_000
"""The largest model that `--check=passes` runs: it reads all weights twice per pass."""

MAX_PIECE_BYTES: Final = 1 << 30
"""The largest weights, together, of a piece that `--check=rewrites` runs."""

MAX_SHOWN_LINES: Final = 400
"""So many lines of the difference of two graphs are shown."""

_WIDER: Final = 200
"""How many ops before a match are taken along when a rule seems to rely on what lies before it."""


@dataclass(frozen=True)
class Difference:
    """How far two tensors, or all outputs of two graphs, lie apart."""

    largest: float = 0.0
    relative: float = 0.0
    identical: bool = True
    where: str = ""

    def __str__(self) -> str:
        if self.identical:
            return "identical"
        return f"largest difference {self.largest:.3g} ({self.relative:.2g} of the largest number)"


def difference(before: torch.Tensor, after: torch.Tensor, where: str = "") -> Difference:
    """The difference of two tensors; nan is taken to equal nan. `relative` is infinite where shapes or dtypes differ,
    or only one of them is finite somewhere."""
    import torch

    if before.shape != after.shape or before.dtype != after.dtype:
        return Difference(float("inf"), float("inf"), False, where)
    if torch.equal(before, after) or not before.numel():
        return Difference(where=where)
    a, b = before.double(), after.double()
    same = (a == b) | (a.isnan() & b.isnan())
    if bool(same.all()):
        return Difference(where=where)
    apart = torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=float("inf")).max().item()
    size = torch.where(a.isfinite(), a.abs(), 0.0).max().item()
    return Difference(apart, apart / size if size else float("inf"), False, where)


def compare_graphs(
    before: Graph | Module, after: Graph | Module, inputs: Mapping[str, Any], rtol: float = 0.0, *, device: str = "cpu"
) -> Difference:
    """Run both on the same `inputs` and give the largest difference of the outputs that both have.

    Raises CheckError where one exceeds the larger of `rtol` and the rounding of its dtype, relative to its largest
    number; where the graphs share no output too.
    """
    from .interp import evaluate

    graphs = [module.graph if isinstance(module, Module) else module for module in (before, after)]
    names = [name for name in graphs[0].outputs if name in graphs[1].outputs]
    if not names:
        raise CheckError("the two graphs share no output")
    results = [evaluate(graph, _accepted(graph, inputs), outputs=names, device=device) for graph in graphs]
    worst = Difference()
    for name in names:
        found = difference(results[0][name], results[1][name], f"output '{name}'")
        _require_within(found, graphs[0].outputs[name].type.dtype, rtol)
        worst = max(worst, found, key=lambda d: d.relative)
    return worst


def _accepted(graph: Graph, inputs: Mapping[str, Any]) -> dict[str, Any]:
    names = {value.name for value in graph.inputs}
    return {name: given for name, given in inputs.items() if name in names}


def _require_within(found: Difference, dtype: DType, rtol: float) -> None:
    allowed = max(rtol, ROUNDING.get(dtype, 0.0))
    if found.relative > allowed:
        raise CheckError(f"{found.where} changed: {found}, allowed is {allowed:g}")


# Passes


@dataclass
class PassDifference:
    """What a pass did to the numbers. `metrics` go into `--report`."""

    metrics: dict[str, float] = field(default_factory=dict)
    text: str = ""

    def __str__(self) -> str:
        return self.text


def check_pass(before: Module, after: Module, step: Pass, *, seed: int = 0, device: str = "cpu") -> PassDifference:
    """Compare a module before and after `step` on small random inputs.

    Raises CheckError where a pass that is "exact" or "close" moved an output further than it promised; a "lossy" one is
    measured: mean KL divergence in nats and top-1 agreement of the distributions over the last axis of its logits (or
    first float output). Raises InputError for models that are too large to run.
    """
    from .probe import probe, small_sizes

    elements = sum(s.type.size for s in before.weights.values() if not isinstance(s.type.size, Dim))
    if elements > MAX_PARAMETERS:
        raise InputError(
            f"--check=passes runs the whole model, and this one has {elements / 1e6:,.0f} million parameters",
            "use --check=rewrites",
        )
    free = [v for v in before.graph.inputs if v.name not in ("attention_mask", "position_ids")]
    inputs = probe(free, small_sizes(before.graph), seed)
    try:
        if step.exactness == "lossy":
            return _measure_loss(before, after, inputs, device)
        found = compare_graphs(before, after, inputs, step.rtol, device=device)
        return PassDifference({"max_abs_diff": found.largest}, str(found))
    except CheckError as error:
        error.message = f"after {step}: {error.message}"
        error.details = _changes(before.graph, after.graph)
        raise


def _measure_loss(before: Module, after: Module, inputs: Mapping[str, Any], device: str) -> PassDifference:
    import torch

    from .interp import evaluate

    outputs = before.graph.outputs
    names = [name for name in outputs if name in after.graph.outputs and outputs[name].type.dtype.is_float]
    if not names:
        raise CheckError("the graphs before and after share no output of floats")
    name = "logits" if "logits" in names else names[0]
    a, b = (
        torch.log_softmax(evaluate(m, _accepted(m.graph, inputs), outputs=[name], device=device)[name].double(), -1)
        for m in (before, after)
    )
    kl = (a.exp() * (a - b)).sum(-1).mean().item()
    top1 = (a.argmax(-1) == b.argmax(-1)).double().mean().item()
    return PassDifference({"kl": kl, "top1": top1}, f"KL {kl:.3g}, top-1 agreement {top1:.1%} on random inputs")


def _changes(before: Graph, after: Graph) -> str:
    """The IR of both sides as a diff: whole models are long, and most of them stayed the same."""
    old, new = (print_graph(graph).splitlines(keepends=True) for graph in (before, after))
    lines = list(unified_diff(old, new, "before", "after"))
    more = [f"... and {len(lines) - MAX_SHOWN_LINES} more lines\n"] if len(lines) > MAX_SHOWN_LINES else []
    return "".join([*lines[:MAX_SHOWN_LINES], *more])


# Rewrites


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
    before, after = (extract({str(i): v for i, v in enumerate(values)}, cut) for values in (old, new))
    try:
        return _compare_extracted(f"{rule} at {_place(old)}", before, after, seed, device)
    except CheckError as error:
        error.details = (
            f"// ---- what {rule} matched\n{print_graph(before)}// ---- its replacement\n{print_graph(after)}"
        )
        raise


def _place(values: Sequence[Value]) -> str:
    """The op that computes the first of `values`, and where in the model it lies."""
    op = next(v.op for v in values if v.op is not None)
    return f"{op.opname} in {op.loc.path}" if op.loc is not None and op.loc.path else op.opname


def _compare_extracted(place: str, before: Graph, after: Graph, seed: int, device: str) -> Difference:
    weights = _piece_weights(before, after, seed)
    worst = Difference()
    for positive in (False, True):
        results = _run_both(before, after, weights, seed, positive, device)
        for name, value in before.outputs.items():
            found = difference(results[0][name], results[1][name], f"result {name} of {place}")
            _require_within(found, value.type.dtype, 0.0)
            worst = max(worst, found, key=lambda d: d.relative)
        # Numbers of either sign say all there is to say, unless a root or logarithm made nan of them.
        if all(not t.is_floating_point() or bool(t.isfinite().all()) for t in results[0].values()):
            break
    return worst


def _run_both(
    before: Graph, after: Graph, weights: Mapping[str, torch.Tensor], seed: int, positive: bool, device: str
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Both pieces on the same tensors, at the smallest sizes that the first one accepts."""
    from .interp import Program
    from .probe import probe, small_sizes

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
    from .probe import stand_ins

    old, new = before.weights(), after.weights()
    size_bytes = sum(symbol.size_bytes for symbol in {**old, **new}.values())
    if size_bytes > MAX_PIECE_BYTES:
        raise _Unchecked(f"its weights are larger than {MAX_PIECE_BYTES >> 20} MiB")
    made = [name for name, symbol in new.items() if old.get(name) != symbol]
    return {} if made else stand_ins(list(old.values()), seed)
