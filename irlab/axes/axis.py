"""Which sizes are one and the same? Axes as trees over indivisible ones, unified as ops equate them.

An axis is whole, or a product of axes (row-major: heads * head_dim), or a sum of axes (concatenated: q + k + v). What
it is made of turns up as ops take it apart: `unify` equates two axes and refines both as far as it must, as terms are
unified in type inference. Axes that are equated move together: leaving out an index of one leaves it out of all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, Literal

from ..dims import Dim, Size, floordiv, mod, product

Form = Literal["whole", "product", "sum"]

_MOST_COPIES: Final = 64
"""A product is written as a sum of equal parts up to so many: pairs of rope, q k v, gate and up."""


class Axis:
    """One axis, shared by all values that have it. `size` may be symbolic.

    `fixed` says why its size cannot change and `mixed` why its indices depend on each other (a norm goes over them);
    `marks` are what ops make of it ("heads", "activated"). All three: of it as a whole, and so of each part.
    """

    __slots__ = ("_target", "fixed", "form", "marks", "mixed", "parts", "size")

    def __init__(self, size: Size, form: Form = "whole", parts: Sequence[Axis] = ()) -> None:
        self.size = size
        self.form = form
        self.parts = tuple(parts)
        self.fixed: dict[str, None] = {}
        self.mixed: dict[str, None] = {}
        self.marks: dict[str, None] = {}
        self._target: Axis | None = None

    def find(self) -> Axis:
        """The axis that stands for all that were equated with this one."""
        root = self
        while root._target is not None:
            root = root._target
        while self._target is not None:
            self._target, self = root, self._target
        return root

    def __repr__(self) -> str:
        root = self.find()
        sign = {"product": " * ", "sum": " + "}.get(root.form)
        return f"({sign.join(map(repr, root.parts))})" if sign else str(root.size)


def product_of(parts: Sequence[Axis]) -> Axis:
    """The axis of all combinations of indices, the first part outermost."""
    # A product with a part of size 1 would be as large as its other part, and could be equated with it: a cycle.
    wide = [part for part in parts if part.size != 1]
    if len(wide) < 2:
        return wide[0] if wide else Axis(1)
    return Axis(product(tuple(part.size for part in wide)), "product", wide)


def sum_of(parts: Sequence[Axis]) -> Axis:
    """The axis of the indices of all `parts`, one after the other."""
    filled = [part for part in parts if part.size != 0]
    if len(filled) < 2:
        return filled[0] if filled else Axis(0)
    total: Size = 0
    for part in filled:
        total = total + part.size
    return Axis(total, "sum", filled)


def factors(axis: Axis) -> list[Axis]:
    """The axes whose product `axis` is, as far as known; those of size 1 are left out."""
    axis = axis.find()
    if axis.form != "product":
        return [] if axis.size == 1 else [axis]
    return [factor for part in axis.parts for factor in factors(part)]


def terms(axis: Axis) -> list[Axis]:
    """The axes whose sum `axis` is, as far as known; empty ones are left out."""
    axis = axis.find()
    if axis.form != "sum":
        return [] if axis.size == 0 else [axis]
    return [term for part in axis.parts for term in terms(part)]


def leaves(axis: Axis) -> list[Axis]:
    """The indivisible axes of `axis`, in order, each as often as it occurs."""
    axis = axis.find()
    return [axis] if axis.form == "whole" else [leaf for part in axis.parts for leaf in leaves(part)]


def fix(axis: Axis, why: str) -> None:
    """Say that the size of `axis` cannot change."""
    axis.find().fixed[why] = None


def mix(axis: Axis, why: str) -> None:
    """Say that the indices of `axis` depend on each other."""
    axis.find().mixed[why] = None


def mark(axis: Axis, what: str) -> None:
    """Say what `axis` is used for."""
    axis.find().marks[what] = None


def unify(a: Axis, b: Axis) -> None:
    """Equate two axes of equal size. What cannot be equated part by part is fixed."""
    a, b = a.find(), b.find()
    if a is b:
        return
    if a.form == "whole":
        _link(a, b)
    elif b.form == "whole":
        _link(b, a)
    else:
        if a.form == b.form:
            (_align_products if a.form == "product" else _align_sums)(a, b)
        elif a.form == "product":
            _align_product_with_sum(a, b)
        else:
            _align_product_with_sum(b, a)
        _link(a.find(), b.find())


def _link(a: Axis, b: Axis) -> None:
    if a is not b:
        a._target = b
        b.fixed |= a.fixed
        b.mixed |= a.mixed
        b.marks |= a.marks
        if a.form != "whole" and b.form == "whole":  # a was refined meanwhile
            b.form, b.parts = a.form, a.parts


def _align_products(a: Axis, b: Axis) -> None:
    left, right = factors(a)[::-1], factors(b)[::-1]
    while left and right:
        x, y = left.pop(), right.pop()
        if x.size == y.size:
            unify(x, y)
        elif _divides(y.size, x.size):
            outer, inner = _split(x, y.size)
            unify(outer, y)
            left.append(inner)
        elif _divides(x.size, y.size):
            outer, inner = _split(y, x.size)
            unify(x, outer)
            right.append(inner)
        else:
            for axis in (x, y, *left, *right):
                fix(axis, f"sizes {x.size} and {y.size} are reshaped into each other")
            return


def _divides(a: Size, b: Size) -> bool:
    return a != 0 and mod(b, a) == 0


def _split(axis: Axis, outer: Size) -> tuple[Axis, Axis]:
    """`axis` as a product of `outer` and the rest."""
    pair = (Axis(outer), Axis(floordiv(axis.size, outer)))
    unify(axis, Axis(axis.size, "product", pair))
    return pair


def _align_sums(a: Axis, b: Axis) -> None:
    left, right = terms(a)[::-1], terms(b)[::-1]
    while left and right:
        x, y = left.pop(), right.pop()
        if x.size == y.size:
            unify(x, y)
        elif isinstance(x.size, Dim) or isinstance(y.size, Dim):
            for axis in (x, y, *left, *right):
                fix(axis, f"cut at {x.size} and at {y.size}")
            return
        elif x.size > y.size:
            first, rest = _cut(x, y.size)
            unify(first, y)
            left.append(rest)
        else:
            first, rest = _cut(y, x.size)
            unify(x, first)
            right.append(rest)


def _cut(axis: Axis, first: int) -> tuple[Axis, Axis]:
    """`axis` as a sum of `first` and the rest."""
    pair = (Axis(first), Axis(axis.size - first))
    unify(axis, Axis(axis.size, "sum", pair))
    return pair


def _align_product_with_sum(a: Axis, b: Axis) -> None:
    """a = f * rest with b = s1 + s2 + ...: where the cuts fall between indices of f, f = f1 + f2 + ... and si = fi *
    rest; where they fall inside of rest, a is the sum of `f` times rest."""
    outer, *rest = factors(a)
    inner = product(tuple(factor.size for factor in rest))
    sizes = [term.size for term in terms(b)]
    if all(_divides(inner, size) for size in sizes):
        pieces = [Axis(floordiv(size, inner)) for size in sizes]
        unify(outer, sum_of(pieces))
        for piece, term in zip(pieces, terms(b)):
            unify(term, product_of([*factors(piece), *rest]))
    elif isinstance(outer.size, int) and outer.size <= _MOST_COPIES and not any(isinstance(s, Dim) for s in sizes):
        unify(outer, sum_of([Axis(1) for _ in range(outer.size)]))
        copies = sum_of([product_of(rest)] * outer.size)
        a.form, a.parts = copies.form, copies.parts
        _align_sums(a, b)
    else:
        for axis in (*factors(a), *terms(b)):
            fix(axis, f"cut into {', '.join(map(str, sizes))} inside of a product")


def new_size(axis: Axis, sizes: Mapping[Axis, int]) -> Size:
    """The size of `axis` when the indivisible axes in `sizes` have those."""
    axis = axis.find()
    if axis.form == "whole":
        return sizes.get(axis, axis.size)
    parts = [new_size(part, sizes) for part in axis.parts]
    return math.prod(parts) if axis.form == "product" else sum(parts[1:], parts[0])
