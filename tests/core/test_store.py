""".irlab directories: what they own, what they refer to, and that they come back equal."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from irlab import Module, emit, nn, prim
from irlab.encodings import IntegerEncoding
from irlab.errors import InputError, IRError
from irlab.ir import GraphBuilder
from irlab.store import TEXT_FILE, WEIGHTS_FILE, owned_bytes, read_directory, write_directory
from irlab.types import bf16, f32, tensor
from irlab.weights import Array, Cast, Encode, File, Literal, Parts, Random, Recipe, WeightSymbol
from irlab.weights.safetensors import SafetensorsWriter

INT3 = IntegerEncoding(3)


def module(tmp_path: Path) -> Module:
    """Weights of every kind: in a file, encoded, computed, random, literal."""
    source = tmp_path / "source.safetensors"
    values = np.random.default_rng(0).standard_normal((32, 32), dtype=np.float32)
    with SafetensorsWriter(source, {"w": tensor(f32, (32, 32))}) as file:
        file.write("w", values)
    computed = np.random.default_rng(1).standard_normal((32, 32), dtype=np.float32).astype(ml_dtypes.bfloat16)
    in_file = File(source, "w", tensor(f32, (32, 32)))
    recipes: dict[str, Recipe] = {
        "plain": in_file,
        "encoded": Encode(in_file, IntegerEncoding(4)),
        "computed": Cast(Array(tensor(bf16, (32, 32)), computed), f32),
        "computed codes": Encode(Array(tensor(bf16, (32, 32)), computed), INT3),
        "random": Random(tensor(f32, (32, 32)), 5),
        "literal": Literal(tensor(f32, (32,)), tuple(map(float, range(32)))),
    }
    builder = GraphBuilder("stored")
    value = builder.input("x", "f32", ("n", 32))
    for name, recipe in recipes.items():
        weight = builder.weight(WeightSymbol(name, recipe))
        value = prim.add(value, weight) if name == "literal" else nn.linear(value, weight)
    builder.output(y=value)
    result = builder.module()
    result.metadata["licence"] = "MIT"
    return result


def test_text_is_refused_where_it_cannot_say_the_numbers(tmp_path: Path) -> None:
    out = tmp_path / "module.ir"
    with pytest.raises(InputError, match=r"weight 'computed' are computed.*-o module\.irlab"):
        emit(module(tmp_path), "ir", out)
    assert not out.exists()


@pytest.mark.parametrize("embed", [False, True])
def test_a_module_comes_back_equal(tmp_path: Path, embed: bool) -> None:
    before = module(tmp_path)
    out = tmp_path / "m.irlab"
    out.mkdir()
    text = str(before)
    write_directory(before, out, embed=embed)
    assert str(before) == text, "writing changed the module"
    after = read_directory(out)
    assert after.metadata == before.metadata and list(after.weights) == list(before.weights)
    for name, symbol in before.weights.items():
        assert after.weights[name].type is symbol.type
        np.testing.assert_array_equal(after.weights[name].recipe.read(), symbol.recipe.read())
    codes = after.weights["computed codes"].recipe
    assert isinstance(codes, Parts)
    np.testing.assert_array_equal(
        codes.codes(3, 9)["codes"], before.weights["computed codes"].recipe.codes(3, 9)["codes"]
    )
    assert isinstance(after.weights["literal"].recipe, Literal)
    data = (out / WEIGHTS_FILE).stat().st_size
    assert owned_bytes(before, embed) <= data <= owned_bytes(before, embed) + 2000


def test_what_lies_in_files_stays_there_unless_embedded(tmp_path: Path) -> None:
    before = module(tmp_path)
    out = tmp_path / "m.irlab"
    out.mkdir()
    write_directory(before, out)
    text = (out / TEXT_FILE).read_text()
    assert 'file("../source.safetensors", "w")' in text and 'file("weights.safetensors", "computed")' in text
    assert str(tmp_path) not in text
    # 32 x 32 numbers in f32, and in int3 with f16 scales for each group of 32.
    assert owned_bytes(before) == 4096 + 32 * (12 + 2)


def test_an_embedded_directory_stands_alone(tmp_path: Path) -> None:
    out = tmp_path / "m.irlab"
    out.mkdir()
    before = module(tmp_path)
    expected = {name: symbol.recipe.read() for name, symbol in before.weights.items()}
    write_directory(before, out, embed=True)
    (tmp_path / "source.safetensors").unlink()
    moved = out.rename(tmp_path / "elsewhere.irlab")
    for name, symbol in read_directory(moved).weights.items():
        np.testing.assert_array_equal(symbol.recipe.read(), expected[name])


def test_a_module_whose_weights_all_lie_in_files_is_text_alone(tmp_path: Path) -> None:
    builder = GraphBuilder("g")
    x = builder.input("x", "f32", (4,))
    builder.output(y=prim.add(x, builder.random_weight("w", "f32", (4,))))
    out = tmp_path / "m.irlab"
    out.mkdir()
    write_directory(builder.module(), out)
    assert [file.name for file in out.iterdir()] == [TEXT_FILE]


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    values = np.zeros((4,), np.float32)
    values[3] = np.nan
    builder = GraphBuilder("g")
    x = builder.input("x", "f32", (4,))
    builder.output(y=prim.add(x, builder.weight(WeightSymbol("layer.bias", Array(tensor(f32, (4,)), values)))))
    out = tmp_path / "m.irlab"
    out.mkdir()
    with pytest.raises(InputError, match=r"weight 'layer\.bias' holds NaN at \[3\]"):
        write_directory(builder.module(), out)


def test_names_that_meet_in_the_file_are_refused(tmp_path: Path) -> None:
    matrix = np.ones((32, 32), np.float32)
    builder = GraphBuilder("g")
    x = builder.input("x", "f32", (4, 32))
    encoded = builder.weight(WeightSymbol("w", Encode(Array(tensor(f32, (32, 32)), matrix), INT3)))
    plain = builder.weight(WeightSymbol("w:codes", Array(tensor(f32, (32, 32)), matrix)))
    builder.output(y=nn.linear(nn.linear(x, encoded), plain))
    with pytest.raises(IRError, match="two weights would be stored as 'w:codes'"):
        write_directory(builder.module(), tmp_path)


def test_what_is_no_irlab_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x\.irlab is not an \.irlab directory"):
        read_directory(tmp_path / "x.irlab")
    with pytest.raises(InputError, match=r"holds no module\.ir"):
        read_directory(tmp_path)
    (tmp_path / TEXT_FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not text"):
        read_directory(tmp_path)


def test_lost_weights_are_named_when_they_are_read(tmp_path: Path) -> None:
    out = tmp_path / "m.irlab"
    out.mkdir()
    write_directory(module(tmp_path), out)
    (out / WEIGHTS_FILE).unlink()
    recovered = read_directory(out)
    with pytest.raises(InputError, match=r"weights\.safetensors"):
        recovered.weights["computed"].recipe.read()
