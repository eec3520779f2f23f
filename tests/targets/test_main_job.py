"""The main job for every architecture: transformers' own greedy tokens, in llama.cpp, ONNX Runtime and genai."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import ARCHITECTURES, tiny_model

import irlab
from irlab.api import make_backend

PROMPT = [7, 3, 91, 45, 12, 60]
COUNT = 12
END_OF_TEXT = 2


def transformers_greedy(directory: Path) -> list[int]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory)
    tokens = list(PROMPT)
    with torch.no_grad():
        for _ in range(COUNT):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(PROMPT) :]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_float_files_choose_the_tokens_of_transformers(kind: str, tmp_path: Path) -> None:
    directory = tiny_model(tmp_path / "model", kind)
    expected = transformers_greedy(directory)
    module = irlab.run(irlab.load(directory), "fuse,kv-cache")
    gguf = irlab.emit(module, "gguf", tmp_path / "m.gguf", parity=True)
    assert runtime_tokens("gguf", gguf.out) == expected
    for profile in ("fast", "portable"):
        onnx = irlab.emit(module, "onnx", tmp_path / profile, parity=True, profile=profile)
        assert onnx.parity.greedy_equal
        assert runtime_tokens("onnx", onnx.out) == expected
        chosen = genai_tokens(onnx.out)
        # genai stops after the end of text.
        assert chosen == expected[: len(chosen)]
        assert len(chosen) == COUNT or chosen[-1] == END_OF_TEXT


def runtime_tokens(target: str, out: Path) -> list[int]:
    runtime = make_backend(target, {}).runtime()
    assert runtime is not None
    return runtime.greedy(out, PROMPT, COUNT)


def genai_tokens(out: Path) -> list[int]:
    """What onnxruntime-genai generates from the directory as it was written."""
    import onnxruntime_genai as og

    model = og.Model(str(out))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(PROMPT) + COUNT, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens(PROMPT)
    tokens: list[int] = []
    while not generator.is_done():
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    return tokens


@pytest.mark.parametrize("kind", ["llama", "qwen3-tied"])
def test_encoded_files_pass_the_parity_rule(kind: str, tmp_path: Path) -> None:
    module = irlab.load(tiny_model(tmp_path / "model", kind, dtype="bfloat16"))
    module = irlab.run(module, "fuse,quantize{scheme=int4 group=32},kv-cache", targets=("gguf", "onnx"))
    for target, out in (("gguf", "m.gguf"), ("onnx", "onnx")):
        parity = irlab.emit(module, target, tmp_path / out, parity=True).parity
        assert not parity.failure and 0 < parity.kl < 0.05
