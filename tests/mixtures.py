"""Small modules with mixtures of experts, for passes and backends."""

from __future__ import annotations

from irlab import GraphBuilder, Module, nn, prim

HIDDEN, FFN, EXPERTS, VOCAB = 64, 32, 4, 40


def mixture(element: str = "f32", layers: int = 2, top_k: int = 2, *, normalise: bool = True) -> Module:
    """ids -> embedding -> layers of x + moe(norm(x)) -> norm -> head; weights are random, routers not all alike."""
    b = GraphBuilder("mixture")
    ids = b.input("input_ids", "i64", ("batch", "seq"))
    table = b.random_weight("model.embed_tokens.weight", element, (VOCAB, HIDDEN), 1)
    x = b.add(nn.embedding(ids, table), "model.embed_tokens")
    for layer in range(layers):
        path = f"model.layers.{layer}"
        h = b.add(nn.rms_norm(x, b.random_weight(f"{path}.norm.weight", element, (HIDDEN,), 2)), f"{path}.norm")
        h = b.add(prim.mul(h, prim.constant(2000.0, x.type.dtype)), f"{path}.norm")
        logits = nn.linear(h, b.random_weight(f"{path}.mlp.gate.weight", element, (EXPERTS, HIDDEN), 10 + layer))
        gate, up = (
            b.random_weight(f"{path}.mlp.experts.{part}_proj", element, (EXPERTS, FFN, HIDDEN), 20 + seed)
            for seed, part in enumerate(("gate", "up"))
        )
        down = b.random_weight(f"{path}.mlp.experts.down_proj", element, (EXPERTS, HIDDEN, FFN), 30 + layer)
        x = b.add(
            prim.add(x, b.add(nn.moe(h, logits, gate, up, down, top_k, normalise=normalise), f"{path}.mlp")), path
        )
    x = nn.rms_norm(x, b.random_weight("model.norm.weight", element, (HIDDEN,), 3))
    b.output(logits=nn.linear(x, b.random_weight("lm_head.weight", element, (VOCAB, HIDDEN), 4)))
    return b.module()
