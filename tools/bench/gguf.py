"""Benchmark: how fast, and in how much memory, is a Hugging Face checkpoint turned into a GGUF file?

    python tools/bench/gguf.py [--layers 22] [--types q8_0,q4_0,q4_k_m] [--json FILE]

A Llama of 1.1 billion random bf16 weights is made in a temporary directory and converted by `irlab-opt` in a child
process, measured from outside (CPU seconds of the whole command, peak resident memory). Beside it, in the same run,
stand llama.cpp's own tools where they are on the PATH (convert_hf_to_gguf.py and llama-quantize). Where they are not,
figures recorded on another 2-core machine are printed, and marked so: only their order of magnitude compares.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

HIDDEN, HEADS, KV_HEADS, FFN, VOCABULARY = 2048, 32, 4, 5632, 32000

RECORDED = {
    "f16": (11.4, 731.0),
    "q8_0": (14.1, 736.0),
    "q4_0": (18.7, 731.0),
    "q4_k_m": (76.1, 731.0),
    "q6_k": (44.8, 731.0),
}
"""CPU seconds and peak MB of convert_hf_to_gguf.py (and llama-quantize), 22 layers, recorded on another machine."""


@dataclass
class Cost:
    """What a command took."""

    cpu_seconds: float
    peak_mb: float


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
    """Random tensors of deviation 0.02, one in memory at a time."""
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
        for shape in shapes.values():
            numbers = rng.standard_normal(shape, dtype=np.float32)
            out.write((numbers * np.float32(0.02)).astype(ml_dtypes.bfloat16).tobytes())


def run(command: list[str]) -> Cost:
    """Run a command to its end; raises if it fails."""
    environment = os.environ | {"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} failed with status {child.returncode}")
    return Cost(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def ours(model: Path, out: Path, kind: str) -> Cost:
    """`irlab-opt MODEL -p fuse --emit gguf{type=KIND}`, without the parity gate."""
    target = f"gguf{{type={kind}}}"
    command = [sys.executable, "-m", "irlab", str(model), "-p", "fuse", "--no-parity", "-q", "--force"]
    return run([*command, "--emit", target, "-o", str(out)])


def lift_only(model: Path, out: Path) -> Cost:
    """The same command up to the point where the first weight would be read."""
    command = [sys.executable, "-m", "irlab", str(model), "-p", "fuse", "-q", "--force", "--emit", "ir"]
    return run([*command, "-o", str(out.with_suffix(".ir"))])


def peer(model: Path, out: Path, kind: str) -> Cost | None:
    """llama.cpp's converter and quantiser, or None where they are not installed."""
    convert, quantize = shutil.which("convert_hf_to_gguf.py"), shutil.which("llama-quantize")
    direct = kind in ("f16", "bf16", "f32", "q8_0")
    if convert is None or (quantize is None and not direct):
        return None
    first = out.with_suffix(".first.gguf")
    cost = run([sys.executable, convert, str(model), "--outtype", kind if direct else "f16", "--outfile", str(first)])
    if direct or quantize is None:
        return cost
    second = run([quantize, str(first), str(out), kind.upper(), "2"])
    return Cost(cost.cpu_seconds + second.cpu_seconds, max(cost.peak_mb, second.peak_mb))


def main() -> None:
    """Measure, print a table, write rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=22, help="layers of the model; 22 make 1.1 billion weights")
    parser.add_argument("--types", default="f16,q8_0,q4_0,q4_k_m,q6_k")
    parser.add_argument("--json", type=Path, help="write the rows here")
    args = parser.parse_args()
    rows: list[dict[str, object]] = []
    print(
        f"{'type':8} {'CPU s':>8} {'peer':>8} {'ratio':>6}   {'peak MB':>8} {'peer':>8} {'ratio':>6}   output MB   peer"
    )
    with tempfile.TemporaryDirectory() as folder:
        model, out = Path(folder, "model"), Path(folder, "out.gguf")
        model.mkdir()
        make_checkpoint(model, args.layers)
        lift = lift_only(model, out)
        print(f"lift     {lift.cpu_seconds:8.1f}   (part of every row below) {lift.peak_mb:8.0f} MB")
        for kind in args.types.split(","):
            cost = ours(model, out, kind)
            size = out.stat().st_size / 1e6
            out.unlink()
            other, name = peer(model, out, kind), "llama.cpp tools, this run"
            if other is None and kind in RECORDED and args.layers == 22:
                other, name = Cost(*RECORDED[kind]), "llama.cpp tools, recorded elsewhere"
            line = f"{kind:8} {cost.cpu_seconds:8.1f}"
            if other is None:
                print(f"{line} {'-':>8} {'-':>6}   {cost.peak_mb:8.0f} {'-':>8} {'-':>6}   {size:9.0f}   not installed")
            else:
                cpu, peak = other.cpu_seconds / cost.cpu_seconds, other.peak_mb / cost.peak_mb
                print(
                    f"{line} {other.cpu_seconds:8.1f} {cpu:6.2f}   {cost.peak_mb:8.0f} {other.peak_mb:8.0f} {peak:6.2f}"
                    f"   {size:9.0f}   {name}"
                )
            for metric, mine, theirs in (
                ("cpu_seconds", cost.cpu_seconds, other and other.cpu_seconds),
                ("peak_mb", cost.peak_mb, other and other.peak_mb),
            ):
                ratio = theirs / mine if theirs else None
                rows.append(
                    {
                        "name": kind,
                        "metric": metric,
                        "ours": mine,
                        "peer_name": name if other else None,
                        "peer": theirs,
                        "ratio": ratio,
                    }
                )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
