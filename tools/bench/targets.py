"""Benchmark: what does each target make of one recipe? Files, bytes, build time and memory, and tokens a second.

    python tools/bench/targets.py [MODEL] [--recipe PIPELINE] [--targets gguf,onnx,...] [--tokens 33] [--json FILE]

MODEL is what irlab-opt takes (default: demo). Each target is built by a child process, measured from outside: wall and
CPU seconds, peak resident memory. Then it is run where it can be: greedy tokens after a short prompt, in the runtime
that users have (llama.cpp, onnxruntime-genai, ONNX Runtime Web in Node, OpenVINO, transformers). The speed is that of
all tokens but the first. Where a runtime is a process of its own, it is (n - 1) / (seconds for n tokens - seconds for
1), of the least of `--repeats` each, and fast models get more tokens than asked for. `--together` builds all targets
once more, in one command. Rows compare bytes with the weights as loaded, what was built together with the sum of the
targets one by one, everything else with the first target.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if sys.path[0] == str(Path(__file__).parent):
    del sys.path[0]  # files here are called like packages: onnx, gguf
sys.path.insert(0, str(ROOT))

RECIPE = "fuse,quantize{scheme=int4 group=32},kv-cache"
PROMPT = [1, 5, 9, 20, 33]

FIXED = "batch:1,seq:1,past:255"
"""A step of decoding, for providers that want every size known."""

MIN_SECONDS, MAX_TOKENS = 0.5, 480
"""More tokens are generated until they take so long, or are as many: the context of the demo model is 512."""

Speed = Callable[[Path, int, int], float]
"""(what was written, tokens, repeats) -> tokens a second after the first. Raises LookupError with the reason."""


def in_genai(out: Path, tokens: int, repeats: int) -> float:
    """In onnxruntime-genai, in this process."""
    import onnxruntime_genai as og

    model = og.Model(str(out))

    def seconds() -> float:
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=len(PROMPT) + tokens, min_length=len(PROMPT) + tokens, do_sample=False)
        generator = og.Generator(model, params)
        generator.append_tokens(PROMPT)
        generator.generate_next_token()
        started = time.perf_counter()
        for _ in range(tokens - 1):
            generator.generate_next_token()
        return time.perf_counter() - started

    return (tokens - 1) / min(seconds() for _ in range(repeats + 1))


def in_runtime(out: Path, count: int, target: str) -> None:
    """In the runtime that the backend's own parity gate uses."""
    from irlab.api import make_backend

    runtime = make_backend(target, {}).runtime()
    assert runtime is not None
    reason = runtime.unavailable()
    if reason:
        raise LookupError(reason)
    runtime.greedy(out, PROMPT, count)


def in_node(out: Path, count: int) -> None:
    """In ONNX Runtime Web, by WebAssembly on one thread."""
    from tools.browser_demo import node_command

    with tempfile.TemporaryDirectory() as folder:
        command = node_command(Path(folder), out, count, PROMPT)
        subprocess.run(command, check=True, capture_output=True)


@dataclass(frozen=True)
class Target:
    """A target: what to emit, how the output is called, and how fast it runs; why it does not, where it cannot here."""

    emit: str
    suffix: str = ""
    speed: Speed | None = None
    why_not: str = ""


@dataclass
class Measured:
    """What a target took, and what came of it."""

    files: int
    bytes: int
    seconds: float
    cpu_seconds: float
    peak_mb: float
    tokens_per_second: float | None
    note: str


def build(model: str, recipe: str, outputs: dict[Path, Target]) -> tuple[float, float, float]:
    """Write targets by one command: wall and CPU seconds, peak MB. Raises LookupError with its last words."""
    command = [sys.executable, "-m", "irlab", model, "-q", "-p", recipe, "--no-parity"]
    for out, target in outputs.items():
        command += ["--emit", target.emit, "-o", str(out)]
    started = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started
        if child.returncode:
            log.seek(0)
            raise LookupError((log.read().decode(errors="replace").strip() or "it failed").splitlines()[-1])
    # TensorRT's builder is a child of the child; ru_maxrss is that of the largest of them.
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def by_difference(run: Callable[[Path, int], None]) -> Speed:
    """The speed of what `run` generates in a process of its own: what more tokens add to its time."""

    def speed(out: Path, tokens: int, repeats: int) -> float:
        def seconds(count: int) -> float:
            started = time.perf_counter()
            run(out, count)
            return time.perf_counter() - started

        seconds(1)  # the file is in the page cache from now on
        load = min(seconds(1) for _ in range(repeats))
        while (taken := min(seconds(tokens) for _ in range(repeats)) - load) < MIN_SECONDS and tokens * 2 < MAX_TOKENS:
            tokens *= 2
        if taken < MIN_SECONDS / 5:
            raise LookupError(f"{tokens} tokens take no longer than loading")
        return (tokens - 1) / taken

    return speed


TARGETS = {
    "gguf": Target("gguf", ".gguf", by_difference(lambda out, n: in_runtime(out, n, "gguf"))),
    "onnx cpu": Target("onnx", "", in_genai),
    "onnx wasm": Target("onnx{ep=wasm}", "", by_difference(in_node)),
    "openvino": Target("onnx{ep=openvino}", "", by_difference(lambda out, n: in_runtime(out, n, "onnx{ep=openvino}"))),
    "hf": Target("hf", "", by_difference(lambda out, n: in_runtime(out, n, "hf"))),
    "tensorrt": Target("tensorrt{targets=sm89}", why_not="engines need a GPU"),
    "onnx cuda": Target("onnx{ep=cuda}", why_not="needs a GPU"),
    "onnx directml": Target("onnx{ep=directml}", why_not="needs Windows and a GPU"),
    "onnx webgpu": Target("onnx{ep=webgpu}", why_not="needs a GPU"),
    "onnx coreml": Target(f"onnx{{ep=coreml fixed={FIXED}}}", why_not="needs macOS"),
    "onnx qnn": Target(f"onnx{{ep=qnn fixed={FIXED}}}", why_not="needs an NPU"),
    "onnx tensorrt": Target("onnx{ep=tensorrt}", why_not="needs a GPU"),
}


def measure(model: str, recipe: str, target: Target, out: Path, tokens: int, repeats: int) -> Measured:
    """Build a target and run it."""
    seconds, cpu, peak = build(model, recipe, {out: target})
    files = [path for path in out.rglob("*") if path.is_file()] if out.is_dir() else [out]
    found, note = None, target.why_not
    if target.speed is not None:
        try:
            found = target.speed(out, tokens, repeats)
        except (LookupError, subprocess.CalledProcessError) as error:
            note = str(error).splitlines()[0]
    return Measured(len(files), sum(p.stat().st_size for p in files), seconds, cpu, peak, found, note)


def loaded_bytes(model: str) -> int:
    """The bytes of the model's weights as it is loaded."""
    import irlab

    return sum(symbol.size_bytes for symbol in irlab.load(model).weights.values())


def measure_together(model: str, recipe: str, names: Sequence[str], work: Path) -> Measured:
    """Build targets by one command."""
    outputs = {place(work / "together", name): TARGETS[name] for name in names}
    seconds, cpu, peak = build(model, recipe, outputs)
    files = [path for path in (work / "together").rglob("*") if path.is_file()]
    return Measured(len(files), sum(p.stat().st_size for p in files), seconds, cpu, peak, None, "in one command")


def place(folder: Path, name: str) -> Path:
    """Where a target is written to."""
    folder.mkdir(exist_ok=True)
    return folder / f"{name.replace(' ', '-')}{TARGETS[name].suffix}"


def rows_of(measured: dict[str, Measured], loaded: int, together: Measured | None = None) -> list[dict[str, Any]]:
    """The comparison as rows; ratios above 1 are better than the peer's."""
    rows: list[dict[str, Any]] = []

    def add(name: str, metric: str, ours: float, peer_name: str, peer: float, ratio: float) -> None:
        row = {"name": name, "metric": metric, "ours": ours, "peer_name": peer_name, "peer": peer, "ratio": ratio}
        rows.append(row)

    first_name = next(iter(measured))
    first = measured[first_name]
    for name, found in measured.items():
        add(name, "bytes", found.bytes, "the weights as loaded", loaded, loaded / found.bytes)
        for metric in ("seconds", "cpu_seconds", "peak_mb"):
            ours, theirs = getattr(found, metric), getattr(first, metric)
            add(name, f"build {metric}", ours, first_name, theirs, theirs / max(1e-9, ours))
        if found.tokens_per_second is not None and first.tokens_per_second is not None:
            ours, theirs = found.tokens_per_second, first.tokens_per_second
            add(name, "tokens/s", ours, first_name, theirs, ours / theirs)
    if together is not None:
        for metric in ("seconds", "cpu_seconds"):
            ours, theirs = getattr(together, metric), sum(getattr(found, metric) for found in measured.values())
            add("together", f"build {metric}", ours, "the sum of all", theirs, theirs / max(1e-9, ours))
        largest = max(found.peak_mb for found in measured.values())
        add("together", "build peak_mb", together.peak_mb, "the largest", largest, largest / together.peak_mb)
    return rows


def show(name: str, found: Measured) -> None:
    """Print a line of the table."""
    rate = "-" if found.tokens_per_second is None else f"{found.tokens_per_second:.1f}"
    costs = f"{found.seconds:8.1f} {found.cpu_seconds:7.1f} {found.peak_mb:6.0f} {rate:>9}"
    print(f"{name:13} {found.files:5} {found.bytes:13,} {costs}  {found.note}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--targets", default=",".join(TARGETS), help="some of: " + ", ".join(TARGETS))
    parser.add_argument("--tokens", type=int, default=33)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--together", action="store_true", help="build all of them by one command as well")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    chosen = [name.strip() for name in options.targets.split(",")]
    for name in chosen:
        if name not in TARGETS:
            parser.error(f"no target '{name}': {', '.join(TARGETS)}")
    work = Path(tempfile.mkdtemp(prefix="irlab-bench-targets-"))
    measured: dict[str, Measured] = {}
    try:
        print(f"{'target':13} {'files':>5} {'bytes':>13} {'build s':>8} {'CPU s':>7} {'MB':>6} {'tokens/s':>9}")
        for name in chosen:
            out = place(work, name)
            try:
                found = measure(options.model, options.recipe, TARGETS[name], out, options.tokens, options.repeats)
            except LookupError as error:
                print(f"{name:13} {error}", flush=True)
                continue
            measured[name] = found
            show(name, found)
        together = None
        if options.together and len(measured) > 1:
            together = measure_together(options.model, options.recipe, list(measured), work)
            show("together", together)
        if options.json:
            rows = rows_of(measured, loaded_bytes(options.model), together) if measured else []
            options.json.write_text(json.dumps(rows, indent=1) + "\n")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 0 if measured else 1


if __name__ == "__main__":
    sys.exit(main())
