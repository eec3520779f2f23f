"""Importance matrices: written as llama-imatrix does, read by its quantiser's rules, sliced where channels are gone."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

import irlab
from irlab import Context, Module
from irlab.analysis import InputStatistics
from irlab.backends.gguf.imatrix import importances, read_imatrix
from irlab.backends.gguf.mixes import file_type
from irlab.calibration import Sample
from irlab.collect import collect
from irlab.errors import InputError, UsageError
from irlab.ir import Weight
from irlab.ops import prim
from irlab.weights import Array, Take, WeightSymbol

DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def module() -> Module:
    return irlab.run(irlab.load("demo"), "fuse")


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> Context:
    ids = np.random.default_rng(0).integers(0, 1024, (4, 48))
    return Context(calibration=Sample(ids, length=48), cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def file(module: Module, ctx: Context, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("imatrix") / "demo.imatrix.gguf"
    irlab.emit(module, "imatrix", out, ctx=ctx)
    return out


def test_the_file_is_what_llama_imatrix_writes(module: Module, ctx: Context, file: Path) -> None:
    reader = gguf.GGUFReader(file)
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.chunk_count"].contents() == 4
    assert reader.fields["imatrix.chunk_size"].contents() == 48
    assert reader.fields["imatrix.datasets"].contents() == ["token ids"]
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 2 * 28, "the matrices of 4 layers; the head is tied"
    assert list(tensors["blk.0.ffn_down.weight.in_sum2"].shape) == [768, 1]
    assert float(tensors["blk.0.ffn_down.weight.counts"].data[0, 0]) == 4 * 48
    found = collect(InputStatistics, module, ctx)[DOWN].mean_square
    np.testing.assert_allclose(read_imatrix(file)["blk.1.ffn_down.weight"], found, rtol=1e-5)


def test_files_are_those_of_llama_cpp_with_the_same_importances(
    module: Module, file: Path, tmp_path: Path, llama_quantize
) -> None:
    source, theirs, ours = (tmp_path / name for name in ("f32.gguf", "theirs.gguf", "ours.gguf"))
    irlab.emit(module, "gguf{type=f32}", source, parity=False)
    llama_quantize(source, theirs, file_type("q4_k_m").id, read_imatrix(file))
    irlab.emit(module, f"gguf{{type=q4_k_m imatrix={file}}}", ours, parity=False)
    bytes_of = {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(ours).tensors}
    assert bytes_of == {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(theirs).tensors}


def test_quantize_weighs_errors(module: Module, file: Path) -> None:
    weighed = irlab.run(module, f"quantize{{mix=q2_k imatrix={file}}}").weights[DOWN]
    plain = irlab.run(module, "quantize{mix=q2_k}").weights[DOWN]
    weights = read_imatrix(file)["blk.1.ffn_down.weight"]
    original = module.weights[DOWN].recipe.read().astype(np.float32)

    def loss(symbol: WeightSymbol) -> float:
        return float((np.square(symbol.recipe.read() - original) * weights).sum())

    assert loss(weighed) < 0.9 * loss(plain)


def without_channels(module: Module, kept: range) -> Module:
    """`module` with fewer channels between the matrices of one MLP."""
    new = module.clone()
    for part, axis in (("gate", 0), ("up", 0), ("down", 1)):
        name = f"model.layers.1.mlp.{part}_proj.weight"
        (weight,) = (op for op in new.graph.find(Weight) if op.symbol.name == name)
        made = WeightSymbol(name, Take(weight.symbol.recipe, tuple(kept), axis))
        new.graph.replace(weight, prim.weight(made))
    return new


def test_channels_that_were_pruned_are_left_out(module: Module, file: Path) -> None:
    pruned = without_channels(module, range(512))
    (found,) = (recipe for name, recipe in importances(pruned, str(file)).items() if name == DOWN)
    np.testing.assert_array_equal(found.read(), read_imatrix(file)["blk.1.ffn_down.weight"][:512])


def test_channels_of_unknown_origin_are_refused(module: Module, file: Path) -> None:
    pruned = without_channels(module, range(512))
    (down,) = (op for op in pruned.graph.find(Weight) if op.symbol.name == DOWN)
    refitted = WeightSymbol(DOWN, Array(down.symbol.type, down.symbol.recipe.read()))
    pruned.graph.replace(down, prim.weight(refitted))
    with pytest.raises(InputError, match=f"knows 768 channels of '{DOWN}', which reads 512 .*--emit imatrix"):
        importances(pruned, str(file))


def test_what_is_no_imatrix_is_refused(module: Module, tmp_path: Path) -> None:
    text, model = tmp_path / "text.gguf", tmp_path / "model.gguf"
    text.write_text("no numbers at all, but a text that is long enough to be looked at")
    irlab.emit(module, "gguf{type=q8_0}", model, parity=False)
    for file, reason in (
        (text, "is no GGUF file"),
        (model, "holds no importances"),
        (tmp_path / "none", "No such file"),
    ):
        with pytest.raises(InputError, match=reason):
            read_imatrix(file)
    with pytest.raises(UsageError, match="method=gptq reads no imatrix"):
        irlab.run(module, "quantize{method=gptq imatrix=x}")
    with pytest.raises(InputError, match="needs calibration data"):
        irlab.emit(module, "imatrix", tmp_path / "out.gguf")
