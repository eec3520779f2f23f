"""Dumps: what a file of each format holds, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from layered_models import branching, layered

import irlab
from irlab import Module
from irlab.errors import InputError
from irlab.viz import dump, picture_of, to_networkx
from irlab.viz.graphviz import lay_out

needs_graphviz = pytest.mark.skipif(shutil.which("dot") is None, reason="graphviz is not installed")


@pytest.fixture(scope="module")
def demo() -> Module:
    return irlab.run(irlab.load("demo"), "fuse,quantize{scheme=int4},kv-cache")


def test_a_dot_file_shows_modules_shapes_and_encodings(demo: Module, tmp_path: Path) -> None:
    pydot = pytest.importorskip("pydot")
    dump(demo, tmp_path / "g.dot")
    text = (tmp_path / "g.dot").read_text()
    assert "layers 1-3: same as layer 0" in text
    assert "bf16[batch, 2, past + seq, 64]" in text
    assert "q&lt;int4, sym, group=32, scale=f16&gt;[768, 256]  108 KiB" in text
    (drawing,) = pydot.graph_from_dot_data(text)
    assert len(drawing.get_edges()) > 20
    dump(demo, tmp_path / "full.dot", full=True)
    assert "same as" not in (tmp_path / "full.dot").read_text()


@needs_graphviz
@pytest.mark.parametrize("make", [branching, lambda: layered([0, 4, 0])])
def test_graphviz_lays_it_out(make: Any, tmp_path: Path) -> None:
    dump(make(), tmp_path / "g.svg")
    assert (tmp_path / "g.svg").read_text().count("<g id=") > 10


@needs_graphviz
def test_graphviz_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"did not lay out .* in 0 seconds"):
        lay_out(
            "digraph {" + ";".join(f"{a} -> {a * 7 % 300}; {a} -> {a * 13 % 300}" for a in range(300)) + "}",
            max_seconds=0.001,
        )
    with pytest.raises(InputError, match="graphviz failed"):
        lay_out("digraph {")


@needs_graphviz
def test_values_that_every_layer_reads_are_told_beside_them(tmp_path: Path) -> None:
    # Drawn, the edges of the mask past 60 layers would take graphviz a minute and more.
    dump(layered(range(60), cached=True), tmp_path / "g.dot", full=True)
    text = (tmp_path / "g.dot").read_text()
    lay_out(text, max_seconds=30)
    assert text.count(">prim.ne</font>") == 59
    assert text.count(">return</font>") == 120


@needs_graphviz
def test_too_large_a_picture_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="more than graphviz can lay out") as caught:
        dump(layered(range(360)), tmp_path / "g.svg", full=True)
    assert "--dump-full" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_other_suffixes_are_refused(demo: Module, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"drawn as \.dot, \.svg"):
        dump(demo, tmp_path / "g.png")


def _model_explorer(name: str) -> ModuleType:
    """A module of the package, without the package: that would import its web server."""
    found = importlib.util.find_spec("model_explorer")
    if found is None or not found.submodule_search_locations:
        pytest.skip("Model Explorer is not installed: pip install --no-deps ai-edge-model-explorer")
    spec = importlib.util.spec_from_file_location(name, Path(found.submodule_search_locations[0]) / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_model_explorer_reads_the_json(demo: Module, tmp_path: Path) -> None:
    dacite = pytest.importorskip("dacite")
    schema = _model_explorer("graph_builder")
    dump(demo, tmp_path / "g.json")
    data = json.loads((tmp_path / "g.json").read_text())
    collection = dacite.from_dict(schema.GraphCollection, data, dacite.Config(strict=True))
    (graph,) = collection.graphs
    nodes = {node.id: node for node in graph.nodes}
    assert len(nodes) == len(graph.nodes) == len(demo.graph) + len(demo.graph.inputs)
    for node in graph.nodes:
        for edge in node.incomingEdges:
            outputs = {output.id for output in nodes[edge.sourceNodeId].outputsMetadata}
            assert edge.sourceNodeOutputId in outputs
    weight = nodes["@model.layers.2.mlp.up_proj.weight"]
    assert weight.namespace == "model/layers/2/mlp/up_proj"
    assert {fact.key: fact.value for fact in weight.attrs}["encoding"] == "q<int4, sym, group=32, scale=f16>"
    assert set(graph.groupNodeAttributes) >= {"", "model/layers/3", "model/layers/2/mlp/up_proj"}


def test_node_data_comes_beside_the_json(demo: Module, tmp_path: Path) -> None:
    error = {"error": {"model.layers.1": 0.25, "model.layers.1.mlp.down_proj": 0.5, "model.norm.weight": 2.0}}
    dump(demo, tmp_path / "g.json", figures=error)
    assert {path.name for path in tmp_path.iterdir()} == {
        "g.json",
        "g.bytes.json",
        "g.parameters.json",
        "g.flops.json",
        "g.error.json",
    }
    nodes = {node["id"]: node for node in json.loads((tmp_path / "g.json").read_text())["graphs"][0]["nodes"]}
    found = {}
    for name in ("bytes", "parameters", "flops", "error"):
        (data,) = json.loads((tmp_path / f"g.{name}.json").read_text()).values()
        found[name] = {node: result["value"] for node, result in data["results"].items()}
        assert set(found[name]) <= set(nodes)
    assert sum(found["parameters"].values()) == sum(s.type.size for s in demo.weights.values())
    assert found["bytes"]["@model.layers.2.mlp.up_proj.weight"] == 768 * 256 * 18 // 32
    by_op = {nodes[node]["label"]: value for node, value in found["error"].items()}
    assert (by_op["nn.gated_mlp"], by_op["nn.attention"], by_op["@model.norm.weight"]) == (0.5, 0.25, 2.0)


def test_regions_have_namespaces_of_their_own(tmp_path: Path) -> None:
    dump(branching(), tmp_path / "g.json")
    (graph,) = json.loads((tmp_path / "g.json").read_text())["graphs"]
    spaces = {node["label"]: node["namespace"] for node in graph["nodes"]}
    choice = spaces["ctl.if"]
    assert spaces["prim.exp"] == f"{choice}/then_/model/exit" and spaces["prim.neg"] == f"{choice}/else_/model/exit"


def test_networkx_has_what_the_picture_knows(demo: Module) -> None:
    networkx = pytest.importorskip("networkx")
    graph = to_networkx(demo)
    picture = picture_of(demo)
    assert networkx.is_directed_acyclic_graph(graph)
    assert len(graph) == len(picture.nodes) and graph.number_of_edges() == len(picture.edges)
    linears = [name for name, op in graph.nodes(data="op") if op == "nn.linear"]
    assert len(linears) == 17 and all(graph.nodes[name]["flops"] for name in linears)
    assert graph.graph["groups"]["model.layers.2"].parent == "model.layers"
    assert to_networkx(demo.graph).number_of_edges() == graph.number_of_edges()
