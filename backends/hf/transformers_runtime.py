"""What does transformers itself compute from a directory: logits and greedy tokens, from a child process.

The child (worker.py) bounds memory and keeps this process free of models. It loads as users do: dtype="auto", so that
the numbers are computed in the stored dtype, as the interpreter computes them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np

from irlab.children import end
from irlab.errors import InputError
from irlab.target import Runtime

_PACKAGES: Final = {"plain": (), "compressed-tensors": ("compressed_tensors", "accelerate")}
"""What transformers needs to run a layout on a CPU; of others it cannot."""

_WORKER = Path(__file__).with_name("worker.py")


class Transformers(Runtime):
    """AutoModelForCausalLM.from_pretrained on the CPU. The child lives as long as this object."""

    name = "transformers"

    def __init__(self, layout: str = "plain") -> None:
        self._child: subprocess.Popen[str] | None = None
        self._layout = layout

    def unavailable(self) -> str:
        needed = _PACKAGES.get(self._layout)
        if needed is None:
            return f"transformers runs the {self._layout} layout on no CPU"
        missing = [package for package in needed if find_spec(package) is None]
        return f"transformers loads the {self._layout} layout with {' and '.join(missing)}" if missing else ""

    def logits(self, out: Path, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        with tempfile.TemporaryDirectory(prefix="irlab-") as directory:
            self._ask({"model": str(out), "prompts": [list(p) for p in prompts], "to": directory})
            return [np.load(Path(directory, f"{i}.npy"), allow_pickle=False) for i in range(len(prompts))]

    def greedy(self, out: Path, prompt: Sequence[int], count: int) -> list[int]:
        answer = self._ask({"model": str(out), "prompt": list(prompt), "count": count})
        return [int(token) for token in answer["tokens"]]

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        child = self._child
        if child is None or child.poll() is not None:
            child = self._child = _start()
            weakref.finalize(self, end, child)
        assert child.stdin and child.stdout
        try:
            child.stdin.write(json.dumps(request) + "\n")
            child.stdin.flush()
            line = child.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise InputError(f"transformers died over {request['model']} (exit status {child.wait()})")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise InputError(f"transformers cannot run {request['model']}: {answer['error']}")
        return answer


def _start() -> subprocess.Popen[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    # -P: the worker's own directory must not hide installed packages.
    return subprocess.Popen(
        [sys.executable, "-P", str(_WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        env=environment,
    )
