"""Recipes against NumPy, codes that move with rows, the streaming reader, and numbers that must not pass."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from irlab.encodings import IntegerEncoding
from irlab.errors import InputError, IRError
from irlab.types import bf16, f16, f32, i64, tensor
from irlab.weights import (
    Affine,
    Array,
    Cast,
    Concat,
    Decode,
    Encode,
    File,
    Literal,
    Parts,
    Random,
    Recipe,
    Reshape,
    Slice,
    Take,
    Transpose,
    WeightSymbol,
    as_f32,
    check_finite,
    finite_codes,
    finite_rows,
    interleave_halves,
    numpy_dtype,
    static_shape,
    stream,
)
from irlab.weights.recipe import AnyArray
from irlab.weights.safetensors import SafetensorsWriter

INT4 = IntegerEncoding(4)


def numbered(*shape: int) -> tuple[Recipe, AnyArray]:
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return Array(tensor(f32, shape), values), values


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Recipe, AnyArray]:
    """A chain of layout recipes, and the same done by NumPy."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    recipe, values = numbered(*shape)
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["slice", "concat", "reshape", "transpose", "take"]))
        rank = values.ndim
        if kind == "slice":
            axis = draw(st.integers(0, rank - 1))
            start = draw(st.integers(0, values.shape[axis] - 1))
            stop = draw(st.integers(start + 1, values.shape[axis]))
            recipe, values = Slice(recipe, axis, start, stop), values.take(range(start, stop), axis)
        elif kind == "concat":
            axis = draw(st.integers(0, rank - 1))
            recipe, values = Concat((recipe, recipe), axis), np.concatenate([values, values], axis)
        elif kind == "reshape":
            sizes = draw(st.permutations(values.shape))
            split = draw(st.integers(0, len(sizes)))
            new = (*sizes[:split], int(np.prod(sizes[split:]))) if draw(st.booleans()) else tuple(sizes)
            recipe, values = Reshape(recipe, tuple(map(int, new))), values.reshape(new)
        elif kind == "transpose":
            order = tuple(draw(st.permutations(range(rank))))
            recipe, values = Transpose(recipe, order), values.transpose(order)
        else:
            indices = tuple(draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=5)))
            recipe, values = Take(recipe, indices), values[list(indices)]
    return recipe, values


@given(layouts(), st.data())
def test_layouts_are_numpys(pair: tuple[Recipe, AnyArray], data: st.DataObject) -> None:
    recipe, values = pair
    assert static_shape(recipe.type) == values.shape
    start = data.draw(st.integers(0, len(values)))
    stop = data.draw(st.integers(start, len(values)))
    rows = recipe.rows(start, stop)
    assert rows.shape == (stop - start, *values.shape[1:])
    np.testing.assert_array_equal(rows, values[start:stop])


@pytest.mark.parametrize(
    "move",
    [
        lambda r: interleave_halves(r, 2),
        lambda r: Slice(r, 0, 3, 13),
        lambda r: Concat((r, Slice(r, 0, 0, 4))),
        lambda r: Reshape(r, (2, 8, 64)),
        lambda r: Take(r, (5, 1, 1, 15)),
        lambda r: Transpose(Reshape(r, (4, 4, 64)), (1, 0, 2)),
        lambda r: Concat((Reshape(r, (4, 4, 64)), Reshape(r, (4, 4, 64))), 1),
    ],
)
@pytest.mark.parametrize("encoding", [INT4, IntegerEncoding(3, symmetric=False)])
def test_codes_move_with_their_rows(move: Callable[[Recipe], Recipe], encoding: IntegerEncoding) -> None:
    """Moving rows and encoding them may be exchanged: the same codes come out, whole and row by row."""
    source = Random(tensor(f32, (16, 64)), 1)
    moved, encoded = move(Encode(source, encoding)), Encode(move(source), encoding)
    assert moved.type is encoded.type
    for start, stop in ((0, moved.row_count), (1, min(3, moved.row_count))):
        ours, theirs = moved.codes(start, stop), encoded.codes(start, stop)
        assert set(ours) == set(theirs)
        for part in ours:
            np.testing.assert_array_equal(ours[part], theirs[part])
    np.testing.assert_array_equal(moved.rows(1, stop), encoded.rows(1, stop))


@pytest.mark.parametrize(
    "make",
    [
        lambda r: Slice(r, 1, 0, 32),
        lambda r: Concat((r, r), 1),
        lambda r: Reshape(r, (32, 32)),
        lambda r: Transpose(r, (1, 0)),
    ],
)
def test_encoded_rows_cannot_be_cut(make: Callable[[Recipe], Recipe]) -> None:
    with pytest.raises(IRError, match="q<int4"):
        make(Encode(Random(tensor(f32, (16, 64))), INT4))


@pytest.mark.parametrize(
    "make",
    [
        lambda r: Slice(r, 0, 2, 9),
        lambda r: Slice(r, 2, 0, 1),
        lambda r: Reshape(r, (5, 5)),
        lambda r: Transpose(r, (0, 0)),
        lambda r: Take(r, (4,)),
        lambda r: Concat((r, Random(tensor(bf16, (4, 6)))), 0),
        lambda r: Concat((), 0),
        lambda r: Parts(tensor(INT4, (4, 32)), (r, r)),
        lambda r: Affine(Literal(tensor(i64, (1,)), (1,)), 2.0),
        lambda r: Literal(tensor(f32, (2,)), (1.0,)),
        lambda r: Array(tensor(f32, (2,)), np.zeros(2)),
    ],
)
def test_recipes_that_make_no_sense_are_refused_when_made(make: Callable[[Recipe], Recipe]) -> None:
    with pytest.raises(IRError):
        make(Random(tensor(f32, (4, 6))))


def test_interleaving_turns_halves_into_pairs() -> None:
    recipe, values = numbered(12, 5)
    expected = values.reshape(2, 2, 3, 5).swapaxes(1, 2).reshape(12, 5)
    np.testing.assert_array_equal(interleave_halves(recipe, 2).read(), expected)
    bias, vector = numbered(12)
    np.testing.assert_array_equal(interleave_halves(bias, 2).read(), vector.reshape(2, 2, 3).swapaxes(1, 2).reshape(12))


def test_transposes_that_move_rows_are_read_in_one_piece() -> None:
    source = Random(tensor(f32, (64, 64)))
    assert len(list(source.chunks(1024))) == 16
    turned = Slice(Transpose(source, (1, 0)), 0, 0, 32)
    assert not turned.row_local and list(turned.chunks(1024)) == [(0, 32)]
    assert Transpose(Reshape(source, (64, 8, 8)), (0, 2, 1)).row_local


def test_arithmetic_rounds_once() -> None:
    source = Array(tensor(bf16, (3,)), np.array([1.0, -2.0, 0.00390625], ml_dtypes.bfloat16))
    assert Affine(source, 1.0, 1.0).read().tolist() == [2.0, -1.0, 1.0]
    assert Affine(source, 1.0, 1.0).type is source.type
    assert Affine(Cast(source, f32), 2.0).read().tolist() == [2.0, -4.0, 0.0078125]
    assert Cast(source, i64).read().tolist() == [1, -2, 0]


def test_a_cast_to_f16_refuses_what_would_be_infinite() -> None:
    for dtype in (f32, bf16):
        values = np.array([1.0, 1e6], numpy_dtype(dtype))
        with pytest.raises(InputError, match="65504"):
            Cast(Array(tensor(dtype, (2,)), values), f16).read()


def test_encoded_recipes_agree_with_their_encoding() -> None:
    source = Random(tensor(bf16, (4, 64)), 7)
    encoded = Encode(source, INT4)
    assert str(encoded.type) == "q<int4, sym, group=32, scale=f16>[4, 64]" and encoded.type.dtype is f32
    codes = INT4.encode(as_f32(source.read()))
    np.testing.assert_array_equal(encoded.rows(1, 3), INT4.decode(codes)[1:3])
    np.testing.assert_array_equal(Decode(encoded).read(), encoded.read())
    np.testing.assert_array_equal(Cast(encoded, f16).read(), encoded.read().astype(np.float16))
    packed = INT4.pack(codes)
    types = INT4.packed_types((4, 64))
    parts = Parts(encoded.type, tuple(Array(types[name], np.asarray(packed[name])) for name in types))
    np.testing.assert_array_equal(parts.read(), encoded.read())
    np.testing.assert_array_equal(parts.codes(2, 4)["codes"], codes["codes"][2:])
    with pytest.raises(IRError, match="no codes"):
        source.codes(0, 1)


def test_random_rows_do_not_depend_on_how_they_are_read() -> None:
    recipe = Random(tensor(bf16, (9, 4)), 3)
    np.testing.assert_array_equal(recipe.rows(4, 7), recipe.read()[4:7])
    assert not np.array_equal(recipe.read(), Random(tensor(bf16, (9, 4)), 4).read())


def test_rank_0_has_one_row() -> None:
    scalar = Literal(tensor(f32, ()), (2.5,))
    assert scalar.rows(0, 1).shape == (1,) and scalar.read().shape == () and list(scalar.chunks()) == [(0, 1)]


def test_recipes_are_values_and_describe_themselves() -> None:
    make = lambda: Encode(Slice(Random(tensor(f32, (8, 32))), 0, 0, 4), INT4)
    assert make() == make() and hash(make()) == hash(make())
    assert make().inputs == (Slice(Random(tensor(f32, (8, 32))), 0, 0, 4),)
    assert Recipe.registry["encode"] is Encode and Recipe.registry["file"] is File
    assert Array not in Recipe.registry.values()


def test_files_are_lazy_and_checked_against_the_expected_type(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    values = np.random.default_rng(0).standard_normal((6, 5), dtype=np.float32).astype(ml_dtypes.bfloat16)
    file = File(path, "w", tensor(bf16, (6, 5)))
    with pytest.raises(InputError, match=r"m\.safetensors: No such file"):
        file.rows(0, 1)
    with SafetensorsWriter(path, {"s": tensor(f32, ()), "w": file.of, "empty": tensor(f32, (0, 3))}) as writer:
        writer.write("w", values[:4])
        writer.write("s", np.array([2.0], np.float32))
        writer.write("w", values[4:])
    np.testing.assert_array_equal(file.rows(2, 5), values[2:5])
    np.testing.assert_array_equal(file.read(), values)
    assert File(path, "s", tensor(f32, ())).read() == 2.0
    assert File(path, "empty", tensor(f32, (0, 3))).read().shape == (0, 3)
    with pytest.raises(InputError, match=r"'w' is bf16\[6, 5\], bf16\[5, 6\] was expected"):
        File(path, "w", tensor(bf16, (5, 6))).rows(0, 1)
    with pytest.raises(InputError, match="no tensor called 'v'"):
        File(path, "v", tensor(bf16, (6, 5))).rows(0, 1)
    with pytest.raises(ValueError, match="read-only"):
        file.rows(0, 1)[0, 0] = 1


def test_a_file_that_shrinks_while_open_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with SafetensorsWriter(path, {"w": tensor(f32, (4096, 4))}) as writer:
        writer.write("w", np.ones((4096, 4), np.float32))
    file = File(path, "w", tensor(f32, (4096, 4)))
    file.rows(0, 1)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"m\.safetensors"):
        file.rows(4000, 4096)


def symbols(count: int, rows: int = 64) -> list[WeightSymbol]:
    return [WeightSymbol(f"w{i}", Random(tensor(f32, (rows, 16)), i)) for i in range(count)]


@pytest.mark.parametrize("jobs", [1, 3])
def test_streams_come_in_order_and_complete(jobs: int) -> None:
    weights = symbols(5)
    found: dict[str, list[AnyArray]] = {}
    order, ends = [], []
    for chunk in stream(weights, finite_rows, jobs=jobs, max_bytes=1024):
        found.setdefault(chunk.symbol.name, []).append(chunk.value)
        order.append((chunk.symbol.name, chunk.start))
        ends += [chunk.symbol.name] if chunk.last else []
    assert order == [(w.name, start) for w in weights for start in range(0, 64, 16)]
    assert ends == [w.name for w in weights]
    for weight in weights:
        np.testing.assert_array_equal(np.concatenate(found[weight.name]), weight.recipe.read())


def test_a_slow_reader_holds_few_chunks() -> None:
    """However slow the one who writes is, no more than jobs + 2 results exist."""
    lock, made = threading.Lock(), [0]

    def work(symbol: WeightSymbol, start: int, stop: int) -> int:
        with lock:
            made[0] += 1
        return start

    for taken, _ in enumerate(stream(symbols(4), work, jobs=2, max_bytes=256), 1):
        threading.Event().wait(0.002)
        assert made[0] - taken <= 2 + 2


def test_the_first_failure_ends_a_stream() -> None:
    started = []

    def work(symbol: WeightSymbol, start: int, stop: int) -> None:
        started.append(start)
        if start == 8:
            raise InputError("broken")

    with pytest.raises(InputError, match="broken"):
        list(stream(symbols(50), work, jobs=2, max_bytes=256))
    assert len(started) < 20


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_nan_and_infinity_are_reported_by_name_and_place(dtype: type) -> None:
    rows = np.ones((4, 300), dtype)
    check_finite("w", rows)
    for bad, word in ((np.nan, "NaN"), (np.inf, "an infinity"), (-np.inf, "an infinity")):
        rows[2, 7] = bad
        with pytest.raises(InputError, match=rf"weight 'w' holds {word} at \[102, 7\]"):
            check_finite("w", rows, 100)
    check_finite("n", np.full((3,), -1, np.int64))


def test_large_finite_numbers_are_not_taken_for_infinite() -> None:
    check_finite("w", np.full((64,), 3e38, np.float32))
    check_finite("w", np.full((64,), 65504, np.float16))


def test_codes_of_bad_numbers_are_refused_by_name() -> None:
    values = np.ones((2, 32), np.float32)
    values[1, 1] = np.nan
    symbol = WeightSymbol("layer.w", Encode(Array(tensor(f32, (2, 32)), values), INT4))
    finite_codes(symbol, 0, 1)
    with pytest.raises(InputError, match=r"weight 'layer\.w': NaN"):
        finite_codes(symbol, 0, 2)
    huge = WeightSymbol("h", Cast(Array(tensor(f32, (1,)), np.array([1e9], np.float32)), f16))
    with pytest.raises(InputError, match="weight 'h': a number is larger than 65504"):
        finite_rows(huge, 0, 1)


def test_a_bad_number_is_reported_as_the_file_has_it(tmp_path: Path) -> None:
    values = np.ones((64, 32), np.float32)
    values[40, 5] = np.nan
    with SafetensorsWriter(tmp_path / "m.safetensors", {"model.w": tensor(f32, (64, 32))}) as writer:
        writer.write("model.w", values)
    file = File(tmp_path / "m.safetensors", "model.w", tensor(f32, (64, 32)))
    moved = WeightSymbol("blk.w", Encode(Take(file, tuple(reversed(range(64)))), INT4))
    with pytest.raises(InputError, match=r"weight 'model\.w' holds NaN at \[40, 5\]"):
        finite_codes(moved, 16, 32)
