"""ONNX Runtime Web: the same tokens in Node, in a browser by WebAssembly, by WebGPU on a software adapter, and here."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import irlab
from irlab.backends.onnx.placement import fallbacks
from irlab.backends.onnx.providers import PROVIDERS
from irlab.decoder import greedy
from tools.browser_demo import PAGE, RECIPE, node_command, routes, served

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SOFTWARE_GPU = (
    "--enable-unsafe-webgpu",
    "--enable-features=Vulkan",
    "--use-webgpu-adapter=swiftshader",
    "--use-vulkan=swiftshader",
)
PROMPT, COUNT = "Once upon a time", 10


def page_for(model: Path) -> dict[str, Path]:
    try:
        return routes(model)
    except LookupError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo model in int4, for both providers of the browser."""
    folder = tmp_path_factory.mktemp("web")
    module = irlab.run(irlab.load("demo"), RECIPE)
    irlab.emit_all(module, {folder / ep: f"onnx{{ep={ep}}}" for ep in ("wasm", "webgpu")}, parity=False)
    return {ep: folder / ep for ep in ("wasm", "webgpu")}


@dataclass
class Text:
    """The prompt's ids, what the interpreter generates after them, and all of it as text."""

    prompt: list[int]
    tokens: list[int]
    text: str


@pytest.fixture(scope="module")
def expected() -> Text:
    from tokenizers import Tokenizer

    module = irlab.run(irlab.load("demo"), RECIPE)
    tokenizer = Tokenizer.from_file(f"{module.metadata['tokenizer']}/tokenizer.json")
    prompt = tokenizer.encode(PROMPT).ids
    tokens = greedy(module, prompt, COUNT)
    return Text(prompt, tokens, tokenizer.decode([*prompt, *tokens]))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium or Chrome is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=program, args=["--no-sandbox", *SOFTWARE_GPU])
        yield started
        started.close()


def test_node_generates_the_same_tokens(written: dict[str, Path], expected: Text, tmp_path: Path) -> None:
    try:
        command = node_command(tmp_path, written["wasm"], COUNT, expected.prompt)
    except LookupError as error:
        pytest.skip(str(error))
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == expected.tokens


class Demo:
    """The demo page, opened and asked to generate; what it logged and what it asked other servers for."""

    def __init__(self, browser: Any, model: Path, ep: str) -> None:
        directories = page_for(model)
        self.log: list[str] = []
        self.requests: list[str] = []
        self.page = browser.new_page()
        self.page.set_default_timeout(240_000)
        self.page.on("console", lambda message: self.log.append(message.text))
        self.page.on("request", lambda request: self.requests.append(request.url))
        with served(directories) as self.address:
            self.page.goto(f"{self.address}?ep={ep}&tokens={COUNT}")
            self.page.wait_for_selector("#go:enabled")
            self.size = self.page.inner_text("#status")
            self.page.fill("#prompt", PROMPT)
            self.page.click("#go")
            self.page.wait_for_selector("body[data-tokens]")
            self.tokens = [int(token) for token in self.page.get_attribute("body", "data-tokens").split()]
            self.text, self.speed = self.page.inner_text("#output"), self.page.inner_text("#status")
        self.page.close()


def test_the_page_generates_the_same_tokens_by_webassembly(
    written: dict[str, Path], expected: Text, browser: Any
) -> None:
    demo = Demo(browser, written["wasm"], "wasm")
    assert demo.tokens == expected.tokens
    assert demo.text == expected.text and demo.text.startswith(PROMPT)
    assert demo.speed.endswith(" tokens/s (wasm)") and float(demo.speed.split()[0]) > 0
    assert demo.size.endswith(" MB loaded") and 3 < float(demo.size.split()[0]) < 4
    assert all(url.startswith((demo.address, "blob:", "data:")) for url in demo.requests)


def test_webgpu_generates_the_same_tokens_on_a_software_adapter(
    written: dict[str, Path], expected: Text, browser: Any
) -> None:
    page = browser.new_page()
    with served({"/": PAGE}) as address:
        page.goto(address)
        adapter = page.evaluate("async () => !!(navigator.gpu && await navigator.gpu.requestAdapter())")
    page.close()
    if not adapter:
        pytest.skip("this browser has no WebGPU adapter, not even one in software")
    demo = Demo(browser, written["webgpu"], "webgpu")
    assert demo.tokens == expected.tokens
    assert demo.speed.endswith(" tokens/s (webgpu)")


def test_the_page_says_what_it_could_not_load(browser: Any, tmp_path: Path) -> None:
    page = browser.new_page()
    with served(page_for(tmp_path)) as address:
        page.goto(address)
        page.wait_for_function("document.getElementById('status').textContent.includes('could not be loaded')")
        assert "model.onnx" in page.inner_text("#status")
        assert page.is_disabled("#go")
    page.close()


def test_files_for_the_browser_leave_lengths_alone_to_the_cpu(written: dict[str, Path]) -> None:
    import onnx

    left = fallbacks(onnx.load(written["webgpu"] / "model.onnx", load_external_data=False), PROVIDERS["webgpu"])
    assert {op for op, _ in left} == {"Cast", "ReduceSum", "Shape", "Squeeze", "Sub"}
