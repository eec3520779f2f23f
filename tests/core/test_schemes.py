"""The names of schemes: each is an encoding that works on real rows, and says no to options it has not."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from irlab.encodings import SCHEMES, SchemeName, parse_encoding, scheme_encoding
from irlab.encodings.ggml import VECTOR_TYPES
from irlab.errors import InputError


def test_options_know_every_scheme() -> None:
    assert set(get_args(SchemeName)) == set(SCHEMES)


@pytest.mark.parametrize("name", [name for name in SCHEMES if name not in VECTOR_TYPES])
def test_every_scheme_encodes(name: str) -> None:
    encoding = scheme_encoding(name)
    assert parse_encoding(str(encoding)) == encoding
    x = (np.random.default_rng(0).standard_normal((4, 256)) * 0.05).astype(np.float32)
    codes = encoding.encode(x)
    y = encoding.decode(codes)
    assert ((x - y) ** 2).sum() < 0.35 * (x**2).sum()
    stored = sum(8 * part.nbytes for part in encoding.pack(codes).values())
    assert stored == pytest.approx(encoding.bits_per_weight(256) * x.size)


def test_options_change_what_they_can() -> None:
    assert str(scheme_encoding("int4", group=128, sym=False, scale="i8")) == "q<int4, asym, group=128, scale=i8>"
    assert str(scheme_encoding("nf4", scale="i8")) == "table<nf4, group=64, scale=i8>"
    assert str(scheme_encoding("fp8", group=-1)) == "f<e4m3, group=tensor, scale=f32>"
    assert str(scheme_encoding("nvfp4")) == "f<e2m1, group=16, scale=e4m3>"
    assert str(scheme_encoding("q4_k")) == "ggml<q4_k>"
    with pytest.raises(InputError, match="scheme=q4_k has no option 'group'"):
        scheme_encoding("q4_k", group=64)
    with pytest.raises(InputError, match="scheme=nf4 has no option 'sym'"):
        scheme_encoding("nf4", sym=False)
    with pytest.raises(InputError, match="unknown scheme 'nf5'"):
        scheme_encoding("nf5")
    with pytest.raises(InputError, match="i8"):
        scheme_encoding("int4", group=0, scale="i8")
