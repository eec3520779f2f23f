"""Changes of a small decoder's IR that a backend must follow or refuse (design: driven by the graph)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from small_llama import Llama

from irlab.ir import Module
from irlab.ops import nn, prim
from irlab.types import i64


def inputs_of(model: Llama) -> dict[str, np.ndarray]:
    found = {"input_ids": np.array([[3, 7, 9, 20, 4, 30]]), "position_ids": np.arange(6)[None]}
    found["attention_mask"] = np.ones((1, 6), np.int64)
    for n in range(model.layers):
        for part in ("key", "value"):
            shape = (1, model.of(model.kv_heads, n), 0, model.of(model.head_dim, n))
            found[f"past_key_values.{n}.{part}"] = np.zeros(shape, np.float32)
    return found


def replaced_attributes(module: Module, cls: type, **attributes: object) -> None:
    for op in module.graph.find(cls):
        module.graph.replace(op, op.rebuild(op.operands, **attributes).result)


def drop_rope(module: Module) -> None:
    for op in module.graph.find(nn.Rope):
        module.graph.replace(op, op.x)


def drop_bias(module: Module) -> None:
    for op in module.graph.find(nn.Linear):
        if op.bias is not None:
            module.graph.replace(op, nn.linear(op.x, op.weight))


def drop_key_rope(module: Module) -> None:
    for op in module.graph.find(nn.KVUpdate):
        if isinstance(op.new.op, nn.Rope):
            module.graph.replace(op, nn.kv_update(op.cache, op.new.op.x))


def shift_positions(module: Module) -> None:
    for op in module.graph.find(nn.Rope):
        if not isinstance(op.positions.op, prim.Mul):
            module.graph.set_operand(op, 1, prim.mul(op.positions, prim.constant(2, i64)))


def swap_residual(module: Module) -> None:
    for op in module.graph.find(prim.Add):
        module.graph.replace(op, prim.sub(op.x, op.y))


MUTATIONS: dict[str, Callable[[Module], None]] = {
    "eps": lambda m: replaced_attributes(m, nn.RMSNorm, eps=0.5),
    "activation": lambda m: replaced_attributes(m, nn.GatedMLP, activation="relu"),
    "attention scale": lambda m: replaced_attributes(m, nn.Attention, scale=0.01),
    "causality": lambda m: replaced_attributes(m, nn.Attention, causal=False),
    "window": lambda m: replaced_attributes(m, nn.Attention, window=2),
    "rope pairs": lambda m: replaced_attributes(m, nn.Rope, interleaved=True),
    "rope scale": lambda m: replaced_attributes(m, nn.Rope, scale=1.5),
    "no rope": drop_rope,
    "no rope on keys": drop_key_rope,
    "positions": shift_positions,
    "no bias": drop_bias,
    "residual": swap_residual,
}
