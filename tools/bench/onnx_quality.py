"""How much of a model do the 4-bit ONNX files keep? KL divergence beside the model builder's, in ONNX Runtime."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import irlab
from irlab.calibration import Sample
from irlab.parity import kl_divergence

GROUPS = (32, 128)
METHODS = {
    "gptq": "quantize{{method=gptq scheme=int4 group={group}}}",
    "gptq, tied head too": "quantize{{method=gptq scheme=int4 group={group} embeddings=int4}}",
    "asymmetric gptq": "quantize{{method=gptq scheme=int4 group={group} sym=false}}",
}
"""Pipelines of ours, for groups of a size. A head that is tied to the embedding stays in floats in the first: the
builder makes 4 bits of the head and leaves the embedding."""


def kl_rows(model: Path, calibration: str, text: str, tokens: int, work: Path) -> Iterator[dict[str, Any]]:
    """Rows of the KL divergence to the f32 file on `text`, ours beside the builder's at equal block size, and ours with
    blocks of 128 beside the builder's with 32."""
    sample = Sample(text, tokens, 256)
    ids = [row for batch in sample.batches(irlab.load(str(model))) for row in batch["input_ids"]]
    width = irlab.load(str(model)).metadata["config"]["hidden_size"]
    reference = logits(written(model, "fuse,kv-cache", (), work / "quality-f32"), ids)

    def loss(directory: Path | None) -> float:
        found = [float("nan")] if directory is None else divergences(reference, logits(directory, ids))
        return float(np.mean(found))

    theirs = {group: loss(built(model, group, work / f"quality-builder-{group}")) for group in GROUPS}
    for group in GROUPS:
        for name, pipeline in METHODS.items() if width % group == 0 else ():
            options = ("--calibration", calibration, "--calibration-tokens", "65536")
            out = work / f"quality-{group}-{name.replace(' ', '-').replace(',', '')}"
            ours = loss(written(model, f"fuse,{pipeline.format(group=group)},kv-cache", options, out))
            for other in {group, 32}:
                title, peer = f"{model.name} int4 g{group} {name}", f"builder int4 b{other}"
                row = {"name": title, "metric": "KL divergence", "ours": ours, "peer_name": peer, "peer": theirs[other]}
                yield {**row, "ratio": theirs[other] / ours}


def written(model: Path, pipeline: str, options: Sequence[str], out: Path) -> Path:
    """The directory that irlab-opt writes."""
    command = [sys.executable, "-m", "irlab", str(model), "-p", pipeline, *options]
    subprocess.run([*command, "--emit", "onnx", "-o", str(out), "--no-parity", "--force", "-q"], check=True)
    return out


def built(model: Path, block: int, out: Path) -> Path | None:
    """The directory that onnxruntime-genai's builder writes; None where it fails, with the end of what it says."""
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(model), "-o", str(out), "-p", "int4"]
    command += [
        "-e",
        "cpu",
        "-c",
        str(out / "cache"),
        "--extra_options",
        f"block_size={block}",
        "int4_accuracy_level=4",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print((done.stdout + done.stderr)[-600:], file=sys.stderr)
        return None
    return out


def logits(directory: Path, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """f32[tokens, vocab] for each row of ids, fed to an empty cache."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(directory / "model.onnx"), options, providers=["CPUExecutionProvider"])
    decoder = json.loads((directory / "genai_config.json").read_text("utf-8"))["model"]["decoder"]
    cache = (1, decoder["num_key_value_heads"], 0, decoder["head_size"])
    found = []
    for ids in rows:
        feed: dict[str, np.ndarray] = {}
        for value in session.get_inputs():
            if value.name.startswith("past"):
                feed[value.name] = np.zeros(cache, np.float32)
            else:
                simple = {"input_ids": ids, "position_ids": np.arange(len(ids)), "attention_mask": np.ones_like(ids)}
                feed[value.name] = simple[value.name][None].astype(np.int64)
        found.append(session.run(["logits"], feed)[0][0])
    return found


def divergences(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> list[float]:
    """The mean KL divergence of each row, in nats."""
    pairs = zip(expected, found)
    return [float(kl_divergence(a, b[:, : a.shape[1]]).mean()) for a, b in pairs]
