"""A whole module before and after a pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import unified_diff
from typing import TYPE_CHECKING, Any, Final

from ..dims import Dim
from ..errors import CheckError, InputError
from ..ir import Graph, Module
from ..text import print_graph
from .compare import accepted, compare_graphs

if TYPE_CHECKING:
    from ..passmgr import Pass


MAX_PARAMETERS: Final = 200_000_000
"""The largest model that `--check=passes` runs: it reads all weights twice per pass."""


MAX_SHOWN_LINES: Final = 400
"""So many lines of the difference of two graphs are shown."""


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
    from ..probe import probe, small_sizes

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

    from ..interp import evaluate

    outputs = before.graph.outputs
    names = [name for name in outputs if name in after.graph.outputs and outputs[name].type.dtype.is_float]
    if not names:
        raise CheckError("the graphs before and after share no output of floats")
    name = "logits" if "logits" in names else names[0]
    a, b = (
        torch.log_softmax(evaluate(m, accepted(m.graph, inputs), outputs=[name], device=device)[name].double(), -1)
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
