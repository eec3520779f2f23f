"""Does a real engine compute what the interpreter does? Run this where a GPU that an engine can be built for is.

    python tools/check_tensorrt_gpu.py [MODEL] [--passes PIPELINE] [--precision fp16]

Builds MODEL (default: the demo), runs the engine on the GPU, and compares logits and greedy tokens with the
interpreter's. tensorrt-rtx has no sm90: a Hopper card needs the datacenter package `tensorrt`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

import irlab
from irlab.backends.tensorrt import TensorRT
from irlab.backends.tensorrt.interface import greedy
from irlab.backends.tensorrt.run import EngineSession
from irlab.backends.tensorrt.targets import CAPABILITIES
from irlab.decoder import greedy as interpreted_greedy
from irlab.decoder import logits as interpreted_logits
from irlab.emission import write_alone
from irlab.parity import GREEDY_TOKENS, prompt_tokens
from irlab.passmgr import Context


def main() -> int:
    """Exit status 0: equal within the tolerance; 3: not; 2: no GPU that it can run on."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--passes", default="fuse,kv-cache")
    parser.add_argument("--precision", default="fp16", choices=("auto", "fp16", "bf16", "fp32"))
    parser.add_argument("--json", type=Path, help="write what was measured")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device was found", file=sys.stderr)
        return 2
    device = "sm{}{}".format(*torch.cuda.get_device_capability())
    print(f"{torch.cuda.get_device_name()} ({device})")
    targets = (device,) if device in CAPABILITIES else ()
    backend = TensorRT(targets=targets, precision=args.precision, max_past=511, max_seq=256)
    legal = backend.legalise(irlab.run(irlab.load(args.model), args.passes), Context(targets=("tensorrt",)))
    with tempfile.TemporaryDirectory() as folder:
        write_alone(backend, legal, Path(folder), Context())
        session = EngineSession(Path(folder))
        worst, largest = 0.0, 0.0
        for prompt in prompt_tokens(legal, 0):
            session.forget()
            expected = interpreted_logits(legal, prompt)
            worst = max(worst, float(np.abs(session.step(prompt, 0) - expected).max()))
            largest = max(largest, float(np.abs(expected).max()))
        prompt = prompt_tokens(legal, 0)[0]
        ours, theirs = interpreted_greedy(legal, prompt, GREEDY_TOKENS), greedy(session, prompt, GREEDY_TOKENS)
    tolerance = backend.float_tolerance(legal)
    found = {
        "device": device, "max_abs_logit_diff": worst, "largest_logit": largest, "greedy_equal": ours == theirs,
    }  # fmt: skip
    print(json.dumps(found, indent=2))
    if args.json:
        args.json.write_text(json.dumps(found) + "\n", "utf-8")
    allowed = (tolerance or 0.5) * max(1.0, largest / 10)
    return 0 if worst <= allowed and (ours == theirs or tolerance is None) else 3


if __name__ == "__main__":
    raise SystemExit(main())
