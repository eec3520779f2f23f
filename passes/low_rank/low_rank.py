"""The low-rank pass: matrices as products of two thin ones, with ranks where they count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

from irlab.analysis import Analysis, InputHessian, LayerStatistics, OriginalInputs, OutputGradient
from irlab.errors import InputError, UsageError
from irlab.floats import as_f32
from irlab.ir import Graph, Module
from irlab.layers import Layer
from irlab.low_rank import Update, factorise, require_ranks
from irlab.options import Bounds
from irlab.overlay import LayerPattern, LayerRow, Overlay
from irlab.passes.low_rank.factors import factors, metric, refitted, squared_singular_values
from irlab.passes.low_rank.ranks import Spectrum, allocated, holding, uniform
from irlab.passes.quantize.gptq import Damping
from irlab.passes.quantize.selection import (
    before_encoding,
    note_experts,
    require_matches,
    require_plain,
    select_matrices,
)
from irlab.passmgr import Context, note
from irlab.reconstruction import problems
from irlab.sweep import LayerPass
from irlab.types import DType, tensor
from irlab.weight_uses import replace_weights
from irlab.weights import Array, Factor, Product, WeightSymbol, check_finite, numpy_dtype, static_shape

Doubles = npt.NDArray[np.float64]

NEEDS_REPAIR = "low-rank: beyond a fifth of the parameters a model needs repair training (heal) afterwards"


@dataclass(frozen=True)
class LowRank(
    LayerPass, name="low-rank", exactness="lossy", before=before_encoding(), per_layer=("rank",), saves_work=True
):
    """Makes two thin matrices of each matrix of a linear layer: fewer parameters and products in ONNX and TensorRT.

        @w : f32[512, 512] = file(...)        @w.a : f32[192, 512] = ...    @w.b : f32[512, 192] = ...
        %y = nn.linear(%x, @w)            ->  %y = nn.low_rank_linear(%x, @w.a, @w.b)

    ONNX and TensorRT run two products; GGUF and hf have no form of it, and hold the product multiplied out: no smaller
    and no faster there. Quantize afterwards, if at all: factors are matrices like others. It costs much more than
    quantisation at the same size, and needs repair training (heal) beyond a fifth of the parameters.

    `method`: in which metric the factors are closest. svd: that of the weights alone, without data. asvd: with columns
    scaled by the size of what they read (Yuan et al. 2023, arXiv 2312.05821). svd-llm: that of the outputs, by the
    second moment of the inputs (Wang et al. 2024, arXiv 2403.07378).
    How much goes is one of: `ratio`, the share of the parameters of all these matrices that is removed (0.2 if nothing
    is said); `energy`, the share of each output's energy that is kept; `rank`, the same for all, or per layer, where it
    counts before the others (0: stays whole).
    `allocate`: how ranks are shared out for a ratio (cf. SVD-LLM V2, arXiv 2503.12340). loss: where they cost the model
    least, by gradients; the default where it predicts tokens. output: where they cost least of each output's energy.
    uniform: the same ratio for each matrix, which takes one walk through the model less.
    `refit`: fit factors, and matrices that stay whole, to what the original model computed on the original inputs,
    matrix after matrix, so that the errors of earlier ones are made up for; false: as published.
    `damping`: added to the diagonal of the Hessian, relative to its mean. `multiple`: of which ranks are multiples;
    groups of quantize divide it. `exclude`: names of weights to leave alone.
    """

    alone: ClassVar[bool] = True

    method: Literal["svd", "asvd", "svd-llm"] = "svd-llm"
    ratio: Annotated[float, Bounds(0, below=1, idle=0)] | None = None
    energy: Annotated[float, Bounds(above=0, most=1)] | None = None
    rank: Annotated[int, Bounds(0, idle=0)] | None = None
    allocate: Literal["loss", "output", "uniform"] | None = None
    refit: bool = True
    multiple: Annotated[int, Bounds(1)] = 32
    damping: Damping = 0.01
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ratio is not None and self.energy is not None:
            raise UsageError("low-rank: ratio and energy say twice how much goes", "give one of them")
        if self.ratio is None and self.energy is None and self.rank is None:
            object.__setattr__(self, "ratio", 0.2)

    def needs(self) -> tuple[type[Analysis], ...]:
        if self.method == "svd":
            return ()
        return (InputHessian, OriginalInputs) if self.refit else (InputHessian,)

    def in_order(self) -> bool | None:
        return True

    def prepare(self, module: Module, ctx: Context) -> None:
        require_matches(self.exclude, module, self.name)
        require_plain(module.graph, self.exclude, self.name)
        matrices = select_matrices(module.graph, self.exclude)
        if not matrices:
            raise InputError("low-rank: no weight of the graph is a matrix of a linear layer", "run fuse before it")
        ranks = {name: rank for name in matrices if (rank := self.at(name).rank) is not None}
        require_ranks(self.name, ranks, matrices)
        note(module, NEEDS_REPAIR)
        note_experts(module, self.name)
        if self.needs() and not ctx.is_plan:
            return
        step = self if ctx.is_plan else self.decided(module, ctx)
        made: dict[str, WeightSymbol] = {}
        for name, symbol in matrices.items():
            rank = step.at(name)._planned_rank(static_shape(symbol.type))
            if rank:
                made[f"{name}.a"] = WeightSymbol(f"{name}.a", Factor(symbol.recipe, rank, "a"))
                made[f"{name}.b"] = WeightSymbol(f"{name}.b", Factor(symbol.recipe, rank, "b"))
        self.install(module.graph, made)
        ctx.note_rewrites({"factorise": len(made) // 2})

    def _planned_rank(self, shape: tuple[int, ...]) -> int:
        if self.rank is not None:
            return min(self.rank, *shape)
        return uniform(shape, self.ratio or 0.0, self.multiple)

    def decided(self, module: Module, ctx: Context) -> Self:
        matrices = select_matrices(module.graph, self.exclude)
        mine = {name: symbol for name, symbol in matrices.items() if self.at(name).rank is None}
        if not mine:
            return self
        if self.allocate == "uniform" and self.energy is None:
            ranks: dict[str, int] | None = {
                name: uniform(static_shape(symbol.type), self.ratio or 0.0, self.multiple)
                for name, symbol in mine.items()
            }
        else:
            spectra = self._spectra(mine, module, ctx)
            if self.energy is not None:
                ranks = {name: holding(spectrum, self.energy, self.multiple) for name, spectrum in spectra.items()}
            else:
                ranks = allocated(spectra, self.ratio or 0.0, self.multiple)
        if ranks is None:
            reach = "so much cannot be removed with ranks of a multiple of"
            raise InputError(f"low-rank: {reach} {self.multiple}: ratio={self.ratio:g}", "give a smaller multiple")
        rows = [LayerRow(LayerPattern(name), {"rank": rank}) for name, rank in ranks.items()]
        step = self.with_layers(())
        object.__setattr__(step, "layers", Overlay((*rows, *self.layers.rows)))
        return step

    def _spectra(self, matrices: Mapping[str, WeightSymbol], module: Module, ctx: Context) -> dict[str, Spectrum]:
        slopes: Mapping[str, OutputGradient] = {}
        if self.method != "svd" and self.energy is None and self._by_loss(module.graph):
            slopes = ctx.analysis(OutputGradient)

        def squares(name: str, hessian: InputHessian | None) -> Doubles:
            weight = as_f32(matrices[name].recipe.read()).astype(np.float64)
            check_finite(name, weight)
            if name in slopes:
                weight = weight * np.sqrt(slopes[name].mean_square)[:, None]
            seen = np.eye(weight.shape[1]) if hessian is None else hessian.matrix
            found = squared_singular_values(weight, metric(self.method, seen))
            return found if name in slopes else found / (float(found.sum()) or 1.0)

        known = {}
        if self.method != "svd":
            known = ctx.distilled(InputHessian, squares, matrices.keys(), "spectra", self.method, bool(slopes))
        found = {}
        for name, symbol in matrices.items():
            rows, columns = static_shape(symbol.type)
            found[name] = Spectrum(rows, columns, known[name] if name in known else squares(name, None))
        return found

    def _by_loss(self, graph: Graph) -> bool:
        able = "logits" in graph.outputs and "input_ids" in {value.name for value in graph.inputs}
        return able if self.allocate is None else self.allocate == "loss"

    def apply(self, layer: Layer, statistics: LayerStatistics) -> dict[str, WeightSymbol]:
        matrices = select_matrices(layer.whole, self.exclude)
        made: dict[str, WeightSymbol] = {}
        for problem, read in problems(layer, statistics, matrices, self.damping):
            for name, weight in read:
                symbol = layer.weights[name]
                target = problem.target(weight).astype(np.float64)
                rank = min(self.at(name).rank or 0, *weight.shape)
                if rank:
                    for side, values in zip("ab", self._factors(target, problem.hessian, rank)):
                        made[f"{name}.{side}"] = _symbol(f"{name}.{side}", values, symbol.type.dtype)
                elif problem.drift is not None:
                    made[name] = _symbol(name, target, symbol.type.dtype)
        return made

    def _factors(self, target: Doubles, hessian: Doubles, rank: int) -> tuple[Doubles, Doubles]:
        a, b = factors(target, metric(self.method, hessian), rank)
        return (a, refitted(target, hessian, a)) if self.refit and self.method == "asvd" else (a, b)

    def install(self, graph: Graph, symbols: Mapping[str, WeightSymbol]) -> None:
        factorise(graph, pairs(symbols), self.name)
        replace_weights(graph, symbols)

    def effective(self, layer: Layer, made: Mapping[str, WeightSymbol]) -> Mapping[str, WeightSymbol]:
        products = {
            name: WeightSymbol(name, Product(pair.a.recipe, pair.b.recipe)) for name, pair in pairs(made).items()
        }
        factors_of = {f"{name}.{side}" for name in products for side in "ab"}
        return {name: symbol for name, symbol in made.items() if name not in factors_of} | products


def pairs(symbols: Mapping[str, WeightSymbol]) -> dict[str, Update]:
    """The pairs of factors among `symbols`, by the name of the matrix that they stand for."""
    whole = [name.removesuffix(".a") for name in symbols if name.endswith(".a")]
    return {name: Update(symbols[f"{name}.a"], symbols[f"{name}.b"]) for name in whole if f"{name}.b" in symbols}


def _symbol(name: str, values: Doubles, dtype: DType) -> WeightSymbol:
    return WeightSymbol(name, Array(tensor(dtype, values.shape), values.astype(numpy_dtype(dtype))))
