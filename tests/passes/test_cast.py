"""The cast pass: one dtype for another, everywhere but where f32 is meant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_models import tiny_model

import irlab
from irlab import Module, nn, prim
from irlab.errors import InputError
from irlab.ir import Graph, GraphBuilder, Weight
from irlab.ops.call import call
from irlab.ops.control import if_
from irlab.types import DTYPES, bf16, bool_, f16, f32, i64, tensor
from irlab.weights import Array, WeightSymbol

TOKENS = {"input_ids": np.array([[5, 9, 2, 17, 33, 4]])}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Module:
    return irlab.load(tiny_model(tmp_path_factory.mktemp("llama"), "llama3"))


def floats(module: Module) -> set[str]:
    """The float dtypes of all values."""
    values = [v for op in module.graph.ops() for v in op.results] + module.graph.inputs
    return {v.type.dtype.name for v in values if v.type.encoding is None and v.type.dtype.is_float}


def logits(module: Module) -> np.ndarray:
    return irlab.evaluate(module, TOKENS)["logits"].float().numpy()


@pytest.mark.parametrize(("dtype", "tolerance"), [("f16", 5e-3), ("bf16", 5e-2)])
def test_a_decoder_computes_in_the_new_dtype(llama: Module, dtype: str, tolerance: float) -> None:
    module = irlab.run(llama, f"cast{{dtype={dtype}}}")
    # Rotary frequencies stay f32 by the definition of nn.rope; nothing else does.
    f32_values = [op.opname for op in module.graph.ops() for v in op.results if v.type.element is f32]
    assert f32_values == ["prim.weight"] and floats(module) == {dtype, "f32"}
    assert module.graph.outputs["logits"].type.element is DTYPES[dtype]
    assert not module.graph.find(prim.Cast)
    before, after = logits(llama), logits(module)
    assert 0 < np.abs(after - before).max() < tolerance * np.abs(before).max()


def test_there_and_back_keeps_the_graph(llama: Module) -> None:
    fused = irlab.run(llama, "fuse")
    module = irlab.run(fused, "cast{dtype=bf16},cast{dtype=f32}")
    assert floats(module) == {"f32"}
    assert [op.opname for op in module.graph.topo()] == [op.opname for op in fused.graph.topo()]


def test_a_cast_to_what_it_is_changes_nothing(llama: Module) -> None:
    fused = irlab.run(llama, "fuse")
    assert str(irlab.run(fused, "cast{dtype=f32}")) == str(fused)


def test_caches_and_encoded_weights_go_along(llama: Module) -> None:
    module = irlab.run(llama, "fuse,quantize{scheme=int8 embeddings=int8},kv-cache,cast{dtype=f16}")
    elements = {v.name: v.type.element for v in module.graph.inputs}
    assert elements["past_key_values.0.key"] is f16
    assert module.graph.outputs["present.0.key"].type.element is f16
    (embedding,) = module.graph.find(nn.Embedding)
    assert embedding.weight.type.encoding is not None
    assert [user.opname for user in embedding.result.uses] == ["prim.cast"]


def test_what_no_weight_flows_into_stays_f32() -> None:
    """A table made of positions is computed in f32, and cast where it meets the model."""
    b = GraphBuilder("table")
    x = b.input("x", "f32", ("n", 4))
    table = prim.sin(prim.cast(prim.iota(4, i64), f32))
    b.output(y=prim.mul(prim.add(x, table), b.random_weight("w", "f32", (4,))))
    module = irlab.run(b.module(), "cast{dtype=bf16}")
    (sine,) = module.graph.find(prim.Sin)
    assert sine.result.type.element is f32
    assert [user.result.type.element for user in sine.result.uses] == [bf16]
    assert module.graph.inputs[0].type.element is bf16


def test_casts_to_f32_in_a_half_graph_stay() -> None:
    b = GraphBuilder("island")
    x = b.input("x", "bf16", ("n", 4))
    precise = prim.exp(prim.cast(x, f32))
    b.output(y=prim.mul(prim.cast(precise, bf16), b.random_weight("w", "bf16", (4,))))
    module = irlab.run(b.module(), "cast{dtype=f16}")
    assert [op.result.type.element for op in module.graph.find(prim.Exp)] == [f32]
    assert [op.result.type.element for op in module.graph.find(prim.Mul)] == [f16]
    wide = irlab.run(b.module(), "cast{dtype=f32}")
    assert not wide.graph.find(prim.Cast) and floats(wide) == {"f32"}


def test_calls_and_regions_see_what_they_saw() -> None:
    b = GraphBuilder("opaque")
    x = b.input("x", "f32", (4, 4))
    flag = b.input("flag", "bool", ())
    (called,) = call((x,), "aten.erfinv.default", ("%0",), (tensor(f32, (4, 4)),))

    def region() -> Graph:
        graph = Graph()
        graph.output(r=prim.neg(graph.input("v", tensor(f32, (4, 4)))))
        return graph

    (chosen,) = if_(flag, (called,), region(), region())
    b.output(y=prim.mul(chosen, b.random_weight("w", "f32", (4, 4))))
    before = b.module()
    module = irlab.run(before, "cast{dtype=f16}")
    assert module.graph.outputs["y"].type.element is f16 and flag.type.dtype is bool_
    given = {"x": np.full((4, 4), 0.5, np.float32), "flag": np.array(True)}
    expected = irlab.evaluate(before, given)["y"].numpy()
    result = irlab.evaluate(module, {**given, "x": given["x"].astype(np.float16)})["y"].float().numpy()
    np.testing.assert_allclose(result, expected, rtol=2e-3)


def test_a_weight_that_a_region_reads_too_stays_as_the_region_wants_it() -> None:
    b = GraphBuilder("tied")
    x = b.input("x", "f32", ("n", 4))
    weight = b.random_weight("w", "f32", (4,))
    assert weight.op is not None
    region = Graph()
    inner = region.input("x", x.type)
    region.output(y=nn.rms_norm(inner, region.add(Weight(weight.op.symbol)).result))
    b.output(y=nn.rms_norm(if_(prim.constant(True, bool_), (x,), region, region.clone())[0], weight))
    result = irlab.run(b.module(), "cast{dtype=bf16}")
    assert str(result.weights["w"].type) == "f32[4]"
    assert [op.opname for op in result.graph.find(Weight)[0].result.uses] == ["prim.cast"]


def test_numbers_beyond_f16_are_an_error_when_read() -> None:
    b = GraphBuilder("large")
    x = b.input("x", "f32", (2,))
    b.output(y=prim.mul(x, b.weight(WeightSymbol("w", Array(tensor(f32, (2,)), np.array([1, 1e6], np.float32))))))
    module = irlab.run(b.module(), "cast{dtype=f16}")
    with pytest.raises(InputError, match="65504"):
        module.weights["w"].recipe.read()
    assert irlab.run(b.module(), "cast{dtype=bf16}").weights["w"].recipe.read()[0] == 1


def test_a_graph_without_floats_is_refused() -> None:
    b = GraphBuilder("integers")
    b.output(y=prim.neg(b.input("x", "i64", (2,))))
    with pytest.raises(InputError, match="no floats"):
        irlab.run(b.module(), "cast{dtype=f16}")


def test_locations_and_names_survive(llama: Module, tmp_path: Path) -> None:
    fused = irlab.run(llama, "fuse")
    module = irlab.run(fused, "cast{dtype=bf16}")
    assert [op.loc for op in module.graph.topo()] == [op.loc for op in fused.graph.topo()]
    assert list(module.weights) == list(fused.weights)
