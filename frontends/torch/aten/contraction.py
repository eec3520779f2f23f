"""ATen ops that multiply matrices, convolve or pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

from irlab.ir import Value
from irlab.ops import nn, prim

if TYPE_CHECKING:
    from irlab.frontends.torch.lower import Lowered, Lowering, Site


def _linear(site: Site, x: Value, weight: Value, bias: Value | None = None) -> Lowered:
    return nn.linear(x, weight, bias)


def _matmul(site: Site, x: Value, y: Value) -> Lowered:
    """torch.matmul: a vector on the left is a row, on the right a column."""
    left = prim.reshape(x, (1, *x.type.shape)) if x.type.rank == 1 else x
    right = prim.reshape(y, (*y.type.shape, 1)) if y.type.rank == 1 else y
    product = prim.matmul(left, right)
    return product if (left, right) == (x, y) else prim.reshape(product, site.type.shape)


def _addmm(site: Site, bias: Value, x: Value, y: Value, *, beta: float = 1, alpha: float = 1) -> Lowered:
    product = prim.matmul(x, y)
    if alpha != 1:
        product = prim.mul(product, site.value(alpha))
    return prim.add(bias if beta == 1 else prim.mul(bias, site.value(beta)), product)


def _spatial(amounts: int | tuple[int, ...], rank: int) -> tuple[int, ...]:
    """One amount per spatial dimension; torch takes one for all."""
    values = (amounts,) if isinstance(amounts, int) else tuple(amounts)
    return values * (rank - 2) if len(values) == 1 else values


def _conv(
    site: Site,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | str | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Lowered:
    rank = weight.type.rank
    spread = _spatial(dilation, rank)
    if padding == "same":
        kernel = weight.type.shape[2:]
        whole = [(k - 1) * d for k, d in zip(kernel, spread) if isinstance(k, int)]
        if any(amount % 2 for amount in whole):
            return None
        padding = tuple([amount // 2 for amount in whole])
    elif padding == "valid":
        padding = 0
    if isinstance(padding, str) or x.type.rank != rank:
        return None
    return prim.conv(x, weight, bias, _spatial(stride, rank), _spatial(padding, rank), spread, groups)


def _convolution(
    site: Site,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    transposed: bool,
    output_padding: tuple[int, ...],
    groups: int,
) -> Lowered:
    return None if transposed else _conv(site, x, weight, bias, stride, padding, dilation, groups)


def _max_pool(
    site: Site,
    x: Value,
    kernel_size: int | tuple[int, ...],
    stride: int | tuple[int, ...] = (),
    padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    ceil_mode: bool = False,
) -> Lowered:
    if ceil_mode or (len(site.types) > 1 and len(_used(site)) > 1):
        return None
    rank = x.type.rank
    kernel = _spatial(kernel_size, rank)
    step = _spatial(stride, rank) or kernel
    return prim.max_pool(x, kernel, step, _spatial(padding, rank), _spatial(dilation, rank))


def _used(site: Site) -> set[object]:
    return {user.args[1] for user in site.node.users}


def _avg_pool(
    site: Site,
    x: Value,
    kernel_size: int | tuple[int, ...],
    stride: int | tuple[int, ...] = (),
    padding: int | tuple[int, ...] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Lowered:
    if ceil_mode or divisor_override is not None:
        return None
    rank = x.type.rank
    kernel = _spatial(kernel_size, rank)
    return prim.avg_pool(x, kernel, _spatial(stride, rank) or kernel, _spatial(padding, rank), count_include_pad)


def _adaptive_avg_pool(site: Site, x: Value, output_size: int | tuple[int, ...]) -> Lowered:
    """To size 1 it is a mean; to a divisor of the size, a pool of equal windows."""
    wanted = _spatial(output_size, x.type.rank)
    spatial = x.type.shape[2:]
    if all(n == 1 for n in wanted):
        return prim.mean(x, tuple(range(2, x.type.rank)))
    windows = [n // w for n, w in zip(spatial, wanted) if isinstance(n, int) and n % w == 0]
    if len(windows) != len(wanted):
        return None
    return prim.avg_pool(x, tuple(windows), tuple(windows), (0,) * len(windows))


TABLE: dict[str, Lowering] = {
    "aten.linear": _linear,
    **dict.fromkeys(("aten.matmul", "aten.mm", "aten.bmm", "aten.mv", "aten.dot"), _matmul),
    **dict.fromkeys(("aten.addmm", "aten.baddbmm"), _addmm),
    **dict.fromkeys(("aten.conv1d", "aten.conv2d", "aten.conv3d"), _conv),
    "aten.convolution": _convolution,
    **dict.fromkeys(("aten.max_pool1d", "aten.max_pool2d", "aten.max_pool3d"), _max_pool),
    **dict.fromkeys(("aten.avg_pool1d", "aten.avg_pool2d", "aten.avg_pool3d"), _avg_pool),
    **dict.fromkeys(
        ("aten.adaptive_avg_pool1d", "aten.adaptive_avg_pool2d", "aten.adaptive_avg_pool3d"), _adaptive_avg_pool
    ),
}
