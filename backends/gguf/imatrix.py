"""Importance matrices in llama.cpp's files: what each channel of each matrix reads on calibration text, mean squares.

The GGUF form of llama-imatrix (tools/imatrix/imatrix.cpp): for the tensor NAME, `NAME.in_sum2` f32[1, in] holds sums of
squares over tokens and `NAME.counts` f32[1, 1] the number of tokens; keys say from what text.

    irlab-opt MODEL -p fuse --calibration TEXT --emit imatrix -o model.imatrix.gguf
    irlab-opt MODEL -p fuse --emit "gguf{type=q4_k_m imatrix=model.imatrix.gguf}"
    irlab-opt MODEL -p "fuse,quantize{mix=q4_k_m imatrix=model.imatrix.gguf}" --emit gguf
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from irlab.analysis import InputStatistics
from irlab.backends.gguf import GGUF
from irlab.backends.gguf.anatomy import dissect
from irlab.backends.gguf.ggml import ggml_type
from irlab.backends.gguf.names import named_weights
from irlab.backends.gguf.writer import TensorInfo, size_bytes, write
from irlab.collect import collect
from irlab.errors import InputError
from irlab.ir import Module, Weight
from irlab.passmgr import Context
from irlab.target import Backend, PlanRow
from irlab.types import f32, tensor
from irlab.weights import Array, Recipe, Take, WeightSymbol, static_shape

Floats = npt.NDArray[np.float32]

_SUMS, _COUNTS = ".in_sum2", ".counts"
_F32 = ggml_type("F32")


@dataclass(frozen=True)
class Imatrix(Backend, name="imatrix"):
    """An importance matrix of llama.cpp: the mean squares of what the matrices of a decoder read on calibration text.

    As llama-imatrix makes it: of the matrices in the layers, and of the output where it is no copy of the embedding.
    llama-quantize reads it, and so do `gguf{imatrix=FILE}` and `quantize{imatrix=FILE}`.
    """

    requires = GGUF.requires
    readings = 0  # what it writes is what was collected

    def plan(self, module: Module) -> list[PlanRow]:
        matrices = tensor_names(module)
        return [PlanRow(f"the inputs of {len(matrices)} matrices", "native", "sums of squares over calibration text")]

    def legalise(self, module: Module, ctx: Context) -> Module:
        if ctx.calibration is None:
            raise InputError("an importance matrix needs calibration data", "give --calibration TEXTFILE (or self)")
        names = {weight: name for weight, name in tensor_names(module).items() if name.startswith(("blk.", "output."))}
        if ctx.is_plan:
            columns = {names[weight]: static_shape(module.weights[weight].type)[1] for weight in names}
            module.metadata["imatrix"] = {name: (np.zeros(n), 0) for name, n in columns.items()}
            batches = []
        else:
            found = collect(InputStatistics, module, ctx)
            facts = {names[weight]: found[weight] for weight in found if weight in names}
            module.metadata["imatrix"] = {name: (fact.mean_square, fact.count) for name, fact in facts.items()}
            batches = ctx.calibration_batches(module)
        source = ctx.calibration.source
        module.metadata["imatrix_keys"] = {
            "general.type": gguf.GGUFType.IMATRIX,
            gguf.Keys.IMatrix.DATASETS: [str(source) if isinstance(source, str | Path) else "token ids"],
            gguf.Keys.IMatrix.CHUNK_COUNT: sum(len(batch["input_ids"]) for batch in batches),
            gguf.Keys.IMatrix.CHUNK_SIZE: ctx.calibration.length,
        }
        return module

    def estimate_bytes(self, module: Module) -> int:
        return size_bytes(module.metadata["imatrix_keys"], list(_tensors(module)))

    def write(self, module: Module, out: Path, ctx: Context) -> None:
        write(out, module.metadata["imatrix_keys"], _tensors(module))


def tensor_names(module: Module) -> dict[str, str]:
    """The GGUF names of matrices, by weight name."""
    matrices = ((name, value.op) for name, value in named_weights(dissect(module)) if value.type.rank == 2)
    return {op.symbol.name: name for name, op in matrices if isinstance(op, Weight)}


def _tensors(module: Module) -> dict[TensorInfo, npt.NDArray[Any]]:
    made: dict[TensorInfo, npt.NDArray[Any]] = {}
    for name, (mean_square, count) in module.metadata["imatrix"].items():
        for suffix, values in ((_SUMS, mean_square[None] * count), (_COUNTS, np.array([[count]]))):
            made[TensorInfo(f"{name}{suffix}", values.shape, _F32)] = values.astype(np.float32)
    return made


def read_imatrix(path: Path) -> dict[str, Floats]:
    """The mean squares f32[in] by tensor name. Raises InputError for what is no such file, and for experts, whose
    matrices have importances each."""
    try:
        reader = gguf.GGUFReader(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"{path} is no GGUF file: {error}", "the old .dat form has to be converted first") from None
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    found: dict[str, Floats] = {}
    for name, sums in tensors.items():
        if not name.endswith(_SUMS):
            continue
        weight = name.removesuffix(_SUMS)
        counts = np.asarray(tensors.get(f"{weight}{_COUNTS}", ()), np.float32).reshape(-1)
        if counts.size != 1 or not np.isfinite(sums).all() or (sums < 0).any():
            raise InputError(f"{path}: the importances of {weight} are no sums of squares over tokens")
        found[weight] = (np.asarray(sums, np.float32) / max(1.0, float(counts[0]))).reshape(-1)
    if not found:
        raise InputError(f"{path} holds no importances", "give a file of llama-imatrix, or of --emit imatrix")
    return found


def importances(module: Module, path: str) -> dict[str, Recipe]:
    """The mean squares in the file `path` for the matrices of `module`, f32[in] by weight name. Where the module has
    lost channels that the file has, what is left; a matrix that the file does not know is left out. Registered as
    "gguf" under the entry-point group `irlab.importances`. Raises InputError."""
    known = read_imatrix(Path(path))
    names, weights = tensor_names(module), module.weights
    found: dict[str, Recipe] = {}
    for weight, name in names.items():
        if name in known:
            values = _of_columns(weights[weight], known[name], path)
            found[weight] = Array(tensor(f32, values.shape), values)
    if not found:
        raise InputError(f"{path} knows no matrix of this model", f"its first is '{next(iter(known))}'")
    return found


def _of_columns(symbol: WeightSymbol, importance: Floats, path: str) -> Floats:
    """The importances of the columns that a weight has: those of the columns that it was made from, or fewer. Raises
    InputError where it is not known which."""
    columns = static_shape(symbol.type)[-1]
    kept = _kept(symbol.recipe, len(importance))
    if kept is None:
        raise InputError(
            f"{path} knows {len(importance)} channels of '{symbol.name}', which reads {columns}",
            "make an imatrix of the model as it is now (--emit imatrix)",
        )
    return importance[kept]


def _kept(recipe: Recipe, width: int) -> npt.NDArray[np.intp] | None:
    """Which of the `width` columns that a matrix once had it still has; None where that is not known."""
    shape = static_shape(recipe.type)
    if shape[-1] == width:
        return np.arange(width)
    if len(recipe.inputs) != 1:
        return None
    kept = _kept(recipe.inputs[0], width)
    if kept is None:
        return None
    if isinstance(recipe, Take) and recipe.axis == len(shape) - 1:
        return kept[list(recipe.indices)]
    return kept if len(kept) == shape[-1] else None
