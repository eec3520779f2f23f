"""How fast are our encoders of GGML types, and how much do they lose, beside ggml's own?

    python tools/bench/quant_speed.py [--model DIR] [--types q4_k,q6_k] [--megabytes 16] [--repeats 3] [--json FILE]

The weights are the matrices of a Hugging Face directory (the demo model without one; it is small: its numbers are
repeated, with noise of a thousandth, up to the size), cut into rows of 1024 numbers: blocks of a type do not see where
a row ends. The peer is `ggml_quantize_chunk` of an installed wheel, called as GGUF files of `encoder=ggml` are made.
Each type is encoded twice: without importances, and with random ones (log-normal, as mean squares of activations are).

    megabytes_per_cpu_second    of f32 read, by one thread; the best of `--repeats`
    weighted_error              squared error over squared numbers, weighted by importance or, without, by
                                sqrt(mean(x^2) + x^2) of the group, which is what both encoders mind
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

if sys.path[0] == str(Path(__file__).resolve().parent):
    del sys.path[0]  # gguf.py beside this file is not the package gguf

from irlab.backends.gguf.ggml import dequantize, quantize
from irlab.encodings import LevelEncoding, ggml
from irlab.encodings.ggml import BLOCK_TYPES

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

COLUMNS = 1024
PEER = "ggml_quantize_chunk, this run"
TYPES = "q4_k,q5_k,q6_k,q3_k,q2_k,iq4_xs,iq4_nl,q4_0,q4_1,q8_0,mxfp4,nvfp4"


@dataclass(frozen=True)
class Row:
    """One line of the JSON file: `ratio` above 1 says that ours is better."""

    name: str
    metric: str
    ours: float
    peer: float
    ratio: float
    peer_name: str = PEER


def matrices(directory: Path) -> Iterator[Floats]:
    """The matrices of the safetensors files in `directory`, flat."""
    from safetensors import safe_open

    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                tensor = tensors.get_tensor(name)
                if tensor.ndim == 2:
                    yield tensor.float().numpy().reshape(-1)


def rows_of(directory: Path, size_bytes: int) -> Floats:
    """About `size_bytes` of the numbers of a model: f32[rows, COLUMNS]."""
    found, count = [], 0
    for flat in matrices(directory):
        found.append(flat)
        count += flat.size
        if 4 * count >= size_bytes:
            break
    numbers = np.concatenate(found)
    if 4 * numbers.size < size_bytes:
        rng = np.random.default_rng(0)
        repeated = np.resize(numbers, size_bytes // 4)
        numbers = repeated * (1 + rng.standard_normal(repeated.size, np.float32) / 1000)
    rows = min(numbers.size, size_bytes // 4) // COLUMNS
    return np.ascontiguousarray(numbers[: rows * COLUMNS].reshape(rows, COLUMNS), np.float32)


def cheapest(encode: Callable[[], Bytes], repeats: int) -> tuple[float, Bytes]:
    """The fewest CPU seconds of several runs, and what was made."""
    best, made = float("inf"), encode()
    for _ in range(repeats):
        start = time.process_time()
        made = encode()
        best = min(best, time.process_time() - start)
    return best, made


def compare(name: str, x: Floats, importance: Floats | None, repeats: int) -> list[Row]:
    """The rows of one type."""
    encoding = ggml(name)
    assert isinstance(encoding, LevelEncoding)
    seconds, blocks = cheapest(lambda: np.asarray(encoding.encode(x, importance)["blocks"]), repeats)
    peer_seconds, peer_blocks = cheapest(lambda: quantize(x, name, importance), repeats)
    if importance is None:
        groups = encoding.choose(x[:1], None, None).scale.shape[1]
        grouped = x.reshape(len(x), groups, -1)
        weights = np.sqrt((grouped**2).mean(-1, keepdims=True) + grouped**2).reshape(x.shape)
    else:
        weights = importance

    def error(made: Bytes) -> float:
        off = dequantize(made, name).astype(np.float64) - x
        return float((weights * off**2).sum() / (weights * x.astype(np.float64) ** 2).sum())

    label = f"{name}{'' if importance is None else ' with importances'}"
    speed, peer_speed = x.nbytes / 1e6 / seconds, x.nbytes / 1e6 / peer_seconds
    ours, theirs = error(blocks), error(peer_blocks)
    return [
        Row(label, "megabytes_per_cpu_second", speed, peer_speed, speed / peer_speed),
        Row(label, "weighted_error", ours, theirs, theirs / ours),
    ]


def main() -> None:
    """Measure, print a table, write rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a Hugging Face directory (default: the demo model)")
    parser.add_argument("--types", default=TYPES, help=f"of {' '.join(BLOCK_TYPES)}")
    parser.add_argument("--megabytes", type=int, default=16, help="of f32 to encode")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the rows here")
    args = parser.parse_args()
    if args.model is None:
        import irlab.demo

        args.model = Path(irlab.demo.__path__[0])
    x = rows_of(args.model, args.megabytes << 20)
    importance = np.exp(np.random.default_rng(1).standard_normal(COLUMNS)).astype(np.float32)
    rows: list[Row] = []
    print(f"{x.nbytes / 1e6:.0f} MB of f32" + " " * 15 + "MB/CPU s     ggml  ratio      error       ggml  ratio")
    for name in args.types.split(","):
        for weights in (None, importance):
            speed, error = found = compare(name, x, weights, args.repeats)
            print(
                f"{speed.name:24} {speed.ours:8.0f} {speed.peer:8.0f} {speed.ratio:6.2f} "
                f"{error.ours:10.3e} {error.peer:10.3e} {error.ratio:6.3f}",
                flush=True,
            )
            rows += found
    if args.json:
        args.json.write_text(json.dumps([vars(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
