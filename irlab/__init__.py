"""irlab: a compiler for LLM efficiency. One graph IR, one recipe, to GGUF, ONNX and TensorRT.

    import irlab
    module = irlab.load("path-or-hub-id")
    module = irlab.run(module, "fuse,quantize{scheme=int4}")
    irlab.emit(module, "gguf", "out.gguf")

Names load on first use, so that importing irlab imports neither torch nor transformers nor onnx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import emit, emit_all, evaluate, find, load, parse, run
    from .errors import IrlabError
    from .ir import Graph, GraphBuilder, Module, Op, Value
    from .ops import nn, prim
    from .passmgr import Context, Pass
    from .pattern import p
    from .rewrite import Match, Rule

__version__ = "0.1.0"

_HOME = {
    "emit": "api",
    "emit_all": "api",
    "evaluate": "api",
    "find": "api",
    "load": "api",
    "parse": "api",
    "run": "api",
    "IrlabError": "errors",
    "Graph": "ir",
    "GraphBuilder": "ir",
    "Module": "ir",
    "Op": "ir",
    "Value": "ir",
    "nn": "ops",
    "prim": "ops",
    "Context": "passmgr",
    "Pass": "passmgr",
    "p": "pattern",
    "Match": "rewrite",
    "Rule": "rewrite",
}

__all__ = [
    "Context",
    "Graph",
    "GraphBuilder",
    "IrlabError",
    "Match",
    "Module",
    "Op",
    "Pass",
    "Rule",
    "Value",
    "__version__",
    "emit",
    "emit_all",
    "evaluate",
    "find",
    "load",
    "nn",
    "p",
    "parse",
    "prim",
    "run",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module 'irlab' has no attribute {name!r}")
    home = import_module(f".{_HOME[name]}", __name__)
    return import_module(f".ops.{name}", __name__) if _HOME[name] == "ops" else getattr(home, name)


def __dir__() -> list[str]:
    return __all__
