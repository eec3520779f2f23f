"""Which family does an op belong to, and in which colours is it drawn? One table for every format."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

from ..ir import Op, Return, Weight
from ..ops import control, nn, prim
from ..ops.call import Call


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of op as a reader sees it. Colours are #rrggbb: `fill` light enough for black text, `line` to match."""

    name: str
    fill: str
    line: str


FAMILIES: Final = {
    family.name: family
    for family in (
        Family("input", "#e3f1e6", "#5f9a6c"),
        Family("output", "#e3f1e6", "#5f9a6c"),
        Family("embedding", "#dff1f3", "#4f9aa3"),
        Family("norm", "#efe6f7", "#8e6db3"),
        Family("matmul", "#dce9f8", "#4a7ebb"),
        Family("attention", "#fde6d5", "#d0824a"),
        Family("convolution", "#dde3fa", "#5b6cc4"),
        Family("cache", "#fbe3ea", "#c3698a"),
        Family("elementwise", "#eef3d8", "#8ea04b"),
        Family("reduction", "#f4e9dc", "#a8845b"),
        Family("layout", "#f1f2f4", "#9aa0a8"),
        Family("weight", "#fdf6d8", "#c2a83e"),
        Family("constant", "#fafafa", "#b9bcc2"),
        Family("control", "#f9dede", "#c25b5b"),
        Family("call", "#f9dede", "#c25b5b"),
        Family("module", "#e9ecf2", "#66738a"),
        Family("other", "#ffffff", "#8a8f98"),
    )
}
"""Every family, in the order of legends. "module" is a whole group of ops drawn as one node."""

_OF_CLASS: Final[dict[type, str]] = {
    Return: "output",
    Weight: "weight",
    prim.Constant: "constant",
    prim.Iota: "constant",
    prim.DimOf: "constant",
    nn.Embedding: "embedding",
    prim.Gather: "embedding",
    nn.RMSNorm: "norm",
    nn.LayerNorm: "norm",
    nn.AddRMSNorm: "norm",
    nn.Linear: "matmul",
    nn.LowRankLinear: "matmul",
    nn.GatedMLP: "matmul",
    nn.Experts: "matmul",
    nn.MoE: "matmul",
    prim.MatMul: "matmul",
    nn.Attention: "attention",
    nn.Rope: "attention",
    nn.Softmax: "reduction",
    nn.KVUpdate: "cache",
    nn.QuantizeCache: "cache",
    nn.DequantizeCache: "cache",
    nn.Gelu: "elementwise",
    nn.HardShrink: "elementwise",
    nn.Silu: "elementwise",
    nn.QuantizeActivation: "elementwise",
    nn.QuantizeActivationFloat: "elementwise",
    prim.Conv: "convolution",
    prim.MaxPool: "reduction",
    prim.AvgPool: "reduction",
    prim.ArgMax: "reduction",
    prim.CumSum: "reduction",
    prim.TopK: "reduction",
    prim.Where: "elementwise",
    prim.Cast: "elementwise",
    prim.Unary: "elementwise",
    prim.Binary: "elementwise",
    prim.Reduce: "reduction",
    control.If: "control",
    Call: "call",
    **dict.fromkeys(
        (prim.Reshape, prim.Transpose, prim.Expand, prim.Slice, prim.Concat, prim.Split, prim.Pad), "layout"
    ),
    **dict.fromkeys((prim.GatherElements, prim.Scatter), "layout"),
}
"""The family of an op class and of the classes derived from it."""


@cache
def family_of(cls: type[Op]) -> Family:
    """The family of an op class: of the nearest class of its ancestry that the table knows, else by its shape."""
    for ancestor in cls.__mro__:
        name = _OF_CLASS.get(ancestor)
        if name is not None:
            return FAMILIES[name]
    if getattr(cls, "matrices", ()):
        return FAMILIES["matmul"]
    return FAMILIES["control" if cls.region_names else "other"]
