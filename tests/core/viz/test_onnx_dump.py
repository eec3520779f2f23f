"""ONNX dumps: a model of irlab's own ops that ONNX tools load and Netron shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from layered_models import branching, layered

import irlab
from irlab import GraphBuilder, Module, prim
from irlab.viz import dump

onnx = pytest.importorskip("onnx")

PIPELINES = ("", "fuse,quantize{scheme=int4},kv-cache", "fuse,decompose")


def dumped(module: Module, directory: Path) -> onnx.ModelProto:
    """The dump as a file, loaded again; it must pass ONNX's checker but for the weights, which have no data."""
    dump(module, directory / "g.onnx")
    model = onnx.load(directory / "g.onnx")
    checked = onnx.ModelProto()
    checked.CopyFrom(model)
    weights = [tensor for tensor in checked.graph.initializer if tensor.dims]
    for tensor in weights:
        assert not tensor.raw_data
        checked.graph.initializer.remove(tensor)
        checked.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.checker.check_model(checked)
    return model


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_any_stage_of_a_decoder_is_an_onnx_model(pipeline: str, tmp_path: Path) -> None:
    module = irlab.run(irlab.load("demo"), pipeline)
    model = dumped(module, tmp_path)
    assert {value.name for value in model.graph.input} == {value.name for value in module.graph.inputs}
    assert [value.name for value in model.graph.output] == list(module.graph.outputs)
    assert {tensor.name for tensor in model.graph.initializer if tensor.dims} == set(module.weights)


def test_nodes_say_what_the_ops_say(tmp_path: Path) -> None:
    module = irlab.run(irlab.load("demo"), "fuse,quantize{scheme=int4 group=32}")
    model = dumped(module, tmp_path)
    (mlp,) = [n for n in model.graph.node if n.op_type == "gated_mlp" and ".layers.2." in n.name]
    assert mlp.domain == "irlab.nn" and mlp.input[1] == "model.layers.2.mlp.gate_proj.weight"
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in mlp.attribute}
    assert attributes["activation"] == b"silu"
    assert attributes["gate_encoding"] == b"q<int4, sym, group=32, scale=f16>"
    assert {p.key: p.value for p in mlp.metadata_props}["made_by"] == "fuse-gated-mlp"
    (signature,) = [f for f in model.functions if f.name == "gated_mlp"]
    assert list(signature.input)[:4] == ["x", "gate", "up", "down"]
    (info,) = [v for v in model.graph.value_info if v.name == mlp.output[0]]
    assert [d.dim_param or d.dim_value for d in info.type.tensor_type.shape.dim] == ["batch", "seq", 256]


def test_regions_are_subgraphs(tmp_path: Path) -> None:
    model = dumped(branching(), tmp_path)
    (choice,) = model.graph.node
    then, else_ = (a.g for a in choice.attribute if a.type == onnx.AttributeProto.GRAPH)
    assert ([n.op_type for n in then.node], [n.op_type for n in else_.node]) == (["exp"], ["neg"])


def test_results_that_are_inputs_weights_or_returned_twice_keep_their_names(tmp_path: Path) -> None:
    b = GraphBuilder()
    x = b.input("x", "f32", ("n",))
    y = b.add(prim.exp(x))
    b.output(a=y, b=y, c=x, w=b.random_weight("w", "f32", (2,)))
    model = dumped(b.module(), tmp_path)
    assert [value.name for value in model.graph.output] == ["a", "b", "c", "w"]


def test_caches_and_masks(tmp_path: Path) -> None:
    model = dumped(layered([0, 4], cached=True), tmp_path)
    assert {n.domain for n in model.graph.node} == {"irlab.nn", "irlab.prim"}
