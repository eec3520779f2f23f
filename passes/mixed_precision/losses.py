"""What does it cost to store a weight in fewer bits? The divergence of the model's predictions, as far as one weight
causes it.

With x what a matrix W reads, g the gradient of the loss with respect to what it computes and E = W - Q, the
predictions diverge by about half the mean of (g^T E x)^2 (the Fisher information is the Hessian of the KL divergence).
Taken apart as K-FAC does (Martens & Grosse 2015, arXiv 1503.05671), with the diagonal of E[g g^T], that is

    KL = 1/2 sum_j E[g_j^2] (E H E^T)_jj        H = E[x x^T]

(HAWQ-V2, arXiv 1911.03852, sums a trace instead). An embedding table adds, for each read of a row, half of
sum_c E[g_c^2] E_rc^2. Weights are taken to err independently of each other.

For tables that is too much, several times over: few rows of them are read often, and what follows evens out much. The
model is run once with the table rounded (probe.py), and the losses of the table are scaled to what that showed.

Rows are rounded as quantize will round them, by error compensation if that is its method; of large matrices a sample,
taken in proportion to what an error of the row costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from irlab.analysis import InputHessian, OutputGradient, TableGradient
from irlab.cache import Shelf
from irlab.collect import Kept, module_key
from irlab.encodings import Encoding
from irlab.encodings.robust import encode_robustly
from irlab.floats import as_f32
from irlab.ir import Module
from irlab.passes.mixed_precision import probe
from irlab.passes.mixed_precision.choices import Choice, Doubles, Losses
from irlab.passes.mixed_precision.probe import Probe
from irlab.passes.quantize.gptq import Compensation, compensated_codes
from irlab.passes.quantize.quantize import HQQ_NORM
from irlab.passes.quantize.selection import Candidate, Role
from irlab.passmgr import Context
from irlab.weights import Recipe

Floats = npt.NDArray[np.float32]

MATRIX_ROWS: Final = 128
TABLE_ROWS: Final = 1024
"""How many rows are rounded to learn what a scheme costs."""

PROBED_LOSS: Final = 0.03
"""A table is probed with the encoding that is expected to cost about so much: more would no longer be proportional."""


@dataclass(frozen=True)
class Sample:
    """Some rows of a weight, f32[n, columns], standing for all of them. The error e of row k costs half of
    outputs[k] * e H e^T + reads[k] * e diag(columns) e^T; f64[n], f64[n], f32[columns]."""

    rows: Floats
    outputs: Doubles
    reads: Doubles
    columns: Floats

    def loss(self, error: Floats, hessian: Floats | None) -> float:
        """What an error f32[n, columns] costs."""
        seen = np.zeros(len(error)) if hessian is None else np.einsum("kc,kc->k", error @ hessian, error)
        read = np.square(error) @ self.columns
        return 0.5 * float(self.outputs @ np.maximum(seen, 0) + self.reads @ read)

    def scaled(self, by: float) -> Sample:
        """A sample whose losses are `by` times as large."""
        return Sample(self.rows, self.outputs * by, self.reads * by, self.columns)


class Measurer:
    """Measures what `choices` cost the weights of a module, with the rounding of a method of quantize."""

    def __init__(self, module: Module, ctx: Context, method: str, damping: float, act_order: bool) -> None:
        self._module, self._ctx = module, ctx
        self._method, self._damping, self._act_order = method, damping, act_order
        self._hessians: Kept[InputHessian] | None = None
        self._gradients: Kept[OutputGradient] | None = None
        self._tables: Kept[TableGradient] | None = None
        self._probe = Probe(module, ctx)
        self.basis = "weight"
        self._tokens = 1

    def measure(self, candidates: Sequence[Candidate], choices: Sequence[Choice]) -> Losses:
        """The losses of all `choices` for each of `candidates`. Groups of weights are kept as they are done."""
        ctx, module = self._ctx, self._module
        self._learn()
        batches = ctx.calibration_batches(module) if ctx.calibration is not None else []
        options = (self._method, self._damping, self._act_order, MATRIX_ROWS, TABLE_ROWS, probe.TOKENS)
        key = module_key(module, batches, ctx, "losses", list(map(str, choices)), options)
        shelf = Shelf.open(ctx.cache, "losses", key)
        groups = self._groups(candidates)
        for number, group in enumerate(ctx.progress.track(groups, "measuring what schemes cost", len(groups))):
            item = f"group-{number:05d}"
            if not shelf.has(item):
                shelf.put_arrays(item, self._group_losses(group, choices))
        found: dict[str, Doubles] = {}
        for number in range(len(groups)):
            for name, symbol in shelf.symbols(f"group-{number:05d}").items():
                losses = np.array(symbol.recipe.read())
                found[name] = np.where(losses < 0, np.inf, losses)
        return Losses(self.basis, found)

    def _learn(self) -> None:
        """Collect what calibration data shows."""
        ctx = self._ctx
        if ctx.calibration is None:
            return
        self._hessians, self.basis = ctx.analysis(InputHessian), "output"
        self._tokens = sum(_tokens(batch) for batch in ctx.calibration_batches(self._module))
        if "logits" in self._module.graph.outputs:
            self._gradients, self._tables = ctx.analysis(OutputGradient), ctx.analysis(TableGradient)
            self.basis = "kl"

    def _groups(self, candidates: Sequence[Candidate]) -> list[list[Candidate]]:
        """The candidates in groups that read the same inputs, so that one factorisation serves all."""
        by_name = {c.symbol.name: c for c in candidates}
        matrices = {name for name, c in by_name.items() if c.role is Role.MATRIX}
        shared = [] if self._hessians is None else self._hessians.sharing()
        groups = [[by_name[name] for name in names if name in matrices] for names in shared]
        grouped = {c.symbol.name for group in groups for c in group}
        return [group for group in groups if group] + [[c] for name, c in by_name.items() if name not in grouped]

    def _group_losses(self, group: Sequence[Candidate], choices: Sequence[Choice]) -> dict[str, Doubles]:
        name = group[0].symbol.name
        hessian = self._hessians[name].matrix if self._hessians is not None and name in self._hessians else None
        samples = {c.symbol.name: self._sample(c, hessian) for c in group}
        # Files hold finite numbers only: -1 says that the rows are no whole blocks.
        found = {weight: np.full(len(choices), -1.0) for weight in samples}
        rows = np.concatenate([sample.rows for sample in samples.values()])
        rounded = self._rounding(group[0], hessian)
        narrow = None if hessian is None else hessian.astype(np.float32)
        if group[0].role is Role.EMBEDDING and self.basis == "kl":
            samples[name] = samples[name].scaled(self._surplus(name, samples[name], narrow, choices))
        for i, choice in enumerate(choices):
            if not choice.fits(rows.shape):
                continue
            error = np.zeros_like(rows) if choice.encoding is None else rows - rounded(rows, choice.encoding)
            start = 0
            for weight, sample in samples.items():
                stop = start + len(sample.rows)
                found[weight][i] = sample.loss(error[start:stop], narrow)
                start = stop
        return found

    def _surplus(self, name: str, sample: Sample, hessian: Floats | None, choices: Sequence[Choice]) -> float:
        """What a run of the model shows that a table costs, over what is expected of it."""
        encodings = [c.encoding for c in choices if c.encoding is not None and c.fits(sample.rows.shape)]
        costs = {e: sample.loss(sample.rows - e.decode(e.encode(sample.rows)), hessian) for e in encodings}
        likely = {e: abs(math.log(cost / PROBED_LOSS)) for e, cost in costs.items() if cost > 0}
        if not likely:
            return 1.0
        probed = min(likely, key=likely.__getitem__)
        return self._probe.divergence({name: probed}) / costs[probed]

    def _rounding(self, candidate: Candidate, hessian: Doubles | None) -> Callable[[Floats, Encoding], Floats]:
        """How quantize rounds rows: f32[rows, columns] to the numbers that are stored."""
        # Heads are calibrated also where they are tied to a table.
        is_multiplied = candidate.role is Role.MATRIX or candidate.is_tied
        if "gptq" in self._method and is_multiplied and hessian is not None:
            compensation = Compensation.of(hessian, self._damping, self._act_order)
            return lambda rows, encoding: encoding.decode(compensated_codes(rows, compensation, encoding))
        if self._method == "hqq":
            return lambda rows, encoding: encoding.decode(encode_robustly(encoding, rows, HQQ_NORM, None))
        return lambda rows, encoding: encoding.decode(encoding.encode(rows))

    def _sample(self, candidate: Candidate, hessian: Doubles | None) -> Sample:
        recipe, name = candidate.symbol.recipe, candidate.symbol.name
        count, width = recipe.row_count, int(recipe.type.shape[-1])  # type: ignore[arg-type]
        outputs, reads, columns = np.zeros(count), np.zeros(count), np.ones(width)
        if self.basis == "kl" and self._gradients is not None and self._tables is not None:
            if name in self._gradients and hessian is not None:
                fact = self._gradients[name]
                outputs = fact.mean_square * (fact.count / self._tokens)
            if name in self._tables:
                table = self._tables[name]
                reads = table.by_row / self._tokens
                columns = table.by_column / max(float(table.by_column.sum()), np.finfo(np.float64).tiny)
        elif self.basis == "output" and hessian is not None:
            outputs = np.ones(count)
        if not outputs.any() and not reads.any():
            reads = np.ones(count)
        indices, times = representatives(
            outputs + reads, TABLE_ROWS if candidate.role is Role.EMBEDDING else MATRIX_ROWS
        )
        rows = read_rows(recipe, indices).reshape(-1, width)
        found = Sample(rows, outputs[indices] * times, reads[indices] * times, columns.astype(np.float32))
        if self.basis == "output":
            # Without the loss, all weights count alike: by the share of their output (or numbers) that is lost.
            whole = found.loss(rows, None if hessian is None else hessian.astype(np.float32))
            found = found.scaled(1 / max(whole, np.finfo(np.float64).tiny))
        return found


def representatives(weights: Doubles, count: int) -> tuple[npt.NDArray[np.intp], Doubles]:
    """At most `count` places, chosen in proportion to f64[n] `weights`, and for how many equals each of them stands, so
    that sum(times * f) is about the sum of f over all places for any f in proportion to the weights. All places where
    they are no more than `count`."""
    if len(weights) <= count:
        return np.arange(len(weights)), np.ones(len(weights))
    ends = np.cumsum(weights)
    steps = (np.arange(count) + 0.5) * (ends[-1] / count)
    indices, hits = np.unique(np.searchsorted(ends, steps), return_counts=True)
    return indices, hits * (ends[-1] / count) / weights[indices]


def read_rows(recipe: Recipe, indices: npt.NDArray[np.intp]) -> Floats:
    """These rows of a weight, f32[n, ...]."""
    if not recipe.row_local:
        return as_f32(recipe.read())[indices]
    return np.concatenate([as_f32(recipe.rows(i, i + 1)) for i in map(int, indices)])


def _tokens(batch: Mapping[str, npt.NDArray[np.generic]]) -> int:
    """How many positions a batch has: those of its ids, or of its samples."""
    ids = batch.get("input_ids")
    return int(next(iter(batch.values())).shape[0] if ids is None else ids.size)
