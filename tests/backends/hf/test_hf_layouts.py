"""--emit hf{layout=...}: loaded by who owns the layout, and lifted again to the same codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import irlab
from irlab import Module
from irlab.errors import InputError, LegalityError
from irlab.passes.quantize import Quantize

CASES = [
    ("compressed-tensors", Quantize(scheme="int4", group=32)),
    ("compressed-tensors", Quantize(scheme="int3", group=32, sym=False)),
    ("compressed-tensors", Quantize(scheme="fp8")),
    ("compressed-tensors", Quantize(scheme="nvfp4")),
    ("gptq", Quantize(scheme="int4", group=32)),
    ("gptq", Quantize(scheme="int8", group=0, sym=False)),
    ("awq", Quantize(scheme="int4", group=64, sym=False)),
    ("modelopt", Quantize(scheme="int4", group=64)),
    ("modelopt", Quantize(scheme="nvfp4")),
    ("modelopt", Quantize(scheme="int8", group=0, scale="f32")),
]


@pytest.fixture(scope="module")
def fused() -> Module:
    return irlab.run(irlab.load("demo"), "fuse")


@pytest.mark.parametrize("layout, step", CASES, ids=str)
def test_a_checkpoint_is_lifted_again_to_the_same_codes(
    fused: Module, tmp_path: Path, layout: str, step: Quantize
) -> None:
    module = irlab.run(fused, step)
    irlab.emit(module, f"hf{{layout={layout}}}", tmp_path / "out", parity=False)
    back = irlab.run(irlab.load(str(tmp_path / "out")), "fuse")
    encoded = {name: symbol for name, symbol in module.weights.items() if symbol.type.encoding is not None}
    assert len(encoded) >= 20
    for name, symbol in encoded.items():
        again = back.weights[name]
        assert again.type is symbol.type
        mine, its = (s.recipe.codes(0, s.recipe.row_count) for s in (symbol, again))
        for part, values in mine.items():
            if part == "row_scales" and layout == "compressed-tensors":
                np.testing.assert_allclose(its[part], values, rtol=1.2e-7)  # stored as its inverse
            else:
                assert np.array_equal(np.asarray(its[part]).view(np.uint8), np.asarray(values).view(np.uint8)), name
    text = str(back)
    assert "unpack(" in text and str(irlab.parse(text)) == text


@pytest.mark.parametrize("scheme", ["int4", "fp8", "int8"])
def test_transformers_computes_what_the_ir_computes_of_compressed_tensors(
    fused: Module, tmp_path: Path, scheme: str
) -> None:
    pytest.importorskip("compressed_tensors")
    pytest.importorskip("accelerate")
    module = irlab.run(fused, f"quantize{{scheme={scheme}}}")
    emitted = irlab.emit(module, "hf{layout=compressed-tensors}", tmp_path / "out")
    assert emitted.parity.runtime == "transformers" and not emitted.parity.failure
    assert emitted.parity.kl is not None and emitted.parity.kl < 1e-3


def test_a_checkpoint_is_as_small_as_its_codes(fused: Module, tmp_path: Path) -> None:
    sizes = {}
    for layout in ("plain", "gptq"):
        emitted = irlab.emit(irlab.run(fused, "quantize"), f"hf{{layout={layout}}}", tmp_path / layout, parity=False)
        sizes[layout] = (emitted.out / "model.safetensors").stat().st_size
    assert sizes["gptq"] < 0.4 * sizes["plain"]


def test_modelopt_says_what_it_is_where_tensorrt_llm_looks(fused: Module, tmp_path: Path) -> None:
    irlab.emit(
        irlab.run(fused, "quantize{scheme=int4 group=64}"), "hf{layout=modelopt}", tmp_path / "out", parity=False
    )
    said = json.loads((tmp_path / "out" / "hf_quant_config.json").read_text())
    assert said["producer"]["name"] == "modelopt"
    assert said["quantization"] == {
        "quant_algo": "W4A16_AWQ",
        "kv_cache_quant_algo": None,
        "group_size": 64,
        "has_zero_point": False,
        "pre_quant_scale": False,
        "exclude_modules": ["lm_head"],
    }


def test_an_encoded_table_of_embeddings_is_refused_by_name(fused: Module, tmp_path: Path) -> None:
    module = irlab.run(fused, "quantize{embeddings=int8}")
    with pytest.raises(LegalityError, match=r"embed_tokens\.weight: the gptq layout holds linear layers, not tables"):
        irlab.emit(module, "hf{layout=gptq}", tmp_path / "out", parity=False)
    assert not (tmp_path / "out").exists()


def test_a_scheme_that_a_layout_lacks_is_refused_by_name(fused: Module, tmp_path: Path) -> None:
    with pytest.raises(LegalityError, match=r"self_attn.*the awq layout holds integers of 4 bits, not of 8"):
        irlab.emit(irlab.run(fused, "quantize{scheme=int8}"), "hf{layout=awq}", tmp_path / "out", parity=False)


def test_a_model_of_plain_floats_has_nothing_to_lay_out(fused: Module, tmp_path: Path) -> None:
    with pytest.raises(LegalityError, match="nothing to lay out"):
        irlab.emit(fused, "hf{layout=gptq}", tmp_path / "out", parity=False)


@pytest.fixture
def written(fused: Module, tmp_path: Path) -> Path:
    out = tmp_path / "out"
    irlab.emit(irlab.run(fused, "quantize{scheme=int4 group=32}"), "hf{layout=gptq}", out, parity=False)
    return out


def edit(directory: Path, **fields: object) -> None:
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"].update(fields)
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "fields, reason",
    [
        ({"quant_method": "bitsandbytes"}, "already quantised by bitsandbytes"),
        ({"bits": 7}, "integers of 7 bits are not supported"),
        ({"bits": "four"}, "bits = 'four', which is no int"),
        ({"group_size": 64}, "was expected"),
        ({"group_size": 48}, "not whole groups of 48"),
        ({"checkpoint_format": "marlin"}, "not sym=True of marlin"),
    ],
)
def test_a_checkpoint_that_lies_about_itself_is_refused(written: Path, fields: dict[str, object], reason: str) -> None:
    edit(written, **fields)
    with pytest.raises(InputError, match=reason):
        irlab.load(str(written))
