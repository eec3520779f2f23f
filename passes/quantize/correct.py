"""How is part of the error of rounding bought back? By two thin matrices beside each encoded weight: QERA.

Zhang et al. 2024 (arXiv 2410.06040): of all b @ a of some rank, the one that leaves least of the output error,
tr((E - b a) H (E - b a)^T) with E = W - Q and H = E[x x^T], is the truncated singular value decomposition of E H^1/2,
times H^-1/2. With U the leading left singular vectors that is b = U and a = U^T E: nothing is inverted, so that inputs
which were never seen do no harm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import numpy as np
import numpy.typing as npt

from irlab.analysis import Analysis, InputHessian, LayerStatistics
from irlab.encodings import IntegerEncoding
from irlab.errors import InputError, UsageError
from irlab.floats import as_f32
from irlab.ir import Graph, Module
from irlab.layers import Layer
from irlab.low_rank import Update, attach, factor_names, require_ranks
from irlab.options import Bounds
from irlab.passes.quantize.selection import select_matrices
from irlab.passmgr import Context, PassRecord
from irlab.sweep import LayerPass
from irlab.types import DType, f16, tensor
from irlab.weight_uses import weight_uses
from irlab.weights import Array, Encode, LowRankUpdate, Random, Recipe, WeightSymbol, numpy_dtype, static_shape

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

_INT8: Final = IntegerEncoding(8, True, 32, f16)
"""What every runtime multiplies with: Q8_0, MatMulNBits, Dequantize."""


_NOTHING_ENCODED: Final = ("correct: no matrix is encoded", "let quantize encode some before it")


@dataclass(frozen=True)
class Correct(LayerPass, name="correct", exactness="lossy", per_layer=("rank",)):
    """Adds to each encoded matrix a low-rank correction of its error, from calibration data (QERA).

        %y = nn.linear(%x, @w)   ->   %y = nn.low_rank_linear(%x, @w.lora_a, @w.lora_b, @w)

    a[rank, in] and b[out, rank] are the product of that rank which leaves least of the output's squared error on the
    calibration data (Zhang et al. 2024, arXiv 2410.06040); without calibration data the pass is refused, because the
    plain singular value decomposition of the error regains little. Stands right after `quantize`, whose sweep it
    shares: afterwards the weights that codes were made from are known only where codes are made on demand (method=rtn
    and hqq). GGUF holds the factors in a LoRA adapter beside the file, ONNX and TensorRT as two thin matrix products;
    hf merges them into its decoded weights.

    `rank`: of the correction; 0 leaves a matrix as it is. At 32 and 16-bit factors that is 512 (in + out) / (in out)
    bits a weight. `factors`: how they are stored; int8 (groups of 32 columns) needs a rank that is a multiple of 32.
    """

    rank: Annotated[int, Bounds(0, idle=0)] = 32
    factors: Literal["float", "int8"] = "float"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factors == "int8" and self.rank % _INT8.group:
            raise UsageError(f"correct: rank={self.rank} is no multiple of {_INT8.group}", "or choose factors=float")

    def needs(self) -> tuple[type[Analysis], ...]:
        return (InputHessian,)

    def prepare(self, module: Module, ctx: Context) -> None:
        # In a sweep that it shares with quantize nothing is encoded yet.
        matrices = select_matrices(module.graph) | select_matrices(module.graph, encoded=True)
        require_ranks(self.name, {name: self.at(name).rank for name in matrices}, matrices)
        if ctx.is_plan:
            names = {name: self.at(name).rank for name in _corrected(module.graph)}
            if not names:
                raise InputError(*_NOTHING_ENCODED)
            attach(module.graph, {name: self._planned(module, name, rank) for name, rank in names.items() if rank})

    def apply(self, layer: Layer, statistics: LayerStatistics) -> dict[str, WeightSymbol]:
        made: dict[str, WeightSymbol] = {}
        wanted = [name for name in _corrected(layer.whole) if name in statistics[InputHessian].weights]
        dtypes = _input_dtypes(layer.whole)
        for name in wanted:
            rank = self.at(name).rank
            if rank:
                error = original(name, statistics) - as_f32(layer.weights[name].recipe.read()).astype(np.float64)
                a, b = correction(error, statistics[InputHessian][name].matrix, rank)
                for factor, values in zip(factor_names(name), (a, b)):
                    kind = tensor(dtypes[name], values.shape)
                    made[factor] = self._symbol(factor, Array(kind, values.astype(numpy_dtype(kind.dtype))))
        return made

    def _symbol(self, name: str, recipe: Recipe) -> WeightSymbol:
        if self.factors == "float":
            return WeightSymbol(name, recipe)
        try:
            return WeightSymbol(name, Encode(recipe, _INT8))
        except InputError as error:
            raise InputError(f"correct: {name}: {error.message}", "choose factors=float") from None

    def _planned(self, module: Module, name: str, rank: int) -> Update:
        """An update of the right type, whose numbers are not asked for."""
        rows, columns = static_shape(module.weights[name].type)
        rank, dtype = min(rank, rows, columns), _input_dtypes(module.graph)[name]
        shapes = zip(factor_names(name), ((rank, columns), (rows, rank)))
        return Update(*(self._symbol(factor, Random(tensor(dtype, shape))) for factor, shape in shapes))

    def install(self, graph: Graph, symbols: Mapping[str, WeightSymbol]) -> None:
        attach(graph, _updates(symbols))

    def effective(self, layer: Layer, made: Mapping[str, WeightSymbol]) -> Mapping[str, WeightSymbol]:
        weights = layer.weights
        return {
            name: WeightSymbol(name, LowRankUpdate(weights[name].recipe, update.a.recipe, update.b.recipe))
            for name, update in _updates(made).items()
        }

    def finish(self, module: Module, record: PassRecord) -> None:
        if not record.rewrites and self.rank:
            raise InputError(*_NOTHING_ENCODED)


def correction(error: Doubles, hessian: Doubles, rank: int) -> tuple[Doubles, Doubles]:
    """a[rank, in] and b[out, rank] with the least tr((error - b a) hessian (error - b a)^T), for an error f64[out, in].

    The singular vectors are those of the smaller of two products with a square root of `hessian`. Column i of b is as
    long as row i of a, so that both fit in half precision.
    """
    from scipy.linalg import eigh

    rows, columns = error.shape
    rank = min(rank, rows, columns)
    if rows <= columns:
        b = eigh(error @ hessian @ error.T, subset_by_index=(rows - rank, rows - 1))[1]
    else:
        values, vectors = eigh(hessian)
        left = error @ (vectors * np.sqrt(np.maximum(values, 0)))
        b = left @ eigh(left.T @ left, subset_by_index=(columns - rank, columns - 1))[1]
        b /= np.maximum(np.linalg.norm(b, axis=0), np.finfo(np.float64).tiny)
    a = b.T @ error
    lengths = np.linalg.norm(a, axis=1)
    balance = np.sqrt(np.where(lengths > 0, lengths, 1))
    return a / balance[:, None], b * balance


def original(name: str, statistics: LayerStatistics) -> Doubles:
    """The numbers that the codes of weight `name` were made from: f64[out, in]. Raises InputError where they are not
    known any more."""
    recipe = statistics.before[name].recipe
    if recipe.type.encoding is not None:
        if not isinstance(recipe, Encode):
            raise InputError(
                f"weight '{name}' was encoded earlier, and from what is not known any more",
                "write quantize{...},correct side by side, so that they share a sweep",
            )
        recipe = recipe.source
    return statistics.as_rescaled(name, as_f32(recipe.read()).astype(np.float64))


def _corrected(graph: Graph) -> list[str]:
    """The encoded matrices; tables of rows and heads tied to them are read in other ways too."""
    return list(select_matrices(graph, encoded=True))


def _input_dtypes(graph: Graph) -> dict[str, DType]:
    """The dtype of what the matrices of `graph` are multiplied with, by name."""
    read = ((name, uses.users[0][0].operands[0]) for name, uses in weight_uses(graph).items())
    return {name: x.type.dtype for name, x in read if x is not None}


def _updates(symbols: Mapping[str, WeightSymbol]) -> dict[str, Update]:
    """The updates among `symbols`, by the name of the weight."""
    found: dict[str, Update] = {}
    for weight in {name.rpartition(".")[0] for name in symbols}:
        a, b = (symbols.get(factor) for factor in factor_names(weight))
        if a is not None and b is not None:
            found[weight] = Update(a, b)
    return found
