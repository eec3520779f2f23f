"""As what may a weight be stored? Schemes that every target holds natively, and that fit the weight's rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from irlab.encodings import SCHEMES, Encoding, scheme_encoding
from irlab.errors import InputError, UsageError
from irlab.target import Backend

Doubles = npt.NDArray[np.float64]

KEEP: Final = "none"
"""The scheme of a weight that stays as it is."""

GGML_TYPES: Final = (
    "q2_k", "q3_k", "iq4_xs", "iq4_nl", "q4_0", "q4_1", "q4_k", "q5_0", "q5_1", "q5_k", "q6_k", "q8_0", KEEP,
)  # fmt: skip
"""What is chosen from where every target holds all of them. Types that only ggml encodes are not among them, and the
ternary ones are for models that were trained so."""

INTEGERS: Final = ("int2", "int3", "int4", "int5", "int6", "int8", KEEP)
"""What is chosen from elsewhere, as far as every target holds it."""

_GROUPS: Final = (32, 128)
_ZERO_POINT_BITS: Final = 4
"""With more bits zero points bring nothing."""


@dataclass(frozen=True)
class Choice:
    """A scheme with the options that it has; without an encoding, the weight as it is."""

    scheme: str
    options: tuple[tuple[str, Any], ...] = ()
    encoding: Encoding | None = None

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether rows of a weight of this shape are whole blocks."""
        try:
            if self.encoding is not None:
                self.encoding.check_shape(shape)
        except InputError:
            return False
        return True

    @property
    def sort_key(self) -> tuple[float, str]:
        """By bits, on long rows."""
        return (32.0 if self.encoding is None else self.encoding.bits_per_weight(4096), str(self))

    def __str__(self) -> str:
        options = dict(self.options)
        group = f"g{options['group']}" if "group" in options else ""
        sign = "asym" if options.get("sym") is False else ""
        return " ".join(filter(None, [self.scheme, group, sign, str(options.get("scale", ""))]))


def choices(types: Sequence[str], options: dict[str, Any], backends: Sequence[Backend]) -> list[Choice]:
    """What weights may be stored as for all of `backends`, fewest bits first: the schemes `types` (those of the targets
    if there are none), with `options` where they have them. Raises UsageError for what no target holds."""
    named = types or _types(backends)
    found: list[Choice] = []
    for scheme in named:
        held = [choice for choice in _variants(scheme, options) if _holds(choice, backends)]
        if types and not held:
            where = ", ".join(backend.name for backend in backends)
            raise UsageError(f"mixed-precision: types={scheme} is not stored natively by {where}", "leave it out")
        found += held
    if all(choice.encoding is None for choice in found):
        where = ", ".join(backend.name for backend in backends)
        raise UsageError(f"mixed-precision: there is no type that {where} hold in common", "name fewer targets")
    return sorted(found, key=lambda choice: choice.sort_key)


def _types(backends: Sequence[Backend]) -> tuple[str, ...]:
    ggml = [Choice(name, (), scheme_encoding(name)) for name in GGML_TYPES if name != KEEP]
    if backends and all(_holds(choice, backends) for choice in ggml):
        return GGML_TYPES
    return INTEGERS


def _variants(scheme: str, options: dict[str, Any]) -> Iterator[Choice]:
    """A scheme with the options given, or in turn with all that it may be tried with."""
    if scheme == KEEP:
        yield Choice(KEEP)
        return
    tried: dict[str, tuple[Any, ...]] = {}
    if scheme in INTEGERS:
        tried = {"group": _GROUPS, "sym": (True, False) if int(scheme[3:]) <= _ZERO_POINT_BITS else (True,)}
    tried |= {name: (value,) for name, value in options.items() if value is not None}
    able = [name for name in SCHEMES[scheme].defaults if name in tried]
    for values in product(*(tried[name] for name in able)):
        wanted = tuple(zip(able, values))
        yield Choice(scheme, wanted, scheme_encoding(scheme, **dict(wanted)))


def _holds(choice: Choice, backends: Sequence[Backend]) -> bool:
    return choice.encoding is None or all(backend.holds(choice.encoding) for backend in backends)


@dataclass(frozen=True)
class Losses:
    """What each choice costs each weight: f64[choices], infinite where its rows are no whole blocks. `basis` says in
    what: "kl" (nats a token), "output" or "weight" (relative squared errors, weighted by numbers), "size" (a guess)."""

    basis: str
    by_weight: Mapping[str, Doubles]
