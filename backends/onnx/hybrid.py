"""Which linears get a second, 8-bit form of their weight for prompts? Those whose weight is encoded for tokens.

Both forms are made from the original numbers where the recipe still knows them, else from the decoded ones.
"""

from __future__ import annotations

from typing import Final

from irlab.backends.onnx.codes import blocked
from irlab.backends.onnx.dialect import hybrid_linear
from irlab.backends.onnx.forms import AsIntegers
from irlab.encodings import IntegerEncoding
from irlab.ir import Graph, Value
from irlab.ops import nn, prim
from irlab.types import f32
from irlab.weights import Concat, Decode, Encode, Recipe, WeightSymbol

PROMPT_ENCODING: Final = IntegerEncoding(8, True, 0, f32)
"""One scale a row: what MatMulInteger multiplies."""


def rewrite(graph: Graph) -> int:
    """Give each linear with an block-encoded weight its prompt form; returns how many."""
    prompts: dict[str, Value] = {}
    count = 0
    for op in graph.find(nn.Linear):
        symbol = blocked(op.weight)
        if symbol is None or op.x.type.rank < 2:
            continue
        count += 1
        if symbol.name not in prompts:
            prompt = WeightSymbol(f"{symbol.name}.prompt", Encode(original(symbol.recipe), PROMPT_ENCODING))
            prompts[symbol.name] = prim.weight(prompt)
        graph.replace(op, hybrid_linear(op.x, prompts[symbol.name], op.weight, op.bias), made_by="onnx-hybrid")
    return count


def original(recipe: Recipe) -> Recipe:
    """The numbers that `recipe` encodes, as they were before."""
    if recipe.type.encoding is None:
        return recipe
    if isinstance(recipe, Encode):
        return original(recipe.source)
    if isinstance(recipe, AsIntegers):
        return original(recipe.source)
    if isinstance(recipe, Concat):
        return Concat(tuple(original(source) for source in recipe.sources), recipe.axis)
    return Decode(recipe)
