"""ATen ops that reduce, scan or rank along axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from irlab import dims
from irlab.dims import Dim, Size
from irlab.ir import Value
from irlab.ops import prim
from irlab.types import DType, bool_

if TYPE_CHECKING:
    from irlab.frontends.torch.lower import Lowered, Lowering, Site


def _axes(x: Value, dim: int | tuple[int, ...] | None) -> tuple[int, ...]:
    """The axes that `dim` means: torch takes none for all."""
    if dim is None or dim == ():
        return tuple(range(x.type.rank))
    return (dim,) if isinstance(dim, int) else dim


def _reduction(build: Callable[..., Value]) -> Lowering:
    def lower(
        site: Site,
        x: Value,
        dim: int | tuple[int, ...] | None = None,
        keepdim: bool = False,
        *,
        dtype: DType | None = None,
    ) -> Lowered:
        x = site.cast(x)
        return build(x, _axes(x, dim), keepdim) if x.type.rank else x

    return lower


def _extreme(build: Callable[..., Value]) -> Lowering:
    """max(x), and amax(x, dims)."""

    def lower(site: Site, x: Value, dim: int | tuple[int, ...] = (), keepdim: bool = False) -> Lowered:
        return build(x, _axes(x, dim), keepdim) if x.type.rank else x

    return lower


def _truth(build: Callable[..., Value]) -> Lowering:
    reduce = _extreme(build)

    def lower(site: Site, x: Value, dim: int | tuple[int, ...] = (), keepdim: bool = False) -> Lowered:
        return reduce(site, site.cast(x, bool_), dim, keepdim)

    return lower


def _max_with_index(site: Site, x: Value, dim: int, keepdim: bool = False) -> Lowered:
    return prim.max(x, (dim,), keepdim), prim.argmax(x, dim, keepdim)


def _argmax(site: Site, x: Value, dim: int | None = None, keepdim: bool = False) -> Lowered:
    if dim is None:
        return prim.reshape(prim.argmax(prim.reshape(x, (x.type.size,)), 0), site.type.shape)
    return prim.argmax(x, dim, keepdim)


def _argmin(site: Site, x: Value, dim: int | None = None, keepdim: bool = False) -> Lowered:
    return _argmax(site, prim.neg(x), dim, keepdim) if x.type.dtype.is_float else None


def _cumsum(site: Site, x: Value, dim: int, *, dtype: DType | None = None) -> Lowered:
    return prim.cumsum(site.cast(x), dim)


def _topk(site: Site, x: Value, k: Size, dim: int = -1, largest: bool = True, sorted: bool = True) -> Lowered:
    return tuple(prim.topk(x, k, dim)) if largest else None


def _count(x: Value, axes: tuple[int, ...]) -> Size:
    return dims.product(tuple([x.type.shape[a] for a in axes]))


def _variance(
    site: Site, x: Value, dim: int | tuple[int, ...] | None, correction: object, keepdim: bool
) -> Value | None:
    """The mean of squared deviations, times n / (n - correction)."""
    axes = _axes(x, dim)
    count = _count(x, axes)
    correction = 1 if correction is None else correction
    if not isinstance(correction, (int, float)) or (correction and isinstance(count, Dim)):
        return None
    deviation = prim.sub(x, prim.mean(x, axes))
    variance = prim.mean(prim.mul(deviation, deviation), axes, keepdim)
    if not correction:
        return variance
    assert isinstance(count, int)
    if count <= correction:
        return None
    return prim.mul(variance, prim.constant(count / (count - correction), x.type.dtype))


def _var_correction(
    site: Site,
    x: Value,
    dim: int | tuple[int, ...] | None = None,
    *,
    correction: object = None,
    keepdim: bool = False,
) -> Lowered:
    return _variance(site, x, dim, correction, keepdim)


def _var_unbiased(
    site: Site, x: Value, dim: int | tuple[int, ...], unbiased: bool = True, keepdim: bool = False
) -> Lowered:
    return _variance(site, x, dim, int(unbiased), keepdim)


def _std(variance: Lowering) -> Lowering:
    def lower(site: Site, *args: object, **kwargs: object) -> Lowered:
        found = variance(site, *args, **kwargs)
        return prim.sqrt(found) if isinstance(found, Value) else None

    return lower


def _var_mean(
    site: Site,
    x: Value,
    dim: int | tuple[int, ...] | None = None,
    *,
    correction: object = None,
    keepdim: bool = False,
) -> Lowered:
    variance = _variance(site, x, dim, correction, keepdim)
    return None if variance is None else (variance, prim.mean(x, _axes(x, dim), keepdim))


def _vector_norm(
    site: Site,
    x: Value,
    ord: object = 2,
    dim: int | tuple[int, ...] | None = None,
    keepdim: bool = False,
    *,
    dtype: DType | None = None,
) -> Lowered:
    x = site.cast(x)
    axes = _axes(x, dim)
    if ord == 2:
        return prim.sqrt(prim.sum(prim.mul(x, x), axes, keepdim))
    return prim.sum(prim.abs(x), axes, keepdim) if ord == 1 else None


def _norm(
    site: Site, x: Value, p: object = 2, dim: int | tuple[int, ...] | None = None, keepdim: bool = False
) -> Lowered:
    return _vector_norm(site, x, 2 if p is None else p, dim, keepdim)


def _log_sum_exp(site: Site, x: Value, dim: int | tuple[int, ...], keepdim: bool = False) -> Lowered:
    axes = _axes(x, dim)
    top = prim.max(x, axes)
    total = prim.add(prim.log(prim.sum(prim.exp(prim.sub(x, top)), axes)), top)
    return total if keepdim else prim.reshape(total, site.type.shape)


TABLE: dict[str, Lowering] = {
    "aten.sum": _reduction(prim.sum),
    "aten.mean": _reduction(prim.mean),
    "aten.prod": _reduction(prim.prod),
    "aten.any": _truth(prim.any),
    "aten.all": _truth(prim.all),
    "aten.amax": _extreme(prim.max),
    "aten.amin": _extreme(prim.min),
    "aten.max.default": _extreme(prim.max),
    "aten.min.default": _extreme(prim.min),
    "aten.max.dim": _max_with_index,
    "aten.max.other": lambda site, x, y: prim.maximum(site.value(x), site.value(y)),
    "aten.min.other": lambda site, x, y: prim.minimum(site.value(x), site.value(y)),
    "aten.argmax": _argmax,
    "aten.argmin": _argmin,
    "aten.cumsum": _cumsum,
    "aten.topk": _topk,
    "aten.var.correction": _var_correction,
    "aten.var.dim": _var_unbiased,
    "aten.std.correction": _std(_var_correction),
    "aten.std.dim": _std(_var_unbiased),
    "aten.var_mean.correction": _var_mean,
    "aten.linalg_vector_norm": _vector_norm,
    "aten.norm.ScalarOpt_dim": _norm,
    "aten.logsumexp": _log_sum_exp,
}
