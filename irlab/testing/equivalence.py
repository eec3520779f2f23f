"""Do two graphs compute the same? Both are run on small random inputs, at several sizes and seeds.

assert_equivalent(before, after)                       # to rounding
assert_preserves("canonicalize,my-pass", module)       # run the pipeline, then compare as its passes promise
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from ..diff import ROUNDING, Difference, difference
from ..errors import InputError
from ..ir import Graph, Module, Value
from ..passmgr import Exactness, Pass

if TYPE_CHECKING:
    import torch

SCALES: Final = (1, 3)
"""Symbolic sizes are bound to small numbers (batch 2, seq 7, past 5) times each of these."""

LAST_RESORT: Final = 20
"""The scale that is tried where no other gives sizes that the graph accepts (a slice that needs 64 positions)."""

SHOWN_LINES: Final = 60
"""How much of the difference of the two texts a message shows."""

_LOOSEST_FIRST: Final[tuple[Exactness, ...]] = ("lossy", "close", "exact")

Results = Mapping[str, "torch.Tensor"]


class CannotRun(InputError):
    """No sizes were found at which the first graph runs, so that nothing can be compared."""


def assert_equivalent(
    a: Graph | Module,
    b: Graph | Module,
    *,
    exactness: Exactness = "close",
    rtol: float = 1e-4,
    atol: float = 0.0,
    outputs: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1),
) -> Difference:
    """Raise AssertionError unless `b` computes what `a` does; gives the largest difference found.

    "exact" allows the rounding of the coarsest float dtype in the graphs, "close" the larger of that and `rtol`, both
    relative to the largest number of an output; `atol` is added to it. "lossy" compares names and shapes only. Inputs
    and outputs must be the same by name and type, unless `outputs` names the ones to compare: then inputs may differ
    too (those of a cached decoder that are missing are filled in). Weights that both graphs have alike are replaced by
    random numbers; where `b` has others, all are read. The message names the output, the place and size of the largest
    difference, and shows how the texts differ. Raises CannotRun where `a` accepts no small input.
    """
    graphs = [module.graph if isinstance(module, Module) else module for module in (a, b)]
    before, after = graphs
    _require_one_interface(before, after, outputs, dtypes=exactness != "lossy")
    if exactness == "lossy":
        return Difference()
    names = tuple(before.outputs) if outputs is None else tuple(outputs)
    allowed = max(_rounding(before), _rounding(after), rtol if exactness == "close" else 0.0)
    worst = Difference()
    for circumstances, expected, found in _runs(before, after, names, seeds):
        for name in names:
            apart = difference(expected[name], found[name], f"output '{name}'")
            if apart.largest > allowed * _largest(expected[name]) + atol:
                raise AssertionError(
                    f"output '{name}' differs with {circumstances}: {apart}, allowed is {allowed:g}\n"
                    f"{_worst_element(expected[name], found[name])}{_text_difference(before, after)}"
                )
            worst = max(worst, apart, key=lambda d: d.relative)
    return worst


def assert_preserves(
    pipeline: str | Pass | Sequence[Pass],
    module: Module,
    *,
    targets: Sequence[str] = (),
    outputs: Sequence[str] | None = None,
    atol: float = 0.0,
    seeds: Sequence[int] = (0, 1),
) -> Module:
    """Run `pipeline` on a copy of `module`; raise AssertionError unless the result keeps what its passes promise.

    The result must be valid, its text must read back as itself, and its outputs must be those of `module`: as exactly
    as the loosest pass declares (see `assert_equivalent`). Returns it. Raises InputError where a pass refuses the
    module, IRError where a pass breaks it.
    """
    from ..api import parse, run
    from ..schedule import build_pipeline

    text = str(module)
    passes = build_pipeline(pipeline)
    result = run(module, passes, targets=targets)
    name = ",".join(map(str, passes))
    assert str(module) == text, f"{name} changed the module that it was given a copy of"
    printed = str(result)
    assert str(parse(printed, module.directory)) == printed, f"the text after {name} does not read back as itself"
    promised = {step.exactness for step in passes}
    exactness: Exactness = next((loosest for loosest in _LOOSEST_FIRST if loosest in promised), "exact")
    rtol = sum(step.rtol for step in passes)
    assert_equivalent(module, result, exactness=exactness, rtol=rtol, atol=atol, outputs=outputs, seeds=seeds)
    return result


def _require_one_interface(before: Graph, after: Graph, outputs: Sequence[str] | None, dtypes: bool) -> None:
    old, new = before.outputs, after.outputs
    if outputs is None:
        inputs = [{value.name or "": value for value in graph.inputs} for graph in (before, after)]
        _require_alike("inputs", inputs[0], inputs[1], dtypes)
    else:
        for values, which in ((old, "first"), (new, "second")):
            missing = [name for name in outputs if name not in values]
            assert not missing, f"the {which} graph has no output '{missing[0]}'; it has {', '.join(values)}"
        old, new = ({name: values[name] for name in outputs} for values in (old, new))
    _require_alike("outputs", old, new, dtypes)


def _require_alike(what: str, old: Mapping[str, Value], new: Mapping[str, Value], dtypes: bool) -> None:
    said = [", ".join(f"{name}: {value.type}" for name, value in values.items()) for values in (old, new)]
    parts = [[(n, v.type.shape, v.type.dtype if dtypes else None) for n, v in values.items()] for values in (old, new)]
    assert parts[0] == parts[1], f"the {what} differ: {said[0]} became {said[1]}"


def _rounding(graph: Graph) -> float:
    values = [*graph.inputs, *(result for op in graph.ops() for result in op.results)]
    return max((ROUNDING.get(value.type.dtype, 0.0) for value in values), default=0.0)


def _runs(
    before: Graph, after: Graph, names: Sequence[str], seeds: Sequence[int]
) -> Iterator[tuple[str, Results, Results]]:
    """What both give, with a text that says on which inputs; numbers of both signs first, then positive ones."""
    from ..decoder import with_defaults
    from ..interp import Program
    from ..probe import probe, small_sizes

    reason, ran = "", False
    for scale in (*SCALES, LAST_RESORT):
        if ran and scale == LAST_RESORT:
            return
        sizes = small_sizes(before, scale)
        for seed in seeds:
            weights = _weights(before, after, seed)
            first = Program(before, outputs=names, weights=weights)
            second = Program(after, outputs=names, weights=weights, checked=True)
            for positive in (False, True):
                free = _free_inputs(before, after)
                given = probe(free, sizes, seed, positive=positive)
                try:
                    expected = first(with_defaults(before, given), sizes.known)
                except InputError as error:
                    reason = error.message
                    continue
                ran = True
                try:
                    found = second(with_defaults(after, given), sizes.known)
                except InputError as error:
                    raise AssertionError(f"the second graph cannot be run: {error}") from error
                signs = "positive inputs" if positive else "inputs"
                yield f"{signs} of seed {seed} at {sizes}", expected, found
                if all(not t.is_floating_point() or bool(t.isfinite().all()) for t in expected.values()):
                    break
    if not ran:
        raise CannotRun(f"the first graph cannot be run on small inputs: {reason}")


def _free_inputs(before: Graph, after: Graph) -> list[Value]:
    """The inputs to draw: those of both. What only one has is a cache, a mask or positions, and has a default."""
    names = {value.name for value in after.inputs}
    return [value for value in before.inputs if value.name in names]


def _weights(before: Graph, after: Graph, seed: int) -> Mapping[str, torch.Tensor]:
    from ..probe import stand_ins

    old, new = before.weights(), after.weights()
    if any(old.get(name) != symbol for name, symbol in new.items()):
        return {}
    return stand_ins([symbol for symbol in old.values() if symbol.type.encoding is None], seed)


def _largest(tensor: torch.Tensor) -> float:
    import torch

    if not tensor.numel():
        return 0.0
    numbers = tensor.double()
    return float(torch.where(numbers.isfinite(), numbers.abs(), 0.0).max().item())


def _worst_element(expected: torch.Tensor, found: torch.Tensor) -> str:
    import torch

    if expected.shape != found.shape or expected.dtype != found.dtype:
        return f"  {list(expected.shape)} of {expected.dtype} became {list(found.shape)} of {found.dtype}\n"
    a, b = expected.double(), found.double()
    same = (a == b) | (a.isnan() & b.isnan())
    apart = torch.where(same, 0.0, (a - b).abs().nan_to_num(nan=float("inf")))
    index = [int(i) for i in torch.unravel_index(apart.argmax(), apart.shape)]
    place = tuple(index)
    different = int((~same).sum())
    return f"  at {index}: {a[place]:.6g} became {b[place]:.6g}; {different} of {a.numel()} numbers differ\n"


def _text_difference(before: Graph, after: Graph) -> str:
    from ..text import print_graph

    old, new = (print_graph(graph).splitlines() for graph in (before, after))
    lines = list(difflib.unified_diff(old, new, "before", "after", lineterm="", n=2))
    if len(lines) > SHOWN_LINES:
        lines = [*lines[:SHOWN_LINES], f"... and {len(lines) - SHOWN_LINES} lines more"]
    return "\n".join(lines) or "the texts are the same"
