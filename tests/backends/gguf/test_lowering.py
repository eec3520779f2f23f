"""Lowering to GGUF: every architecture runs in the real llama.cpp; a changed IR changes the file or is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from tiny_models import ARCHITECTURES

import irlab
from irlab import nn, prim
from irlab.backends.gguf.legalise import pair_order
from irlab.backends.gguf.rope import rope_form
from irlab.errors import LegalityError
from irlab.ir import Module, Weight
from irlab.weights import Affine, Literal, WeightSymbol

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_float_files_compute_the_same_logits_and_tokens(
    kind: str, models: Callable[[str], Module], tmp_path: Path
) -> None:
    emitted = irlab.emit(models(kind), "gguf", tmp_path / "m.gguf", parity=True)
    assert emitted.parity.max_abs_logit_diff < 1e-4
    assert emitted.parity.greedy_equal


def test_a_cached_graph_gives_the_same_file(models: Callable[[str], Module], tmp_path: Path) -> None:
    plain = models("llama")
    irlab.emit(plain, "gguf", tmp_path / "plain.gguf", parity=False)
    irlab.emit(irlab.run(plain, "kv-cache"), "gguf", tmp_path / "cached.gguf", parity=False)
    assert (tmp_path / "plain.gguf").read_bytes() == (tmp_path / "cached.gguf").read_bytes()


@pytest.mark.parametrize(("scheme", "stored"), [("int4", "Q4_0"), ("int8", "Q8_0")])
def test_encoded_weights_are_repacked_code_for_code(
    scheme: str, stored: str, models: Callable[[str], Module], tmp_path: Path
) -> None:
    module = irlab.run(models("qwen2"), f"quantize{{scheme={scheme} group=32}}")
    emitted = irlab.emit(module, "gguf", tmp_path / "m.gguf", parity=True)
    assert not emitted.parity.failure
    tensor = next(t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors if t.name == "blk.1.ffn_down.weight")
    assert tensor.tensor_type.name == stored
    decoded = gguf.dequantize(tensor.data, tensor.tensor_type)
    np.testing.assert_array_equal(decoded, module.weights["model.layers.1.mlp.down_proj.weight"].recipe.read())


def test_codes_that_no_type_holds_are_refused(models: Callable[[str], Module], tmp_path: Path) -> None:
    module = irlab.run(models("llama"), "quantize{scheme=int4 group=32 sym=false}")
    with pytest.raises(LegalityError, match="GGUF has no type for the codes of"):
        irlab.emit(module, "gguf", tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_types_that_do_not_fit_are_refused_unless_allowed(models: Callable[[str], Module], tmp_path: Path) -> None:
    with pytest.raises(irlab.IrlabError, match="allow-fallback=true"):
        irlab.emit(models("llama"), "gguf", tmp_path / "m.gguf", type="q4_k_m")
    emitted = irlab.emit(models("llama"), "gguf", tmp_path / "m.gguf", type="q4_k_m", allow_fallback=True)
    assert any("are not whole blocks of Q4_K" in note for note in emitted.notes)


def first(module: Module, cls: type[irlab.Op]) -> irlab.Op:
    return module.graph.find(cls)[0]


def another_eps(module: Module) -> None:
    for op in module.graph.find(nn.RMSNorm):
        module.graph.replace(op, nn.rms_norm(op.x, op.weight, eps=0.5))


def one_other_eps(module: Module) -> None:
    op = module.graph.find(nn.RMSNorm)[1]
    module.graph.replace(op, nn.rms_norm(op.x, op.weight, eps=0.5))


def dropped_rope(module: Module) -> None:
    op = module.graph.find(nn.Rope)[0]
    module.graph.replace(op, op.x)


def swapped_activation(module: Module) -> None:
    op = module.graph.find(nn.GatedMLP)[0]
    module.graph.replace(op, op.rebuild(op.operands, activation="gelu").result)


def removed_bias(module: Module) -> None:
    op = next(op for op in module.graph.find(nn.Linear) if op.bias is not None)
    module.graph.replace(op, nn.linear(op.x, op.weight))


def removed_biases(module: Module) -> None:
    for op in module.graph.find(nn.Linear):
        module.graph.replace(op, nn.linear(op.x, op.weight))


def another_scale(module: Module) -> None:
    op = module.graph.find(nn.Attention)[1]
    module.graph.replace(op, op.rebuild(op.operands, scale=0.05).result)


def scaled_rope(module: Module) -> None:
    for op in module.graph.find(nn.Rope):
        module.graph.replace(op, op.rebuild(op.operands, scale=1.25).result)


def another_weight(module: Module) -> None:
    op = next(op for op in module.graph.find(Weight) if op.symbol.name.endswith("1.self_attn.v_proj.weight"))
    module.graph.replace(op, prim.weight(WeightSymbol(op.symbol.name, Affine(op.symbol.recipe, -2.0))))


def bent_frequencies(module: Module) -> None:
    op = next(op for op in module.graph.find(Weight) if op.symbol.name.endswith("inv_freq"))
    values = tuple(float(v) * (0.5 if i > 3 else 1.0) for i, v in enumerate(op.symbol.recipe.read()))
    module.graph.replace(op, prim.weight(WeightSymbol(op.symbol.name, Literal(op.symbol.type, values))))


def not_causal(module: Module) -> None:
    op = module.graph.find(nn.Attention)[0]
    module.graph.replace(op, op.rebuild(op.operands, causal=False).result)


def extra_op(module: Module) -> None:
    op = module.graph.find(nn.GatedMLP)[1]
    module.graph.replace(op, prim.tanh(op.rebuild(op.operands).result))


FOLLOWED = [
    ("llama", another_eps),
    ("qwen3", another_eps),
    ("llama", another_scale),
    ("qwen3", another_scale),
    ("qwen2", another_scale),
    ("llama", scaled_rope),
    ("llama", another_weight),
    ("llama", bent_frequencies),
    ("qwen2", removed_biases),
]
REFUSED = [
    ("llama", one_other_eps, "different epsilons"),
    ("llama", dropped_rope, "turns queries and keys in every layer"),
    ("llama", swapped_activation, "activation is gelu"),
    ("qwen3", bent_frequencies, "rotary factors"),
    ("llama", not_causal, "attention block"),
    ("llama", extra_op, "feed-forward block"),
]


@pytest.mark.parametrize(("kind", "mutate"), FOLLOWED, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_the_file_follows_a_changed_graph(
    kind: str, mutate: Callable[[Module], None], models: Callable[[str], Module], tmp_path: Path
) -> None:
    module = models(kind)
    before = irlab.evaluate(module, {"input_ids": [[1, 5, 9, 3]]})["logits"]
    mutate(module)
    after = irlab.evaluate(module, {"input_ids": [[1, 5, 9, 3]]})["logits"]
    assert (before - after).abs().max() > 1e-5, "the mutation must matter, or the test shows nothing"
    emitted = irlab.emit(module, "gguf", tmp_path / "m.gguf", parity=True)
    assert emitted.parity.max_abs_logit_diff < min(1e-4, float((before - after).abs().max()) / 4)


@pytest.mark.parametrize(("kind", "mutate", "reason"), REFUSED, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_what_llama_cpp_cannot_compute_is_refused(
    kind: str, mutate: Callable[[Module], None], reason: str, models: Callable[[str], Module], tmp_path: Path
) -> None:
    module = models(kind)
    mutate(module)
    with pytest.raises(LegalityError, match=reason):
        irlab.emit(module, "gguf", tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_one_removed_bias_is_refused_or_followed(models: Callable[[str], Module], tmp_path: Path) -> None:
    module = models("qwen2")
    removed_bias(module)
    emitted = irlab.emit(module, "gguf", tmp_path / "m.gguf", parity=True)
    assert emitted.parity.max_abs_logit_diff < 1e-4


def test_the_plan_names_the_architecture_and_what_cannot_be_held(models: Callable[[str], Module]) -> None:
    from irlab.backends.gguf import GGUF

    rows = GGUF().plan(models("qwen3"))
    assert "architecture 'qwen3'" in rows[0].note
    module = models("llama")
    swapped_activation(module)
    assert GGUF().plan(module)[0].holding == "none"


def test_the_plan_says_how_weights_are_stored_or_what_does_not_fit(
    models: Callable[[str], Module], tmp_path: Path
) -> None:
    from irlab.backends.gguf import GGUF

    notes = {row.what: row.note for row in GGUF(type="q8_0").plan(models("llama"))}
    assert notes["20 weights of f32, 64 columns"] == "stored as Q8_0"
    assert notes["7 vectors of f32"] == "stored as F32"
    irlab.emit(models("llama"), "gguf", tmp_path / "m.gguf", parity=False, type="q8_0")
    stored = sum(t.n_bytes for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors)
    assert notes["the weights in the file"] == f"{stored:,} bytes"
    (_, refused) = GGUF(type="q4_k_m").plan(models("llama"))
    assert refused.holding == "none" and "64" in refused.note and "allow-fallback" in refused.note
    allowed = GGUF(type="q4_k_m", allow_fallback=True).plan(models("llama"))
    assert any("are not whole blocks of Q4_K" in row.note for row in allowed)


def test_the_plan_says_where_scales_are_repeated() -> None:
    from irlab.backends.gguf import GGUF

    module = irlab.run(irlab.load("demo"), "fuse,quantize{scheme=int4 group=128},kv-cache")
    notes = {row.what: row.note for row in GGUF().plan(module)}
    what = "weights of q<int4, sym, group=128, scale=f16>, 768 columns"
    assert notes[f"4 {what}"] == "the same codes as Q4_0, each scale in 4 blocks"


def test_shards_are_written_and_run(models: Callable[[str], Module], tmp_path: Path) -> None:
    emitted = irlab.emit(models("llama"), "gguf", tmp_path / "shards", parity=True, split=100_000)
    assert len(list((tmp_path / "shards").iterdir())) > 2
    assert emitted.parity.greedy_equal


def test_pair_orders_are_inverse() -> None:
    to_pairs = np.array(pair_order(3, 16, 12, to_pairs=True))
    back = np.array(pair_order(3, 16, 12, to_pairs=False))
    np.testing.assert_array_equal(to_pairs[back], np.arange(48))
    assert to_pairs[:6].tolist() == [0, 6, 1, 7, 2, 8]


def test_rotary_frequencies_are_reproduced() -> None:
    plain = (500000.0 ** (-np.arange(32) / 32)).astype(np.float32)
    assert rope_form(plain, 500000.0).base == 500000.0
    assert rope_form(plain).base == 500000.0
    assert rope_form(plain / 4, 500000.0).linear == pytest.approx(4)
    bent = plain.copy()
    bent[20:] /= 8
    form = rope_form(bent, 500000.0)
    restored = 500000.0 ** (-np.arange(32) / 32) / np.array(form.factors)
    np.testing.assert_allclose(restored, bent, rtol=1e-6)
