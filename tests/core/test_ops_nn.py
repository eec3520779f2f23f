"""The kernel of each nn op gives what its decomposition gives, which is what the op means."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irlab.cost import flops
from irlab.encodings import parse_encoding
from irlab.errors import InputError, TypeInferenceError
from irlab.interp import Program, evaluate, torch_dtype
from irlab.interp.meaning import decomposition
from irlab.ir import Graph, Value, expression
from irlab.opdef import OPS
from irlab.ops import nn, prim
from irlab.types import bf16, bool_, dtype, f32, i64, tensor
from irlab.weights import Array, Encode, WeightSymbol

TOLERANCE = {"f32": 2e-5, "bf16": 4e-2, "f64": 2e-5}
"""Relative to the largest number; bf16 keeps 8 bits, and the decomposition rounds at every step."""

FLOATS = st.sampled_from(["f32", "bf16"])


class Builder:
    """Builds an nn op over inputs of given types, and compares its kernel with its decomposition."""

    def __init__(self, seed: int = 0) -> None:
        self.graph = Graph()
        self.tensors: dict[str, torch.Tensor] = {}
        self.random = torch.Generator().manual_seed(seed)

    def x(self, kind: str, *shape: int, values: Any = None) -> Value:
        name = f"x{len(self.tensors)}"
        if values is None:
            values = torch.randn(shape, generator=self.random)
        self.tensors[name] = torch.as_tensor(values).to(torch_dtype(dtype(kind)))
        return self.graph.input(name, tensor(kind, tuple(self.tensors[name].shape)))

    def compare(self, built: Value | tuple[Value, ...], kind: str = "f32") -> torch.Tensor:
        values = built if isinstance(built, tuple) else (built,)
        op = values[0].op
        assert isinstance(op, nn.NNOp)
        self.graph.set_outputs({str(i): v for i, v in enumerate(values)})
        fast = Program(self.graph, checked=True)(self.tensors)
        meaning = decomposition(op)
        operands = {v.name: str(i) for i, v in enumerate(op.operands) if v is not None}
        slow = Program(meaning, checked=True)({operands[name]: t for name, t in self.tensors.items()})
        for name, expected in slow.items():
            assert meaning.outputs[name].type is self.graph.outputs[name].type
            size = expected.double().abs().max().item() or 1.0
            apart = (fast[name].double() - expected.double()).abs().max().item()
            assert apart <= TOLERANCE[kind] * size, f"{op.opname} result {name} is off by {apart / size:.2g}"
        return fast["0"]


@settings(max_examples=20, deadline=None)
@given(kind=FLOATS, leading=st.sampled_from([(), (3,), (2, 3)]), bias=st.booleans())
def test_linear(kind: str, leading: tuple[int, ...], bias: bool) -> None:
    b = Builder()
    x, w = b.x(kind, *leading, 8), b.x(kind, 5, 8)
    b.compare(nn.linear(x, w, b.x(kind, 5) if bias else None), kind)


@settings(max_examples=20, deadline=None)
@given(kind=FLOATS, leading=st.sampled_from([(), (3,), (2, 3)]), whole=st.booleans(), bias=st.booleans())
def test_low_rank_linear(kind: str, leading: tuple[int, ...], whole: bool, bias: bool) -> None:
    b = Builder()
    x, thin, wide = b.x(kind, *leading, 8), b.x(kind, 2, 8), b.x(kind, 5, 2)
    weight = b.x(kind, 5, 8) if whole else None
    b.compare(nn.low_rank_linear(x, thin, wide, weight, b.x(kind, 5) if bias else None), kind)


def test_embedding_takes_rows() -> None:
    b = Builder()
    ids, table = b.x("i64", values=[[3, 0], [1, 3]]), b.x("bf16", 4, 6)
    assert torch.equal(b.compare(nn.embedding(ids, table), "bf16"), b.tensors["x1"][b.tensors["x0"]])


@settings(max_examples=20, deadline=None)
@given(kind=FLOATS, weight=st.booleans(), bias=st.booleans(), eps=st.sampled_from([1e-6, 1e-2]))
def test_norms(kind: str, weight: bool, bias: bool, eps: float) -> None:
    b = Builder()
    x = b.x(kind, 2, 3, 8)
    b.compare(nn.rms_norm(x, b.x(kind, 8) if weight else None, eps=eps), kind)
    b = Builder()
    x = b.x(kind, 2, 3, 8)
    w, c = b.x(kind, 8) if weight else None, b.x(kind, 8) if bias else None
    b.compare(nn.layer_norm(x, w, c, eps=eps), kind)
    b = Builder()
    x, r, w = b.x(kind, 2, 8), b.x(kind, 2, 8), b.x(kind, 8)
    b.compare(nn.add_rms_norm(x, r, w, eps=eps), kind)


def test_rms_norm_takes_the_mean_in_f32_and_rounds_before_the_weight() -> None:
    x = torch.tensor([[300.0, -200.0, 0.5, 7.0]], dtype=torch.float16)  # its squares overflow f16
    w = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float16)
    b = Builder()
    got = b.compare(nn.rms_norm(b.x("f16", values=x), b.x("f16", values=w), eps=1e-5), "bf16")
    xf = x.float()
    expected = w * (xf * torch.rsqrt(xf.pow(2).mean(-1, keepdim=True) + 1e-5)).half()
    assert torch.equal(got, expected)


@settings(max_examples=30, deadline=None)
@given(
    kind=FLOATS,
    interleaved=st.booleans(),
    partial=st.booleans(),
    batched=st.booleans(),
    scale=st.sampled_from([1.0, 1.25]),
)
def test_rope(kind: str, interleaved: bool, partial: bool, batched: bool, scale: float) -> None:
    b = Builder()
    x = b.x(kind, 2, 3, 4, 8)
    positions = b.x("i64", values=[[0, 1, 2, 3], [7, 8, 9, 11]] if batched else [3, 4, 5, 100])
    n = 2 if partial else 4
    inv_freq = b.x("f32", values=10000.0 ** -(torch.arange(n) / n))
    rotated = b.compare(nn.rope(x, positions, inv_freq, interleaved=interleaved, scale=scale), kind)
    if partial:
        assert torch.equal(rotated[..., 4:], b.tensors["x0"][..., 4:])


def test_rope_is_the_rotation_of_transformers() -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    b = Builder()
    x, positions = b.x("f32", 1, 2, 3, 8), b.x("i64", values=[[4, 5, 6]])
    inv_freq = b.x("f32", values=10000.0 ** -(torch.arange(4) / 4))
    rotated = b.compare(nn.rope(x, positions, inv_freq))
    angles = b.tensors["x1"][..., None].float() * b.tensors["x2"]
    both = torch.cat((angles, angles), -1)
    expected, _ = apply_rotary_pos_emb(b.tensors["x0"], b.tensors["x0"], both.cos(), both.sin())
    torch.testing.assert_close(rotated, expected)


@st.composite
def attentions(draw: Any) -> dict[str, Any]:
    seq = draw(st.integers(1, 5))
    return {
        "kind": draw(FLOATS),
        "heads": draw(st.sampled_from([(4, 4), (4, 2), (3, 1)])),
        "seq": seq,
        "past": draw(st.integers(0, 4)),
        "v_dim": draw(st.sampled_from([8, 6])),
        "mask": draw(st.sampled_from([None, "bool", "f32", "padding"])),
        "sinks": draw(st.booleans()),
        "causal": draw(st.booleans()),
        "window": draw(st.sampled_from([0, 1, 3])),
        "softcap": draw(st.sampled_from([0.0, 5.0])),
        "scale": draw(st.sampled_from([1.0, 0.25])),
    }


@settings(max_examples=120, deadline=None)
@given(case=attentions())
def test_attention(case: dict[str, Any]) -> None:
    b, kind = Builder(), case["kind"]
    heads, kv_heads = case["heads"]
    seq, total = case["seq"], case["seq"] + case["past"]
    q = b.x(kind, 2, heads, seq, 8)
    k, v = b.x(kind, 2, kv_heads, total, 8), b.x(kind, 2, kv_heads, total, case["v_dim"])
    mask = None
    if case["mask"] == "bool":
        mask = b.x("bool", values=torch.rand((2, 1, seq, total), generator=b.random) < 0.7)
    elif case["mask"] == "padding":
        mask = b.x("bool", values=torch.arange(total) >= torch.tensor([0, total // 2]).view(2, 1, 1, 1))
    elif case["mask"] == "f32":
        mask = b.x("f32", heads, 1, total)
    sinks = b.x(kind, heads) if case["sinks"] else None
    options = {name: case[name] for name in ("causal", "window", "softcap", "scale")}
    result = b.compare(nn.attention(q, k, v, mask, sinks, **options), kind)
    assert bool(result.isfinite().all()), "a row that sees nothing must give zeros"


def test_attention_computes_what_a_loop_over_queries_computes() -> None:
    b = Builder()
    q, k, v = b.x("f32", 1, 4, 3, 8), b.x("f32", 1, 2, 5, 8), b.x("f32", 1, 2, 5, 8)
    got = b.compare(nn.attention(q, k, v, causal=True, window=3, scale=0.5))
    for head in range(4):
        for i in range(3):
            at = 2 + i  # the queries are the last 3 of 5 positions
            seen = [j for j in range(5) if at - 3 < j <= at]
            keys, values = (b.tensors[n][0, head // 2, seen] for n in ("x1", "x2"))
            weights = torch.softmax(keys @ b.tensors["x0"][0, head, i] * 0.5, 0)
            torch.testing.assert_close(got[0, head, i], weights @ values)


def test_attention_over_an_all_hidden_row_gives_zeros() -> None:
    b = Builder()
    q, k, v = b.x("f32", 1, 1, 2, 4), b.x("f32", 1, 1, 2, 4), b.x("f32", 1, 1, 2, 4)
    mask = b.x("bool", values=[[[[False, False], [True, True]]]])
    result = b.compare(nn.attention(q, k, v, mask))
    assert result[0, 0, 0].tolist() == [0, 0, 0, 0] and result[0, 0, 1].abs().max() > 0


@pytest.mark.parametrize("pos", [None, 0, 2])
def test_kv_update_appends_or_overwrites(pos: int | None) -> None:
    b = Builder()
    cache, new = b.x("bf16", 2, 3, 5, 4), b.x("bf16", 2, 3, 2, 4)
    at = None if pos is None else b.x("i64", values=pos)
    got = b.compare(nn.kv_update(cache, new, at), "bf16")
    expected = b.tensors["x0"].clone()
    if pos is None:
        expected = torch.cat((expected, b.tensors["x1"]), 2)
    else:
        expected[:, :, pos : pos + 2] = b.tensors["x1"]
    assert torch.equal(got, expected)


@pytest.mark.parametrize("bits", [4, 8])
@settings(max_examples=20, deadline=None)
@given(kind=FLOATS, per_channel=st.booleans(), size=st.floats(0.1, 100))
def test_quantized_caches(bits: int, kind: str, per_channel: bool, size: float) -> None:
    b = Builder()
    shape = (2, 1, 6) if per_channel else (1,)
    x, scale = b.x(kind, 1, 2, 3, 6), b.x("f32", values=torch.rand(shape) + size / 50)
    codes = b.compare(nn.quantize_cache(x, scale, bits))
    assert codes.dtype is (torch.int8 if bits == 8 else torch.uint8) and codes.shape[-1] == 6 * bits // 8
    again = Builder()
    decoded = again.compare(
        nn.dequantize_cache(
            again.x("i8" if bits == 8 else "u8", values=codes),
            again.x("f32", values=b.tensors["x1"]),
            dtype(kind),
            bits,
        ),
        kind,
    )
    step = b.tensors["x1"]
    top = step * ((1 << (bits - 1)) - 1)
    off = (decoded.float() - b.tensors["x0"].float().clamp(-top - step, top)).abs()
    assert bool((off <= 0.5 * step + TOLERANCE[kind] * top).all())


def test_kv_update_beyond_the_buffer_is_refused() -> None:
    b = Builder()
    cache, new, at = b.x("f32", 1, 1, 4, 2), b.x("f32", 1, 1, 2, 2), b.x("i64", values=3)
    b.graph.set_outputs({"0": nn.kv_update(cache, new, at)})
    with pytest.raises(InputError, match="3:5 are outside a cache of length 4"):
        Program(b.graph)(b.tensors)


@settings(max_examples=20, deadline=None)
@given(kind=FLOATS, activation=st.sampled_from(nn.ACTIVATIONS), biases=st.booleans())
def test_activations_and_gated_mlp(kind: str, activation: str, biases: bool) -> None:
    b = Builder()
    x, gate, up, down = b.x(kind, 2, 4, 8), b.x(kind, 6, 8), b.x(kind, 6, 8), b.x(kind, 8, 6)
    extra = (b.x(kind, 6), b.x(kind, 6), b.x(kind, 8)) if biases else ()
    b.compare(nn.gated_mlp(x, gate, up, down, *extra, activation=activation), kind)
    for build in (nn.gelu, lambda x: nn.gelu(x, "tanh"), nn.silu, nn.softmax):
        b = Builder()
        b.compare(build(b.x(kind, 3, 8)), kind)


def stacks(b: Builder, kind: str, experts: int = 4, ffn: int = 6, hidden: int = 8) -> tuple[Value, Value, Value]:
    return b.x(kind, experts, ffn, hidden), b.x(kind, experts, ffn, hidden), b.x(kind, experts, hidden, ffn)


@settings(max_examples=20, deadline=None)
@given(
    kind=FLOATS,
    leading=st.sampled_from([(), (5,), (2, 3)]),
    top_k=st.integers(1, 4),
    activation=st.sampled_from(nn.ACTIVATIONS),
    normalise=st.booleans(),
)
def test_experts_and_moe(kind: str, leading: tuple[int, ...], top_k: int, activation: str, normalise: bool) -> None:
    b = Builder()
    x, logits = b.x(kind, *leading, 8), b.x("f32", *leading, 4)
    b.compare(nn.moe(x, logits, *stacks(b, kind), top_k, activation, normalise), kind)
    b = Builder()
    chosen = torch.randint(0, 4, (*leading, top_k), generator=b.random)
    x, chosen_experts, scores = b.x(kind, *leading, 8), b.x("i64", values=chosen), b.x(kind, *leading, top_k)
    b.compare(nn.experts(x, chosen_experts, scores, *stacks(b, kind), activation), kind)


def test_moe_is_the_block_of_mixtral_and_of_qwen3_moe() -> None:
    """transformers' own blocks, with the weights of theirs."""
    from transformers import MixtralConfig, Qwen3MoeConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    sizes = {"hidden_size": 8, "num_experts_per_tok": 2}
    mixtral = MixtralSparseMoeBlock(MixtralConfig(**sizes, intermediate_size=6, num_local_experts=4))
    qwen_config = Qwen3MoeConfig(**sizes, moe_intermediate_size=6, num_experts=4, norm_topk_prob=False)
    for block, normalise in ((mixtral, True), (Qwen3MoeSparseMoeBlock(qwen_config), False)):
        block.config = block.experts.config
        block.experts.config._experts_implementation = "eager"
        for parameter in block.parameters():
            torch.nn.init.normal_(parameter)
        b = Builder()
        x = b.x("f32", 2, 5, 8)
        gate, up = block.experts.gate_up_proj.detach().chunk(2, 1)
        logits = b.x("f32", values=b.tensors["x0"] @ block.gate.weight.detach().T)
        weights = [b.x("f32", values=w) for w in (gate, up, block.experts.down_proj.detach())]
        found = b.compare(nn.moe(x, logits, *weights, 2, normalise=normalise))
        torch.testing.assert_close(found, block(b.tensors["x0"]).detach(), atol=1e-4, rtol=1e-4)


def test_a_mixture_costs_what_its_chosen_experts_cost() -> None:
    def cost(experts: int, top_k: int) -> int:
        b = Builder()
        x, logits = b.x("f32", 10, 8), b.x("f32", 10, experts)
        found = flops(nn.moe(x, logits, *stacks(b, "f32", experts), top_k).op)
        assert isinstance(found, int)
        return found

    products = 10 * 3 * 2 * 8 * 6
    assert products < cost(64, 2) - cost(64, 1) < 1.3 * products  # activation, scores and sums beside them
    assert cost(64, 2) - cost(32, 2) < 10 * 32 * 10  # what more experts cost is the softmax over them


def test_softmax_of_a_row_of_minus_infinity_gives_zeros() -> None:
    b = Builder()
    got = b.compare(nn.softmax(b.x("f32", values=[[-math.inf, -math.inf], [0.0, -math.inf]])))
    assert got.tolist() == [[0.0, 0.0], [1.0, 0.0]]


def encoded_weight(shape: tuple[int, int], seed: int = 0) -> Value:
    numbers = np.random.default_rng(seed).standard_normal(shape).astype("float32")
    encoding = parse_encoding("q<int4, sym, group=32, scale=f16>")
    return prim.weight(WeightSymbol(f"w{seed}", Encode(Array(tensor("f32", shape), numbers), encoding)))


def test_encoded_weights_are_decoded_to_the_dtype_of_x_and_tables_to_f32() -> None:
    graph = Graph()
    x = graph.input("x", tensor(bf16, (2, 64)))
    ids = graph.input("ids", tensor(i64, (3,)))
    w, table = encoded_weight((5, 64)), encoded_weight((7, 32), seed=1)
    graph.set_outputs({"y": nn.linear(x, w), "e": nn.embedding(ids, table)})
    inputs = {"x": torch.randn(2, 64).bfloat16(), "ids": [6, 0, 6]}
    results = Program(graph, checked=True)(inputs)
    decoded = [torch.from_numpy(v.op.symbol.recipe.read()) for v in (w, table)]  # type: ignore[union-attr]
    torch.testing.assert_close(results["y"], inputs["x"] @ decoded[0].bfloat16().T)
    assert torch.equal(results["e"], decoded[1][[6, 0, 6]])
    assert results["e"].dtype is torch.float32


class Doubled(nn.NNOp, opname="test.doubled"):
    """x + x; has no kernel."""

    x: Value

    def infer(self) -> Any:
        return self.x.type

    def decompose(self) -> Value:
        return prim.add(self.x, self.x)


def test_an_op_without_a_kernel_runs_as_its_decomposition() -> None:
    graph = Graph()
    x = graph.input("x", tensor(f32, (2,)))
    graph.set_outputs({"y": prim.neg(expression(Doubled)(x))})
    assert evaluate(graph, {"x": [1.0, 2.0]})["y"].tolist() == [-2.0, -4.0]


ROUNDINGS: list[dict[str, Any]] = [
    {},
    {"zero": -112},
    {"zero": -128},
    {"dynamic_zero": True},
    {"bits": 4},
    {"per": "tensor"},
    {"per": "tensor", "dynamic_zero": True},
    {"per": "tensor", "scale": 0.01},
    {"per": "tensor", "scale": 0.01, "zero": 20},
]


@settings(max_examples=30, deadline=None)
@given(kind=FLOATS, options=st.sampled_from(ROUNDINGS), leading=st.sampled_from([(), (3,), (2, 3)]))
def test_quantize_activation(kind: str, options: dict[str, Any], leading: tuple[int, ...]) -> None:
    b = Builder()
    x = b.x(kind, *leading, 16)
    b.compare(nn.quantize_activation(x, **options), kind)


FLOAT_ROUNDINGS: list[dict[str, Any]] = [
    {},
    {"per": "tensor"},
    {"per": "tensor", "scale": 0.01},
    {"element": "e2m1", "per": "block", "scale": 0.001},
    {"element": "e2m1", "per": "block", "scale": 100.0},
]


@settings(max_examples=30, deadline=None)
@given(kind=FLOATS, options=st.sampled_from(FLOAT_ROUNDINGS), leading=st.sampled_from([(), (3,), (2, 3)]))
def test_quantize_activation_float(kind: str, options: dict[str, Any], leading: tuple[int, ...]) -> None:
    b = Builder()
    x = b.x(kind, *leading, 32)
    b.compare(nn.quantize_activation_float(x, **options), kind)


def rounded_float(values: Any, **options: Any) -> np.ndarray:
    graph = Graph()
    x = torch.as_tensor(values)
    value = graph.input("x", tensor(f32, tuple(x.shape)))
    graph.set_outputs({"y": nn.quantize_activation_float(value, **options)})
    return Program(graph)({"x": x})["y"].numpy()


def test_small_floats_are_those_of_ml_dtypes() -> None:
    """Each number between the floats of a format, and each half between two of them, as ml_dtypes rounds it."""
    import ml_dtypes

    for element, kind, largest in (
        ("e4m3", ml_dtypes.float8_e4m3fn, 448.0),
        ("e2m1", ml_dtypes.float4_e2m1fn, 6.0),
    ):
        floats = np.sort(np.arange(128 if element == "e4m3" else 8, dtype=np.uint8).view(kind).astype(np.float32))
        floats = floats[np.isfinite(floats)]
        x = np.concatenate([floats, (floats[1:] + floats[:-1]) / 2, floats * 1.01, floats * 0.99])
        x = np.concatenate([x, -x]).clip(-largest, largest)
        expected = x.astype(kind).astype(np.float32)
        if element == "e4m3":
            found = rounded_float(x, per="tensor", scale=1.0)
        else:
            # With 6 in it, each block has the scale 1.
            blocks = np.zeros((len(x), 16), np.float32)
            blocks[:, 0], blocks[:, 1] = 6, x
            found = rounded_float(blocks, element="e2m1", per="block", scale=1.0)[:, 1]
        assert np.array_equal(found, expected)


def test_blocks_have_scales_of_e4m3_under_the_one_of_the_tensor() -> None:
    x = np.zeros((1, 48), np.float32)
    x[0, :3], x[0, 16:18] = (6.0, 3.1, -0.2), (0.06, -0.013)
    found = rounded_float(x, element="e2m1", per="block", scale=0.01)
    np.testing.assert_allclose(found[0, :3], [6.0 * 0.96, 3.0 * 0.96, 0], rtol=1e-6)  # 1 / 0.01 is 96 in E4M3
    assert found[0, 16] == pytest.approx(0.06) and found[0, 17] == pytest.approx(-0.015)
    assert (found[0, 18:] == 0).all()
    # Beyond the scale of the tensor all is cut.
    assert rounded_float([[1e6] * 16], element="e2m1", per="block", scale=0.01).max() == pytest.approx(448 * 6 * 0.01)


def rounded(values: Any, **options: Any) -> torch.Tensor:
    graph = Graph()
    x = torch.as_tensor(values)
    value = graph.input("x", tensor(f32, tuple(x.shape)))
    graph.set_outputs({"y": nn.quantize_activation(value, **options)})
    return Program(graph)({"x": x})["y"]


def test_a_token_has_its_own_scale_and_halves_go_to_even() -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, -3.2], [0.0127, 0.00005, -0.00015, 0.0]])
    expected = torch.tensor([[127.0, 0.0, 2.0, -3.0], [0.0127, 0.0, -0.0002, 0.0]])
    torch.testing.assert_close(rounded(x), expected, rtol=1e-6, atol=1e-9)
    # Under one scale for both, the second row vanishes.
    assert (rounded(x, per="tensor")[1] == 0).all()


def test_a_row_of_zeros_stays_zero() -> None:
    for options in ROUNDINGS[:7]:
        assert (rounded(torch.zeros(2, 4), **options) == 0).all()


def test_a_zero_point_near_the_lowest_halves_the_step() -> None:
    x = torch.rand(1, 64, generator=torch.Generator().manual_seed(0))
    errors = [float((rounded(x, zero=zero) - x).abs().max()) for zero in (0, -128)]
    assert errors[1] < 0.55 * errors[0]
    # 0 is held exactly, and what is negative is cut.
    assert rounded([[0.0, -5.0, 2.55]], zero=-128).tolist() == [[0.0, 0.0, pytest.approx(2.55)]]


def test_given_scales_cut_what_lies_outside() -> None:
    got = rounded([1.0, 200.0, -200.0, 0.26], per="tensor", scale=1.0)
    assert got.tolist() == [1.0, 127.0, -128.0, 0.0]
    assert rounded([1.0, 200.0, -200.0], per="tensor", scale=1.0, zero=28).tolist() == [1.0, 99.0, -156.0]


def test_dynamic_zero_is_what_onnx_specifies() -> None:
    """The example of DynamicQuantizeLinear in the ONNX specification, with its unsigned integers."""
    x = np.array([0, 2, -3, -2.5, 1.34, 0.5], np.float32)
    scale = np.float32(5.0 / 255)
    zero = np.rint(3.0 / scale)
    expected = (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale
    got = rounded(x, per="tensor", dynamic_zero=True).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_gradients_pass_straight_through_where_nothing_is_cut() -> None:
    graph = Graph()
    value_ = graph.input("x", tensor(f32, (1, 3)))
    graph.set_outputs({"y": nn.quantize_activation(value_, per="tensor", scale=0.1)})
    x = torch.tensor([[0.33, 100.0, -1.0]], requires_grad=True)
    y = Program(graph)({"x": x})["y"]
    (y * torch.tensor([[1.0, 2.0, 3.0]])).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [[1.0, 0.0, 3.0]]
    torch.testing.assert_close(y.detach(), torch.tensor([[0.3, 12.7, -1.0]]))


def value(kind: str, *shape: int) -> Value:
    return Graph().input("x", tensor(kind, shape))


REFUSED: list[tuple[str, Callable[[], object]]] = [
    ("features do not fit", lambda: nn.linear(value("f32", 2, 3), value("f32", 4, 5))),
    ("differ in dtype", lambda: nn.linear(value("f32", 2, 3), value("bf16", 4, 3))),
    ("bias must be", lambda: nn.linear(value("f32", 2, 3), value("f32", 4, 3), value("f32", 3))),
    ("ids must be integers", lambda: nn.embedding(value("f32", 2), value("f32", 4, 3))),
    ("one vector over the last axis", lambda: nn.rms_norm(value("f32", 2, 3), value("f32", 2))),
    ("one vector over the last axis", lambda: nn.layer_norm(value("f32", 2, 3), value("bf16", 3))),
    ("inv_freq is too long", lambda: nn.rope(value("f32", 1, 1, 2, 4), value("i64", 2), value("f32", 3))),
    ("positions must be", lambda: nn.rope(value("f32", 1, 1, 2, 4), value("i64", 3), value("f32", 2))),
    ("kv heads must divide", lambda: attention((1, 3, 2, 4), (1, 2, 2, 4))),
    ("kv heads must divide", lambda: attention((1, 3, 2, 4), (1, 0, 2, 4))),
    ("differ in head size", lambda: attention((1, 2, 2, 4), (1, 2, 2, 6))),
    ("mask does not fit", lambda: attention((1, 2, 2, 4), (1, 2, 2, 4), value("bool", 1, 1, 2, 2, 2))),
    ("bool or a float bias", lambda: attention((1, 2, 2, 4), (1, 2, 2, 4), value("i64", 2, 2))),
    ("0 or positive", lambda: attention((1, 2, 2, 4), (1, 2, 2, 4), window=-1)),
    ("differ off the length", lambda: nn.kv_update(value("f32", 1, 2, 3, 4), value("f32", 1, 3, 3, 4))),
    ("a and b must be", lambda: nn.low_rank_linear(value("f32", 3), *[value("f32", 2, 3)] * 2)),
    (r"must be \[out, in\]", lambda: low_rank((2, 3), (4, 2), value("f32", 4, 4))),
    ("weights and x differ", lambda: low_rank((2, 3), (4, 2), value("bf16", 4, 3))),
    ("must be positive", lambda: nn.quantize_activation(value("f32", 3), per="tensor", scale=-1.0)),
    ('is per "tensor"', lambda: nn.quantize_activation(value("f32", 3), scale=1.0)),
    ("per must be", lambda: nn.quantize_activation(value("f32", 3), per="channel")),
    ("bits must be", lambda: nn.quantize_activation(value("f32", 3), bits=1)),
    ("outside the integers", lambda: nn.quantize_activation(value("f32", 3), zero=200)),
    ("is not given", lambda: nn.quantize_activation(value("f32", 3), zero=3, dynamic_zero=True)),
    ("floating-point operand", lambda: nn.quantize_activation(value("i64", 3))),
    ("the element must be", lambda: nn.quantize_activation_float(value("f32", 16), "e5m2")),
    ("per .token. or", lambda: nn.quantize_activation_float(value("f32", 16), per="block")),
    ("scale that is given", lambda: nn.quantize_activation_float(value("f32", 16), scale=1.0)),
    ('per "block", under', lambda: nn.quantize_activation_float(value("f32", 16), "e2m1", "block")),
    ("whole blocks", lambda: nn.quantize_activation_float(value("f32", 24), "e2m1", "block", 1.0)),
    ("bits must be 4 or 8", lambda: nn.quantize_cache(value("f32", 1, 2, 3, 4), value("f32", 1), 3)),
    ("4 bits need an even", lambda: nn.quantize_cache(value("f32", 1, 2, 3, 5), value("f32", 1), 4)),
    ("the scale must be f32", lambda: nn.quantize_cache(value("f32", 1, 2, 3, 4), value("f32", 4))),
    ("8-bit codes are i8", lambda: nn.dequantize_cache(value("u8", 1, 2, 3, 4), value("f32", 1), dtype("f32"))),
    ("do not fit together", lambda: nn.gated_mlp(value("f32", 3), *[value("f32", 4, 3)] * 3)),
    ("activation must be", lambda: nn.gated_mlp(value("f32", 3), *[value("f32", 3, 3)] * 3, activation="tanh")),
    ("one for each expert", lambda: moe(logits=value("f32", 5, 3))),
    ("one for each expert", lambda: moe(logits=value("f32", 2))),
    ("top_k = 3 is outside the 2 experts", lambda: moe(top_k=3)),
    ("top_k = 0 is outside", lambda: moe(top_k=0)),
    ("activation must be", lambda: moe(activation="tanh")),
    ("stacks of matrices", lambda: moe(down=value("f32", 4, 3))),
    ("do not fit together", lambda: moe(down=value("f32", 2, 3, 4))),
    ("x does not fit", lambda: moe(x=value("f32", 5, 3))),
    ("differ in dtype", lambda: moe(x=value("bf16", 5, 4))),
    ("must be integers", lambda: chosen_experts(value("f32", 5, 1), value("f32", 5, 1))),
    ("must be floats", lambda: chosen_experts(value("i64", 5, 1), value("i64", 5, 1))),
    ("differ in shape", lambda: chosen_experts(value("i64", 5, 1), value("f32", 5, 2))),
    (r"chosen must be \[..., k\]", lambda: chosen_experts(value("i64", 4, 1), value("f32", 4, 1))),
]


def moe(**changes: Any) -> Value:
    operands = {"x": (5, 4), "logits": (5, 2), "gate": (2, 3, 4), "up": (2, 3, 4), "down": (2, 4, 3)}
    return nn.moe(**{"top_k": 1, **{name: value("f32", *shape) for name, shape in operands.items()}, **changes})


def chosen_experts(chosen: Value, scores: Value) -> Value:
    gate, down = value("f32", 2, 3, 4), value("f32", 2, 4, 3)
    return nn.experts(value("f32", 5, 4), chosen, scores, gate, gate, down)


def low_rank(a: tuple[int, ...], b: tuple[int, ...], weight: Value) -> Value:
    return nn.low_rank_linear(value("f32", a[1]), value("f32", *a), value("f32", *b), weight)


def attention(q: tuple[int, ...], k: tuple[int, ...], mask: Value | None = None, **options: Any) -> Value:
    return nn.attention(value("f32", *q), value("f32", *k), value("f32", *k), mask, **options)


@pytest.mark.parametrize(("message", "build"), REFUSED, ids=[m for m, _ in REFUSED])
def test_what_does_not_fit_is_refused_when_it_is_built(message: str, build: Callable[[], object]) -> None:
    with pytest.raises(TypeInferenceError, match=message):
        build()


def test_every_nn_op_has_a_kernel() -> None:
    from irlab.interp.nn_kernels import NN_KERNELS

    assert {cls for name, cls in OPS.items() if name.startswith("nn.")} == set(NN_KERNELS)


def test_types_with_symbolic_sizes_are_inferred() -> None:
    from irlab import dims

    batch, seq, past = map(dims.symbol, ("batch", "seq", "past"))
    graph = Graph()
    q = graph.input("q", tensor(f32, (batch, 4, seq, 8)))
    k = graph.input("k", tensor(f32, (batch, 2, seq, 8)))
    cache = graph.input("cache", tensor(f32, (batch, 2, past, 8)))
    positions = graph.input("positions", tensor(i64, (batch, seq)))
    inv_freq = graph.input("inv_freq", tensor(f32, (4,)))
    mask = graph.input("mask", tensor(bool_, (batch, 1, 1, past + seq)))
    keys = nn.kv_update(cache, nn.rope(k, positions, inv_freq))
    assert keys.type is tensor(f32, (batch, 2, past + seq, 8))
    out = nn.attention(nn.rope(q, positions, inv_freq), keys, keys, mask, window=3)
    assert out.type is q.type
    for op in (keys.op, out.op):
        assert isinstance(op, nn.NNOp)
        assert next(iter(decomposition(op).outputs.values())).type is op.result.type
