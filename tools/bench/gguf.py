"""Benchmark: how fast, and in how much memory, is a Hugging Face checkpoint turned into a GGUF file?

    python tools/bench/gguf.py [--layers 22] [--types f16,q8_0,q4_k_m,int4] [--json FILE]

A Llama of 1.1 billion random bf16 weights is made in a temporary directory and converted in a child process that does
what `irlab-opt MODEL -p fuse --emit gguf{type=...}` does, without the parity gate. Two peers stand beside it:

* llama.cpp's `llama_model_quantize` (see tools/llama_quantizer.py), in this run: from a bf16 GGUF of the same weights,
  which we wrote. It reads, quantises and writes with two threads, as `convert` does: everything but the lift.
* llama.cpp's tools from the same checkpoint, convert_hf_to_gguf.py and llama-quantize, against the whole command: in
  this run where they are on the PATH. Else figures recorded on another 2-core machine are printed, and marked so: only
  their order of magnitude compares.

CPU seconds, user and system, are compared: they bear a busy machine best. Of `--repeats` runs the cheapest counts. As
much as will be written is written and deleted before each conversion, ours and the quantiser's: a virtual machine may
pay seconds for memory that it has not used lately (3.7 against 0.4 for 2.2 GB), whoever comes first.

The type `int4` stands for the pass `quantize{scheme=int4 group=32}`, whose codes are Q4_0; its peer searches scales for
Q4_0 under importances (all one).
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ml_dtypes
import numpy as np

TOOLS = Path(__file__).resolve().parents[1]
sys.path.append(str(TOOLS))
if sys.path[0] == str(TOOLS / "bench"):
    del sys.path[0]  # this file is not the package gguf

import llama_quantizer  # noqa: E402

HIDDEN, HEADS, KV_HEADS, FFN, VOCABULARY = 2048, 32, 4, 5632, 32000
FULL_LAYERS = 22

FILE_TYPES = {"f16": 1, "q4_0": 2, "q8_0": 7, "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18, "bf16": 32, "int4": 2}
"""llama.cpp's numbers of the file types."""
DIRECT = ("f32", "f16", "bf16", "q8_0")
"""What convert_hf_to_gguf.py writes by itself."""
RECORDED = {
    "f16": (11.4, 731.0),
    "q8_0": (14.1, 736.0),
    "q4_0": (18.7, 731.0),
    "q4_k_m": (76.1, 731.0),
    "q6_k": (44.8, 731.0),
}
"""CPU seconds and peak MB of convert_hf_to_gguf.py (and llama-quantize), 22 layers, recorded on another machine."""
QUANTIZER, CONVERTER = "llama.cpp's quantiser, this run", "llama.cpp's tools, this run"
ELSEWHERE = "llama.cpp's tools, recorded elsewhere"


def warm(file: Path, size_bytes: int) -> None:
    """Write so many bytes, and delete them."""
    piece = bytes(1 << 20)
    with open(file, "wb", buffering=0) as out:
        for _ in range(-(-size_bytes // len(piece))):
            out.write(piece)
    file.unlink()


CONVERT = f"""
import json, os, sys, irlab
from pathlib import Path
{inspect.getsource(warm)}
def cpu_seconds():
    return sum(os.times()[:4])
model, out, pipeline, options, size_bytes = sys.argv[1:6]
module = irlab.run(irlab.load(model), pipeline, targets=("gguf",))
lift = cpu_seconds()
warm(Path(out), int(size_bytes))
start = cpu_seconds()
irlab.emit(module, "gguf", out, parity=False, force=True, **json.loads(options))
print(json.dumps({{"lift": lift, "warm": start - lift, "convert": cpu_seconds() - start}}))
"""


@dataclass(frozen=True)
class Cost:
    """What a command took, and what it printed."""

    cpu_seconds: float
    peak_mb: float
    output: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the JSON file: `ratio` above 1 says that ours is better."""

    name: str
    metric: str
    ours: float
    peer_name: str | None = None
    peer: float | None = None

    @property
    def ratio(self) -> float | None:
        return None if self.peer is None else self.peer / self.ours

    def as_dict(self) -> dict[str, object]:
        return {**vars(self), "ratio": self.ratio}


def make_checkpoint(directory: Path, layers: int) -> None:
    """A random bf16 Llama as a Hugging Face directory without tokenizer."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    (directory / "config.json").write_text(json.dumps(config))
    kv = HIDDEN // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for i in range(layers):
        at = f"model.layers.{i}"
        shapes |= {
            f"{at}.input_layernorm.weight": (HIDDEN,),
            f"{at}.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"{at}.self_attn.k_proj.weight": (kv, HIDDEN),
            f"{at}.self_attn.v_proj.weight": (kv, HIDDEN),
            f"{at}.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{at}.post_attention_layernorm.weight": (HIDDEN,),
            f"{at}.mlp.gate_proj.weight": (FFN, HIDDEN),
            f"{at}.mlp.up_proj.weight": (FFN, HIDDEN),
            f"{at}.mlp.down_proj.weight": (HIDDEN, FFN),
        }
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}
    write_random(directory / "model.safetensors", shapes)


def write_random(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Random tensors of deviation 0.02, a few rows at a time: the peak memory of a child counts from what its parent
    holds when it is started."""
    rng = np.random.default_rng(0)
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for rows, *columns in shapes.values():
            for start in range(0, rows, 2048):
                numbers = rng.standard_normal((min(2048, rows - start), *columns), dtype=np.float32)
                out.write((numbers * np.float32(0.02)).astype(ml_dtypes.bfloat16).tobytes())


def cpu_seconds(cost: Cost) -> float:
    """What runs are ordered by."""
    return cost.cpu_seconds


def run(command: Sequence[str]) -> Cost:
    """Run a command to its end; exits with the end of its log if it fails."""
    environment = os.environ | {"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as log:
        child = subprocess.Popen(command, env=environment, stdout=out, stderr=log)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        log.seek(0)
        if child.returncode:
            tail = log.read().decode(errors="replace")[-2000:]
            raise SystemExit(f"{' '.join(command)} failed with status {child.returncode}\n{tail}")
        return Cost(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, out.read().decode(errors="replace"))


def ours(model: Path, out: Path, kind: str) -> Cost:
    """Our conversion, less the warming up; it prints the CPU seconds of its parts as JSON."""
    pipeline = "fuse,quantize{scheme=int4 group=32}" if kind == "int4" else "fuse"
    options = {} if kind == "int4" else {"type": kind}
    size_bytes = str((model / "model.safetensors").stat().st_size)
    cost = run([sys.executable, "-c", CONVERT, str(model), str(out), pipeline, json.dumps(options), size_bytes])
    return replace(cost, cpu_seconds=cost.cpu_seconds - json.loads(cost.output)["warm"])


def quantizer_folder() -> Path | None:
    """Where the quantiser is; None, with a word on why, where it cannot be had."""
    try:
        return llama_quantizer.library_folder()
    except LookupError as reason:
        print(f"llama.cpp's quantiser cannot run here: {reason}")
        return None


def quantizer(folder: Path, source: Path, out: Path, kind: str) -> Cost:
    """llama.cpp's quantiser, from a bf16 GGUF to `kind`."""
    importances = None
    if kind == "int4":
        from gguf import GGUFReader

        importances = out.with_suffix(".npz")
        matrices = [t for t in GGUFReader(source).tensors if len(t.shape) == 2]
        np.savez(importances, **{t.name: np.ones(int(t.shape[0]), np.float32) for t in matrices})
    warm(out, source.stat().st_size)
    return run(llama_quantizer.command(folder, source, out, FILE_TYPES[kind], importances))


def converter(model: Path, out: Path, kind: str) -> Cost | None:
    """llama.cpp's tools, or None where they are not on the PATH."""
    convert, quantize = shutil.which("convert_hf_to_gguf.py"), shutil.which("llama-quantize")
    if convert is None or kind == "int4" or (quantize is None and kind not in DIRECT):
        return None
    first = out.with_suffix(".first.gguf")
    kind_first = kind if kind in DIRECT else "f16"
    cost = run([sys.executable, convert, str(model), "--outtype", kind_first, "--outfile", str(first)])
    if kind in DIRECT or quantize is None:
        return cost
    second = run([quantize, str(first), str(out), kind.upper(), "2"])
    return Cost(cost.cpu_seconds + second.cpu_seconds, max(cost.peak_mb, second.peak_mb))


def compare(
    model: Path, source: Path, folder: Path | None, kind: str, *, layers: int, repeats: int
) -> tuple[list[Row], float]:
    """The rows of one type, and the megabytes of its file."""
    out = model.with_name("out.gguf")
    mine: list[Cost] = []
    theirs: list[Cost] = []
    for _ in range(repeats):
        mine.append(ours(model, out, kind))
        size_mb = out.stat().st_size / 1e6
        out.unlink()
        if folder is not None and kind in FILE_TYPES:
            theirs.append(quantizer(folder, source, out, kind))
            out.unlink()
    cost = min(mine, key=cpu_seconds)
    peer = min(theirs, key=cpu_seconds, default=None)
    seconds = json.loads(cost.output)
    rows = [Row(kind, "lift_cpu_seconds", seconds["lift"])]
    if peer is None:
        rows.append(Row(kind, "convert_cpu_seconds", seconds["convert"]))
    else:
        rows.append(Row(kind, "convert_cpu_seconds", seconds["convert"], QUANTIZER, peer.cpu_seconds))
        rows.append(Row(kind, "peak_mb", cost.peak_mb, QUANTIZER, peer.peak_mb))
    whole, name = converter(model, out, kind), CONVERTER
    if whole is None and kind in RECORDED and layers == FULL_LAYERS:
        whole, name = Cost(*RECORDED[kind]), ELSEWHERE
    if whole is None:
        rows.append(Row(kind, "cpu_seconds", cost.cpu_seconds))
        rows.append(Row(kind, "peak_mb", cost.peak_mb))
    else:
        rows.append(Row(kind, "cpu_seconds", cost.cpu_seconds, name, whole.cpu_seconds))
        rows.append(Row(kind, "peak_mb", cost.peak_mb, name, whole.peak_mb))
    out.unlink(missing_ok=True)
    return rows, size_mb


METRICS = {
    "lift_cpu_seconds": "lift, CPU s (in each command)",
    "convert_cpu_seconds": "read, quantise, write, CPU s",
    "cpu_seconds": "whole command, CPU s",
    "peak_mb": "whole command, peak MB",
}


def show(rows: Sequence[Row], weights: int, size_mb: float) -> None:
    """Print the rows of one type."""
    convert = next(row.ours for row in rows if row.metric == "convert_cpu_seconds")
    print(f"{rows[0].name}: {size_mb:.0f} MB written, {4e-6 * weights / convert:.0f} MB of f32 a CPU second")
    for row in rows:
        line = f"  {METRICS[row.metric]:32} {row.ours:8.1f}"
        print(line if row.peer is None else f"{line} {row.peer:8.1f} {row.ratio:6.2f}x  {row.peer_name}", flush=True)


def main() -> None:
    """Measure, print a table, write rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=FULL_LAYERS, help="layers; 22 make 1.1 billion weights")
    parser.add_argument("--types", default="f16,bf16,q8_0,q4_0,q4_k_m,q6_k,int4")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each, of which the cheapest counts")
    parser.add_argument("--json", type=Path, help="write the rows here")
    args = parser.parse_args()
    rows: list[Row] = []
    folder = quantizer_folder()
    with tempfile.TemporaryDirectory() as temporary:
        model, source = Path(temporary, "model"), Path(temporary, "bf16.gguf")
        model.mkdir()
        make_checkpoint(model, args.layers)
        weights = (model / "model.safetensors").stat().st_size // 2
        if folder is not None:
            ours(model, source, "bf16")
        print(f"{weights / 1e9:.2f} billion weights, {args.layers} layers" + " " * 18 + "ours     peer   ratio")
        for kind in args.types.split(","):
            found, size_mb = compare(model, source, folder, kind, layers=args.layers, repeats=args.repeats)
            show(found, weights, size_mb)
            rows += found
    if args.json:
        args.json.write_text(json.dumps([row.as_dict() for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
