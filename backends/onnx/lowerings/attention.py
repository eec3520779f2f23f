"""How are the attention ops of the dialect said in opset 23?"""

from __future__ import annotations

from typing import Any, Final

from irlab.backends.onnx.dialect import CachedAttention, FlatAttention, FlatRope
from irlab.backends.onnx.emitter import Emitter, Lowering
from irlab.dims import floordiv
from irlab.ir import Op


def rope(op: FlatRope, e: Emitter) -> None:
    """RotaryEmbedding of opset 23, on flat x."""
    turned = op.cos.type.shape[2] * 2
    # 0 is the whole head, and the only value that every version of the kernel takes for it.
    partial = {} if turned == floordiv(op.x.type.shape[2], op.heads) else {"rotary_embedding_dim": turned}
    attributes: dict[str, Any] = {"num_heads": op.heads, "interleaved": int(op.interleaved), **partial}
    e.result(op, "RotaryEmbedding", e[op.x], e[op.cos], e[op.sin], **attributes)


def _attributes(op: FlatAttention | CachedAttention) -> dict[str, Any]:
    return {
        "q_num_heads": op.heads,
        "kv_num_heads": op.kv_heads,
        "scale": op.scale,
        "is_causal": int(op.causal),
        "softcap": op.softcap,
    }


def attention(op: FlatAttention, e: Emitter) -> None:
    """Attention without a cache."""
    mask = e[op.mask] if op.mask is not None else ""
    e.result(op, "Attention", e[op.q], e[op.k], e[op.v], mask, **_attributes(op))


def cached(op: CachedAttention, e: Emitter) -> None:
    """Attention that appends to a cache."""
    mask = e[op.mask] if op.mask is not None else ""
    e.result(op, "Attention", e[op.q], e[op.k], e[op.v], mask, e[op.past_k], e[op.past_v], **_attributes(op))


LOWERINGS: Final[dict[type[Op], Lowering]] = {
    FlatRope: rope,
    FlatAttention: attention,
    CachedAttention: cached,
}
