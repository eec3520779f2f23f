"""The hash-weights pass: weights share numbers as a hash says, and the numbers are trained, matrix by matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt

from irlab.analysis import Analysis, InputHessian, LayerStatistics, OriginalInputs
from irlab.encodings.base import AnyArray
from irlab.encodings.hashed import HashedEncoding
from irlab.errors import InputError
from irlab.ir import Graph, Module
from irlab.layers import Layer
from irlab.options import Bounds
from irlab.passes.quantize.gptq import Damping
from irlab.passes.quantize.selection import (
    before_encoding,
    encode_weights,
    note_experts,
    require_fit,
    require_matches,
    require_plain,
    select_matrices,
)
from irlab.passmgr import Context, note
from irlab.reconstruction import conjugate_gradients, problems
from irlab.sweep import LayerPass
from irlab.weights import WeightSymbol, with_codes

Floats = npt.NDArray[np.float32]

STORAGE_ONLY = (
    "hash-weights: storage only, and it needs repair training (heal): weights are expanded when they are loaded, "
    "no faster (GGUF and TensorRT store them expanded)"
)


@dataclass(frozen=True)
class HashWeights(
    LayerPass, name="hash-weights", exactness="lossy", before=before_encoding(), per_layer=("compression",)
):
    """Lets a hash pick the weights of each row from a small table. Storage only; needs repair training.

        @w : f32[512, 512] = file(...)    ->    @w : hashed<8, seed=0>[512, 512]

    Stored small in .irlab and in ONNX, where the hash is computed and a Gather reads the table; GGUF and TensorRT hold
    the weights expanded. Quantisation loses far less at the same size: this is for what comes below one bit a weight,
    with training behind it.

    `compression`: how many weights a number stands for (HashedNets, Chen et al. 2015, arXiv 1504.04788; ROAST, Desai et
    al. 2022, arXiv 2207.10702). Tables begin as means and are trained by least squares (`steps` of conjugate gradients)
    towards what each matrix of the original model computed on the calibration data: untrained hashing is useless.
    `seed`: of the hash. `damping`: added to the diagonal of the Hessian, relative to its mean. `exclude`: names of
    weights to leave alone (`*` and `?` match). Embeddings, and heads tied to them, stay.
    """

    compression: Annotated[int, Bounds(2, 999_999)] = 8
    seed: Annotated[int, Bounds(0, 999_999_999)] = 0
    steps: Annotated[int, Bounds(0)] = 40
    damping: Damping = 0.01
    exclude: tuple[str, ...] = ()

    @property
    def encoding(self) -> HashedEncoding:
        """How weights are stored."""
        return HashedEncoding(self.compression, self.seed)

    def needs(self) -> tuple[type[Analysis], ...]:
        return InputHessian, OriginalInputs

    def in_order(self) -> bool | None:
        return True

    def prepare(self, module: Module, ctx: Context) -> None:
        require_matches(self.exclude, module, self.name)
        require_plain(module.graph, self.exclude, self.name)
        chosen = self._chosen(module.graph)
        if not chosen:
            raise InputError("hash-weights: no weight of the graph is a matrix of a linear layer", "run fuse before it")
        note(module, STORAGE_ONLY)
        note_experts(module, self.name)
        if ctx.is_plan:
            encode_weights(module.graph, chosen)
        ctx.note_rewrites({"hash": len(chosen)})

    def apply(self, layer: Layer, statistics: LayerStatistics) -> dict[str, WeightSymbol]:
        chosen = self._chosen(layer.whole)
        made: dict[str, WeightSymbol] = {}
        for problem, matrices in problems(layer, statistics, chosen, self.damping):
            for name, weight in matrices:
                codes = trained(problem.target(weight), problem.hessian.astype(np.float32), chosen[name], self.steps)
                made[name] = WeightSymbol(name, with_codes(weight.shape, chosen[name], codes))
        return made

    def _chosen(self, graph: Graph) -> dict[str, HashedEncoding]:
        chosen = {}
        for name, symbol in select_matrices(graph, self.exclude).items():
            chosen[name] = self.at(name).encoding
            require_fit(symbol, chosen[name], self.name, f"give another compression, or exclude={name}")
        return chosen


def trained(
    weight: Floats, hessian: Floats, encoding: HashedEncoding, steps: int
) -> dict[str, npt.NDArray[np.generic]]:
    """The codes whose tables lose least of tr((W - Q) H (W - Q)^T), by conjugate gradients on all rows at once, for W
    f32[out, in]; preconditioned by what each number weighs."""
    importance = np.diagonal(hessian).copy()
    begun = encoding.encode(weight, importance)
    places, signs = encoding.places(begun["row"], weight.shape[1])

    def expand(table: Floats) -> Floats:
        return np.take_along_axis(table, places, 1) * signs

    def collect(slopes: AnyArray) -> Floats:
        return encoding.gathered(slopes * signs, places)

    mass = encoding.gathered(np.broadcast_to(importance, weight.shape), places)
    inverse = np.divide(1, mass, out=np.zeros_like(mass), where=mass > 0)
    table = begun["table"].astype(np.float32)
    residual = collect((weight - expand(table)) @ hessian)
    found = conjugate_gradients(lambda x: collect(expand(x) @ hessian), table, residual, inverse, steps)
    return {"table": found.astype(np.float16), "row": begun["row"]}
