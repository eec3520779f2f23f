"""ATen ops that make tensors out of numbers: ranges and fills."""

from __future__ import annotations

from typing import TYPE_CHECKING

from irlab.dims import Dim
from irlab.ir import Value
from irlab.ops import prim

if TYPE_CHECKING:
    from irlab.frontends.torch.lower import Lowered, Lowering, Site


def _arange(site: Site, *bounds: object, dtype: object = None) -> Lowered:
    """arange(end), arange(start, end), arange(start, end, step)."""
    start, _, step = (0, *bounds, 1) if len(bounds) == 1 else (*bounds, 1)[:3]
    exact = isinstance(start, (int, Dim)) and isinstance(step, int) and not isinstance(step, bool)
    if not exact:
        return None
    return prim.iota(site.type.shape[0], site.type.dtype, start, step)  # type: ignore[arg-type]


def _filled(site: Site, number: object) -> Lowered:
    if isinstance(number, (bool, int, float)):
        return prim.constant(number, site.type.dtype, site.type.shape)
    return prim.expand(site.value(number), site.type.shape)


def _fill_with(number: int) -> Lowering:
    def lower(site: Site, *_: object, **__: object) -> Lowered:
        return _filled(site, number)

    return lower


def _full(site: Site, _: object, number: object, **__: object) -> Lowered:
    """full(size, number), full_like(x, number), fill(x, number)."""
    return _filled(site, number)


def _new_full(site: Site, _: Value, __: object, number: object, **___: object) -> Lowered:
    return _filled(site, number)


def _scalar_tensor(site: Site, number: object, **_: object) -> Lowered:
    return _filled(site, number)


TABLE: dict[str, Lowering] = {
    "aten.arange": _arange,
    "aten.full": _full,
    "aten.full_like": _full,
    "aten.fill": _full,
    "aten.new_full": _new_full,
    "aten.scalar_tensor": _scalar_tensor,
    **dict.fromkeys(("aten.ones", "aten.ones_like", "aten.new_ones"), _fill_with(1)),
    **dict.fromkeys(("aten.zeros", "aten.zeros_like", "aten.new_zeros", "aten.zero"), _fill_with(0)),
    # What is in fresh memory is unspecified, so zeros are as good as anything.
    **dict.fromkeys(("aten.empty", "aten.empty_like", "aten.new_empty"), _fill_with(0)),
}
