"""The sparsify pass: which weights become zero, and how the others make up for them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import numpy as np
import numpy.typing as npt

from irlab.analysis import Analysis, InputHessian, LayerStatistics, OriginalInputs
from irlab.errors import InputError, UsageError
from irlab.ir import Module
from irlab.layers import Layer
from irlab.options import Bounds
from irlab.passes.quantize.gptq import Compensation, Damping
from irlab.passes.quantize.selection import (
    before_encoding,
    note_experts,
    require_matches,
    require_plain,
    select_matrices,
)
from irlab.passes.sparsify.solve import Pattern, refined, refit, sparse_gpt
from irlab.passmgr import Context, note
from irlab.reconstruction import Problem, problems
from irlab.sweep import LayerPass
from irlab.weight_uses import replace_weights
from irlab.weights import Array, Prune, WeightSymbol, numpy_dtype, pending, static_shape
from irlab.weights.pruned import relative_magnitudes

Floats = npt.NDArray[np.float32]

NO_GAIN: Final = (
    "sparsify: zeros are stored and multiplied like other numbers: no smaller, and no faster on a CPU "
    "(2:4 gains in the sparse kernels of NVIDIA GPUs)"
)

_PATTERNS: Final = {"none": (0, 0), "2:4": (2, 4), "4:8": (4, 8)}


@dataclass(frozen=True)
class Sparsify(
    LayerPass, name="sparsify", exactness="lossy", before=before_encoding(), per_layer=("sparsity",), saves_work=True
):
    """Sets weights of linear layers to zero. No gain on CPU and none in size: zeros are stored and multiplied.

        @w : f32[512, 512] = file(...)        @w : f32[512, 512] = prune(file(...), sparsity=0.5)
        %y = nn.linear(%x, @w)            ->  %y = nn.linear(%x, @w)

    Where it pays: 2:4 in the sparse kernels of NVIDIA GPUs (Ampere and later, through TensorRT); and with quantize
    behind it, whose codes of zero any archiver packs. Unstructured zeros gain nothing in llama.cpp, ONNX Runtime or
    TensorRT; prune-neurons and its like make matrices smaller instead.

    `method`: which weights go. magnitude: the smallest of each matrix, relative to their row and column; nothing is
    computed until a backend asks for it.
    wanda: the least abs(w) * |x| of each row (Sun et al. 2023, arXiv 2306.11695). sparsegpt: the least w^2 / [H^-1]_jj,
    column by column, while later columns make up for the errors of earlier ones (Frantar & Alistarh 2023, arXiv
    2301.00774).
    `sparsity`: the share of weights that go, in [0, 1). `pattern`: 2:4 or 4:8 leave half of every 4 or 8 neighbours.
    `refit`: what stays is fitted by least squares to what the original model computed, matrix after matrix in the order
    in which they run, so that the errors of earlier ones are made up for; for sparsegpt the mask is refined by ADMM too
    (Meng et al. 2024, arXiv 2406.07831). By default on where calibration data is used anyway; false: the method as
    published. `damping`: added to the diagonal of the Hessian, relative to its mean.
    `exclude`: names of weights to leave alone (`*` and `?` match). Embeddings, and heads tied to them, stay.

    A quantize{method=gptq} right behind it shares its sweep: zeros stay zero, and rounding errors are made up for by
    the weights that are left.
    """

    method: Literal["magnitude", "wanda", "sparsegpt"] = "sparsegpt"
    sparsity: Annotated[float, Bounds(0, below=1, idle=0)] = 0.5
    pattern: Literal["none", "2:4", "4:8"] = "none"
    refit: bool | None = None
    exclude: tuple[str, ...] = ()
    damping: Damping = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern != "none" and self.sparsity != 0.5:
            raise UsageError(f"sparsify: the pattern {self.pattern} is a sparsity of 0.5, not {self.sparsity:g}")

    @property
    def refits(self) -> bool:
        """Whether what stays is fitted to data."""
        return self.method != "magnitude" if self.refit is None else self.refit

    def needs(self) -> tuple[type[Analysis], ...]:
        if self.refits:
            return InputHessian, OriginalInputs
        return () if self.method == "magnitude" else (InputHessian,)

    def in_order(self) -> bool | None:
        return True if self.refits else None

    def prepare(self, module: Module, ctx: Context) -> None:
        require_matches(self.exclude, module, self.name)
        require_plain(module.graph, self.exclude, self.name)
        counts: Counter[str] = Counter()
        chosen = self._chosen(module, counts)
        if not chosen and not counts:
            raise InputError("sparsify: no weight of the graph is a matrix of a linear layer", "run fuse before it")
        keep, keep_of = _PATTERNS[self.pattern]
        for name, symbol in chosen.items():
            columns = static_shape(symbol.type)[-1]
            if keep_of and columns % keep_of:
                hint = f"exclude={name}, or pattern=none"
                raise InputError(f"sparsify: weight '{name}': rows of {columns} are not groups of {keep_of}", hint)
        note(module, NO_GAIN)
        note_experts(module, self.name)
        if self.needs() and ctx.is_plan:
            replace_weights(module.graph, pending(chosen))
        elif not self.needs():
            made = {
                name: WeightSymbol(name, Prune(symbol.recipe, self.at(name).sparsity, keep, keep_of))
                for name, symbol in chosen.items()
            }
            replace_weights(module.graph, made)
            counts["prune"] += len(made)
        ctx.note_rewrites(dict(counts))

    def apply(self, layer: Layer, statistics: LayerStatistics) -> dict[str, WeightSymbol]:
        made: dict[str, WeightSymbol] = {}
        wanted = select_matrices(layer.whole, self.exclude)
        for problem, matrices in problems(layer, statistics, wanted, self.damping):
            solver = _Solver(self, problem)
            for name, weight in matrices:
                symbol = layer.weights[name]
                values = solver.solve(weight, self.at(name).sparsity)
                made[name] = WeightSymbol(name, Array(symbol.type, values.astype(numpy_dtype(symbol.type.dtype))))
        return made

    def _chosen(self, module: Module, counts: Counter[str]) -> dict[str, WeightSymbol]:
        """The matrices to change; `counts` why others stay as they are."""
        chosen = select_matrices(module.graph, self.exclude, counts=counts)
        for name in chosen:
            self.at(name)
        return chosen


class _Solver:
    """What the matrices that read one value become."""

    def __init__(self, options: Sparsify, problem: Problem) -> None:
        self.options, self.problem = options, problem
        self.hessian: Floats = problem.hessian.astype(np.float32)
        if options.method == "sparsegpt":
            self.factor = Compensation.of(problem.hessian, 0.0, act_order=False).factor

    def solve(self, weight: Floats, sparsity: float) -> Floats:
        """`weight`, f32[out, in], with zeros."""
        options = self.options
        pattern = Pattern(sparsity, *_PATTERNS[options.pattern])
        target = self.problem.target(weight)
        if options.method == "sparsegpt":
            found = sparse_gpt(target, self.factor, pattern)
            return refined(target, found, self.problem.hessian, pattern) if options.refits else found
        scores = np.abs(target)
        if options.method == "wanda":
            scores *= np.sqrt(np.diagonal(self.hessian))
        else:
            scores = relative_magnitudes(scores, scores.sum(0))
        mask = pattern.largest(scores, rows=options.method == "wanda")
        found = np.where(mask, target, 0)
        return refit(target, mask, self.hessian, found) if options.refits else found
