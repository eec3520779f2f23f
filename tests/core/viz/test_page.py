"""The page in a real browser: it opens, steps, searches, folds, tells what it knows, and trusts no name."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from irlab import GraphBuilder, prim
from irlab.ir import Loc
from irlab.passmgr import Context, PassManager, PassRecord
from irlab.schedule import build_pipeline
from irlab.viz import dump
from irlab.viz.timeline import Step, Timeline

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
PIPELINE = "fuse,quantize{scheme=int4 group=32},kv-cache"

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium, Chrome or Edge is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "demo.html"
    command = [sys.executable, "-m", "irlab", "demo", "-q", "-p", PIPELINE, "--dump-graph", str(out)]
    assert subprocess.run(command, check=True, capture_output=True).stdout == b""
    return out


class Opened:
    """A page in the browser, which collects what must not happen: errors, and requests for anything but the page."""

    def __init__(self, browser: Any, file: Path, address: str = "", **options: Any) -> None:
        self.page = browser.new_page(viewport={"width": 1440, "height": 900}, **options)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(f"{file.as_uri()}{address}")
        self.page.wait_for_selector("#timeline .step")

    def count(self, selector: str) -> int:
        return int(self.page.locator(selector).count())

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).first.inner_text())

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def find(self, words: str) -> None:
        self.press("/")
        self.page.keyboard.type(words)
        self.press("Enter")

    def in_view(self, selector: str) -> bool:
        box = self.page.locator(selector).first.bounding_box()
        frame = self.page.locator("#view").bounding_box()
        inside_x = frame["x"] <= box["x"] and box["x"] + box["width"] <= frame["x"] + frame["width"]
        return bool(inside_x and frame["y"] <= box["y"] <= frame["y"] + frame["height"])


@pytest.fixture
def opened(browser: Any, demo: Path) -> Iterator[Opened]:
    found = Opened(browser, demo)
    yield found
    assert found.complaints == []
    assert [url for url in found.requests if not url.startswith(demo.as_uri())] == []
    found.page.close()


def test_it_opens_on_the_first_pass_that_changed_something(opened: Opened):
    assert opened.count("#timeline .step") == 4
    assert "fuse" in opened.text("#timeline [aria-current=step]")
    assert opened.text("#detail h2") == "fuse"
    assert opened.count(".pane") == 2
    assert opened.count('.pane[data-side="before"] .op.removed') > 10
    assert opened.count('.pane[data-side="after"] .op.added') >= 4
    assert opened.count(".op.changed") == 0


def test_the_timeline_steps_by_keyboard_and_by_mouse(opened: Opened):
    opened.press("ArrowRight")
    assert opened.text("#detail h2") == "quantize" and "step=2" in opened.page.url
    assert opened.count('.pane[data-side="after"] .op.changed') >= 5 and opened.count(".op.added") == 0
    opened.page.click('[data-step="3"]')
    assert opened.text("#detail h2") == "kv-cache"
    opened.press("Home")
    assert opened.count(".pane") == 1 and "As loaded" in opened.text(".pane-title")
    opened.press("ArrowLeft")
    assert "step=0" in opened.page.url


def test_a_step_tells_rules_counts_bytes_and_error(opened: Opened):
    rules = opened.text(".rules")
    assert "fuse-rms-norm" in rules and "72 → 9" in rules
    assert "+21" in opened.text("#timeline [aria-current=step]")
    opened.press("ArrowRight")
    detail = opened.text("#detail")
    assert "Error introduced".upper() in detail.upper() and "Weight error, mean of 28" in detail
    assert "6.50 MiB" in detail and "2.19 MiB" in detail and "lossy" in detail


def test_search_finds_an_op_unfolds_what_is_around_it_and_brings_it_into_view(opened: Opened):
    assert opened.count('[data-path="model.layers.2.self_attn"]') == 0
    opened.find("layers.2 attention")
    assert opened.text("#detail h2") == "nn.attention"
    assert "model.layers.2.self_attn" in opened.text("#detail")
    assert opened.in_view('.pane[data-side="after"] .op.selected')
    assert opened.in_view('.pane[data-side="before"] .op.selected')


def test_where_an_op_is_not_there_yet_what_it_was_made_from_comes_into_view(opened: Opened):
    opened.find("layers.2 gated_mlp")
    assert opened.in_view('.pane[data-side="after"] .op.selected')
    assert opened.in_view('.pane[data-side="before"] .op.removed:has(.leaf:text-is("down_proj")) >> nth=-1')


def test_search_says_when_nothing_is_found(opened: Opened):
    opened.press("/")
    opened.page.keyboard.type("no such op")
    assert opened.text("#search ol") == "0 ops"
    opened.press("Escape")
    assert not opened.page.locator("#search ol").is_visible()


def test_boxes_fold_and_unfold_in_the_graph_and_in_the_tree(opened: Opened):
    attention = '.pane[data-side="after"] .op[data-uid]'
    before = opened.count(attention)
    opened.page.locator('.pane[data-side="after"] .box-header[data-path="model.layers.0.self_attn"]').dispatch_event(
        "click"
    )
    folded = opened.count(attention)
    assert folded == before - 15
    assert opened.count('.pane[data-side="after"] .folded[data-path="model.layers.0.self_attn"]') == 1
    opened.page.click('#tree [data-path="model.layers.0.self_attn"] .caret')
    assert opened.count(attention) == before
    opened.page.click("#fold-all")
    assert opened.count(attention) < 5
    opened.page.click("#fold-changes")
    assert opened.count(attention) == before


def test_a_stack_of_layers_unfolds_to_each_of_them(opened: Opened):
    opened.page.click('#tree [data-path="model.layers.1–3"] .caret')
    assert opened.count('.pane[data-side="after"] .folded[data-path^="model.layers."]') == 3


def test_an_op_tells_its_type_origin_rule_and_what_it_was_made_from(opened: Opened):
    opened.page.locator('.pane[data-side="after"] .op.added').first.dispatch_event("click")
    detail = opened.text("#detail")
    assert opened.text("#detail h2") == "nn.rms_norm"
    assert "bf16[batch, seq, 256]" in detail and "model.layers.0.input_layernorm" in detail
    assert "fuse-rms-norm" in detail and "modeling_llama.py" in detail and "from 8 ops" in detail
    opened.page.locator("#detail .chips button", has_text="prim.pow").click()
    assert opened.text("#detail h2") == "prim.pow" and "became" in opened.text("#detail")
    opened.press("Escape")
    assert opened.text("#detail h2") == "fuse"


def test_the_weights_of_an_op_have_statistics(opened: Opened):
    opened.press("ArrowRight")
    opened.find("layers.0 q_proj")
    card = opened.text(".weight-card")
    assert "int4 g32" in card and "q<int4, sym, group=32, scale=f16>[256, 256]" in card and "4.50 bits each" in card
    assert all(word in card for word in ("Range", "Zeros", "Error", "All numbers were read"))
    assert opened.count(".weight-card .histogram rect") == 48


def test_the_diff_shows_what_changed_and_selects_ops(opened: Opened):
    opened.press("d")
    assert opened.count(".line.removed") > opened.count(".line.added") > 0
    assert "3 layers changed like the first" in opened.text(".note")
    line = opened.page.locator(".line.added", has_text="nn.gated_mlp").first
    line.click()
    assert opened.text("#detail h2") == "nn.gated_mlp"


def test_the_heat_map_draws_any_figure(opened: Opened):
    opened.press("ArrowRight", "h")
    bytes_cells = opened.count(".cell")
    assert bytes_cells == 4 * 9
    opened.page.select_option("#metric", "error")
    assert opened.count(".cell") == 4 * 7 and "%" in opened.text(".legend")
    shares = {cell.get_attribute("style") for cell in opened.page.locator(".cell").all()}
    assert len(shares) > 10
    opened.page.locator(".cell").first.click()
    assert opened.text("#detail h2") == "nn.linear"


def test_an_address_brings_back_what_was_looked_at(opened: Opened, browser: Any, demo: Path):
    opened.press("ArrowRight")
    opened.find("layers.1 k_proj")
    address = "#" + opened.page.url.split("#")[1]
    again = Opened(browser, demo, address)
    assert again.text("#detail h2") == "nn.linear" and "layers.1.self_attn.k_proj" in again.text("#detail")
    assert again.in_view('.pane[data-side="after"] .op.selected')
    assert again.complaints == []
    nonsense = Opened(browser, demo, "#step=99&op=12345678&tab=no&side=no&metric=no&open=+no,x,,-")
    assert nonsense.count("#timeline .step") == 4 and nonsense.complaints == []


def test_graphs_pan_and_zoom(opened: Opened):
    canvas = opened.page.locator('.pane[data-side="after"] .canvas')
    first = canvas.get_attribute("transform")
    opened.press("+")
    zoomed = canvas.get_attribute("transform")
    assert zoomed != first
    box = opened.page.locator('.pane[data-side="after"] svg').bounding_box()
    opened.page.mouse.move(box["x"] + 20, box["y"] + 300)
    opened.page.mouse.wheel(0, 120)
    assert canvas.get_attribute("transform") != zoomed
    opened.press("0")
    assert canvas.get_attribute("transform") == first


def test_both_themes_are_readable(browser: Any, demo: Path):
    for scheme in ("light", "dark"):
        found = Opened(browser, demo, color_scheme=scheme)
        colours = found.page.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        )
        light = [sum(map(int, colour[4:-1].split(","))) for colour in colours]
        assert (light[0] < 200 < 600 < light[1]) if scheme == "light" else (light[1] < 200 < 600 < light[0])
        found.page.click("#theme")
        toggled = found.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert toggled != colours[1]
        found.page.close()


def test_a_narrow_window_keeps_everything_in_reach(browser: Any, demo: Path):
    found = Opened(browser, demo)
    found.page.set_viewport_size({"width": 480, "height": 800})
    assert found.page.evaluate("document.documentElement.scrollWidth") <= 480
    assert not found.page.locator("#tree").is_visible()
    found.page.click("#tree-toggle")
    assert found.page.locator("#tree").is_visible()
    found.page.close()


def test_names_are_text_and_never_markup_or_script(browser: Any, tmp_path: Path):
    b = GraphBuilder(HOSTILE)
    x = b.input("x", "f32", ("batch", 4))
    y = b.add(prim.mul(x, b.random_weight(HOSTILE, "f32", (4,))), HOSTILE)
    assert y.op is not None
    y.op.loc = Loc.at(f"m.{HOSTILE}", HOSTILE, HOSTILE)
    y.name = HOSTILE
    b.output(out=prim.exp(b.add(y)))
    out = tmp_path / "hostile.html"
    dump(b.module(), out)
    found = Opened(browser, out, "#step=0")
    found.find("prim.mul")
    assert HOSTILE in found.text("#detail")
    for key in ("d", "h", "g"):
        found.press(key)
        found.page.wait_for_timeout(50)
    assert found.page.title() == f"{HOSTILE} · irlab"
    assert found.count("img") == 0 and found.complaints == []
    assert [url for url in found.requests if not url.startswith(out.as_uri())] == []
    found.page.close()


def test_figures_that_a_pass_left_for_layers_come_into_the_heat_map(browser: Any, tmp_path: Path):
    import irlab

    timeline = Timeline()
    module = irlab.load("demo")
    PassManager(build_pipeline("fuse"), Context(), (timeline,)).run(module)
    step: Step = timeline.steps[0]
    record: PassRecord = step.record
    record.layers = {f"model.layers.{i}.mlp": {"output_error": 0.01 * (i + 1)} for i in range(4)}
    out = tmp_path / "layers.html"
    dump(module, out, timeline=timeline, weights="off")
    found = Opened(browser, out, "#step=1&tab=heat&metric=pass:output_error")
    assert found.count(".cell") == 4 and "0.04" in found.text(".legend")
    assert "Output error" in found.text("#metric")
    found.page.select_option("#metric", "zeros")
    assert "--dump-weights=off" in found.text(".empty")
    assert found.complaints == []
    found.page.close()


def test_a_pipeline_that_fails_still_leaves_a_page_that_says_where(browser: Any, tmp_path: Path):
    out = tmp_path / "failed.html"
    command = [sys.executable, "-m", "irlab", "demo", "-p", "fuse,quantize{group=7},kv-cache", "--dump-graph", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "choose a group" in done.stderr, done.stderr
    found = Opened(browser, out, "#step=2")
    assert found.count(".step.failed") == 1 and "quantize: weight" in found.text("#detail .error")
    assert found.complaints == []
    found.page.close()


def test_what_was_measured_step_by_step_is_drawn_as_a_curve(browser: Any, tmp_path: Path):
    import irlab

    timeline = Timeline()
    module = irlab.load("demo")
    PassManager(build_pipeline("fuse"), Context(), (timeline,)).run(module)
    timeline.steps[0].record.series = {"loss": [4.0, 2.0, 1.0]}
    out = tmp_path / "curve.html"
    dump(module, out, timeline=timeline, weights="off")
    found = Opened(browser, out, "#step=1")
    curve = found.page.locator(".curve")
    assert curve.get_attribute("aria-label") == "Loss from 4 to 1 in 3 steps"
    assert curve.locator("polyline").get_attribute("points") == "0.0,0.0 140.0,48.0 280.0,72.0"
    assert found.complaints == []
    found.page.close()
