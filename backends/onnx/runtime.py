"""How is a written directory run? In a child process, which may abort without taking the parent along."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irlab.backends.onnx.providers import require_provider
from irlab.errors import CheckError
from irlab.target import Speed, TimedRuntime

if TYPE_CHECKING:
    import numpy as np


class OnnxRuntime(TimedRuntime):
    """ONNX Runtime; onnxruntime-genai generates where the directory has its configuration.

    A provider that is not installed is stood in for by the CPU's, under a name that says so; OpenVINO runs what is
    written for it where the package openvino is installed. `fixed`: sizes are fixed, and prompts are padded.
    """

    def __init__(self, ep: str = "cpu", fixed: bool = False) -> None:
        provider = require_provider(ep).runtime_name
        self._unpadded = fixed and require_provider(ep).rope == "attention"
        self.engine = "openvino" if ep == "openvino" and find_spec("openvino") else "onnxruntime"
        if self.engine == "openvino" or provider == "CPUExecutionProvider":
            self.name = self.engine
        else:
            self.name = f"onnxruntime's CPU provider (not run on {provider})"

    def unavailable(self) -> str:
        if self._unpadded:
            return "its sizes are fixed, and GroupQueryAttention takes no padding before a prompt"
        return "" if find_spec("onnxruntime") else "onnxruntime is not installed (pip install onnxruntime)"

    def logits(self, out: Path, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        import numpy as np

        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "logits.npz"
            self._run(out, {"task": "logits", "prompts": [list(p) for p in prompts], "result": str(result)})
            with np.load(result, allow_pickle=False) as found:
                return [found[f"p{i}"] for i in range(len(prompts))]

    def greedy(self, out: Path, prompt: Sequence[int], count: int) -> list[int]:
        answer = self._run(out, {"task": "greedy", "prompt": list(prompt), "count": count})
        return [int(token) for token in answer["tokens"]]

    def speed(self, out: Path, prompt: int, new: int, *, processor: bool = False) -> Speed:
        request = {"task": "speed", "prompt": prompt, "new": new, "seconds": 0.5, "processor": processor}
        rates = self._run(out, request)
        return Speed(rates["prompt"], rates["decode"])

    def _run(self, out: Path, request: dict[str, Any]) -> dict[str, Any]:
        """What the worker answers; CheckError with its last words where it fails or dies."""
        request = {**request, "directory": str(out), "engine": self.engine}
        command = [sys.executable, "-m", "irlab.backends.onnx.runtime_worker"]
        done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
        if done.returncode:
            words = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
            raise CheckError(f"{self.name} cannot run {out}: {words[-1].strip()}")
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer
