"""What the hf frontend makes of directories: dtypes, metadata, config alone, shards, and bad input in one line."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers

from irlab.errors import InputError
from irlab.frontends.hf import HF, lift_directory
from irlab.interp import evaluate
from irlab.target import LoadRequest
from irlab.weights import Cast, File, Literal

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A tiny bf16 Llama with a model card."""
    directory = tmp_path_factory.mktemp("tiny-llama")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{k: v for k, v in CONFIG.items() if k != "architectures"})
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    (directory / "README.md").write_text("---\nlicense: mit\nbase_model: someone/base\ntags: [x]\n---\n# A model\n")
    return directory


@pytest.fixture
def directory(original, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(original, tmp_path / "model")


def change_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(directory, reason):
    """Lifting `directory` fails with one line that matches `reason`."""
    with pytest.raises(InputError, match=reason) as error:
        lift_directory(directory)
    assert "\n" not in str(error.value)
    return error.value


def test_numbers_are_those_of_the_checkpoint(original):
    module = lift_directory(original)
    assert str(module.weights["model.layers.1.mlp.up_proj.weight"].type) == "bf16[96, 64]"
    assert str(module.graph.outputs["logits"].type) == "bf16[batch, seq, 96]"
    model = transformers.AutoModelForCausalLM.from_pretrained(original, dtype="auto").eval()
    ids = torch.randint(0, 96, (2, 9))
    with torch.no_grad():
        wanted = model(ids).logits
    found = evaluate(module, {"input_ids": ids})["logits"]
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found.detach(), wanted, atol=2e-2, rtol=2e-2)


def test_the_config_decides_the_dtype_of_a_checkpoint_in_another(directory):
    change_config(directory, dtype="float32")
    module = lift_directory(directory)
    recipe = module.weights["lm_head.weight"].recipe
    assert isinstance(recipe, Cast) and isinstance(recipe.source, File)
    assert str(module.graph.outputs["logits"].type) == "f32[batch, seq, 96]"


def test_without_a_dtype_in_the_config_the_checkpoint_decides(directory):
    config = json.loads((directory / "config.json").read_text())
    config.pop("dtype", None)
    (directory / "config.json").write_text(json.dumps(config))
    assert str(lift_directory(directory).graph.outputs["logits"].type) == "bf16[batch, seq, 96]"


def test_rotary_frequencies_are_real_numbers(original):
    recipe = lift_directory(original).weights["model.rotary_emb.inv_freq"].recipe
    assert isinstance(recipe, Literal)
    assert recipe.values == pytest.approx([10000 ** (-2 * i / 16) for i in range(8)], rel=1e-6)


def test_metadata_travels(original):
    module = lift_directory(original)
    assert module.name == original.name
    assert module.directory == original
    assert module.metadata["architecture"] == "LlamaForCausalLM"
    assert module.metadata["config"]["hidden_size"] == 64
    assert module.metadata["licence"] == "mit"
    assert module.metadata["base_model"] == "someone/base"
    assert module.metadata["tokenizer"] == str(original)
    assert "generation_config" in module.metadata


def test_a_config_alone_lifts_and_says_what_is_missing_when_a_weight_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "torch_dtype": "float16"}))
    module = lift_directory(tmp_path)
    weight = module.weights["model.embed_tokens.weight"]
    assert str(weight.type) == "f16[96, 64]"
    with pytest.raises(InputError, match=r"model\.safetensors"):
        weight.recipe.read()


def test_shards(directory):
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
    (directory / "model.safetensors").unlink()
    model.save_pretrained(directory, max_shard_size="40KB")
    assert len(list(directory.glob("*.safetensors"))) > 2
    module = lift_directory(directory)
    name = "model.layers.1.self_attn.q_proj.weight"
    values = torch.from_numpy(module.weights[name].recipe.read().astype("float32"))
    assert torch.equal(values, model.get_parameter(name).detach().float())


def test_the_frontend_accepts_directories_and_hub_ids(original, tmp_path):
    frontend = HF()
    assert frontend.accepts(str(original))
    assert frontend.accepts("someone/some-model")
    assert not frontend.accepts(str(tmp_path))
    assert not frontend.accepts("model.gguf")
    assert not frontend.accepts("models/model.gguf")
    assert frontend.load(str(original), LoadRequest()).name == original.name


def test_no_weight_file_is_touched_but_for_its_header(directory):
    file = directory / "model.safetensors"
    before = file.stat().st_size
    with file.open("r+b") as f:  # the numbers are rubbish, the header is not
        f.seek(before - 1000)
        f.write(b"\xff" * 1000)
    assert len(lift_directory(directory).weights) == 2 * 9 + 4


def test_an_unreachable_hub_is_one_line(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="someone/no-such-model cannot be fetched") as error:
        HF().load("someone/no-such-model", LoadRequest())
    assert "\n" not in str(error.value)


def test_pickles_are_refused_with_the_command_that_converts_them(directory):
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(b"not to be opened")
    assert "save_pretrained" in str(refused(directory, "pickle"))


def test_a_config_that_disagrees_with_the_tensors_names_one(directory):
    change_config(directory, intermediate_size=128)
    refused(directory, r"model\.layers\.0\.mlp\.gate_proj\.weight.*\[128, 64\]")


def test_a_missing_tensor_is_named(directory):
    change_config(directory, num_hidden_layers=3)
    refused(directory, r"no tensor called 'model\.layers\.2\.")


def test_a_truncated_checkpoint(directory):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(directory, "truncated|outside")


def test_an_index_that_escapes_its_directory(directory):
    (directory / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": "../../etc/passwd"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(directory, r"\.\./\.\./etc/passwd")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "no_such_model"}, "does not know the model_type 'no_such_model'"),
        ({"model_type": None}, "names no model_type"),
        ({"num_hidden_layers": -1}, "no number of layers"),
        ({"num_hidden_layers": 10**9}, "no number of layers"),
        ({"hidden_size": -64}, r"config\.json"),
        ({"hidden_size": "wide"}, r"config\.json"),
        ({"num_attention_heads": 0}, r"config\.json"),
        ({"hidden_act": "no_such_function"}, "no_such_function"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "already quantised by bitsandbytes"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "encoder-decoder"),
    ],
)
def test_a_config_that_makes_no_sense(directory, changes, reason):
    change_config(directory, **changes)
    refused(directory, reason)


@pytest.mark.parametrize("text", ["{", "[]", "\x00\xff", '{"model_type": ' * 20_000])
def test_a_config_that_is_no_json_object(directory, text):
    (directory / "config.json").write_bytes(text.encode("latin-1"))
    refused(directory, r"config\.json")


def test_code_that_comes_with_a_model_runs_only_when_asked(directory):
    (directory / "made_up.py").write_text("raise SystemExit('the code of the model was run')")
    change_config(directory, model_type="made_up", auto_map={"AutoConfig": "made_up.Config"})
    assert "--trust-remote-code" in str(refused(directory, "made_up"))


def test_code_that_comes_with_a_model_is_lifted_when_allowed(directory, monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (directory / "made_up.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class MadeUpConfig(LlamaConfig):\n    model_type = 'made_up'\n"
        "class MadeUpForCausalLM(LlamaForCausalLM):\n    config_class = MadeUpConfig\n"
    )
    code = {"AutoConfig": "made_up.MadeUpConfig", "AutoModelForCausalLM": "made_up.MadeUpForCausalLM"}
    change_config(directory, model_type="made_up", auto_map=code, architectures=["MadeUpForCausalLM"])
    module = HF().load(str(directory), LoadRequest(trust_remote_code=True))
    assert module.metadata["architecture"] == "MadeUpForCausalLM"
    assert str(module.graph.outputs["logits"].type) == "bf16[batch, seq, 96]"


def test_a_model_card_that_is_no_yaml_is_ignored(directory):
    (directory / "README.md").write_text("---\nlicense: [mit\n---\n")
    assert "licence" not in lift_directory(directory).metadata


def test_no_config(tmp_path):
    refused(tmp_path, r"no config\.json")
