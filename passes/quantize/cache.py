"""In how many bits are keys and values kept? As codes under fixed scales, which calibration data chooses.

Scales are fixed because the caches of runtimes are: what is written is not looked at again. Keys have channels that are
large for every token, so that each channel gets a scale of its own (Liu et al. 2024, KIVI, arXiv 2402.02750; Hooper et
al. 2024, KVQuant).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import numpy.typing as npt

from irlab.errors import InputError
from irlab.ir import Module, Value, path_of
from irlab.layers import Layer
from irlab.ops import nn, prim
from irlab.passmgr import Context, Pass
from irlab.types import f32, tensor
from irlab.weights import Array, Random, WeightSymbol, static_shape

if TYPE_CHECKING:
    from irlab.walk import Walk

Floats = npt.NDArray[np.float32]

_BITS: Final = {"int8": 8, "int4": 4}
_CLIPS: Final = np.linspace(0.5, 1, 26, dtype=np.float32)
"""Shares of the largest magnitude that scales are tried at."""

_MOST_ROWS: Final = 8192
"""Scales are chosen on at most so many tokens, evenly spread."""


@dataclass(frozen=True)
class QuantizeCache(
    Pass,
    name="quantize-cache",
    exactness="lossy",
    requires={"fuse": "it looks for nn.attention"},
    before={"kv-cache": "the cache would hold floats already"},
):
    """Keeps keys and values in 8 or 4 bits, under scales from calibration data; kv-cache then caches codes.

        %y = nn.attention(%q, %k, %v)   ->   %ck = nn.quantize_cache(%k, @k_scale)
                                             %k2 = nn.dequantize_cache(%ck, @k_scale)      and so for %v
                                             %y = nn.attention(%q, %k2, %v2)

    Whatever computes the graph rounds keys and values so, the newest ones too; after `kv-cache` the inputs
    past_key_values.N.key are i8[batch, kv_heads, past, head_dim] (or u8, two codes of 4 bits to a byte). ONNX Runtime's
    GroupQueryAttention reads such caches (1.32). llama.cpp chooses the types of its cache when it runs
    (--cache-type-k q8_0 --cache-type-v q8_0), so that a GGUF file leaves this out, and says so; hf refuses.

    `scheme`: int8 or int4. `per`: one scale for each channel of each head, or one for all (tensor). Scales are those of
    the least squared error on the calibration data.
    """

    scheme: Literal["int8", "int4"] = "int8"
    per: Literal["channel", "tensor"] = "channel"

    def computes(self, ctx: Context) -> bool:
        return True

    def run(self, module: Module, ctx: Context) -> None:
        graph, bits = module.graph, _BITS[self.scheme]
        attentions = [op for op in graph.topo() if isinstance(op, nn.Attention)]
        if not attentions:
            raise InputError("quantize-cache: the graph has no nn.attention", "run fuse first, on a decoder")
        for op in attentions:
            where = path_of(op) or "an nn.attention"
            if not op.causal:
                raise InputError(f"quantize-cache: {where} is not causal", "only decoders have a cache")
            if any(isinstance(value.op, nn.DequantizeCache) for value in (op.k, op.v)):
                raise InputError(f"quantize-cache: the cache of {where} is quantised already")
            sizes = op.k.type.shape[1], op.k.type.shape[3], op.v.type.shape[3]
            if not all(isinstance(size, int) for size in sizes) or (bits == 4 and any(s % 2 != 0 for s in sizes[1:])):
                raise InputError(f"quantize-cache: {where} has heads of {sizes[1]} features", "int8 takes any number")
        read = list(dict.fromkeys(value for op in attentions for value in (op.k, op.v)))
        scales = {} if ctx.is_plan else self._scales(module, ctx, read)
        names = _names(attentions)
        for value in read:
            users = [op for op in attentions if value in (op.k, op.v)]
            scale = prim.weight(self._symbol(names[value], value, scales.get(value)))
            held = nn.dequantize_cache(nn.quantize_cache(value, scale, bits), scale, value.type.dtype, bits)
            for op in users:
                for slot in (1, 2):
                    if op.operands[slot] is value:
                        graph.set_operand(op, slot, held)
        ctx.note_rewrites({"quantize-keys-and-values": len(read)})

    def _symbol(self, name: str, value: Value, scale: Floats | None) -> WeightSymbol:
        kind = tensor(f32, (1,) if self.per == "tensor" else (value.type.shape[1], 1, value.type.shape[3]))
        return WeightSymbol(name, Random(kind) if scale is None else Array(kind, scale.reshape(static_shape(kind))))

    def _scales(self, module: Module, ctx: Context, values: list[Value]) -> dict[Value, Floats]:
        """The scales of `values`, by running the calibration data layer by layer."""
        from irlab.activations import Activations
        from irlab.walk import Walk

        batches = ctx.calibration_batches(module)
        found: dict[Value, Floats] = {}
        with Activations() as store:
            walk = Walk(module.graph, batches, ctx.device, store)

            def work() -> Iterator[None]:
                for layer in walk.layers:
                    inside = {f"cache{i}": v for i, v in enumerate(values) if v.op in set(layer.ops)}
                    for value, rows in (yield from _collected(walk, layer, inside)).items():
                        found[value] = least_error_scales(rows, _BITS[self.scheme], per_channel=self.per == "channel")
                    yield from walk.advance(layer)

            for _ in ctx.progress.track(work(), "measuring keys and values", 2 * walk.batches * len(walk.layers)):
                pass
        return found


def _collected(walk: Walk, layer: Layer, values: Mapping[str, Value]) -> Generator[None, None, dict[Value, Floats]]:
    """Rows f32[tokens, kv_heads * head_dim] of values of `layer`; a step for each batch."""
    from irlab.walk import require_finite

    pieces: dict[str, list[Floats]] = {name: [] for name in values}
    if values:
        for results in walk.outputs(layer, layer.graph(values)):
            for name, x in results.items():
                require_finite(x, f"a key or value of {layer.name}")
                rows = x.float().transpose(1, 2).flatten(0, 1).flatten(1)
                pieces[name].append(rows[:: max(1, walk.batches * len(rows) // _MOST_ROWS)].cpu().numpy())
            yield
    return {values[name]: np.concatenate(found) for name, found in pieces.items()}


def least_error_scales(rows: Floats, bits: int, *, per_channel: bool) -> Floats:
    """Scales of the columns of f32[tokens, channels], or one for all: f32[channels] or f32[1]. Of steps that cut off
    at 0.5 to 1 times the largest magnitude, that with the least squared error."""
    half = 1 << (bits - 1)
    largest = np.abs(rows).max(0) if per_channel else np.abs(rows).max(keepdims=True)[0]
    largest = np.where(largest > 0, largest, 1).astype(np.float32)
    best, least = largest / np.float32(half - 1), np.full(len(largest), np.inf, np.float32)
    for clip in _CLIPS:
        scale = largest * clip / np.float32(half - 1)
        off = np.square(np.clip(np.rint(rows / scale), -half, half - 1) * scale - rows)
        loss = off.sum(0) if per_channel else off.sum(keepdims=True)[0]
        better = loss < least
        best, least = np.where(better, scale, best), np.where(better, loss, least)
    return best.astype(np.float32)


def _names(attentions: list[nn.Attention]) -> dict[Value, str]:
    """What the scales of keys and values are called: as the module that attends calls them."""
    found: dict[Value, str] = {}
    for number, op in enumerate(attentions):
        place = path_of(op) or f"attention{number}"
        for part, value in (("k", op.k), ("v", op.v)):
            found.setdefault(value, f"{place}.{part}_scale")
    return found
