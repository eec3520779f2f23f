"""--emit hf{layout=...} of rounded activations: FP8, NVFP4 and W8A8, as the tools that load them read the files."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_models import Lifted
from safetensors import safe_open

import irlab
from irlab import Context, Module
from irlab.calibration import Sample
from irlab.errors import InputError, LegalityError
from irlab.ops import nn
from irlab.passmgr import PassManager
from irlab.registry import backend
from irlab.schedule import build_pipeline

IDS = np.random.default_rng(0).integers(3, 96, (8, 24))

PIPELINES = {
    "int8-token": "quantize-activations{sym=true}",
    "int8-static": "quantize-activations{mode=static sym=true}",
    "fp8-token": "quantize-activations{scheme=fp8}",
    "fp8-static": "quantize-activations{scheme=fp8 mode=static}",
    "fp8-row-static": "quantize{scheme=fp8},quantize-activations{scheme=fp8 mode=static}",
    "nvfp4": "quantize-activations{scheme=nvfp4 mode=static exclude=lm_head.weight}",
}
HELD = [("compressed-tensors", name) for name in PIPELINES] + [
    ("modelopt", name) for name in ("int8-static", "fp8-token", "fp8-static", "nvfp4")
]

Rounded = Callable[..., Module]


@pytest.fixture(scope="module")
def rounded(lifted: Lifted, tmp_path_factory: pytest.TempPathFactory) -> Rounded:
    """rounded("nvfp4") is a tiny Llama after that pipeline, made once; "bf16" computes in bf16."""
    made: dict[tuple[str, str], Module] = {}
    cache = tmp_path_factory.mktemp("cache")

    def make(name: str, dtype: str = "f32") -> Module:
        if (name, dtype) not in made:
            module = irlab.run(lifted("llama"), f"fuse,cast{{dtype={dtype}}}")
            ctx = Context(calibration=Sample(IDS, length=24), cache_dir=cache)
            PassManager(build_pipeline(PIPELINES.get(name, name)), ctx).run(module)
            made[name, dtype] = module
        return made[name, dtype]

    return make


def roundings(module: Module) -> dict[str, tuple[str, dict[str, Any]]]:
    """How what each matrix reads is rounded: the name of the op, and its attributes."""
    return {
        op.weight.op.symbol.name: (op.x.op.opname, op.x.op.attributes)  # type: ignore[union-attr]
        for op in module.graph.find(nn.Linear)
        if isinstance(op.x.op, nn.ActivationRounding)
    }


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    with safe_open(directory / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("layout, name", HELD)
def test_codes_and_roundings_come_back(rounded: Rounded, tmp_path: Path, layout: str, name: str) -> None:
    module = rounded(name)
    emitted = irlab.emit(module, f"hf{{layout={layout}}}", tmp_path / "out", parity=False)
    assert not emitted.notes
    back = irlab.run(irlab.load(str(tmp_path / "out")), "fuse")
    found = roundings(module)
    assert len(found) == (14 if name == "nvfp4" else 15) and roundings(back) == found
    assert all(attributes["scale"] > 0 for _, attributes in found.values()) == ("token" not in name)
    for weight in found:
        mine, again = module.weights[weight], back.weights[weight]
        assert again.type is mine.type
        codes, its = (s.recipe.codes(0, s.recipe.row_count) for s in (mine, again))
        for part, values in codes.items():
            assert np.array_equal(np.asarray(its[part]).view(np.uint8), np.asarray(values).view(np.uint8)), weight
    logits = [irlab.evaluate(m, {"input_ids": IDS})["logits"] for m in (module, back)]
    assert torch.equal(*logits)
    text = str(back)
    assert str(irlab.parse(text)) == text


@pytest.mark.parametrize(
    "name",
    [
        "int8-static",
        "fp8-static",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("int8-token", "fp8-token", "fp8-row-static")),
    ],
)
def test_transformers_rounds_as_the_interpreter_does(rounded: Rounded, tmp_path: Path, name: str) -> None:
    pytest.importorskip("compressed_tensors")
    pytest.importorskip("accelerate")
    parity = irlab.emit(rounded(name), "hf{layout=compressed-tensors}", tmp_path / "out").parity
    assert parity.runtime == "transformers" and not parity.failure
    assert parity.max_abs_logit_diff is not None and parity.kl is not None
    if name == "int8-token":
        # compressed-tensors puts the largest magnitude on 127.5, we on 127, as vLLM does.
        assert parity.kl < 0.01
    else:
        assert parity.max_abs_logit_diff < 1e-3 and parity.kl < 1e-6


def test_transformers_loads_nvfp4_of_bf16(rounded: Rounded, tmp_path: Path) -> None:
    """compressed-tensors decodes it to bf16 whatever the model computes in, so only such models run."""
    pytest.importorskip("compressed_tensors")
    pytest.importorskip("accelerate")
    module = rounded("nvfp4", "bf16")
    parity = irlab.emit(module, "hf{layout=compressed-tensors}", tmp_path / "out").parity
    assert parity.runtime == "transformers" and not parity.failure
    assert parity.kl is not None and parity.kl < 0.1


def test_nvfp4_activations_are_those_of_compressed_tensors() -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    from irlab.floats import invertible
    from irlab.layouts import LAYOUTS, Activation, Names, Scheme
    from irlab.passes.quantize.activations import WEIGHTS

    blocks = Activation("e2m1", "block", True)
    names = Names({"m": Scheme(WEIGHTS["nvfp4", "static"], blocks)}, [])
    group = LAYOUTS["compressed-tensors"].files(names)["quantization_config"]["config_groups"]["group_0"]
    arguments = QuantizationArgs(**group["input_activations"])
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 1, 64)
    scale = float(invertible(float(x.abs().max()) / 2688))
    stored = torch.from_numpy(LAYOUTS["compressed-tensors"].scale_tensors(blocks, scale)["input_global_scale"])
    scales, zeros = compute_dynamic_scales_and_zp(x, arguments, torch.nn.Module(), stored)
    expected = fake_quantize(x, scales, zeros, arguments, stored)
    b = irlab.GraphBuilder("round")
    b.output(y=nn.quantize_activation_float(b.input("x", "f32", x.shape), "e2m1", "block", scale))
    found = irlab.evaluate(b.module(), {"x": x})["y"]
    assert len(expected.unique()) > 200
    # Scales that are computed in another order may round the other way, by a step of E4M3.
    assert (found == expected).float().mean() > 0.999 or torch.allclose(found, expected, rtol=1e-6)


E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def decoded_as_vllm_does(stored: dict[str, torch.Tensor], stem: str) -> torch.Tensor:
    """What vLLM's and TensorRT-LLM's loaders of ModelOpt checkpoints multiply with, in f32: written from what they
    document of the tensors. NVFP4 has two numbers a byte, the even column in the lower nibble."""
    weight, scale = stored[f"{stem}.weight"], stored[f"{stem}.weight_scale"].float()
    if weight.dtype == torch.uint8:
        unit = stored[f"{stem}.weight_scale_2"]
        assert unit.dtype == torch.float32 and unit.shape == ()
        numbers = torch.stack([E2M1[(weight & 15).long()], E2M1[(weight >> 4).long()]], -1).flatten(1)
        return (numbers.unflatten(1, (-1, 16)) * (scale * unit)[..., None]).flatten(1)
    assert scale.shape in ((), (len(weight),))
    return weight.float() * (scale if scale.dim() == 0 else scale[:, None])


@pytest.mark.parametrize("name", [name for layout, name in HELD if layout == "modelopt"])
def test_loaders_of_modelopt_find_the_numbers_of_the_interpreter(rounded: Rounded, tmp_path: Path, name: str) -> None:
    module = rounded(name)
    irlab.emit(module, "hf{layout=modelopt}", tmp_path / "out", parity=False)
    stored = tensors(tmp_path / "out")
    for weight, (_, attributes) in roundings(module).items():
        stem = weight.removesuffix(".weight")
        expected = torch.from_numpy(np.asarray(module.weights[weight].recipe.read()))
        torch.testing.assert_close(decoded_as_vllm_does(stored, stem), expected, rtol=1e-6, atol=0)
        if attributes["scale"]:
            scale = stored[f"{stem}.input_scale"]
            assert scale.dtype == torch.float32 and scale.shape == () and float(scale) == attributes["scale"]
        else:
            assert f"{stem}.input_scale" not in stored
    parts = {"weight", "weight_scale", "weight_scale_2", "input_scale"}
    assert {key.rpartition(".")[2] for key in stored if "_proj." in key} <= parts


@pytest.mark.parametrize("layout", ["modelopt", "compressed-tensors"])
@pytest.mark.parametrize(
    "name, method", [("fp8-static", ""), ("nvfp4", ""), ("nvfp4", "quantize{method=gptq scheme=nvfp4},")]
)
def test_what_loaders_join_has_one_scale(rounded: Rounded, tmp_path: Path, layout: str, name: str, method: str) -> None:
    """vLLM takes the largest scale of the tensor of q, k and v, and of gate and up, for all of them."""
    module = rounded(method + PIPELINES[name])
    emitted = irlab.emit(module, f"hf{{layout={layout}}}", tmp_path / "out", parity=False)
    assert not emitted.notes
    stored = tensors(tmp_path / "out")
    for number in range(2):
        for group in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")):
            for part in ("weight_scale", "weight_scale_2", "weight_global_scale", "input_scale", "input_global_scale"):
                found = [stored.get(f"model.layers.{number}.{stem}.{part}") for stem in group]
                if found[0] is not None and found[0].numel() == 1:
                    assert len({float(scale) for scale in found if scale is not None}) == 1
    units = [v for k, v in stored.items() if k.endswith(("weight_scale_2", "weight_global_scale"))]
    assert len({float(unit) for unit in units}) > 2 or name == "fp8-static"


def test_scales_that_loaders_would_change_are_said(lifted: Lifted, tmp_path: Path) -> None:
    """Codes that were found one matrix at a time."""
    from irlab.encodings import FloatEncoding
    from irlab.weight_uses import replace_weights
    from irlab.weights import Encode, WeightSymbol

    module = irlab.run(lifted("llama"), "fuse")
    alone = {
        name: WeightSymbol(name, Encode(symbol.recipe, FloatEncoding("e2m1", 16, "e4m3")))
        for name, symbol in module.weights.items()
        if "_proj" in name
    }
    replace_weights(module.graph, alone)
    emitted = irlab.emit(module, "hf{layout=modelopt}", tmp_path / "out", parity=False)
    assert len(emitted.notes) == 1 and "weight_scale_2" in emitted.notes[0] and "take the largest" in emitted.notes[0]


def test_layers_that_loaders_join_and_that_differ_are_said(lifted: Lifted, tmp_path: Path) -> None:
    module = irlab.run(lifted("llama"), "fuse,quantize{scheme=nvfp4 exclude=*v_proj*}")
    emitted = irlab.emit(module, "hf{layout=compressed-tensors}", tmp_path / "out", parity=False)
    assert len(emitted.notes) == 1 and "differ in how they are stored" in emitted.notes[0]


OTHERS = "*q_proj*,*k_proj*,*v_proj*,*o_proj*,*gate_proj*,*up_proj*"
MIXED = (
    "quantize{scheme=nvfp4 exclude=*down_proj*,lm_head*},quantize{scheme=fp8 group=-1},"
    f"quantize-activations{{scheme=fp8 mode=static exclude={OTHERS}}}"
)


@pytest.mark.parametrize("layout", ["modelopt", "compressed-tensors"])
def test_several_schemes_in_one_file(rounded: Rounded, tmp_path: Path, layout: str) -> None:
    module = rounded(MIXED)
    irlab.emit(module, f"hf{{layout={layout}}}", tmp_path / "out", parity=False)
    back = irlab.run(irlab.load(str(tmp_path / "out")), "fuse")
    assert len(roundings(back)) == 3 and roundings(back) == roundings(module)
    assert torch.equal(*(irlab.evaluate(m, {"input_ids": IDS})["logits"] for m in (module, back)))
    if layout == "modelopt":
        said = json.loads((tmp_path / "out" / "hf_quant_config.json").read_text())["quantization"]
        assert {layer["quant_algo"] for layer in said["quantized_layers"].values()} == {"W4A16_NVFP4", "FP8"}


def test_modelopt_says_nvfp4_as_vllm_asks(rounded: Rounded, tmp_path: Path) -> None:
    """vLLM insists on group_size, kv_cache_quant_algo and exclude_modules, and reads quant_algo from either file."""
    irlab.emit(rounded("nvfp4"), "hf{layout=modelopt}", tmp_path / "out", parity=False)
    said = json.loads((tmp_path / "out" / "hf_quant_config.json").read_text())
    assert said == {
        "producer": {"name": "modelopt", "version": "0.47.0"},
        "quantization": {
            "quant_algo": "NVFP4",
            "kv_cache_quant_algo": None,
            "group_size": 16,
            "exclude_modules": ["lm_head"],
        },
    }
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    numbers = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}
    assert config["config_groups"] == {
        "group_0": {"input_activations": numbers, "weights": numbers, "targets": ["Linear"]}
    }
    assert config["quant_method"] == "modelopt" and config["quant_algo"] == "NVFP4" and config["ignore"] == ["lm_head"]


def test_a_checkpoint_that_says_so_in_hf_quant_config_alone_is_read(rounded: Rounded, tmp_path: Path) -> None:
    out = tmp_path / "out"
    irlab.emit(rounded("fp8-static"), "hf{layout=modelopt}", out, parity=False)
    config = json.loads((out / "config.json").read_text())
    del config["quantization_config"]
    (out / "config.json").write_text(json.dumps(config))
    assert roundings(irlab.load(str(out))) == roundings(rounded("fp8-static"))


@pytest.mark.parametrize(
    "layout, name, reason",
    [
        (
            "gptq",
            "int8-static",
            r"q_proj\.weight: the gptq layout .* matrices alone.*layout=compressed-tensors or mod",
        ),
        ("awq", "nvfp4", r"the awq layout holds integers, not f<e2m1.*layout=compressed-tensors or modelopt"),
        ("modelopt", "int8-token", r"not q<int8.*found when the model runs.*layout=compressed-tensors"),
        ("plain", "fp8-static", r"transformers computes this architecture in floats.*layout=compressed-tensors"),
    ],
)
def test_what_a_layout_cannot_hold_is_refused_with_those_that_can(
    rounded: Rounded, tmp_path: Path, layout: str, name: str, reason: str
) -> None:
    with pytest.raises(LegalityError, match=reason):
        irlab.emit(rounded(name), f"hf{{layout={layout}}}", tmp_path / "out", parity=False)
    assert not (tmp_path / "out").exists()
    rows = backend("hf")(layout=layout).plan(rounded(name))  # type: ignore[call-arg]
    assert any(row.holding == "none" for row in rows)


@pytest.mark.parametrize(
    "layout, scheme",
    [
        ("modelopt", {"dynamic": False, "num_bits": 8, "type": "float"}),
        ("compressed-tensors", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
    ],
)
def test_a_cache_that_a_checkpoint_wants_quantised_is_noted(
    rounded: Rounded, tmp_path: Path, layout: str, scheme: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    irlab.emit(rounded("fp8-token"), f"hf{{layout={layout}}}", out, parity=False)
    assert not irlab.load(str(out)).metadata.get("notes")
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"]["kv_cache_scheme"] = scheme
    (out / "config.json").write_text(json.dumps(config))
    assert "keys and values in 8-bit float" in irlab.load(str(out)).metadata["notes"][0]


@pytest.mark.parametrize(
    "pipeline, reason",
    [
        ("quantize-activations{weights=none sym=true}", "is not encoded.*weights=same"),
        ("quantize-activations{sym=false}", "symmetric activations of 8 bits"),
    ],
)
def test_roundings_that_no_checkpoint_can_say_are_refused(
    rounded: Rounded, tmp_path: Path, pipeline: str, reason: str
) -> None:
    with pytest.raises(LegalityError, match=reason):
        irlab.emit(rounded(pipeline), "hf{layout=compressed-tensors}", tmp_path / "out", parity=False)
    rows = backend("hf")(layout="compressed-tensors").plan(rounded(pipeline))  # type: ignore[call-arg]
    assert [row.holding for row in rows] == ["none"]


def test_the_pass_asks_the_layout_before_it_works(lifted: Lifted) -> None:
    module = irlab.run(lifted("llama"), "fuse")
    for layout, reason in (("modelopt", "FP8, not activations rounded to int8, per token"), ("gptq", "matrices alone")):
        outputs = (backend("hf")(layout=layout),)  # type: ignore[call-arg]
        with pytest.raises(InputError, match=f"quantize-activations: hf cannot hold it.*{reason}"):
            PassManager(build_pipeline("quantize-activations"), Context(outputs=outputs)).run(module.clone())


@pytest.mark.parametrize(
    "suffix, values, reason",
    [
        ("q_proj.input_scale", torch.tensor(0.0), "the scale of activations is 0"),
        ("q_proj.input_scale", torch.tensor([1.0, 2.0]), "one number was expected"),
        ("q_proj.input_scale", None, "input_scale"),
    ],
)
def test_a_checkpoint_without_its_scales_is_refused(
    rounded: Rounded, tmp_path: Path, suffix: str, values: torch.Tensor | None, reason: str
) -> None:
    from safetensors.torch import save_file

    out = tmp_path / "out"
    irlab.emit(rounded("fp8-static"), "hf{layout=modelopt}", out, parity=False)
    stored = tensors(out)
    name = f"model.layers.0.self_attn.{suffix}"
    del stored[name]
    save_file(stored | ({} if values is None else {name: values}), out / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=reason):
        irlab.load(str(out))


MODELOPT = {
    "FP8_DEFAULT_CFG": "FP8",
    "FP8_PER_CHANNEL_PER_TOKEN_CFG": "FP8_PER_CHANNEL_PER_TOKEN",
    "INT8_DEFAULT_CFG": "W8A8_SQ_PER_CHANNEL",
    "INT8_WEIGHT_ONLY_CFG": "W8A16",
    "NVFP4_DEFAULT_CFG": "NVFP4",
    "W4A16_NVFP4_CFG": "W4A16_NVFP4",
}


@pytest.mark.slow
@pytest.mark.parametrize("config", MODELOPT)
def test_what_modelopt_itself_writes_is_read_and_written_again(tmp_path: Path, config: str) -> None:
    """Tensor by tensor, where nvidia-modelopt is installed: names, types and bytes."""
    warnings.simplefilter("ignore")
    quantization = pytest.importorskip("modelopt.torch.quantization")
    export = pytest.importorskip("modelopt.torch.export")
    from hf_models import save_model
    from transformers import AutoModelForCausalLM

    save_model(tmp_path / "model", "llama", hidden_size=64, intermediate_size=128)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto").eval()
    ids = torch.from_numpy(IDS)
    quantization.quantize(model, getattr(quantization, config), lambda m: m(ids))
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    expected = None
    if config in ("FP8_PER_CHANNEL_PER_TOKEN_CFG", "INT8_DEFAULT_CFG", "INT8_WEIGHT_ONLY_CFG"):
        # NVFP4 needs a GPU to run, and FP8 is exported with other scales than it was calibrated with.
        with torch.no_grad():
            expected = model(ids).logits
    export.export_hf_checkpoint(model, export_dir=str(theirs))
    module = irlab.run(irlab.load(str(theirs)), "fuse")
    if expected is not None:
        found = irlab.evaluate(module, {"input_ids": IDS})["logits"]
        # Both round activations: what lies halfway between two integers for one may not for the other.
        assert float((found - expected).square().mean() ** 0.5) < 0.02 * float(expected.std())
    irlab.emit(module, "hf{layout=modelopt}", ours, parity=False)
    mine, its = tensors(ours), tensors(theirs)
    assert mine.keys() == its.keys()
    for name, values in its.items():
        assert mine[name].dtype == values.dtype and mine[name].shape == values.shape, name
        assert torch.equal(mine[name].flatten().view(torch.uint8), values.flatten().view(torch.uint8)), name
    said = [json.loads((path / "hf_quant_config.json").read_text())["quantization"] for path in (ours, theirs)]
    assert said[0]["quant_algo"] == MODELOPT[config]
    its_modules = said[1].pop("exclude_modules")
    assert set(said[0].pop("exclude_modules")) <= set(its_modules) and said[0] == said[1]
