"""Which fields of a config.json does a graph decide, and how are they read off it?

Each row gives the values that the ops of the graph have, all of them; a config.json can say it if they are one value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from irlab.ir import Graph, Value, Weight
from irlab.ops import nn, prim
from irlab.weights import as_f32

_HF_ACTIVATIONS: Final = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}

ROPE: Final = "rope_parameters"


@dataclass(frozen=True)
class Field:
    """A field of config.json. `values` gives what the graph has for it, once for each op that has an opinion.

    `undeclared` fields are read by some architectures though their configuration class does not list them.
    """

    name: str
    values: Callable[[Graph], Iterable[Any]]
    undeclared: bool = False

    def read(self, graph: Graph) -> list[Any]:
        """The different values, in order of appearance: one if a config.json can say it."""
        found: list[Any] = []
        for value in self.values(graph):
            if not any(same(value, known) for known in found):
                found.append(value)
        return found


def same(a: Any, b: Any) -> bool:
    """Equal, or floats that differ by rounding."""
    if isinstance(a, float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=1e-6)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


def _attentions(graph: Graph) -> list[nn.Attention]:
    return [op for op in graph.topo() if isinstance(op, nn.Attention)]


def _layers(graph: Graph) -> list[int]:
    """One attention each; a graph in which attention is spelled out does not say."""
    count = len(graph.find(nn.Attention))
    return [count] if count else []


def _embeddings(graph: Graph) -> list[nn.Embedding]:
    """The embedding of tokens, not those of positions or segments."""
    return [op for op in graph.find(nn.Embedding) if op.ids.op is None and op.ids.name == "input_ids"]


def _behind(value: Value, wanted: type) -> Any:
    """The op of class `wanted` that a query comes from, through rope, norm and layout; None if there is none."""
    while value.op is not None and not isinstance(value.op, wanted):
        if not isinstance(value.op, nn.Rope | nn.RMSNorm | prim.Reshape | prim.Transpose | prim.Cast):
            return None
        value = value.op.x
    return value.op


def _has_attention_bias(graph: Graph) -> list[bool]:
    projections = [_behind(op.q, nn.Linear) for op in graph.find(nn.Attention)]
    return [op.bias is not None for op in projections if op is not None]


def _layer_types(graph: Graph) -> list[list[str]]:
    return [["sliding_attention" if op.window else "full_attention" for op in _attentions(graph)]]


def _rope_layers(graph: Graph) -> list[list[int]]:
    """1 for each layer that turns its queries: the field is named for the zeros."""
    return [[int(_behind(op.q, nn.Rope) is not None) for op in _attentions(graph)]]


def _windows(graph: Graph) -> list[int | None]:
    return [op.window for op in graph.find(nn.Attention) if op.window] or [None]


def _is_tied(graph: Graph) -> list[bool]:
    logits = graph.outputs.get("logits")
    head = _behind(logits, nn.Linear) if logits is not None else None
    tables = [op.weight.op.symbol.name for op in _embeddings(graph) if isinstance(op.weight.op, Weight)]
    if head is None or not isinstance(head.weight.op, Weight) or not tables:
        return []
    return [head.weight.op.symbol.name in tables]


def _rope_parameters(graph: Graph) -> list[dict[str, float]]:
    """{"rope_theta", "factor"} of each rotary embedding: frequency i of n is theta^(-i/n) / factor. A scaling that is
    not linear (llama3, YaRN) leaves the highest frequencies alone, which give theta."""
    found = []
    for op in graph.find(nn.Rope):
        source = op.inv_freq.op
        frequencies = as_f32(source.symbol.recipe.read()).astype(float).tolist() if isinstance(source, Weight) else []
        if len(frequencies) > 1 and min(frequencies) > 0:
            found.append({"rope_theta": _theta(frequencies), "factor": _short(1 / frequencies[0])})
    return found


def _theta(frequencies: list[float]) -> float:
    n = len(frequencies)
    first, last = (frequencies[0] / frequencies[i] for i in (1, -1))
    linear = math.isclose(last, first ** (n - 1), rel_tol=1e-4)
    return _short(last ** (n / (n - 1)) if linear else first**n)


def _short(number: float) -> float:
    """The number with six digits that was probably meant, if `number` differs from it by rounding to f32 alone."""
    rounded = float(f"{number:.6g}")
    return rounded if math.isclose(rounded, number, rel_tol=5e-7) else number


FIELDS: Final = (
    Field("num_hidden_layers", _layers),
    Field("vocab_size", lambda g: [op.weight.type.shape[0] for op in _embeddings(g)]),
    Field("hidden_size", lambda g: [op.weight.type.shape[1] for op in _embeddings(g)]),
    Field("intermediate_size", lambda g: [op.gate.type.shape[0] for op in g.find(nn.GatedMLP)]),
    Field("num_attention_heads", lambda g: [op.q.type.shape[1] for op in g.find(nn.Attention)]),
    Field("num_key_value_heads", lambda g: [op.k.type.shape[1] for op in g.find(nn.Attention)]),
    Field("head_dim", lambda g: [op.q.type.shape[3] for op in g.find(nn.Attention)], undeclared=True),
    Field("hidden_act", lambda g: [_HF_ACTIVATIONS[op.activation] for op in g.find(nn.GatedMLP)]),
    Field("rms_norm_eps", lambda g: [op.eps for op in g.find(nn.RMSNorm)]),
    Field("layer_norm_eps", lambda g: [op.eps for op in g.find(nn.LayerNorm)]),
    Field("attention_bias", _has_attention_bias),
    Field("mlp_bias", lambda g: [op.down_bias is not None for op in g.find(nn.GatedMLP)]),
    Field("sliding_window", _windows),
    Field("use_sliding_window", lambda g: [any(op.window for op in g.find(nn.Attention))]),
    Field("layer_types", _layer_types),
    Field("no_rope_layers", _rope_layers),
    Field("tie_word_embeddings", _is_tied),
    Field(ROPE, _rope_parameters),
)
