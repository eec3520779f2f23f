"""Benchmark: is a pruned decoder, whose layers differ in width, faster than the whole one at the same type?

    python tools/bench/pruned_speed.py MODEL [--gguf f32,q8_0] [--onnx fp32,int4]
                                             [--passes PIPELINE] [--rounds 5] [--processor] [--json FILE]

A quarter of the feed-forward neurons goes, and one key/value head in six with its queries (one in three where there are
three), by more in some layers and by less in others. Which ones does not matter to speed, so the last ones go: the
model is no good afterwards, but what it computes must be what the interpreter computes, which is checked first. Both
files are measured in turns, in llama.cpp and in onnxruntime-genai. A ratio above 1: the pruned one is faster.
`--passes`: run on both before, such as quantize{scheme=int4 embeddings=int4} with `--onnx auto`.
`--processor`: on one thread, in tokens per second of processor time, for machines that are busy with other work.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path

BENCH = Path(__file__).resolve().parent
if sys.path[0] == str(BENCH):
    del sys.path[0]  # gguf.py beside this file is not the package gguf

import irlab  # noqa: E402
from irlab.axes import AxisAnalysis, keep  # noqa: E402
from irlab.ir import Module  # noqa: E402
from irlab.speed import Measured, run_sizes, speeds  # noqa: E402

UNIT = 32
"""Widths stay multiples of the blocks of most types."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--gguf", type=_names, default=["f32", "q8_0"], metavar="TYPES")
    parser.add_argument("--onnx", type=_names, default=["fp32", "int4"], metavar="PRECISIONS")
    parser.add_argument("--passes", default="", metavar="PIPELINE")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processor", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    whole = irlab.run(irlab.load(args.model), "fuse")
    pruned = narrowed(whole)
    if args.passes:
        whole, pruned = (irlab.run(module, args.passes) for module in (whole, pruned))
    print(f"{_millions(whole)} million weights, pruned {_millions(pruned)}: {_millions(pruned) / _millions(whole):.3f}")
    rows = []
    for target, option, values in (("gguf", "type", args.gguf), ("onnx", "precision", args.onnx)):
        for value in values:
            for row in measured_rows(whole, pruned, target, {option: value}, args.rounds, args.processor):
                print("{name:40} {ours:10.1f} {peer:10.1f} {ratio:6.2f}".format(**row))
                rows.append(row)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


def narrowed(module: Module) -> Module:
    """`module` with a part of the neurons and heads of each layer."""
    pruned = module.clone()
    axes = AxisAnalysis(pruned.graph)
    groups = axes.groups.values()
    kept = {}
    for role, widths in (("neurons", neurons), ("kv heads", kv_heads)):
        for (name, size), part in zip([(g.name, g.size) for g in groups if g.role == role], cycle(range(4))):
            kept[name] = range(widths(size, part))
    keep(pruned.graph, kept, axes)
    return pruned


def neurons(size: int, part: int) -> int:
    """Three quarters, by turns an eighth more and less."""
    return round(size * (0.75, 0.875, 0.75, 0.625)[part] / UNIT) * UNIT


def kv_heads(size: int, part: int) -> int:
    """All but one in six, or in three: by turns two and none of six, so that heads of 48 features are whole blocks."""
    return (2, 3, 2, 1)[part] if size == 3 else max(1, size - (size // 3, 0)[part % 2])


def measured_rows(
    whole: Module, pruned: Module, target: str, options: dict[str, str], rounds: int, processor: bool
) -> Iterator[dict[str, object]]:
    """A row for prompts and one for decoding, after a check of what the pruned file computes."""
    cached = "kv-cache" if target == "onnx" else ""
    with tempfile.TemporaryDirectory() as folder:
        made = []
        for name, module in (("pruned", pruned), ("whole", whole)):
            legal = irlab.run(module, cached, targets=(target,))
            checked = name == "pruned"
            allowed = {"allow_fallback": True} if target == "gguf" else {}  # heads of 576 columns in q4_0
            emitted = irlab.emit(legal, target, Path(folder, name), parity=checked, **allowed, **options)
            if checked:
                print(f"{target} {options}: {emitted.parity}; {', '.join(emitted.notes)}")
            assert emitted.runtime is not None
            made.append((emitted.runtime, emitted.out))
        found = Measured(made[0][0].name, *speeds(made, *run_sizes(whole), rounds, processor=processor))
    assert found.speed and found.before and found.gain
    for what in ("prompt", "decode"):
        yield {
            "name": f"{whole.name} {target} {'/'.join(options.values())} {what}",
            "metric": "tokens/s of processor time" if processor else "tokens/s",
            "ours": getattr(found.speed, what),
            "peer_name": "not pruned",
            "peer": getattr(found.before, what),
            "ratio": getattr(found.gain, what),
        }


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _millions(module: Module) -> float:
    sizes = [symbol.type.size for symbol in module.weights.values()]
    return round(sum(size for size in sizes if isinstance(size, int)) / 1e6, 2)


if __name__ == "__main__":
    sys.exit(main())
