"""Rounding column by column: what error-compensating methods rely on, for every encoding that has a grid."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from irlab.encodings import IntegerEncoding, LevelEncoding, extent_of, parse_encoding
from irlab.errors import InputError

Floats = npt.NDArray[np.float32]

ENCODINGS = [
    "q<int4, sym, group=32, scale=f16>",
    "q<int3, asym, group=64, scale=f32>",
    "q<int8, sym, group=0, scale=bf16>",
    "q<int8, asym, group=tensor, scale=f32>",
    "q<int4, sym, group=32, scale=i8>",
    "f<e2m1, group=32, scale=e8m0>",
    "f<e2m1, group=16, scale=e4m3>",
    "f<e4m3, group=0, scale=f32>",
    "f<e5m2, group=tensor, scale=f16>",
    "f<e3m2, group=32, scale=i8>",
    "table<nf4, group=64, scale=f16>",
    "table<iq4_nl, group=32, scale=i8>",
    "codebook<4>",
    *(f"ggml<{name}>" for name in ("q4_0", "q5_1", "q2_k", "q3_k", "q4_k", "q6_k", "iq4_xs", "mxfp4", "nvfp4")),
]
ROWS, COLUMNS = 5, 512


def encoding_of(text: str) -> LevelEncoding:
    encoding = parse_encoding(text)
    assert isinstance(encoding, LevelEncoding)
    return encoding


def weights(seed: int = 0) -> Floats:
    x = np.random.default_rng(seed).standard_normal((ROWS, COLUMNS), dtype=np.float32)
    return x * np.float32(0.05)


def importances() -> Floats:
    return np.random.default_rng(7).random(COLUMNS, dtype=np.float32) + np.float32(0.1)


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert set(a) == set(b)
    for name, part in a.items():
        np.testing.assert_array_equal(part, b[name])
        assert part.dtype == b[name].dtype


@pytest.mark.parametrize("text", ENCODINGS)
@pytest.mark.parametrize("weighted", [False, True])
def test_encoding_is_fitting_and_rounding_every_column(text: str, weighted: bool) -> None:
    encoding, x = encoding_of(text), weights()
    importance = importances() if weighted else None
    grid = encoding.fit(x, importance)
    rounded = grid.round(slice(None), x)
    codes = encoding.encode(x, importance)
    assert_same(grid.codes(), dict(codes))
    np.testing.assert_array_equal(rounded, encoding.decode(codes))


@pytest.mark.parametrize("text", ENCODINGS)
def test_columns_may_come_one_by_one_in_any_order(text: str) -> None:
    encoding, x = encoding_of(text), weights(1)
    grid = encoding.fit(x)
    order = np.random.default_rng(2).permutation(COLUMNS)
    rounded = np.empty_like(x)
    rounded[:, order[:100]] = grid.round(order[:100], x[:, order[:100]])
    for column in order[100:]:
        rounded[:, column] = grid.round(int(column), x[:, column])
    assert_same(grid.codes(), dict(encoding.encode(x)))
    np.testing.assert_array_equal(rounded, encoding.decode(grid.codes()))


@pytest.mark.parametrize("text", ENCODINGS)
def test_a_unit_is_fitted_to_what_has_become_of_it(text: str) -> None:
    """As GPTQ does: earlier columns change later ones before those are fitted."""
    encoding, x = encoding_of(text), weights(3)
    importance = importances()
    grid = encoding.grid(ROWS, COLUMNS, importance)
    rounded = np.empty_like(x)
    for start in range(0, COLUMNS, grid.unit):
        stop = start + grid.unit
        grid.fit(start, x[:, start:stop])
        for column in range(start, stop):
            rounded[:, column] = grid.round(column, x[:, column])
            x[:, stop:] += 0.01 * (x[:, column] - rounded[:, column])[:, None]
    np.testing.assert_array_equal(rounded, encoding.decode(grid.codes()))
    error = ((rounded - x) ** 2).sum() / (x**2).sum()
    assert error < 0.1


@pytest.mark.parametrize("text", ENCODINGS)
def test_values_off_the_weights_are_rounded_to_the_nearest_point(text: str) -> None:
    encoding, x = encoding_of(text), weights(4)
    grid = encoding.fit(x)
    moved = x * np.float32(1.3) + np.float32(0.01)
    rounded = grid.round(slice(None), moved)
    # No other row of codes comes nearer: every number of the grid is its own nearest.
    np.testing.assert_array_equal(grid.round(slice(None), rounded), rounded)
    assert (np.abs(rounded - moved) <= np.abs(grid.round(slice(None), x) - moved) + 1e-7).all()


def test_units_of_a_tensor_wide_scale_can_be_fitted_when_the_extent_is_known() -> None:
    encoding, x = encoding_of("f<e2m1, group=16, scale=e4m3>"), weights(5)
    assert encoding.grid(ROWS, COLUMNS).unit == COLUMNS
    grid = encoding.grid(ROWS, COLUMNS, extent=extent_of(x))
    assert grid.unit == 16
    for start in range(0, COLUMNS, 16):
        grid.fit(start, x[:, start : start + 16])
    rounded = grid.round(slice(None), x)
    np.testing.assert_array_equal(rounded, encoding.decode(grid.codes()))
    assert_same(grid.codes(), dict(encoding.encode(x)))


def test_wrong_use_is_refused() -> None:
    encoding = IntegerEncoding(4)
    grid = encoding.grid(2, 64)
    with pytest.raises(ValueError, match="no column has been fitted"):
        grid.round(0, np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="no run of whole units of 32"):
        grid.fit(16, np.zeros((2, 32), np.float32))
    grid.fit(32, np.ones((2, 32), np.float32))
    with pytest.raises(ValueError, match="column 3 has not been fitted"):
        grid.round(3, np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="some columns"):
        grid.codes()
    with pytest.raises(InputError, match="NaN"):
        grid.fit(0, np.full((2, 32), np.nan, np.float32))
    with pytest.raises(InputError, match="not whole groups"):
        encoding.grid(2, 48)
