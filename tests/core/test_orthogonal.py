"""Random orthogonal matrices, and weights that are turned by them."""

from __future__ import annotations

import numpy as np
import pytest

import irlab
from irlab.errors import InputError, IRError
from irlab.orthogonal import KINDS, has_hadamard, multiplied
from irlab.types import bf16, f32, tensor
from irlab.weights import Random, Recipe, Rotate, Scale, WeightSymbol


@pytest.mark.parametrize("size", [1, 2, 8, 12, 20, 28, 36, 48, 60, 288, 576])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_orthonormal(size: int, kind: str) -> None:
    matrix = multiplied(np.eye(size, dtype=np.float32), kind, 3)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-5)
    if kind == "hadamard":
        np.testing.assert_allclose(np.abs(matrix), size**-0.5, rtol=1e-5)
    if size > 2:
        other = multiplied(np.eye(size, dtype=np.float32), kind, 4)
        assert np.abs(matrix - other).max() > 0.1 * size**-0.5


def test_orders_without_a_construction_are_refused() -> None:
    assert all(map(has_hadamard, (64, 768, 960, 2048, 3584, 4096, 5120)))
    for size in (3, 6, 92, 100):
        assert not has_hadamard(size)
        with pytest.raises(InputError, match=f"no Hadamard matrix of order {size} is known"):
            multiplied(np.ones((1, size), np.float32), "hadamard", 0)


def test_turned_by_what_reads_as_by_what_writes() -> None:
    writes, reads = Random(tensor(f32, (24, 10)), 1), Random(tensor(f32, (7, 24)), 2)
    expected = reads.read() @ writes.read()
    for block in (24, 12, 8, 1):
        found = Rotate(reads, 1, block, seed=5).read() @ Rotate(writes, 0, block, seed=5).read()
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    "recipe",
    [
        Rotate(Random(tensor(f32, (24, 12)), 1), 0, 12),
        Rotate(Random(tensor(f32, (24, 12)), 1), 1, 4, "orthogonal", 2),
        Rotate(Random(tensor(bf16, (24,)), 1), 0, 24),
        Scale(Random(tensor(bf16, (24, 12)), 1), Random(tensor(f32, (12,)), 2)),
    ],
    ids=str,
)
def test_rows_are_those_of_the_whole_and_text_keeps_them(recipe: Recipe) -> None:
    whole = recipe.read()
    assert whole.shape == recipe.type.shape
    for start, stop in ((0, 5), (5, 6), (11, 24)):
        np.testing.assert_array_equal(recipe.rows(start, stop), whole[start:stop])
    graph = irlab.GraphBuilder("turned")
    weight = graph.weight(WeightSymbol("w", recipe))
    graph.output(y=weight)
    text = str(graph.module())
    assert str(irlab.parse(text)) == text


def test_what_does_not_fit_is_refused() -> None:
    matrix = Random(tensor(f32, (24, 12)))
    for make in (
        lambda: Rotate(matrix, 2, 4),
        lambda: Rotate(matrix, 1, 5),
        lambda: Rotate(matrix, 0, 24, "skew"),
        lambda: Scale(matrix, Random(tensor(f32, (24,)))),
    ):
        with pytest.raises(IRError):
            make()
