"""How is TensorRT asked to build, and its network evaluated? In a child process, with the module on disk between.

The module crosses as an .irlab directory: text, and all weights in a file, which the network then refers to.
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irlab.backends.tensorrt import library
from irlab.backends.tensorrt.profiles import Limits
from irlab.backends.tensorrt.worker import ERRORS
from irlab.children import Child
from irlab.ir import Module
from irlab.passmgr import Context
from irlab.store import directory_steps, write_directory
from irlab.target import Runtime

if TYPE_CHECKING:
    import numpy as np

    from irlab.weights import Reading

ENGINE_FILE = "model.engine"
NETWORK_FILE = "network.json"
WORKER = "irlab.backends.tensorrt.worker"


def build(
    module: Module, limits: Limits, targets: Sequence[str], out: Path, ctx: Context
) -> Generator[Reading, None, dict[str, Any]]:
    """Write ENGINE_FILE and NETWORK_FILE into `out`; what the worker says of them. Raises InputError with the
    builder's words, and OSError where the disk is full."""
    bars: dict[str, Iterator[Any]] = {}

    def show(told: Any) -> None:
        label, done, total = told
        if label not in bars:
            bars[label] = iter(ctx.progress.track(range(total), label, total))
        next(bars[label], None)
        if done >= total:
            next(bars.pop(label), None)

    request = {
        "task": "build",
        "targets": list(targets),
        "engine": str(out / ENGINE_FILE),
        "description": str(out / NETWORK_FILE),
    }
    with _folder(out) as folder:
        yield from directory_steps(module, Path(folder), embed=True)
        with Child(WORKER, "TensorRT's builder") as child:
            return checked(child.ask({**_common(folder, limits, ctx.jobs), **request}, show))


def _folder(beside: Path) -> tempfile.TemporaryDirectory[str]:
    """A place for the module, on the disk that is written to."""
    return tempfile.TemporaryDirectory(dir=beside, prefix=".module")


def _common(folder: str, limits: Limits, jobs: int) -> dict[str, Any]:
    """What every request says of the module in `folder`."""
    return {"module": folder, "limits": limits.stated(), "jobs": jobs}


def checked(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The answer, or the error that it tells of."""
    if "errno" in answer:
        raise OSError(answer["errno"], answer["message"])
    if "error" in answer:
        raise ERRORS[answer["error"]](answer["message"], answer["hint"])
    return dict(answer)


class NetworkRuntime(Runtime):
    """The network that the engine was built from, evaluated layer by layer: no engine runs without a GPU.

    The network is made again from the legalised module, and must describe itself exactly as network.json does.
    """

    name = "the network, evaluated layer by layer (engine not run)"

    def __init__(self, module: Module, limits: Limits) -> None:
        self._module = module
        self._limits = limits

    def unavailable(self) -> str:
        return library.missing()

    def logits(self, out: Path, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        import numpy as np

        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "logits.npz"
            self._ask(out, {"task": "logits", "prompts": [list(p) for p in prompts], "result": str(result)})
            with np.load(result, allow_pickle=False) as found:
                return [found[f"p{i}"] for i in range(len(prompts))]

    def greedy(self, out: Path, prompt: Sequence[int], count: int) -> list[int]:
        answer = self._ask(out, {"task": "greedy", "prompt": list(prompt), "count": count})
        return [int(token) for token in answer["tokens"]]

    def _ask(self, out: Path, request: dict[str, Any]) -> dict[str, Any]:
        with _folder(out) as folder, Child(WORKER, "the evaluator") as child:
            write_directory(self._module, Path(folder), embed=True)
            load = {"task": "load", "description": str(out / NETWORK_FILE)}
            checked(child.ask({**_common(folder, self._limits, 1), **load}))
            return checked(child.ask(request))
