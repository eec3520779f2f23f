"""Where on this machine is a compiled ggml or llama.cpp that we may call?"""

from __future__ import annotations

import importlib.machinery
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

# (distribution's import name, file patterns beside it). The packages are never imported: that would start their Python
# side, and only the exported C functions are wanted. xllamacpp holds ggml and llama.cpp in one file; pywhispercpp
# holds ggml alone, under a name that auditwheel has mangled.
_GGML_HOLDERS = (
    ("xllamacpp", ("xllamacpp/xllamacpp*",)),
    ("_pywhispercpp", ("pywhispercpp.libs/libggml-base*", "libggml-base*")),
)
_LLAMA_HOLDERS = _GGML_HOLDERS[:1]
_SUFFIXES = (*importlib.machinery.EXTENSION_SUFFIXES, ".so", ".dylib", ".dll", ".pyd")


@cache
def ggml_library() -> Path | None:
    """A shared library that exports `ggml_quantize_chunk`, or None."""
    return next(_installed(_GGML_HOLDERS), None)


@cache
def llama_library() -> Path | None:
    """A shared library that exports the llama.h C API, or None."""
    return next(_installed(_LLAMA_HOLDERS), None)


def _installed(holders: tuple[tuple[str, tuple[str, ...]], ...]) -> Iterator[Path]:
    for package, patterns in holders:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        origin = Path(spec.origin)
        site = origin.parent.parent if origin.name == "__init__.py" else origin.parent
        for pattern in patterns:
            yield from (path for path in sorted(site.glob(pattern)) if _is_shared_library(path))


def _is_shared_library(path: Path) -> bool:
    return path.is_file() and (path.name.endswith(_SUFFIXES) or ".so." in path.name)
