"""Which ops does a provider take, in which types? python tools/probe_kernels.py webgpu|qnn

A model of one node for each op and type is loaded, and the session says where it placed the node: ONNX Runtime Web's
in headless Chromium on a software adapter, Qualcomm's (pip install onnxruntime-qnn) in its emulator of a Hexagon
processor.
It writes backends/onnx/tables/{webgpu,qnn}.txt.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import shutil
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[1]))

from irlab.backends.onnx.kernels import Kernel, data_operand, kernel_name
from tools import qnn_session
from tools.browser_demo import ORT_WEB, served
from tools.kernel_registry import write
from tools.npm_packages import npm_package
from tools.one_node_models import OPSET, cases, is_valid, model

FLAGS: Final = (
    "--no-sandbox",
    "--enable-unsafe-webgpu",
    "--enable-features=Vulkan",
    "--use-webgpu-adapter=swiftshader",
    "--use-vulkan=swiftshader",
)

PAGE: Final = """<!doctype html><meta charset=utf-8><pre id=o></pre><script type=module>
const ort = await import("./ort/ort.webgpu.bundle.min.mjs");
ort.env.wasm.wasmPaths = new URL("./ort/", location.href).href;
ort.env.logLevel = "verbose";
const options = { executionProviders: ["webgpu"], graphOptimizationLevel: "disabled", logSeverityLevel: 0 };
for (let k = 0; k < COUNT; k++) {
  const bytes = new Uint8Array(await (await fetch(`./models/${k}.onnx`)).arrayBuffer());
  console.log(`MODEL ${k}`);
  try { await (await ort.InferenceSession.create(bytes, options)).release(); }
  catch (error) { console.log(`${error}`); }
}
document.getElementById("o").textContent = "DONE";
</script>"""


def on_webgpu(folder: Path, count: int) -> set[int]:
    """The numbers of the models whose node was placed on WebGPU."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        raise LookupError("no Chromium or Chrome is installed")
    found: set[int] = set()
    current = -1

    def heard(message: Any) -> None:
        nonlocal current
        if message.text.startswith("MODEL "):
            current = int(message.text.split()[1])
        elif re.search(r"laced on \[WebGpuExecutionProvider\]", message.text):
            found.add(current)

    (folder / "index.html").write_text(PAGE.replace("COUNT", str(count)))
    directories = {"/": folder, "/ort/": npm_package(ORT_WEB) / "dist"}
    with sync_playwright() as driver, served(directories) as address:
        browser = driver.chromium.launch(executable_path=program, args=list(FLAGS))
        page = browser.new_page()
        page.on("console", heard)
        page.goto(f"{address}index.html")
        page.wait_for_function("document.getElementById('o').textContent === 'DONE'", timeout=600_000)
        browser.close()
    return found


def on_qnn(folder: Path, count: int) -> set[int]:
    """The numbers of the models whose node QNN took and compiled."""
    if not qnn_session.installed():
        raise LookupError("onnxruntime-qnn is not installed")
    found: set[int] = set()
    pool = _child()
    for number in range(count):
        try:
            if pool.submit(taken_by_qnn, folder / "models" / f"{number}.onnx").result():
                found.add(number)
        except BrokenProcessPool:  # the compiler of Hexagon's code crashed
            pool = _child()
    pool.shutdown()
    return found


def _child() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def taken_by_qnn(model: Path) -> bool:
    """Whether QNN takes the node of `model`."""
    try:
        taken = qnn_session.placements(qnn_session.session(model, optimized=False))
    except Exception:  # its exceptions, for what neither QNN nor the CPU computes, have no common class
        return False
    return any(provider == qnn_session.NAME for provider, _ in taken)


IN_COMPANY: Final[dict[str, dict[str, set[str]]]] = {
    "webgpu": {"Shape": set()},  # what reads no data stays on the CPU
    "qnn": {"QuantizeLinear": {"f16", "f32"}},  # alone it is not worth a graph
}
"""The types of ops that are placed otherwise where they stand between others."""

PROBES: Final = {
    "webgpu": (on_webgpu, lambda: ORT_WEB),
    "qnn": (on_qnn, lambda: f"onnxruntime-qnn {version('onnxruntime-qnn')}, emulating a Hexagon v75"),
}
"""How a provider is asked, and what is then asked."""


def main() -> int:
    """Probe, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("provider", choices=PROBES)
    provider = parser.parse_args().provider
    probe, asked = PROBES[provider]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "models").mkdir()
        tried: list[tuple[str, str]] = []
        for op, domain, dtype, operands, attributes, outputs in cases():
            data = model(op, domain, operands, attributes, outputs)
            if is_valid(data):
                (folder / "models" / f"{len(tried)}.onnx").write_bytes(data)
                tried.append((kernel_name(op, domain), dtype))
        try:
            taken = probe(folder, len(tried))
        except LookupError as error:
            print(f"probe_kernels: {error}", file=sys.stderr)
            return 1
    types: dict[str, set[str]] = defaultdict(set)
    for number in taken:
        op, dtype = tried[number]
        types[op].add(dtype)
    types |= IN_COMPANY[provider]
    kernels = {
        op: (Kernel((), (*[None] * (data_operand(op.rpartition(":")[2]) or 0), frozenset(found), None)),)
        for op, found in types.items()
        if found
    }
    write(provider, f"{asked()}, opset {OPSET}: by tools/probe_kernels.py", kernels)
    return 0


if __name__ == "__main__":
    sys.exit(main())
