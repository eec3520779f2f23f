"""Ranges for static scales are read off a histogram: of everything, of a percentile, of the least squared error."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from irlab.errors import InputError
from irlab.histogram import InputHistogram


def histogram(x: torch.Tensor) -> InputHistogram:
    found = InputHistogram.empty(x.shape[-1])
    for part in x.chunk(3):
        found.add(part)
    return found


@pytest.fixture
def normal() -> torch.Tensor:
    """Numbers of a normal distribution, with one that is fifty times as large."""
    x = torch.randn(3000, 8, generator=torch.Generator().manual_seed(0))
    x[7, 3] = -200.0
    return x


def rms_error(x: torch.Tensor, low: float, high: float) -> float:
    step = (high - low) / 255
    rounded = torch.round(x.clamp(low, high) / step) * step
    return float(((rounded - x).square().mean() / x.square().mean()).sqrt())


def test_batches_add_up(normal: torch.Tensor) -> None:
    whole = InputHistogram.empty(8)
    whole.add(normal)
    assert np.array_equal(histogram(normal).counts, whole.counts) and whole.counts.sum() == normal.numel()
    merged, other = histogram(normal[:1000]), histogram(normal[1000:])
    merged.merge(other)
    assert np.array_equal(merged.counts, whole.counts)
    again = InputHistogram.from_arrays(merged.arrays())
    assert (again.low, again.high) == (merged.low, merged.high) == (-200.0, float(normal.max()))


def test_max_covers_everything(normal: torch.Tensor) -> None:
    found = histogram(normal).range("max", 0, 256, symmetric=True)
    assert (found.low, found.high) == (-200.0, 200.0)
    found = histogram(normal).range("max", 0, 256, symmetric=False)
    assert (found.low, found.high) == (-200.0, float(normal.max()))


def test_a_percentile_leaves_the_rest_out(normal: torch.Tensor) -> None:
    found = histogram(normal).range("percentile", 99.0, 256, symmetric=True)
    assert found.high == pytest.approx(2.576, rel=0.06)  # of a normal distribution


def test_mse_cuts_an_outlier_only_where_that_pays(normal: torch.Tensor) -> None:
    """At 8 bits the outlier holds the scale of all others: cutting it loses as much as keeping it, or less."""
    many = histogram(normal)
    found = many.range("mse", 0, 256, symmetric=True)
    candidates = [2.0 ** (k / 4) for k in range(8, 32)]
    best = min(rms_error(normal, -top, top) for top in (*candidates, 200.0))
    assert rms_error(normal, found.low, found.high) < 1.05 * best
    plain = torch.randn(3000, 8, generator=torch.Generator().manual_seed(1))
    kept = histogram(plain).range("mse", 0, 256, symmetric=True)
    assert rms_error(plain, kept.low, kept.high) < 1.02 * min(rms_error(plain, -t, t) for t in candidates)


def test_errors_are_predicted(normal: torch.Tensor) -> None:
    for choice in ("max", "percentile"):
        found = histogram(normal).range(choice, 99.9, 256, symmetric=True)
        predicted = histogram(normal).error(found, 256) ** 0.5
        assert predicted == pytest.approx(rms_error(normal, found.low, found.high), rel=0.1)


def test_one_sided_numbers_take_all_integers() -> None:
    x = torch.rand(100, 4, generator=torch.Generator().manual_seed(0))
    found = histogram(x).range("max", 0, 256, symmetric=False)
    assert found.low == 0.0 and found.high == float(x.max())


def test_channels_cannot_be_scaled_afterwards(normal: torch.Tensor) -> None:
    with pytest.raises(InputError, match="all channels together"):
        histogram(normal).divided(np.ones(8))
