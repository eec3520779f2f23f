"""ATen's composite neural-network ops that are ops of the nn dialect, or short expressions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from irlab.ir import Value
from irlab.ops import nn, prim
from irlab.types import DType, Shape, bool_

if TYPE_CHECKING:
    from irlab.frontends.torch.lower import Lowered, Lowering, Site


def _embedding(site: Site, weight: Value, ids: Value, *_: object, **__: object) -> Lowered:
    return nn.embedding(ids, weight)


def _layer_norm(
    site: Site,
    x: Value,
    shape: Shape,
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    *_: object,
) -> Lowered:
    return nn.layer_norm(x, weight, bias, eps) if len(shape) == 1 else None


def _native_layer_norm(
    site: Site, x: Value, shape: Shape, weight: Value | None, bias: Value | None, eps: float
) -> Lowered:
    if any(user.args[1] != 0 for user in site.node.users):
        return None  # mean and rstd are wanted too
    normed = _layer_norm(site, x, shape, weight, bias, eps)
    return (normed,) if isinstance(normed, Value) else None


def _rms_norm(site: Site, x: Value, shape: Shape, weight: Value | None = None, eps: float | None = None) -> Lowered:
    if len(shape) != 1:
        return None
    smallest = {"f64": 2.0**-52, "f32": 2.0**-23}  # torch takes the epsilon of the dtype it computes in
    return nn.rms_norm(x, weight, smallest.get(x.type.dtype.name, 2.0**-23) if eps is None else eps)


def _softmax(site: Site, x: Value, dim: int, dtype: DType | bool | None = None) -> Lowered:
    return _softmax_along(site.cast(x), dim)


def _log_softmax(site: Site, x: Value, dim: int, dtype: DType | bool | None = None) -> Lowered:
    x = site.cast(x)
    shifted = prim.sub(x, prim.max(x, (dim,)))
    return prim.sub(shifted, prim.log(prim.sum(prim.exp(shifted), (dim,))))


def _softmax_along(x: Value, dim: int) -> Value:
    rank = x.type.rank
    if rank == 0:
        return prim.constant(1, x.type.dtype)
    if dim % rank == rank - 1:
        return nn.softmax(x)
    order = list(range(rank))
    order[dim], order[-1] = order[-1], order[dim]
    return prim.transpose(nn.softmax(prim.transpose(x, tuple(order))), tuple(order))


def _attention(
    site: Site,
    q: Value,
    k: Value,
    v: Value,
    attn_mask: Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Lowered:
    if q.type.rank != 4:
        return None
    width = q.type.shape[-1]
    if scale is None and not isinstance(width, int):
        return None
    # torch counts causal positions from the front, nn.attention from the back: the same where lengths are equal.
    if is_causal and q.type.shape[2] != k.type.shape[2]:
        return None
    if attn_mask is not None and attn_mask.type.dtype is not bool_:
        attn_mask = site.cast(attn_mask)
    factor = scale if scale is not None else width**-0.5  # type: ignore[operator]
    return nn.attention(q, k, v, attn_mask, causal=is_causal, scale=factor)


def _gelu(site: Site, x: Value, *, approximate: str = "none") -> Lowered:
    return nn.gelu(x, approximate)


def _silu(site: Site, x: Value) -> Lowered:
    return nn.silu(x)


def _batch_norm(
    site: Site,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value | None,
    running_var: Value | None,
    training: bool,
    momentum: float,
    eps: float,
    *_: object,
) -> Lowered:
    """In evaluation: (x - mean) * rsqrt(variance + eps) * weight + bias, each one number per channel."""
    if training or running_mean is None or running_var is None:
        return None
    channels = (x.type.shape[1], *(1,) * (x.type.rank - 2))

    def column(v: Value) -> Value:
        return prim.reshape(site.cast(v), channels)

    factor = prim.rsqrt(prim.add(column(running_var), site.value(eps)))
    out = prim.mul(prim.sub(x, column(running_mean)), factor)
    out = out if weight is None else prim.mul(out, column(weight))
    return out if bias is None else prim.add(out, column(bias))


def _native_batch_norm(
    site: Site,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value,
    running_var: Value,
    momentum: float,
    eps: float,
) -> Lowered:
    if any(user.args[1] != 0 for user in site.node.users):
        return None
    normed = _batch_norm(site, x, weight, bias, running_mean, running_var, False, momentum, eps)
    return (normed,) if isinstance(normed, Value) else None


def _group_norm(
    site: Site,
    x: Value,
    groups: int,
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    *_: object,
) -> Lowered:
    shape = x.type.shape
    inner = prim.reshape(x, (shape[0], groups, x.type.size // (shape[0] * groups)))
    out = prim.reshape(nn.layer_norm(inner, eps=eps), shape)
    channels = (shape[1], *(1,) * (x.type.rank - 2))
    out = out if weight is None else prim.mul(out, prim.reshape(weight, channels))
    return out if bias is None else prim.add(out, prim.reshape(bias, channels))


TABLE: dict[str, Lowering] = {
    "aten.embedding": _embedding,
    "aten.layer_norm": _layer_norm,
    "aten.native_layer_norm": _native_layer_norm,
    "aten.rms_norm": _rms_norm,
    **dict.fromkeys(("aten.softmax", "aten._softmax"), _softmax),
    **dict.fromkeys(("aten.log_softmax", "aten._log_softmax"), _log_softmax),
    "aten.scaled_dot_product_attention": _attention,
    "aten.gelu": _gelu,
    "aten.silu": _silu,
    "aten.batch_norm": _batch_norm,
    "aten._native_batch_norm_legit_no_training": _native_batch_norm,
    "aten.group_norm": _group_norm,
}
