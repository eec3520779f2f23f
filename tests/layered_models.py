"""Modules with numbered layers, built in Python: what folding, drawing and counting are tested on."""

from __future__ import annotations

from collections.abc import Sequence

from irlab import GraphBuilder, Module, Value, nn, prim
from irlab.ops import control
from irlab.types import i64

HIDDEN = 8


def layered(windows: Sequence[int], *, cached: bool = False) -> Module:
    """A decoder with one layer for each of `windows` (0 is full attention); each layer is a norm, an attention on a
    shared mask, and a gated MLP. `cached` gives each a cache."""
    b = GraphBuilder("layered")
    x = b.input("x", "f32", ("batch", "seq", HIDDEN))
    seen = b.input("mask", "i64", ("batch", "past + seq" if cached else "seq"))
    outputs: dict[str, Value] = {}
    visible: Value | None = None
    for number, window in enumerate(windows):
        path = f"model.layers.{number}"
        if visible is None:
            # As lifting leaves it: what every layer needs is made where the first one is.
            total = seen.type.shape[-1]
            wide = prim.reshape(seen, (seen.type.shape[0], 1, 1, total))
            visible = b.add(prim.ne(wide, prim.constant(0, i64)), f"{path}.attn")
        normed = b.add(nn.rms_norm(x, b.random_weight(f"{path}.norm.weight", "f32", (HIDDEN,))), f"{path}.norm")
        q = _heads(b, normed, f"{path}.attn")
        k, v = q, q
        if cached:
            shape = ("batch", 2, "past", HIDDEN // 2)
            key, value = (b.input(f"past.{number}.{part}", "f32", shape) for part in ("key", "value"))
            k = b.add(nn.kv_update(key, q), f"{path}.attn")
            v = b.add(nn.kv_update(value, q), f"{path}.attn")
            outputs |= {f"present.{number}.key": k, f"present.{number}.value": v}
        attended = b.add(nn.attention(q, k, v, visible, window=window), f"{path}.attn")
        rows = prim.reshape(prim.transpose(attended, (0, 2, 1, 3)), x.type.shape)
        x = b.add(prim.add(x, rows), path)
        up, down = (b.random_weight(f"{path}.mlp.{name}.weight", "f32", (16, 8)) for name in ("up", "gate"))
        out = b.random_weight(f"{path}.mlp.down.weight", "f32", (8, 16))
        x = b.add(prim.add(x, b.add(nn.gated_mlp(x, down, up, out), f"{path}.mlp")), path)
    b.output(y=x, **outputs)
    return b.module()


def _heads(b: GraphBuilder, x: Value, path: str) -> Value:
    batch, seq, _ = x.type.shape
    q = nn.linear(x, b.random_weight(f"{path}.q.weight", "f32", (HIDDEN, HIDDEN)))
    return b.add(prim.transpose(prim.reshape(q, (batch, seq, 2, HIDDEN // 2)), (0, 2, 1, 3)), path)


def branching() -> Module:
    """A module with a `ctl.if` in it."""
    b = GraphBuilder("branching")
    x = b.input("x", "f32", ("n",))
    flag = b.input("flag", "bool", ())
    branches = []
    for make in (prim.exp, prim.neg):
        inner = GraphBuilder()
        inner.output(y=inner.add(make(inner.input("x", "f32", ("n",))), "model.exit"))
        branches.append(inner.module().graph)
    b.output(y=b.add(control.if_(flag, (x,), *branches)[0], "model.exit"))
    return b.module()
