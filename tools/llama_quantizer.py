"""llama.cpp's own `llama_model_quantize`, the judge of our GGUF types: called in the library of an npm package.

    python tools/llama_quantizer.py FOLDER SOURCE.gguf TARGET.gguf FILE_TYPE [IMPORTANCES.npz]

FOLDER is where the libraries lie (`library_folder`), FILE_TYPE llama.cpp's number of a file type. It runs in a process
of its own, because llama.cpp may abort, and so that what it takes can be measured.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from pathlib import Path

from npm_packages import npm_package

PACKAGE = "@node-llama-cpp/linux-x64@3.22.1"
THREADS = 2


def library_folder() -> Path:
    """The folder of llama.cpp's libraries. Raises LookupError with the reason if it cannot be had."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise LookupError(f"{PACKAGE} is for Linux on x86-64")
    return npm_package(PACKAGE) / "bins" / "linux-x64"


def command(folder: Path, source: Path, target: Path, file_type: int, importances: Path | None = None) -> list[str]:
    """The command line that quantises `source`. `importances`: arrays f32[columns] by tensor name."""
    return [
        sys.executable, __file__, str(folder), str(source), str(target), str(file_type),
        *([str(importances)] if importances else []),
    ]  # fmt: skip


class _Params(ctypes.Structure):
    """llama_model_quantize_params of llama.cpp 0.5."""

    _fields_ = [
        ("threads", ctypes.c_int32), ("file_type", ctypes.c_int32),
        ("output_type", ctypes.c_int32), ("embedding_type", ctypes.c_int32), ("flags", ctypes.c_bool * 8),
        ("importances", ctypes.c_void_p), ("overrides", ctypes.c_void_p),
        ("tensor_types", ctypes.c_void_p), ("pruned_layers", ctypes.c_void_p),
    ]  # fmt: skip


class _Importance(ctypes.Structure):
    """llama_model_imatrix_data."""

    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("size", ctypes.c_size_t)]


def quantize(folder: Path, source: str, target: str, file_type: int, importances: str | None = None) -> int:
    """Calls `llama_model_quantize` in this process; returns its status."""
    (file,) = folder.glob("libllama.v*.so")
    llama = ctypes.CDLL(str(file))
    llama.llama_model_quantize_default_params.restype = _Params
    llama.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(_Params)]
    params = llama.llama_model_quantize_default_params()
    if params.file_type not in (7, 9):  # the default is Q8_0 or Q5_1: anything else is another struct
        raise SystemExit(f"{file} has other parameters than expected (file type {params.file_type})")
    params.threads, params.file_type = THREADS, file_type
    if importances is not None:
        import numpy as np

        arrays = dict(np.load(importances))
        entries = (_Importance * (len(arrays) + 1))()
        for entry, (name, values) in zip(entries, arrays.items()):
            entry.name, entry.data, entry.size = name.encode(), values.ctypes.data, values.size
        params.importances = ctypes.addressof(entries)
    return int(llama.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)))


if __name__ == "__main__":
    sys.exit(quantize(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), *sys.argv[5:]))
