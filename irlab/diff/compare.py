"""How far tensors, and the outputs of two graphs, lie apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ..errors import CheckError
from ..ir import Graph, Module
from ..types import DType, bf16, f16, f32, f64

if TYPE_CHECKING:
    import torch


ROUNDING: Final[dict[DType, float]] = {f64: 1e-9, f32: 1e-4, f16: 1e-2, bf16: 6e-2}
"""How far results may lie apart for rounding alone, relative to the largest number. Integers must be equal."""


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
    from ..interp import evaluate

    graphs = [module.graph if isinstance(module, Module) else module for module in (before, after)]
    names = [name for name in graphs[0].outputs if name in graphs[1].outputs]
    if not names:
        raise CheckError("the two graphs share no output")
    results = [evaluate(graph, accepted(graph, inputs), outputs=names, device=device) for graph in graphs]
    worst = Difference()
    for name in names:
        found = difference(results[0][name], results[1][name], f"output '{name}'")
        require_within(found, graphs[0].outputs[name].type.dtype, rtol)
        worst = max(worst, found, key=lambda d: d.relative)
    return worst


def accepted(graph: Graph, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `inputs` that `graph` has."""
    names = {value.name for value in graph.inputs}
    return {name: given for name, given in inputs.items() if name in names}


def require_within(found: Difference, dtype: DType, rtol: float) -> None:
    """Raise CheckError where a difference exceeds `rtol` and the rounding of `dtype`."""
    allowed = max(rtol, ROUNDING.get(dtype, 0.0))
    if found.relative > allowed:
        raise CheckError(f"{found.where} changed: {found}, allowed is {allowed:g}")
