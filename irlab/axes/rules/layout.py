"""Axes through ops that move elements: reshapes, slices, concatenations, gathers."""

from __future__ import annotations

from collections.abc import Sequence

from ...dims import Dim, Size, floordiv, mod, product
from ...ops import prim
from ..axis import Axis, fix, product_of, sum_of, unify
from .base import INDEXED, At, Axes, broadcast, fresh, rule, with_axis


@rule(prim.Reshape)
def _reshape(op: prim.Reshape, at: At) -> list[Axes]:
    """Runs of axes with equal products are one axis, taken apart in two ways."""
    given, made = list(at(op.x)), list(fresh(op.shape))
    left, right = given[::-1], made[::-1]
    while left or right:
        a, b = [left.pop()] if left else [], [right.pop()] if right else []
        while (sizes := (_total(a), _total(b)))[0] != sizes[1]:
            # The side whose product divides the other is behind; symbols may leave that open until both have grown.
            behind_left = bool(left) and (not right or _is_multiple(sizes[1], sizes[0]) or _smaller(*sizes))
            if behind_left:
                a.append(left.pop())
            elif right:
                b.append(right.pop())
            else:
                break
        if sizes[0] == sizes[1]:
            unify(product_of(a), product_of(b))
        else:
            for axis in (*a, *b):
                fix(axis, "reshaped with sizes that are not known")
    return [tuple(made)]


def _total(axes: Sequence[Axis]) -> Size:
    return product(tuple(axis.size for axis in axes))


def _is_multiple(a: Size, b: Size) -> bool:
    return b != 0 and a != b and mod(a, b) == 0


def _smaller(a: Size, b: Size) -> bool:
    return isinstance(a, int) and isinstance(b, int) and a < b


@rule(prim.Transpose)
def _transpose(op: prim.Transpose, at: At) -> list[Axes]:
    axes = at(op.x)
    return [tuple(axes[p] for p in op.perm)]


@rule(prim.Expand)
def _expand(op: prim.Expand, at: At) -> list[Axes]:
    return [broadcast(op.shape, [at(op.x)])]


def _cut(axis: Axis, sizes: Sequence[Size]) -> list[Axis]:
    """`axis` as a sum of pieces of these sizes."""
    pieces = [Axis(size) for size in sizes]
    filled = [piece for piece in pieces if piece.size != 0]
    if len(filled) == 1:
        unify(axis, filled[0])
    elif any(isinstance(size, Dim) for size in (*sizes, axis.size)):
        fix(axis, f"cut into {', '.join(map(str, sizes))}")
    elif filled:
        unify(axis, sum_of(filled))
    return pieces


@rule(prim.Slice)
def _slice(op: prim.Slice, at: At) -> list[Axes]:
    axes = at(op.x)
    axis, start, stop, step = axes[op.axis], op.start, op.stop, op.step
    size = op.results[0].type.shape[op.axis]
    if step == 1:
        _, taken, _ = _cut(axis, [start, stop - start, axis.size - stop])
    elif isinstance(axis.size, int) and isinstance(start, int) and size == floordiv(axis.size, step) and start < step:
        # Every step-th index: pairs of interleaved rope.
        taken, pair = Axis(size), Axis(step)
        unify(axis, product_of((taken, pair)))
        fix(pair, f"each {step}th index is taken")
    else:
        taken = Axis(size)
        for part in (axis, taken):
            fix(part, f"each {step}th index is taken from {start} on")
    return [with_axis(axes, op.axis, taken)]


@rule(prim.Split)
def _split(op: prim.Split, at: At) -> list[Axes]:
    axes = at(op.x)
    return [with_axis(axes, op.axis, piece) for piece in _cut(axes[op.axis], op.sizes)]


@rule(prim.Concat)
def _concat(op: prim.Concat, at: At) -> list[Axes]:
    operands = [at(x) for x in op.xs]
    joined = sum_of([axes[op.axis] for axes in operands])
    rest = [with_axis(axes, op.axis, joined) for axes in operands]
    return [broadcast(op.results[0].type.shape, rest)]


@rule(prim.Pad)
def _pad(op: prim.Pad, at: At) -> list[Axes]:
    out = []
    for low, axis, high in zip(op.low, at(op.x), op.high):
        margins = [Axis(size) for size in (low, high)]
        for margin in margins:
            fix(margin, "padding")
        out.append(sum_of([margins[0], axis, margins[1]]))
    return [tuple(out)]


@rule(prim.Gather)
def _gather(op: prim.Gather, at: At) -> list[Axes]:
    axes, position = at(op.x), len(at(op.x)) + op.axis
    fix(axes[position], INDEXED)
    return [(*axes[:position], *at(op.indices), *axes[position + 1 :])]


@rule(prim.GatherElements, prim.Scatter)
def _indexed_along(op: prim.GatherElements | prim.Scatter, at: At) -> list[Axes]:
    """Along the axis indices count; off it, sizes that are equal are one."""
    x, indices = at(op.x), at(op.indices)
    fix(x[op.axis], INDEXED)
    fix(indices[op.axis], INDEXED)
    for i, (a, b) in enumerate(zip(x, indices)):
        if i - len(x) != op.axis and a.size == b.size:
            unify(a, b)
    if isinstance(op, prim.GatherElements):
        return [indices]
    for a, b in zip(indices, at(op.updates)):
        unify(a, b)
    return [x]
