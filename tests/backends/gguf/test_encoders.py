"""`gguf{type=... encoder=irlab}`: the same types as llama.cpp's quantiser gives, by our own search."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

import irlab
from irlab import Module

MATRIX = {"blk.1.ffn_up.weight": "model.layers.1.mlp.up_proj.weight"}


def tensors(module: Module, out: Path, encoder: str) -> dict[str, tuple[str, npt.NDArray[np.float32]]]:
    """Type and numbers of each tensor of the file."""
    irlab.emit(module, "gguf", out, type="q4_k_m", encoder=encoder, parity=False, allow_fallback=True)
    read = gguf.GGUFReader(out).tensors
    return {t.name: (t.tensor_type.name, gguf.dequantize(t.data, t.tensor_type)) for t in read}


def test_our_encoder_gives_the_same_types_and_loses_less(tmp_path: Path) -> None:
    module = irlab.run(irlab.load("demo"), "fuse")
    ours, theirs = (tensors(module, tmp_path / f"{name}.gguf", name) for name in ("irlab", "ggml"))
    assert {name: kind for name, (kind, _) in ours.items()} == {name: kind for name, (kind, _) in theirs.items()}
    assert {"Q4_K", "Q6_K"} <= {kind for kind, _ in ours.values()}
    for gguf_name, name in MATRIX.items():
        x = module.weights[name].recipe.read().astype(np.float32)
        losses = [float(((numbers[gguf_name][1] - x) ** 2).sum()) for numbers in (ours, theirs)]
        assert losses[0] < losses[1]
