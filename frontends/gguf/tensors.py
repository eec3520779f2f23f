"""Which tensor of a GGUF file is which weight of transformers' model?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from irlab.errors import InputError
from irlab.frontends.gguf.architectures import Architecture
from irlab.types import DType, TensorType, bf16, f16, f32
from irlab.weights import Cast, Recipe, Take, static_shape
from irlab.weights.gguf import FromGGUF, GGUFFile

_MODEL: Final = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER: Final = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Paths of modules, and what GGUF calls their tensors (gguf-py's names)."""

ROPE_FACTORS: Final = "rope_freqs.weight"


class Tensors:
    """The tensors of `file` under the names that transformers' model has for them (a `Checkpoint` of another kind)."""

    def __init__(self, file: GGUFFile, row: Architecture, config: dict[str, Any]) -> None:
        self.path: Path = file.path
        self._file, self._row, self._head_dim = file, row, int(config["head_dim"])
        names = dict(_MODEL)
        for layer in range(config["num_hidden_layers"]):
            names |= {f"model.layers.{layer}.{path}": f"blk.{layer}.{stem}" for path, stem in _LAYER.items()}
        self._stored = {
            f"{path}.{kind}": f"{stem}.{kind}"
            for path, stem in names.items()
            for kind in ("weight", "bias")
            if f"{stem}.{kind}" in file.entries
        }
        self._left = set(file.entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def type(self, name: str) -> TensorType:
        """The type of tensor `name`. Raises InputError for one that irlab lacks."""
        return self._file.entry(self._stored[name]).type

    def expect(self, name: str, shape: tuple[int, ...]) -> Recipe:
        """Tensor `name`, which the metadata say has this shape. Raises InputError where the file disagrees."""
        stored = self._stored[name]
        found = self.raw(stored)
        if static_shape(found.type) != shape:
            raise InputError(f"{self.path}: tensor '{stored}' is {found.type}, the metadata ask for {list(shape)}")
        if self._row.paired_rope and name.rpartition(".")[0].endswith(("q_proj", "k_proj")):
            return Take(found, _halves(shape[0], self._head_dim))
        return found

    def raw(self, stored: str) -> FromGGUF:
        """The tensor that GGUF calls `stored`, as it is."""
        self._left.discard(stored)
        entry = self._file.entry(stored)
        return FromGGUF(entry.path, stored, entry.type)

    def rope_factors(self) -> np.ndarray[Any, np.dtype[np.float32]] | None:
        """What rotary frequencies are divided by: f32[head_dim / 2]; None where the file has no such table."""
        if ROPE_FACTORS not in self._file.entries:
            return None
        factors = self.raw(ROPE_FACTORS).read()
        if factors.shape != (self._head_dim // 2,) or not (np.isfinite(factors) & (factors > 0)).all():
            raise InputError(f"{self.path}: {ROPE_FACTORS} does not hold {self._head_dim // 2} positive numbers")
        return np.asarray(factors, np.float32)

    def require_all_read(self) -> None:
        """Raise InputError for tensors that the model has no place for: it would compute something else."""
        for name in sorted(self._left):
            raise InputError(
                f"{self.path}: tensor '{name}' has no place in a model of the architecture {self._row.name}"
            )

    def dtype(self) -> DType:
        """In which dtype to compute: that of the matrices if all plain numbers are exact in it, else f32."""
        kinds = {name: kind for name in self if (kind := self.type(name)).encoding is None}
        matrices = {kind.dtype for kind in kinds.values() if kind.rank == 2}
        (half,) = matrices if len(matrices) == 1 else (f32,)
        if half not in (f16, bf16):
            return f32
        for name, kind in kinds.items():
            if kind.dtype is not half:
                values = FromGGUF(self._file.entry(self._stored[name]).path, self._stored[name], kind)
                if not np.array_equal(Cast(Cast(values, half), f32).read(), Cast(values, f32).read()):
                    return f32
        return half


def _halves(rows: int, head_dim: int) -> tuple[int, ...]:
    """Where the rows of heads stand that are turned halves apart, if neighbours were turned: 0, 2, 4 ... 1, 3, 5 ..."""
    within = np.arange(head_dim).reshape(-1, 2).T.reshape(-1)
    heads = np.arange(0, rows, head_dim)
    return tuple((heads[:, None] + within).reshape(-1).tolist())
