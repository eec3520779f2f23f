"""Benchmark: how fast are the ONNX directories that irlab writes, how fast and small is writing them?

    python tools/bench/onnx.py [--rounds 9] [--threads 2] [--only NAMES] [--keep DIR] [--json FILE]
                               [--quality MODEL --calibration TEXT --text TEXT]

A Llama of 125 million random f32 weights is made in a temporary directory and turned into directories for
onnxruntime-genai: by `irlab-opt`, and by onnxruntime-genai's own model builder from the same weights. Builds are child
processes measured from outside (wall and CPU seconds, peak resident memory). Then one process loads all directories and
takes turns: each round feeds 64 tokens and generates 64 more with each of them. Ratios are medians over the rounds of
ratios within a round, so that a busy machine slows both sides. A second race counts CPU seconds on one thread, which
other work on the machine disturbs least. Where the builder cannot run, figures recorded on another 2-core machine are
printed, and marked so.

Random weights say nothing of quality. With `--quality`, a Hugging Face directory of a real model, its 4-bit files are
compared with the builder's too: KL divergence to f32 on `--text`, in ONNX Runtime (see onnx_quality.py).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

HIDDEN, LAYERS, HEADS, KV_HEADS, FFN, VOCABULARY = 768, 12, 12, 4, 2048, 32000
PROMPT, NEW = 64, 64

OURS = {
    "fp32": ("fuse,kv-cache", "onnx"),
    "int4 g32": ("fuse,quantize{scheme=int4 group=32},kv-cache", "onnx"),
    "int4 g128": ("fuse,quantize{scheme=int4 group=128},kv-cache", "onnx"),
    "int8 g32": ("fuse,quantize{scheme=int8 group=32},kv-cache", "onnx"),
    "portable int4 g128": ("fuse,quantize{scheme=int4 group=128},kv-cache", "onnx{profile=portable}"),
    "hybrid g128": ("fuse,quantize{scheme=int4 group=128},kv-cache", "onnx{hybrid=true}"),
}
"""Pipeline and target of each directory that irlab writes."""

BUILDER = {
    "builder fp32": ("fp32", 32),
    "builder int4 b32": ("int4", 32),
    "builder int4 b128": ("int4", 128),
    "builder int8 b32": ("int8", 32),
}
"""Precision and block size of each directory that the model builder of onnxruntime-genai writes."""

RECORDED = {
    "builder fp32": (5.1, 1100.0, 1237.0, 78.0),
    "builder int4 b32": (5.1, 1640.0, 1226.0, 428.0),
    "builder int8 b32": (5.1, 1780.0, 1293.0, 277.0),
}
"""Build seconds, build MB, prefill and decode tokens/s of the builder's directories, on another machine."""

BASE = "builder int4 b32"
PAIRS = {
    "fp32": "builder fp32",
    "int4 g32": BASE,
    "int4 g128": BASE,
    "int8 g32": "builder int8 b32",
    "portable int4 g128": BASE,
    "hybrid g128": BASE,
}
"""What each of our directories is compared with; int4 g128 stands beside the builder's 128 as well."""


Speeds: TypeAlias = dict[str, list[tuple[float, float]]]
"""By directory: tokens per second of prompt and of generation in each round."""

Clock: TypeAlias = Callable[[], float]


@dataclass
class Build:
    """What writing a directory took."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


def make_checkpoint(directory: Path) -> None:
    """A random f32 Llama as a Hugging Face directory, with a tokenizer of as many words."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models

    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "float32",
    }
    (directory / "config.json").write_text(json.dumps(config))
    words = {f"w{i}": i for i in range(VOCABULARY)}
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    rng = np.random.default_rng(0)

    def matrix(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)

    kv = HIDDEN // HEADS * KV_HEADS
    tensors = {"model.embed_tokens.weight": matrix(VOCABULARY, HIDDEN), "lm_head.weight": matrix(VOCABULARY, HIDDEN)}
    for i in range(LAYERS):
        at = f"model.layers.{i}"
        shapes = {
            "self_attn.q_proj": (HIDDEN, HIDDEN),
            "self_attn.k_proj": (kv, HIDDEN),
            "self_attn.v_proj": (kv, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN),
            "mlp.gate_proj": (FFN, HIDDEN),
            "mlp.up_proj": (FFN, HIDDEN),
            "mlp.down_proj": (HIDDEN, FFN),
        }
        tensors |= {f"{at}.{name}.weight": matrix(*shape) for name, shape in shapes.items()}
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}.{name}.weight"] = np.ones(HIDDEN, np.float32)
    tensors["model.norm.weight"] = np.ones(HIDDEN, np.float32)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def measured(command: list[str], log: Path) -> Build | None:
    """Run a build; None if it fails, with the end of what it said on stderr."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    started = time.perf_counter()
    with log.open("wb") as file:
        child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    if child.returncode:
        print(log.read_text("utf-8", "replace")[-800:], file=sys.stderr)
        return None
    return Build(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def build_all(checkpoint: Path, work: Path, only: list[str]) -> dict[str, Build]:
    """Write every directory (or those of these names), ours and theirs in turn; those that failed are missing."""
    commands: dict[str, list[str]] = {}
    for name, (pipeline, target) in OURS.items():
        commands[name] = [sys.executable, "-m", "irlab", str(checkpoint), "-p", pipeline, "--emit", target]
        commands[name] += ["-o", str(work / name), "--no-parity"]
    for name, (precision, block) in BUILDER.items():
        commands[name] = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint)]
        commands[name] += ["-o", str(work / name), "-p", precision, "-e", "cpu", "-c", str(work / "cache")]
        commands[name] += ["--extra_options", f"block_size={block}", "int4_accuracy_level=4"]
    wanted = {name: command for name, command in commands.items() if not only or name in only}
    found = {name: measured(command, work / "log.txt") for name, command in wanted.items()}
    return {name: build for name, build in found.items() if build is not None}


def load(directory: Path, threads: int) -> Any:
    """A model of onnxruntime-genai on `threads` threads."""
    import onnxruntime_genai as og

    config = og.Config(str(directory))
    options = {"session_options": {"intra_op_num_threads": threads}}
    config.overlay(json.dumps({"model": {"decoder": options}}))
    return og.Model(config)


def turn(model: Any, prompt: list[int], clock: Clock = time.perf_counter) -> tuple[float, float]:
    """Tokens per second of the prompt, and of the tokens after it."""
    import onnxruntime_genai as og

    params = og.GeneratorParams(model)
    params.set_search_options(max_length=PROMPT + NEW + 1, min_length=PROMPT + NEW + 1, do_sample=False)
    generator = og.Generator(model, params)
    started = clock()
    generator.append_tokens(prompt)
    fed = clock()
    for _ in range(NEW):
        generator.generate_next_token()
    return PROMPT / (fed - started), NEW / (clock() - fed)


def race(work: Path, names: list[str], rounds: int, threads: int, clock: Clock) -> Speeds:
    """Prefill and decode speed of each directory in each round, after one round to warm up."""
    models = {name: load(work / name, threads) for name in names}
    prompt = np.random.default_rng(1).integers(3, VOCABULARY, PROMPT).tolist()
    results: Speeds = {name: [] for name in names}
    for _ in range(rounds + 1):
        for name, model in models.items():
            results[name].append(turn(model, prompt, clock))
    return {name: found[1:] for name, found in results.items()}


def resident_mb(directory: Path, threads: int) -> float:
    """Peak resident memory of a process that loads the directory and takes one turn."""
    child = subprocess.Popen([sys.executable, __file__, "--one", str(directory), "--threads", str(threads)])
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss / 1024 if child.returncode == 0 else float("nan")


def rows_of(builds: dict[str, Build], wall: Speeds, cpu: Speeds) -> list[dict[str, Any]]:
    """The comparison as rows: our figure, the peer's, and how many times ours is better."""
    rows: list[dict[str, Any]] = []

    def add(ours: str, metric: str, figure: float, peer: str, theirs: float, ratio: float) -> None:
        rows.append({"name": ours, "metric": metric, "ours": figure, "peer_name": peer, "peer": theirs, "ratio": ratio})

    for ours, peer in [*PAIRS.items(), ("int4 g128", "builder int4 b128")]:
        if ours not in builds:
            continue
        mine = builds[ours]
        if peer in builds:
            theirs = builds[peer]
            add(ours, "build seconds", mine.seconds, peer, theirs.seconds, theirs.seconds / mine.seconds)
            add(ours, "build peak MB", mine.peak_mb, peer, theirs.peak_mb, theirs.peak_mb / mine.peak_mb)
            for speeds, unit in ((wall, "s"), (cpu, "CPU s on 1 thread")):
                for i, phase in enumerate(("prefill", "decode")):
                    pairs = [(a[i], b[i]) for a, b in zip(speeds[ours], speeds[peer])]
                    a, b = (statistics.median(side) for side in zip(*pairs))
                    add(ours, f"{phase} tokens/{unit}", a, peer, b, statistics.median(x / y for x, y in pairs))
        elif peer in RECORDED:
            label, (seconds, peak, *speeds_) = f"{peer} (recorded on another machine)", RECORDED[peer]
            add(ours, "build seconds", mine.seconds, label, seconds, seconds / mine.seconds)
            add(ours, "build peak MB", mine.peak_mb, label, peak, peak / mine.peak_mb)
            for i, phase in enumerate(("prefill", "decode")):
                a = statistics.median(r[i] for r in wall[ours])
                add(ours, f"{phase} tokens/s", a, label, speeds_[i], a / speeds_[i])
    return rows


def main() -> None:
    """Run the benchmark and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", help="directories to write and race, separated by commas")
    parser.add_argument("--quality", type=Path, metavar="MODEL", help="a model to compare the quality of files on")
    parser.add_argument("--calibration", metavar="TEXT")
    parser.add_argument("--text", metavar="TEXT")
    parser.add_argument("--tokens", type=int, default=4096, help="of the text")
    parser.add_argument("--keep", type=Path, help="keep the directories here")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", type=Path, help="only load this directory and take one turn")
    parser.add_argument("--make", type=Path, help="only make the checkpoint, in this directory")
    options = parser.parse_args()
    if options.make:
        make_checkpoint(options.make)
        return
    if options.one:
        turn(load(options.one, options.threads), list(range(3, 3 + PROMPT)))
        return
    work = options.keep or Path(tempfile.mkdtemp(prefix="irlab-bench-onnx-"))
    try:
        checkpoint = work / "checkpoint"
        checkpoint.mkdir(parents=True)
        # Made in a child: a process inherits the peak of its parent, and the builds are measured.
        subprocess.run([sys.executable, __file__, "--make", str(checkpoint)], check=True)
        builds = build_all(checkpoint, work, options.only.split(",") if options.only else [])
        # Before the race, while this process is small.
        resident = {name: resident_mb(work / name, options.threads) for name in builds}
        wall = race(work, list(builds), options.rounds, options.threads, time.perf_counter)
        cpu = race(work, list(builds), options.rounds, 1, time.process_time)
        print(f"{'directory':20} {'build s':>8} {'CPU s':>6} {'MB':>6} {'run MB':>7} {'prefill/s':>10} {'decode/s':>9}")
        for name, build in builds.items():
            prefill, decode = (statistics.median(r[i] for r in wall[name]) for i in (0, 1))
            costs = f"{build.seconds:8.1f} {build.cpu_seconds:6.1f} {build.peak_mb:6.0f} {resident[name]:7.0f}"
            print(f"{name:20} {costs} {prefill:10.0f} {decode:9.1f}")
        rows = rows_of(builds, wall, cpu)
        if options.quality:
            from onnx_quality import kl_rows

            # From here on `import onnx` is to find the package, and not this script.
            sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
            rows += kl_rows(options.quality, options.calibration, options.text, options.tokens, work)
        print("\nours beside a peer: how many times better (medians over rounds of ratios within a round)")
        for row in rows:
            print(f"{row['name']:20} {row['metric']:34} {row['ratio']:6.2f}   of {row['peer_name']}")
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")
    finally:
        if options.keep is None:
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
