"""What each ATen op is in primitives: one table, a family of ops a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from irlab.frontends.torch.aten import contraction, elementwise, layout, literals, nn, reduction

if TYPE_CHECKING:
    from irlab.frontends.torch.lower import Lowering

LOWERINGS: dict[str, Lowering] = {
    **elementwise.TABLE,
    **layout.TABLE,
    **literals.TABLE,
    **reduction.TABLE,
    **contraction.TABLE,
    **nn.TABLE,
}
"""Lowerings by overload ("aten.max.dim") or, for all overloads that have no row of their own, by op ("aten.add")."""
