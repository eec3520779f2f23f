"""prune-hidden: a stream that moves in few directions loses the others without a trace, in every weight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_models import ARCHITECTURES, tiny_model

import irlab
from irlab import Context, GraphBuilder, Module, nn, prim
from irlab.calibration import Sample
from irlab.errors import InputError, LegalityError, UsageError
from irlab.ir import Graph, Weight
from irlab.passes.prune.bottlenecks import Bottleneck, Norm, narrow
from irlab.passes.prune.principal import principal_components
from irlab.passmgr import PassManager, stored_bytes
from irlab.quality import quality
from irlab.schedule import build_pipeline
from irlab.testing import assert_equivalent
from irlab.types import f32, tensor
from irlab.verify import verify
from irlab.weight_uses import replace_weights
from irlab.weights import Array, WeightSymbol


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(3, 96, (16, 32))


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Module:
    """A Llama whose stream stays in 40 of its 64 dimensions, turned at random."""
    directory = tiny_model(tmp_path_factory.mktemp("llama"), "llama-tied", num_hidden_layers=2)
    module = irlab.run(irlab.load(str(directory)), "fuse")
    basis = np.linalg.qr(np.random.default_rng(1).standard_normal((64, 40)))[0]
    inside = (basis @ basis.T).astype(np.float32)
    symbols = {}
    for name, symbol in module.weights.items():
        values = np.array(symbol.recipe.read())
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            values = inside @ values
        elif name.endswith("embed_tokens.weight"):
            values = values @ inside
        elif name.endswith(("norm.weight", "layernorm.weight")):
            values = np.ones_like(values)
        symbols[name] = WeightSymbol(name, Array(symbol.type, np.ascontiguousarray(values)))
    replace_weights(module.graph, symbols)
    return module


def run(module: Module, pipeline: str, ids: np.ndarray, cache: Path) -> Module:
    new = module.clone()
    PassManager(build_pipeline(pipeline), Context(calibration=Sample(ids, length=32), cache_dir=cache)).run(new)
    verify(new)
    return new


def loss(module: Module, original: Module, ids: np.ndarray) -> float:
    found = quality(module, Sample(ids, length=32).batches(module), Context(), original).kl
    assert found is not None
    return found


def test_directions_in_which_nothing_moves_cost_nothing(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    for options in ("", " refit=false", " rotation=layer tied=untie", " rotation=layer tied=untie refit=false"):
        new = run(module, f"prune-hidden{{ratio=0.375 multiple=8{options}}}", ids, tmp_path)
        assert new.weights["model.embed_tokens.weight"].type.shape == (96, 40)
        assert new.weights["model.layers.0.self_attn.q_proj.weight"].type.shape == (64, 40)
        assert loss(new, module, ids) < 1e-5
    selected = run(module, "prune-hidden{ratio=0.375 multiple=8 method=select}", ids, tmp_path)
    assert loss(selected, module, ids) > 1e-2


def narrowed(module: Module, *, keep_tied: bool = True) -> Module:
    """`module` with all directions of each of its streams, each turned at random."""
    new = module.clone()
    norms: list[Norm] = [*new.graph.find(nn.RMSNorm), *new.graph.find(nn.LayerNorm)]
    streams = [norm for norm in norms if norm.x.type.shape[-1] == 64 and norm.x.type.rank == 3]
    bottlenecks = []
    for i, norm in enumerate(streams):
        rows = np.random.default_rng(i).standard_normal((64, 64))
        if isinstance(norm, nn.LayerNorm):  # there is no mean to keep
            rows = (rows - rows.mean(1, keepdims=True))[:63]
        turned = np.linalg.qr(rows.T)[0].T.astype(np.float32)
        gain = norm.weight.op if norm.weight is not None else None
        assert isinstance(gain, Weight)
        name = gain.symbol.name.removesuffix(".weight")
        directions = Array(tensor(f32, turned.shape), np.ascontiguousarray(turned))
        bottlenecks.append(Bottleneck(name, norm.x, (norm,), directions))
    narrow(new.graph, bottlenecks, Context(), keep_tied=keep_tied)
    verify(new)
    return new


def maps(graph: Graph) -> list[str]:
    """The maps that did not disappear in other matrices."""
    return [n for n in graph.weights() if n.endswith((".into.weight", ".back.weight", ".read.weight"))]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_each_stream_may_be_turned_by_itself(kind: str, tmp_path: Path) -> None:
    module = irlab.run(irlab.load(tiny_model(tmp_path / kind, kind)), "fuse")
    new = narrowed(module)
    assert_equivalent(module, new, rtol=1e-4)
    layers = len(module.graph.find(nn.Attention))
    assert sum(".shortcut." in name for name in new.weights) == 2 * layers
    assert len(maps(new.graph)) == (2 if kind.endswith("-tied") else 0)
    untied = narrowed(module, keep_tied=False)
    assert_equivalent(module, untied, rtol=1e-4)
    assert not maps(untied.graph)


@pytest.mark.parametrize("parallel", [True, False])
def test_norms_that_subtract_the_mean_lose_it(parallel: bool, tmp_path: Path) -> None:
    directory = tiny_model(tmp_path / "m", "stablelm", use_parallel_residual=parallel, num_hidden_layers=2)
    module = irlab.run(irlab.load(directory), "fuse")
    new = narrowed(module)
    assert not new.graph.find(nn.LayerNorm) and not maps(new.graph)
    assert new.weights["model.layers.0.mlp.gate_proj.weight"].type.shape == (128, 63)
    assert_equivalent(module, new, rtol=1e-4)


def test_norms_on_the_stream_are_no_exception() -> None:
    """As in BERT: what is added to is what the norm gave, with its gain and bias, and hidden states are the output."""
    b = GraphBuilder()
    x = nn.embedding(b.input("ids", "i64", ("batch", "seq")), b.random_weight("e", "f32", (16, 64)))
    for i in range(2):
        gain, bias = (b.random_weight(f"{n}{i}", "f32", (64,), seed=i) for n in ("g.", "b."))
        x = nn.layer_norm(x, gain, bias)
        up, down = (b.random_weight(f"{n}{i}", "f32", (64, 64), seed=3 + i) for n in ("up.", "down."))
        x = prim.add(x, nn.linear(nn.gelu(nn.linear(x, up)), down))
    b.output(hidden=nn.layer_norm(x, b.random_weight("g", "f32", (64,)), b.random_weight("b", "f32", (64,))))
    module = b.module()
    new = narrowed(module)
    assert_equivalent(module, new, rtol=1e-4)
    assert maps(new.graph) == ["g.read.weight"], "only the output has all features"
    assert new.weights["g.1.shortcut.weight"].type.shape == (63, 63)


def test_a_refit_makes_up_for_directions_that_go(tmp_path: Path, ids: np.ndarray) -> None:
    module = irlab.run(irlab.load(str(tiny_model(tmp_path / "m", "llama-tied", num_hidden_layers=2))), "fuse")
    for options in ("", " rotation=layer", " rotation=layer tied=untie"):
        start = f"prune-hidden{{ratio=0.25 multiple=4{options}"
        fitted, unfitted = (run(module, f"{start}{end}", ids, tmp_path) for end in ("}", " refit=false}"))
        assert fitted.weights.keys() == unfitted.weights.keys()
        assert loss(fitted, module, ids) < 0.8 * loss(unfitted, module, ids)
        again = run(module, f"{start}}}", ids, tmp_path)  # read from the cache
        for name, symbol in again.weights.items():
            np.testing.assert_array_equal(symbol.recipe.read(), fitted.weights[name].recipe.read())


def test_a_tied_table_stays_one_weight(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    kept = run(module, "prune-hidden{ratio=0.25 multiple=8 rotation=layer refit=false}", ids, tmp_path)
    assert kept.weights["model.embed_tokens.weight"] is module.weights["model.embed_tokens.weight"]
    assert kept.weights["model.norm.read.weight"].type.shape == (64, 48)
    untied = run(module, "prune-hidden{ratio=0.25 multiple=8 rotation=layer refit=false tied=untie}", ids, tmp_path)
    assert {untied.weights[f"{n}.weight"].type.shape for n in ("model.embed_tokens", "lm_head")} == {(96, 48)}


def test_bytes_count_what_is_added(module: Module) -> None:
    wanted = round(0.9 * stored_bytes(module))
    new = irlab.run(
        module,
        f"prune-hidden{{size={wanted} multiple=1 rotation=layer refit=false}}",
        calibration=np.ones((2, 64), int),
    )
    assert 0.96 * wanted < stored_bytes(new) <= wanted
    with pytest.raises(InputError, match="1,000 bytes cannot be reached"):
        irlab.run(module, "prune-hidden{size=1000 rotation=layer}")


def test_where_a_matrix_on_the_residual_connection_runs(tmp_path: Path) -> None:
    module = irlab.run(irlab.load("demo"), "fuse")
    text = "Once upon a time there was a little girl who lived near a forest. " * 60
    (tmp_path / "text.txt").write_text(text)
    new = irlab.run(
        module,
        "prune-hidden{ratio=0.25 rotation=layer},kv-cache",
        calibration=tmp_path / "text.txt",
        calibration_tokens=512,
        cache_dir=tmp_path,
    )
    irlab.emit(new, "onnx", tmp_path / "onnx")  # compared with the interpreter in ONNX Runtime
    assert (tmp_path / "onnx" / "model.onnx").stat().st_size < 0.95 * 4 * stored_bytes(module) / 2
    for target in ("gguf", "hf"):
        with pytest.raises(LegalityError, match=r"matrix on the residual connection \(prune-hidden{rotation=global}"):
            irlab.emit(new, target, tmp_path / target)


def test_gains_go_into_what_reads_the_norm(tmp_path: Path, ids: np.ndarray) -> None:
    module = irlab.run(irlab.load(str(tiny_model(tmp_path / "m", "llama-tied", num_hidden_layers=2))), "fuse")
    losses = [
        loss(run(module, f"prune-hidden{{ratio={r} multiple=4}}", ids, tmp_path), module, ids) for r in (0.0625, 0.5)
    ]
    assert losses[0] < losses[1]


def test_principal_components_come_first() -> None:
    vectors = principal_components(np.diag([1.0, 5.0, 3.0]))
    np.testing.assert_allclose(np.abs(vectors), [[0, 0, 1], [1, 0, 0], [0, 1, 0]], atol=1e-12)


def test_what_is_refused(module: Module, ids: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="calibration data is needed"):
        irlab.run(module, "prune-hidden{ratio=0.25}")
    b = GraphBuilder()
    x = nn.embedding(b.input("input_ids", "i64", ("batch", "seq")), b.random_weight("e", "f32", (16, 8)))
    normed = nn.rms_norm(prim.relu(x), b.random_weight("g", "f32", (8,)))
    b.output(logits=nn.linear(normed, b.random_weight("head", "f32", (16, 8), seed=1)))
    few = np.random.default_rng(0).integers(0, 16, (8, 32))
    with pytest.raises(
        InputError, match=r"^prune-hidden: prim\.relu cannot follow a rotation .* it works on single features"
    ):
        run(b.module(), "prune-hidden{ratio=0.25 multiple=1}", few, tmp_path)
    b = GraphBuilder()
    x = nn.embedding(b.input("input_ids", "i64", ("batch", "seq")), b.random_weight("e", "f32", (16, 8)))
    b.output(hidden=nn.rms_norm(x, b.random_weight("g", "f32", (8,))))
    with pytest.raises(InputError, match="stays at 8: the output 'hidden' has it"):
        irlab.run(b.module(), "prune-hidden{ratio=0.25 method=select}")
    with pytest.raises(UsageError, match="takes a number of at least 0"):
        build_pipeline("prune-hidden{ratio=0.25 damping=-1}")
    with pytest.raises(UsageError, match=r"takes global \| layer"):
        build_pipeline("prune-hidden{ratio=0.25 rotation=each}")


def test_a_mean_that_something_else_reads_is_not_lost_silently(tmp_path: Path) -> None:
    b = GraphBuilder()
    x = nn.embedding(b.input("input_ids", "i64", ("batch", "seq")), b.random_weight("e", "f32", (16, 8)))
    normed = nn.layer_norm(x, b.random_weight("g", "f32", (8,)))
    b.output(logits=nn.linear(prim.add(normed, prim.relu(x)), b.random_weight("head", "f32", (16, 8))))
    with pytest.raises(InputError, match=r"prim\.relu .* reads a stream whose norms subtract its mean"):
        irlab.run(b.module(), "prune-hidden{ratio=0.25 multiple=1 rotation=layer}", calibration=np.ones((2, 64), int))
