"""The dynamic-sparsity pass: small inputs of matrices are left out, by thresholds that calibration finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import numpy as np

from irlab.errors import InputError
from irlab.floats import as_f32
from irlab.ir import Module, Weight
from irlab.layers import layer_name
from irlab.low_rank import spell_out
from irlab.ops import nn
from irlab.options import Bounds
from irlab.passes.dynamic_sparsity.magnitudes import InputMagnitudes
from irlab.passes.quantize.selection import note_experts, require_matches, select_matrices
from irlab.passmgr import Context, Pass, note
from irlab.weight_uses import graphs
from irlab.weights import WeightSymbol, check_finite, static_shape

STEP: Final = 0.05
"""What the share of one matrix grows by at a time."""

MOST: Final = 0.95

NO_GAIN: Final = (
    "dynamic-sparsity: no gain in ONNX Runtime and TensorRT, which multiply zeros; it takes kernels that skip columns "
    "of weights, and one token at a time"
)


@dataclass(frozen=True)
class DynamicSparsity(
    Pass,
    name="dynamic-sparsity",
    exactness="lossy",
    requires={"fuse": "it looks for nn.linear"},
    per_layer=("sparsity",),
    saves_work=True,
):
    """Leaves out the inputs of matrices that are small, token by token: TEAL. No gain without kernels that skip them.

        %y = nn.linear(%x, @w)    ->    %s = nn.hard_shrink(%x) {threshold=0.12}
                                        %y = nn.linear(%s, @w)

    A column of a matrix whose input is zero need not be read: with kernels that skip it, decoding one token at a time
    is as much faster (Liu et al. 2024, TEAL, arXiv 2408.14690: 1.5 times at 40 %, on a GPU). ONNX Runtime and TensorRT
    run it, without a gain, to measure what it costs; GGUF and hf have no form of it and refuse.

    `sparsity`: the share of inputs that are left out, by parameters that read them, in each layer.
    `allocate`: uniform takes the same share for all matrices. greedy raises, step by step, the share of the matrix of a
    layer that loses least of its own output's energy for its parameters; TEAL compares outputs of whole blocks, and on
    MiniLM this cheaper estimate loses more than uniform (cosine 0.91 against 0.97 at 40 %). Thresholds are quantiles on
    the calibration data.
    `exclude`: names of weights to leave alone (`*` and `?` match). Heads tied to an embedding stay.
    """

    sparsity: Annotated[float, Bounds(0, MOST, idle=0)] = 0.4
    allocate: Literal["uniform", "greedy"] = "uniform"
    exclude: tuple[str, ...] = ()

    def run(self, module: Module, ctx: Context) -> None:
        require_matches(self.exclude, module, self.name)
        found = [select_matrices(module.graph, self.exclude, encoded=encoded) for encoded in (False, True)]
        matrices = {name: symbol for each in found for name, symbol in each.items() if symbol.type.rank == 2}
        if not matrices:
            raise InputError(
                "dynamic-sparsity: no weight of the graph is a matrix of a linear layer", "run fuse before it"
            )
        wanted = {name: self.at(name).sparsity for name in matrices}
        note(module, NO_GAIN)
        note_experts(module, self.name)
        if ctx.is_plan:
            thresholds = dict.fromkeys(wanted, 0.0)
        else:
            facts = ctx.analysis(InputMagnitudes)
            shares = wanted if self.allocate == "uniform" else _greedy(matrices, wanted, facts)
            thresholds = {name: facts[name].threshold(share) for name, share in shares.items() if name in facts}
            sizes = {name: int(np.prod(static_shape(matrices[name].type))) for name in shares}
            left_out = sum(sizes[name] * share for name, share in shares.items())
            ctx.record.metrics["inputs_left_out"] = left_out / sum(sizes.values())
        ctx.note_rewrites({"threshold": _install(module, thresholds)})


def _install(module: Module, thresholds: Mapping[str, float]) -> int:
    """Let matrices of these names read inputs above their thresholds; returns how many do."""
    spell_out(module.graph, thresholds)
    count = 0
    for graph in graphs(module.graph):
        for op in graph.find(nn.Linear):
            name = op.weight.op.symbol.name if isinstance(op.weight.op, Weight) else ""
            if name in thresholds:
                x = nn.hard_shrink(op.x, threshold=thresholds[name])
                graph.replace(op, nn.linear(x, op.weight, op.bias), made_by="dynamic-sparsity")
                count += 1
    return count


def _greedy(
    matrices: Mapping[str, WeightSymbol], wanted: Mapping[str, float], facts: Mapping[str, InputMagnitudes]
) -> dict[str, float]:
    """The share of each matrix, layer by layer: the next step goes where the least of an output's energy is lost for
    the parameters that need not be read."""
    layers: dict[str, list[str]] = {}
    for name in wanted:
        if name in facts:
            layers.setdefault(layer_name(name) or name, []).append(name)
    shares: dict[str, float] = {}
    for names in layers.values():
        sizes = {name: float(np.prod(static_shape(matrices[name].type))) for name in names}
        budget = sum(wanted[name] * sizes[name] for name in names)
        lost = {name: _losses(matrices[name], facts[name]) for name in names}
        steps = dict.fromkeys(names, 0)
        while True:
            open_ = [
                name
                for name in names
                if steps[name] + 1 < len(lost[name])
                and sum(STEP * steps[n] * sizes[n] for n in names) + STEP * sizes[name] <= budget * (1 + 1e-9)
            ]
            if not open_:
                break
            best = min(open_, key=lambda n: (lost[n][steps[n] + 1] - lost[n][steps[n]]) / sizes[n])
            steps[best] += 1
        # What is left of the budget is less than a step of any matrix: all of them take an equal share of it.
        rest = (budget - sum(STEP * steps[n] * sizes[n] for n in names)) / sum(sizes.values())
        shares |= {name: min(MOST, STEP * steps[name] + rest) for name in names}
    return shares


def _losses(symbol: WeightSymbol, facts: InputMagnitudes) -> list[float]:
    """What is lost of the output's energy at each multiple of STEP."""
    width = static_shape(symbol.type)[1]
    gram = np.zeros((width, width))
    for start, stop in symbol.recipe.chunks():
        rows = as_f32(symbol.recipe.rows(start, stop))
        check_finite(symbol.name, rows, start)
        gram += (rows.T @ rows).astype(np.float64)
    return [facts.lost(STEP * i, gram) for i in range(round(MOST / STEP) + 1)]
