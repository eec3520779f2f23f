"""quantize{mix=...}: the types that llama.cpp's file types give, with our codes; and encodings without a grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_models import tiny_model

import irlab
from irlab import Context, Module, nn
from irlab.backends.gguf import GGUF, tensor_info
from irlab.calibration import Sample
from irlab.errors import InputError, LegalityError, UsageError
from irlab.ir import GraphBuilder
from irlab.passmgr import PassManager, PassRecord
from irlab.schedule import build_pipeline

TABLE = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def module() -> Module:
    return irlab.run(irlab.load("demo"), "fuse")


def file_types(module: Module, kind: str) -> list[str]:
    """The types of the tensors of a GGUF file, in order."""
    legal = GGUF(type=kind).legalise(module.clone(), Context())
    return [f"{symbol.name} {tensor_info(symbol).type}" for symbol in legal.weights.values()]


def calibrated(module: Module, pipeline: str, cache: Path) -> tuple[Module, PassRecord]:
    ids = np.random.default_rng(0).integers(0, 1024, (8, 64))
    new = module.clone()
    manager = PassManager(build_pipeline(pipeline), Context(calibration=Sample(ids, length=64), cache_dir=cache))
    return new, manager.run(new)[-1]


@pytest.mark.parametrize("mix", ["q4_k_m", "q2_k", "Q5_0"])
def test_every_tensor_gets_the_type_of_the_file(module: Module, mix: str) -> None:
    assert file_types(irlab.run(module, f"quantize{{mix={mix}}}"), "auto") == file_types(module, mix)


def test_a_tied_head_is_calibrated_where_it_is_read(module: Module, tmp_path: Path) -> None:
    new, record = calibrated(module, "quantize{mix=q2_k method=gptq}", tmp_path)
    assert file_types(new, "auto") == file_types(module, "q2_k")
    rounded = irlab.run(module, "quantize{mix=q2_k}")
    assert not np.array_equal(new.weights[TABLE].recipe.read(), rounded.weights[TABLE].recipe.read())
    errors = record.layers[TABLE]
    assert 0 < errors["output_error"] < errors["weight_error"], "it was calibrated on what the head reads"
    assert len(record.layers) == 29


def test_rows_that_are_not_whole_blocks_are_refused_or_take_a_larger_type(tmp_path: Path) -> None:
    module = irlab.run(irlab.load(str(tiny_model(tmp_path / "narrow", "llama"))), "fuse")
    with pytest.raises(InputError, match=r"64 columns are not whole blocks of Q6_K, .* Q8_0.*indivisible=fallback"):
        irlab.run(module, "quantize{mix=q4_k_m}")
    elements = irlab.run(module, "quantize{mix=q4_k_m indivisible=fallback}").weights.values()
    assert {str(symbol.type.element) for symbol in elements if symbol.type.encoding} >= {"ggml<q5_0>", "ggml<q8_0>"}


def test_what_makes_no_sense_is_refused(module: Module) -> None:
    with pytest.raises(UsageError, match="unknown GGUF type 'q4_kk'"):
        irlab.run(module, "quantize{mix=q4_kk}")
    with pytest.raises(UsageError, match="indivisible=fallback belongs to a mix"):
        irlab.run(module, "quantize{indivisible=fallback}")
    b = GraphBuilder("one")
    b.output(y=nn.linear(b.input("x", "f32", (4, 256)), b.random_weight("w", "f32", (32, 256))))
    with pytest.raises(LegalityError):
        irlab.run(b.module(), "quantize{mix=q4_k_m}")


@pytest.mark.parametrize("scheme", ["iq2_xxs", "iq3_s"])
def test_codes_of_several_numbers_are_refused_before_the_sweep(module: Module, scheme: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"weight 'model.*': ggml<{scheme}> has no grid .*use method=rtn"):
        calibrated(module, f"quantize{{scheme={scheme} method=gptq}}", tmp_path)
    assert not list(tmp_path.rglob("layer-*"))
