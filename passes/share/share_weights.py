"""The share-weights pass: the weights of some rows share the numbers of one small table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from irlab.analysis import Analysis, InputHessian, LayerStatistics, OriginalInputs
from irlab.encodings import CodebookEncoding
from irlab.errors import InputError, UsageError
from irlab.ir import Graph, Module
from irlab.layers import Layer
from irlab.passes.quantize.gptq import Compensation, Damping, compensated_codes
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
from irlab.reconstruction import problems
from irlab.sweep import LayerPass
from irlab.weights import WeightSymbol, with_codes

STORAGE_ONLY = "share-weights: storage only: runtimes look numbers up and multiply as before, no faster (GGUF expands)"


@dataclass(frozen=True)
class ShareWeights(LayerPass, name="share-weights", exactness="lossy", before=before_encoding(), per_layer=("bits",)):
    """Lets the weights of some rows share the numbers of one small table. Storage only: no gain in speed.

        @w : f32[512, 512] = file(...)    ->    @w : codebook<4, rows=16>[512, 512] = encode(file(...), ...)

    Stored small in .irlab and in ONNX, where a Gather reads the table; GGUF and TensorRT have no tables of one's own,
    and hold the numbers expanded. At 4 bits it loses less than integers of 4 bits without groups.

    `bits`: of a code, so that a table has 2^bits numbers. `per`: how many rows share a table: 16rows, or 1row.
    `method`: how numbers are found. k-means: the weighted k-means of the rows, large weights weighing more; without
    data, nothing is computed until a backend asks for it (Han et al. 2015, Deep Compression, arXiv 1510.00149).
    hessian: weighted by the mean square of what each column reads (Kim et al. 2023, SqueezeLLM, arXiv 2306.07629).
    compensated: so, column by column, while later columns make up for the errors of earlier ones (GPTQ, arXiv
    2210.17323), towards what the original model computed, matrix after matrix.
    `damping`: added to the diagonal of the Hessian, relative to its mean. `exclude`: names of weights to leave alone.
    Embeddings, and heads tied to them, stay.
    """

    bits: Literal[2, 3, 4, 5, 6] = 4
    per: str = "16rows"
    method: Literal["k-means", "hessian", "compensated"] = "compensated"
    damping: Damping = 0.01
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"[1-9][0-9]{0,5}rows?", self.per):
            raise UsageError(f"share-weights: per={self.per} is no number of rows", "write per=16rows, or per=1row")

    @property
    def encoding(self) -> CodebookEncoding:
        """How weights are stored."""
        return CodebookEncoding(self.bits, int(self.per.rstrip("rows")))

    def needs(self) -> tuple[type[Analysis], ...]:
        needs: Mapping[str, tuple[type[Analysis], ...]] = {
            "k-means": (),
            "hessian": (InputHessian,),
            "compensated": (InputHessian, OriginalInputs),
        }
        return needs[self.method]

    def in_order(self) -> bool | None:
        return True if self.method == "compensated" else None

    def prepare(self, module: Module, ctx: Context) -> None:
        require_matches(self.exclude, module, self.name)
        require_plain(module.graph, self.exclude, self.name)
        counts: Counter[str] = Counter()
        chosen = self._chosen(module.graph, counts)
        if not chosen and not counts:
            raise InputError(
                "share-weights: no weight of the graph is a matrix of a linear layer", "run fuse before it"
            )
        note(module, STORAGE_ONLY)
        note_experts(module, self.name)
        if not self.needs() or ctx.is_plan:
            encode_weights(module.graph, chosen)
            counts["share"] += len(chosen)
        ctx.note_rewrites(dict(counts))

    def apply(self, layer: Layer, statistics: LayerStatistics) -> dict[str, WeightSymbol]:
        chosen = self._chosen(layer.whole, Counter())
        made: dict[str, WeightSymbol] = {}
        for problem, matrices in problems(layer, statistics, chosen, self.damping):
            importance = np.diagonal(problem.hessian).astype(np.float32)
            compensation = None
            if self.method == "compensated":
                compensation = Compensation.of(problem.hessian, 0.0, act_order=True)
            for name, weight in matrices:
                target = problem.target(weight)
                if compensation is None:
                    codes = chosen[name].encode(target, importance)
                else:
                    codes = compensated_codes(target, compensation, chosen[name])
                made[name] = WeightSymbol(name, with_codes(weight.shape, chosen[name], codes))
        return made

    def _chosen(self, graph: Graph, counts: Counter[str]) -> dict[str, CodebookEncoding]:
        """The encodings of the matrices to change; `counts` why others stay as they are."""
        chosen = {}
        for name, symbol in select_matrices(graph, self.exclude, counts=counts).items():
            chosen[name] = self.at(name).encoding
            require_fit(symbol, chosen[name], self.name, f"give another per=, or exclude={name}")
        return chosen
