"""Build the browser demo and serve it: python tools/browser_demo.py [--input demo] [--ep wasm] [--port 8000]

The input is quantised to int4 and written as ONNX into a temporary directory; onnxruntime-web and the tokenizer library
come from npm (once, into the user's cache). The page is docs/browser-demo. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import http.server
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[1]))

from tools.npm_packages import npm_package

PAGE = Path(__file__).parents[1] / "docs" / "browser-demo"
ORT_WEB = "onnxruntime-web@1.30.0"
TOKENIZERS = "@huggingface/tokenizers@0.2.0"
RECIPE = "fuse,quantize{scheme=int4 group=32},kv-cache"


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of several directories under one address, with the headers that let a page use threads."""

    routes: ClassVar[Mapping[str, Path]] = {}
    extensions_map: ClassVar[dict[str, str]] = {
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def translate_path(self, path: str) -> str:
        """The file at an address: the longest route that leads to it, and never outside its directory."""
        wanted = unquote(urlsplit(path).path)
        for prefix in sorted(self.routes, key=len, reverse=True):
            if wanted.startswith(prefix):
                root = self.routes[prefix].resolve()
                file = (root / wanted.removeprefix(prefix)).resolve()
                return str(file if file.is_relative_to(root) else root / "no such file")
        return str(Path("/no such file"))

    def end_headers(self) -> None:
        """Add the two headers without which browsers give no SharedArrayBuffer."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the page shows what happens."""


def routes(model: Path) -> dict[str, Path]:
    """Where the page finds things. Raises LookupError where npm cannot give a library."""
    return {
        "/": PAGE,
        "/model/": model,
        "/ort/": npm_package(ORT_WEB) / "dist",
        "/tokenizers/": npm_package(TOKENIZERS) / "dist",
    }


def node_command(folder: Path, model: Path, count: int, prompt: Sequence[int]) -> list[str]:
    """How Node generates `count` tokens after `prompt` (ids) from the directory `model`, by the page's own decoder; the
    ids are printed as JSON. Puts links into `folder`. Raises LookupError where node or npm's packages are missing."""
    node = shutil.which("node")
    if node is None:
        raise LookupError("node is not installed")
    (folder / "node_modules").mkdir()
    version = ORT_WEB.rpartition("@")[2]
    for name in ("onnxruntime-web", "onnxruntime-common"):
        (folder / "node_modules" / name).symlink_to(npm_package(f"{name}@{version}"))
    # Node knows a module by its suffix, browsers by its type.
    shutil.copy(PAGE / "decoder.js", folder / "decoder.mjs")
    script = shutil.copy(Path(__file__).with_name("generate.mjs"), folder)
    # The packages find one another through the links.
    return [
        node,
        "--preserve-symlinks",
        "--preserve-symlinks-main",
        str(script),
        str(model),
        str(count),
        *map(str, prompt),
    ]


@contextmanager
def served(directories: Mapping[str, Path], port: int = 0) -> Iterator[str]:
    """The address of a server for `directories` (by prefix) on this machine, while the block lasts."""
    handler = type("Served", (Handler,), {"routes": dict(directories)})
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def build(source: str, ep: str, out: Path) -> None:
    """Write `source` as int4 ONNX into `out`."""
    command = [sys.executable, "-m", "irlab", source, "-p", RECIPE, "--emit", f"onnx{{ep={ep}}}", "-o", str(out)]
    subprocess.run(command, check=True)


def main() -> int:
    """Build, serve, wait."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--input", default="demo", help="what to compile: as irlab-opt's INPUT")
    parser.add_argument("--ep", default="wasm", choices=("wasm", "webgpu"))
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="irlab-browser-") as folder:
        try:
            directories = routes(Path(folder) / "model")
        except LookupError as error:
            print(f"browser_demo: {error}", file=sys.stderr)
            return 1
        build(options.input, options.ep, Path(folder) / "model")
        with served(directories, options.port) as address:
            print(f"open {address}?ep={options.ep}  (Ctrl-C ends)", flush=True)
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
