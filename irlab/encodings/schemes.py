"""What does `scheme=...` of the passes stand for? A table from names to encodings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from ..errors import InputError
from ..types import DTYPES
from .base import Encoding
from .codebook import CODEBOOK_BITS, CodebookEncoding
from .ggml import BLOCK_TYPES, VECTOR_TYPES, ggml
from .integer import BITS, IntegerEncoding
from .minifloat import FloatEncoding
from .tables import TableEncoding

SchemeName: TypeAlias = Literal[
    "int2", "int3", "int4", "int5", "int6", "int8", "nf4",
    "codebook2", "codebook3", "codebook4", "codebook5", "codebook6",
    "fp8", "fp8_e5m2", "mxfp4", "mxfp6", "mxfp8", "nvfp4",
    "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs",
    "tq1_0", "tq2_0", "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s",
]  # fmt: skip
"""The names of schemes, for options."""


@dataclass(frozen=True)
class Scheme:
    """A named encoding and the options that may change it, each with its default."""

    build: Callable[..., Encoding]
    defaults: dict[str, Any]

    def encoding(self, name: str, **options: Any) -> Encoding:
        """The encoding with those `options` that are not None. Raises InputError for one that the scheme lacks."""
        given = {option: value for option, value in options.items() if value is not None}
        for option in given:
            if option not in self.defaults:
                able = ", ".join(self.defaults) or "none"
                raise InputError(f"scheme={name} has no option '{option}'", f"its options: {able}")
        return self.build(**(self.defaults | given))


def _integers(bits: int) -> Scheme:
    def build(group: int, sym: bool, scale: str) -> Encoding:
        return IntegerEncoding(bits, sym, group, DTYPES[scale])

    return Scheme(build, {"group": 32, "sym": True, "scale": "f16"})


def _floats(element: str, group: int, scale: str) -> Scheme:
    return Scheme(lambda group, scale: FloatEncoding(element, group, scale), {"group": group, "scale": scale})


def _fixed(encoding: Callable[[], Encoding]) -> Scheme:
    return Scheme(encoding, {})


SCHEMES: Final[dict[str, Scheme]] = {
    **{f"int{bits}": _integers(bits) for bits in BITS},
    "nf4": Scheme(
        lambda group, scale: TableEncoding("nf4", group, DTYPES[scale]),
        {"group": 64, "scale": "f16"},
    ),
    **{f"codebook{bits}": _fixed(lambda bits=bits: CodebookEncoding(bits)) for bits in CODEBOOK_BITS},  # type: ignore[misc]
    "fp8": _floats("e4m3", 0, "f32"),
    "fp8_e5m2": _floats("e5m2", 0, "f32"),
    "mxfp4": _fixed(lambda: FloatEncoding("e2m1", 32, "e8m0")),
    "mxfp6": _fixed(lambda: FloatEncoding("e2m3", 32, "e8m0")),
    "mxfp8": _fixed(lambda: FloatEncoding("e4m3", 32, "e8m0")),
    "nvfp4": _fixed(lambda: FloatEncoding("e2m1", 16, "e4m3")),
    **{
        name: _fixed(lambda name=name: ggml(name))  # type: ignore[misc]
        for name in (*BLOCK_TYPES, *VECTOR_TYPES)
        if name not in ("mxfp4", "nvfp4")
    },
}
"""Integers, tables, floats, and the types of GGML. `mxfp4` is GGML's too; its `nvfp4` lacks the scale of the tensor."""


def scheme_encoding(name: str, group: int | None = None, sym: bool | None = None, scale: str | None = None) -> Encoding:
    """The encoding of a scheme: `group` columns to a scale (0: one to a row, -1: one to a tensor), with zero points
    unless `sym`, `scale` the format of scales; None leaves the scheme's default. Raises InputError for an unknown
    scheme, an option that it has not, and options that do not go together."""
    if name not in SCHEMES:
        from ..options import did_you_mean

        raise InputError(f"unknown scheme '{name}'", did_you_mean(name, SCHEMES))
    return SCHEMES[name].encoding(name, group=group, sym=sym, scale=scale)
