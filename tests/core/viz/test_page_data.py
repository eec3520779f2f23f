"""The parts of a page: boxes, layouts, text diffs and weight statistics, each alone."""

from __future__ import annotations

import numpy as np
import pytest

import irlab
from irlab.passmgr import Context, PassManager, Progress
from irlab.schedule import build_pipeline
from irlab.types import f32, tensor
from irlab.viz.html import page, render, statistics
from irlab.viz.layout import lay_out
from irlab.viz.module_tree import MAX_OPS, MAX_PORTS, Box, module_tree
from irlab.viz.page_data import page_data
from irlab.viz.text_diff import DiffLine, diff
from irlab.viz.timeline import OpVersion, Timeline
from irlab.viz.weight_statistics import BINS, measure
from irlab.weights import Array, File, WeightSymbol


def watched(pipeline: str) -> Timeline:
    timeline = Timeline()
    module = irlab.load("demo")
    timeline.begin(module)
    PassManager(build_pipeline(pipeline), Context(), (timeline,)).run(module)
    return timeline


@pytest.fixture(scope="module")
def cached() -> Timeline:
    return watched("fuse,quantize,kv-cache")


def all_boxes(box: Box) -> list[Box]:
    return [box, *[inner for child in box.boxes() for inner in all_boxes(child)]]


# Boxes


def test_equal_layers_lie_in_a_stack_behind_the_first(cached):
    root = module_tree(cached.versions, cached.states[0].versions)
    boxes = {box.path: box for box in all_boxes(root)}
    stack = boxes["model.layers.1–3"]
    assert stack.stack and [box.path for box in stack.boxes()] == [f"model.layers.{n}" for n in (1, 2, 3)]
    assert not boxes["model.layers.0"].stack


def test_every_op_lies_in_one_box(cached):
    for kept in cached.states:
        assert sorted(module_tree(cached.versions, kept.versions).ops()) == sorted(kept.versions)


def test_edges_join_slots_and_every_value_that_crosses_a_border_has_a_port(cached):
    for kept in cached.states:
        for box in all_boxes(module_tree(cached.versions, kept.versions)):
            slots = len(box.children) + len(box.ins) + len(box.outs)
            assert all(0 <= a < slots and 0 <= b < slots for a, b in box.edges)
            made = {name for op in box.ops() for name in cached.versions[op].outs}
            read = {name for op in box.ops() for _, name in cached.versions[op].ins}
            assert {name for port in box.ins for name in port} == read - made
            assert max(len(box.ins), len(box.outs)) <= MAX_PORTS


def test_a_flat_graph_is_shared_out_among_boxes():
    chain = [
        OpVersion(i, "prim.neg", "other", f"%{i}", (f"%{i}",), ("f32",), (("x", f"%{i - 1}"),)) for i in range(300)
    ]
    root = module_tree(chain, range(300))
    assert [box.label for box in root.boxes()] == ["ops 1–120", "ops 121–240", "ops 241–300"]
    assert max(len(box.children) for box in all_boxes(root)) <= MAX_OPS
    assert root.edges == [(0, 1), (1, 2)]


# Layout


def test_a_layout_goes_down_along_edges_without_overlaps():
    sizes = [(100, 40), (120, 40), (80, 60), (96, 18), (96, 18)]
    found = lay_out(sizes, 1, 1, [(3, 0), (3, 1), (0, 2), (1, 2), (2, 4)])
    tops = [y - height / 2 for (_, y), (_, height) in zip(found.centres, sizes)]
    assert tops[3] < tops[0] == tops[1] < tops[2] < tops[4]
    left, right = sorted([(found.centres[i][0], sizes[i][0]) for i in (0, 1)])
    assert left[0] + left[1] / 2 < right[0] - right[1] / 2
    for source, target, points in found.edges:
        assert len(points) >= 8 and len(points) % 2 == 0
        assert abs(points[1] - (found.centres[source][1] + sizes[source][1] / 2)) <= 2
        assert abs(points[-1] - (found.centres[target][1] - sizes[target][1] / 2)) <= 2


def test_layouts_are_shared_by_boxes_that_look_alike(cached):
    data = page_data(cached, {})
    assert len(data["layouts"]) < len(data["boxes"]) / 2


# Text


def test_a_diff_pairs_lines_and_leaves_out_what_is_far_from_a_change():
    texts = [f"line {i}" for i in range(20)] + ["new 10"]
    found = diff(range(20), [*range(10), 20, *range(11, 20)], texts)
    assert found[0] == DiffLine("…", 7) and found[-1] == DiffLine("…", 6)
    assert [line for line in found if line.tag in "+-"] == [DiffLine("-", 10), DiffLine("+", 20)]
    assert diff(range(20), range(20), texts) == []


def test_equal_layers_are_told_once_in_the_diff(cached):
    data = page_data(cached, {})
    tags = [tag for tag, _ in data["steps"][1]["diff"]["weights"]]
    assert tags.count("+") == tags.count("-") == 7  # the matrices of one layer of four
    assert data["steps"][1]["diff"]["folded"] == 3


# Weights


def symbol(values: np.ndarray, name: str = "w") -> WeightSymbol:
    values = np.asarray(values, np.float32)
    return WeightSymbol(name, Array(tensor(f32, values.shape), values))


def test_statistics_are_those_of_numpy():
    values = np.random.default_rng(0).normal(size=(300, 64)).astype(np.float32)
    values[:, 0] = 0
    found = measure(symbol(values), "full")
    assert found.seen == values.size and found.zeros == 300 and not found.missing
    assert (found.minimum, found.maximum) == (values.min(), values.max())
    assert found.mean == pytest.approx(values.mean(), abs=1e-6)
    assert found.deviation == pytest.approx(values.std(), rel=1e-5)
    assert sum(found.histogram) == values.size and len(found.histogram) == BINS
    assert found.histogram == tuple(np.histogram(values, BINS, (-found.reach, found.reach))[0])


def test_the_histogram_widens_with_what_is_seen():
    values = np.zeros((1 << 22, 1), np.float32)
    values[:100], values[-1] = 0.5, -7.0
    found = measure(symbol(values), "full")
    assert found.reach >= 7 and sum(found.histogram) == values.size
    centres = (np.arange(BINS) + 0.5) / BINS * 2 * found.reach - found.reach
    assert np.abs(centres[np.nonzero(found.histogram)] - [-7.0, 0.0, 0.5]).max() < found.reach / BINS * 2


def test_large_weights_are_sampled_in_evenly_spaced_rows():
    values = np.repeat(np.arange(4096, dtype=np.float32), 512).reshape(4096, 512)
    found = measure(symbol(values), "sample")
    assert 0 < found.seen < values.size / 10
    assert found.minimum == 0 and found.maximum == 4095
    assert measure(symbol(values), "full").seen == values.size


def test_the_error_is_relative_to_what_was_loaded():
    values = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    found = measure(symbol(values * 1.1), "sample", symbol(values))
    assert found.error == pytest.approx(0.1, rel=1e-3)


def test_values_that_are_missing_or_not_finite_are_said(tmp_path):
    missing = measure(WeightSymbol("w", File(tmp_path / "gone.safetensors", "w", tensor(f32, (4,)))), "sample")
    assert "gone.safetensors" in missing.missing and missing.seen == 0
    found = measure(symbol(np.array([1.0, np.nan, np.inf, -1.0])), "full")
    assert (found.not_finite, found.minimum, found.maximum) == (2, -1.0, 1.0)
    assert "off" in measure(symbol(np.ones(3)), "off").missing


def test_quantised_weights_are_compared_with_what_they_were(cached):
    found = statistics(cached, "sample", Progress())
    errors = [s.error for i, s in found.items() if cached.weights[i].type.encoding is not None]
    assert len(errors) == 28 and all(e is not None and 0.01 < e < 0.2 for e in errors)


# The file


def test_a_page_is_one_file_that_names_no_other_place(cached):
    text = page(cached, "off", Progress())
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    assert "default-src 'none'" in text and " src=" not in text and "@import" not in text
    assert str(irlab.load("demo").directory or "/no-directory/") not in text


def test_the_data_of_a_page_cannot_leave_its_element():
    hostile = "</script><script>alert(1)</script>&<!--"
    text = render(hostile, {"name": hostile})
    assert text.count("<script") == 2 and "alert(1)</script>" not in text


def test_two_dumps_of_the_same_run_are_equal(cached):
    assert page(cached, "sample", Progress()) == page(cached, "sample", Progress())


def test_a_layer_of_nothing_but_modules_stays_a_box():
    def op(number: int, path: str) -> OpVersion:
        ins = (("x", f"%{number - 1}"),) if number else ()
        return OpVersion(number, "prim.neg", "other", f"%{number}", (f"%{number}",), ("f32",), ins, path=path)

    paths = [f"encoder.layer.{n}.{part}" for n in range(6) for part in ("attention", "attention", "output", "output")]
    root = module_tree([op(i, path) for i, path in enumerate(paths)], range(len(paths)))
    assert [box.label for box in root.boxes()] == [f"encoder.layer.{n}" for n in ("0", "1", "2–4", "5")]
