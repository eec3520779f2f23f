"""Which layers does the installed builder really make? Its API has some that it refuses when it builds, so it is asked.

One tiny network for each such layer is built for the targets, once in a process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Final

from irlab import GraphBuilder, Module, nn
from irlab.errors import IrlabError
from irlab.types import DType


def _experts(dtype: DType) -> Module:
    """nn.experts over random weights."""
    b = GraphBuilder("probe")
    x = b.input("x", dtype.name, (1, 8, 64))
    chosen, scores = b.input("chosen", "i64", (1, 8, 2)), b.input("scores", dtype.name, (1, 8, 2))
    gate, up = (b.random_weight(name, dtype.name, (4, 128, 64)) for name in ("gate", "up"))
    b.output(y=nn.experts(x, chosen, scores, gate, up, b.random_weight("down", dtype.name, (4, 64, 128))))
    return b.module()


_NETWORKS: Final[dict[str, Callable[[DType], Module]]] = {"moe": _experts}
"""The smallest module that is lowered to each layer in doubt."""


@cache
def builds(layer: str, targets: tuple[str, ...], dtype: DType) -> bool:
    """Whether the builder makes an engine with `layer` for `targets`; False too where no TensorRT is installed. It is
    asked in a child process: what it refuses it also prints, and it may abort."""
    from irlab.backends.tensorrt import library
    from irlab.backends.tensorrt.process import WORKER
    from irlab.children import Child

    if library.missing():
        return False
    try:
        with Child(WORKER, "TensorRT's builder") as child:
            answer = child.ask({"task": "probe", "layer": layer, "targets": list(targets), "dtype": dtype.name})
    except IrlabError:
        return False
    return bool(answer.get("builds"))


def try_to_build(layer: str, targets: Sequence[str], dtype: DType) -> bool:
    """Whether the builder makes the engine; what the child process does."""
    import tempfile
    from pathlib import Path

    from irlab.backends.tensorrt.network import build_to, lower
    from irlab.backends.tensorrt.profiles import Limits

    network = lower(_NETWORKS[layer](dtype), Limits().resolved(0))
    try:
        with tempfile.TemporaryDirectory() as directory:
            return build_to(network, targets, Path(directory) / "probe.engine") > 0
    except IrlabError:
        return False
    finally:
        network.close()
