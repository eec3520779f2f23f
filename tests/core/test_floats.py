"""Conversions between float widths equal NumPy's, on every pattern of 16 bits."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from irlab.floats import as_f16, as_f32

EVERY_BF16 = np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16)
EVERY_F16 = np.arange(1 << 16, dtype=np.uint16).view(np.float16)


@pytest.mark.parametrize("values", [EVERY_BF16, EVERY_F16], ids=["bf16", "f16"])
def test_every_half_becomes_the_right_f32(values: np.ndarray) -> None:
    np.testing.assert_array_equal(as_f32(values).view(np.uint32), values.astype(np.float32).view(np.uint32))


def test_every_bf16_that_f16_reaches_is_rounded_as_numpy_rounds() -> None:
    wide = EVERY_BF16.astype(np.float32)
    reached = EVERY_BF16[~(np.isfinite(wide) & (np.abs(wide) > 65504))]
    expected = reached.astype(np.float32).astype(np.float16)
    for shape in ((-1,), (2, -1)):
        values = reached[: reached.size // 2 * 2].reshape(shape)
        np.testing.assert_array_equal(as_f16(values).ravel().view(np.uint16), expected[: values.size].view(np.uint16))


def test_nothing_is_copied_without_need() -> None:
    f32, f16 = np.ones(3, np.float32), np.ones(3, np.float16)
    assert as_f32(f32) is f32
    assert as_f16(f16) is f16


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16])
def test_what_f16_cannot_reach_is_refused(dtype: type) -> None:
    numbers = np.ones((3, 50_000), dtype)
    numbers[2, 7] = -65536
    with pytest.raises(OverflowError, match="larger than 65504"):
        as_f16(numbers)
    numbers[2, 7] = -np.inf
    assert as_f16(numbers)[2, 7] == -np.inf
