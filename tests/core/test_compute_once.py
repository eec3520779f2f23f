"""Several outputs of one module: weights are encoded once, outputs hold the same codes, nothing is left behind."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import irlab
from irlab import GraphBuilder, Module, nn
from irlab.compute_once import computed_once
from irlab.encodings import IntegerEncoding
from irlab.errors import InputError
from irlab.passmgr import Context
from irlab.types import f16, f32, tensor
from irlab.weights import Array, Encode, Encoded, Factor, Random, WeightSymbol

INT4 = IntegerEncoding(4, True, 32, f16)


@pytest.fixture
def encoded_rows(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[int, ...]]:
    """How many rows were encoded in this process, by the number of columns."""
    counts: Counter[tuple[int, ...]] = Counter()
    encode = IntegerEncoding.encode

    def counting(self: IntegerEncoding, rows: Any, *args: Any, **options: Any) -> Any:
        counts[rows.shape[1:]] += rows.shape[0]
        return encode(self, rows, *args, **options)

    monkeypatch.setattr(IntegerEncoding, "encode", counting)
    return counts


def two_linears(source: Any = None) -> Module:
    b = GraphBuilder()
    x = b.input("x", "f32", ("n", 64))
    recipe = Encode(source or Random(tensor(f32, (48, 64))), INT4)
    first = nn.linear(x, b.weight(WeightSymbol("a", recipe)))
    # Another weight that is made alike, and one that is made from it.
    second = nn.linear(x, b.weight(WeightSymbol("b", recipe)))
    b.output(y=first, z=second)
    return b.module()


def test_equal_recipes_are_computed_once(tmp_path: Path, encoded_rows: Counter[tuple[int, ...]]) -> None:
    module = two_linears()
    expected = module.weights["a"].recipe.codes(0, 48)
    encoded_rows.clear()
    ctx = Context()
    with computed_once(module, tmp_path, ctx) as ready:
        assert encoded_rows == {(64,): 48}
        for name in ("a", "b"):
            recipe = ready.weights[name].recipe
            assert isinstance(recipe, Encoded) and recipe.source == module.weights["a"].recipe.source  # type: ignore[attr-defined]
            for part, values in recipe.codes(8, 40).items():
                np.testing.assert_array_equal(values, expected[part][8:40])
            np.testing.assert_array_equal(recipe.read(), module.weights["a"].recipe.read())
        assert ctx.clock.total().as_dict()
    assert not list(tmp_path.iterdir())


def test_factors_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = GraphBuilder()
    source = Random(tensor(f32, (48, 64)))
    a, c = (WeightSymbol(side, Factor(source, 4, side)) for side in "ab")
    b.output(y=nn.linear(nn.linear(b.input("x", "f32", ("n", 64)), b.weight(a)), b.weight(c)))
    expected = a.recipe.read()
    with computed_once(b.module(), tmp_path, Context()) as ready:
        monkeypatch.setattr(Factor, "rows", None)  # nothing asks it again
        np.testing.assert_array_equal(ready.weights["a"].recipe.read(), expected)


def test_nothing_to_compute_leaves_the_module_alone(tmp_path: Path) -> None:
    b = GraphBuilder()
    b.output(y=nn.linear(b.input("x", "f32", ("n", 4)), b.random_weight("w", "f32", (4, 4))))
    with computed_once(b.module(), tmp_path, Context()) as ready:
        assert ready is b.module()


def test_a_damaged_weight_is_named(tmp_path: Path) -> None:
    bad = np.zeros((48, 64), np.float32)
    bad[3, 5] = np.nan
    with (
        pytest.raises(InputError, match="'a'"),
        computed_once(two_linears(Array(tensor(f32, (48, 64)), bad)), tmp_path, Context()),
    ):
        raise AssertionError("not reached")
    assert not list(tmp_path.iterdir())


def test_three_outputs_share_one_computation(tmp_path: Path, encoded_rows: Counter[tuple[int, ...]]) -> None:
    module = irlab.run(irlab.load("demo"), "fuse,quantize{scheme=int4 group=32},kv-cache")
    matrices = [s.type.shape for s in module.weights.values() if s.type.encoding is not None]
    encoded_rows.clear()
    done = irlab.emit_all(
        module,
        {tmp_path / "m.gguf": "gguf", tmp_path / "onnx": "onnx", tmp_path / "m.ir": "ir"},
        parity=False,
    )
    assert [emitted.target for emitted in done] == ["gguf", "onnx", "ir"]
    # Each row of each matrix once, however many files hold it; IR text says how codes come about, and holds none.
    # (One more is read for the IR, to see that the checkpoint is there.)
    assert sum(encoded_rows.values()) == sum(int(shape[0]) for shape in matrices) + 1
    assert "encode(" in (tmp_path / "m.ir").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"m.gguf", "onnx", "m.ir"}


def test_one_output_streams_straight_to_its_file(tmp_path: Path, encoded_rows: Counter[tuple[int, ...]]) -> None:
    module = irlab.run(irlab.load("demo"), "fuse,quantize{scheme=int4 group=32},kv-cache")
    encoded_rows.clear()
    irlab.emit_all(module, {tmp_path / "m.gguf": "gguf"}, parity=False)
    rows = sum(int(s.type.shape[0]) for s in module.weights.values() if s.type.encoding is not None)
    # One row is read ahead, to see that the checkpoint is there.
    assert sum(encoded_rows.values()) == rows + 1
