"""Benchmark: W8A8 in ONNX Runtime, how close to f32 and how much faster? Beside ONNX Runtime's own quantiser.

    python tools/bench/w8a8.py [--causal MODEL --calibration TEXT --text TEXT] [--minilm MODEL --train CSV --dev CSV]
                               [--only NAME] [--rounds 15] [--threads 2] [--keep DIR] [--json FILE]

Each model is written as f32 and, for several pipelines, as W8A8; the peer is onnxruntime.quantization's
`quantize_dynamic` (per channel, signed weights, matrix products only) of the f32 model, whose constants are folded
before so that it finds every matrix. All files run in ONNX Runtime, in one process, in turns.

Quality: mean KL divergence of a causal model's next tokens on `--text`, mean cosine of a sentence encoder's mean-pooled
embeddings on 200 sentences of `--dev`, both to what the f32 file gives. Speed: prompts of 256 tokens, sentences of
128, one at a time; medians over rounds of ratios within a round, by the wall clock on `--threads` threads, and in CPU
seconds on one thread, which other work on the machine disturbs least. A ratio above 1 says that ours is better.

Without arguments the causal model is the demo, on text that it wrote itself, and there is no encoder.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from quality_subjects import CALIBRATION_SENTENCES, SENTENCES, encoder_arguments, sentences

import irlab
from irlab import Module
from irlab.backends.onnx.writer import MODEL_FILE
from irlab.calibration import Sample
from irlab.decoder import with_defaults
from irlab.parity import kl_divergence

F32, PEER = "f32", "quantize_dynamic"
CAUSAL = {
    "dynamic by token": "smooth-quant,quantize-activations{embeddings=int8}",
    "dynamic by token, not smoothed": "quantize-activations{embeddings=int8}",
    "dynamic, mixed": "smooth-quant,quantize-activations{embeddings=int8 per=mixed}",
    "dynamic by tensor": "smooth-quant{alpha=search},quantize-activations{embeddings=int8 per=tensor}",
    "static": "smooth-quant{alpha=search},quantize-activations{embeddings=int8 mode=static}",
}
ENCODER = {
    "dynamic by token": "smooth-quant,quantize-activations",
    "dynamic by token, not smoothed": "quantize-activations",
    "dynamic, mixed": "smooth-quant,quantize-activations{per=mixed}",
    "dynamic by tensor": "smooth-quant{alpha=search},quantize-activations{per=tensor}",
    "static": "smooth-quant{alpha=search},quantize-activations{mode=static}",
}
"""The pipelines that are compared, by name."""

Feed = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One model: its f32 graph, pipelines, what to calibrate and measure with, and what is a prompt."""

    name: str
    module: Module
    pipelines: dict[str, str]
    calibration: Sample
    batches: Sequence[Feed]
    prompt: Feed
    metric: str
    compare: Callable[[np.ndarray, np.ndarray], float]
    """What `metric` is of one batch: the expected outputs, and those that were found."""
    output: str
    higher_is_better: bool


def sessions(files: dict[str, Path], threads: int) -> dict[str, Any]:
    """ONNX Runtime over each file."""
    import onnxruntime

    found = {}
    for name, file in files.items():
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        found[name] = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return found


def write_all(case: Case, work: Path, cache: Path) -> dict[str, Path]:
    """The files of one model, by name."""
    files: dict[str, Path] = {}
    for name, pipeline in {F32: "", **case.pipelines}.items():
        module = case.module
        if pipeline:
            sample = case.calibration
            module = irlab.run(
                module, pipeline, targets=("onnx",), cache_dir=cache, calibration=sample.source,
                calibration_tokens=sample.tokens, calibration_length=sample.length,
            )  # fmt: skip
        out = work / f"{case.name}-{name.replace(' ', '-').replace(',', '')}"
        irlab.emit(module, "onnx{layout=plain}", out, parity=False, force=True)
        files[name] = out / MODEL_FILE
    files[PEER] = peer(case.module, work / f"{case.name}-peer")
    return files


def peer(module: Module, folder: Path) -> Path:
    """What ONNX Runtime's quantiser makes of the f32 model."""
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    irlab.emit(module, "onnx{layout=plain profile=portable}", folder, parity=False, force=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "folded.onnx")
    onnxruntime.InferenceSession(str(folder / MODEL_FILE), options, providers=["CPUExecutionProvider"])
    made = folder / "quantized.onnx"
    # Its attention quantiser makes an invalid QAttention of standard attention.
    quantize_dynamic(
        folder / "folded.onnx", made, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8
    )
    return made


def run(session: Any, feed: Feed, output: str) -> np.ndarray:
    """One output of one run."""
    known = {value.name for value in session.get_inputs()}
    result: np.ndarray = session.run([output], {name: array for name, array in feed.items() if name in known})[0]
    return result


def race(found: dict[str, Any], case: Case, rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of a prompt in each round, by file, after a round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(rounds + 1):
        for name, session in found.items():
            started = clock()
            run(session, case.prompt, case.output)
            seconds[name].append(clock() - started)
    return {name: taken[1:] for name, taken in seconds.items()}


def measure(case: Case, work: Path, cache: Path, rounds: int, threads: int) -> list[dict[str, Any]]:
    """All rows of one model."""
    files = write_all(case, work, cache)
    single = sessions(files, 1)
    found: dict[str, list[float]] = {name: [] for name in files if name != F32}
    for feed in case.batches:
        expected = run(single[F32], feed, case.output)
        for name, figures in found.items():
            figures.append(case.compare(expected, run(single[name], feed, case.output)))
    quality = {name: statistics.fmean(figures) for name, figures in found.items()}
    cpu = race(single, case, rounds, time.process_time)
    del single
    wall = race(sessions(files, threads), case, rounds, time.perf_counter)
    tokens = next(iter(case.prompt.values())).size
    rows: list[dict[str, Any]] = []

    def add(name: str, metric: str, ours: float, against: str, theirs: float, ratio: float) -> None:
        title = f"{case.name} {name}"
        rows.append(
            {"name": title, "metric": metric, "ours": ours, "peer_name": against, "peer": theirs, "ratio": ratio}
        )

    for name in case.pipelines:
        ours, theirs = quality[name], quality[PEER]
        lost = (1 - theirs) / (1 - ours) if case.higher_is_better else theirs / ours
        add(name, case.metric, ours, PEER, theirs, lost)
        for metric, seconds in (
            (f"prompt tokens/s, {threads} threads", wall),
            ("prompt tokens/CPU s, 1 thread", cpu),
        ):
            for against in (F32, PEER):
                ratio = statistics.median(b / a for a, b in zip(seconds[name], seconds[against]))
                speeds = [tokens / statistics.median(seconds[n]) for n in (name, against)]
                add(name, metric, speeds[0], against, speeds[1], ratio)
    return rows


def causal_case(args: argparse.Namespace) -> Case:
    """A causal model with a cache, whose prompts start with an empty one."""
    module = irlab.run(irlab.load(args.causal), "fuse")
    cached = irlab.run(module, "kv-cache")
    batches = Sample(args.text, args.tokens, args.length).batches(module)
    feeds = [as_feed(cached, {"input_ids": row[None]}) for batch in batches for row in batch["input_ids"]]
    pipelines = {name: f"{pipeline},kv-cache" for name, pipeline in CAUSAL.items() if args.only in (None, name)}
    return Case(
        Path(args.causal).name, module, pipelines, Sample(args.calibration, args.calibration_tokens, args.length),
        feeds, feeds[0], "KL divergence", mean_kl, "logits", higher_is_better=False,
    )  # fmt: skip


def as_feed(module: Module, given: Feed) -> Feed:
    """Inputs of a cached decoder, with those filled in that may be left out."""
    filled = with_defaults(module.graph, given)
    return {name: np.asarray(value) for name, value in filled.items()}


def mean_kl(expected: np.ndarray, found: np.ndarray) -> float:
    """KL divergence in nats, a mean over tokens."""
    return float(kl_divergence(expected[0], found[0]).mean())


def encoder_case(args: argparse.Namespace, folder: Path) -> Case:
    """A sentence encoder."""
    module = irlab.run(irlab.load(args.minilm), "fuse")
    train = sentences(args.train, CALIBRATION_SENTENCES, folder)
    batches = Sample(sentences(args.dev, SENTENCES, folder), 1 << 20, 256).batches(module)
    rows = ((batch, i) for batch in batches for i in range(len(batch["input_ids"])))
    feeds = [as_feed(module, {name: array[i : i + 1] for name, array in batch.items()}) for batch, i in rows]
    ids = np.concatenate([feed["input_ids"] for feed in feeds], 1)[:, :128]
    prompt = as_feed(module, {"input_ids": ids})
    pipelines = {name: pipeline for name, pipeline in ENCODER.items() if args.only in (None, name)}
    return Case(
        "MiniLM", module, pipelines, Sample(train, 1 << 20, 256), feeds, prompt,
        "mean cosine to f32", cosine, "last_hidden_state", higher_is_better=True,
    )  # fmt: skip


def cosine(expected: np.ndarray, found: np.ndarray) -> float:
    """Of the mean-pooled embeddings of a sentence."""
    a, b = (x.mean(1)[0].astype(float) for x in (expected, found))
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def main() -> int:
    """Measure what was asked for; print a table, and write rows as JSON."""
    # `import onnx` is to find the package, and not the script beside this one.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--causal", metavar="MODEL", default="demo", help="a causal model, or none")
    parser.add_argument("--calibration", metavar="TEXT", default="self")
    parser.add_argument("--text", metavar="TEXT", default="self")
    parser.add_argument("--calibration-tokens", type=int, default=16384)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--length", type=int, default=256)
    encoder_arguments(parser)
    parser.add_argument("--only", metavar="NAME", help="one pipeline alone, such as 'dynamic, mixed'")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the files here")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="irlab-bench-w8a8-") as temporary:
        work = args.keep or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        cases = []
        if args.minilm and args.train and args.dev:
            cases.append(encoder_case(args, Path(temporary)))
        if args.causal != "none":
            cases.append(causal_case(args))
        for case in cases:
            for row in measure(case, work, Path(temporary) / "cache", args.rounds, args.threads):
                rows.append(row)
                figures = f"{row['ours']:.6g}  {row['peer_name']} {row['peer']:.6g}  ratio {row['ratio']:.2f}"
                print(f"{row['name']:46} {row['metric']:30} {figures}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
