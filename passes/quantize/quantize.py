"""The quantize pass: which weight is stored in which encoding, and by which method its codes are found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from irlab.analysis import Analysis, InputHessian, InputStatistics, LayerStatistics
from irlab.encodings import (
    SCHEMES,
    Codes,
    Encoding,
    Extent,
    IntegerEncoding,
    SchemeName,
    TableEncoding,
    extent_of,
    scheme_encoding,
)
from irlab.errors import InputError, UsageError
from irlab.floats import as_f32
from irlab.ir import Graph, Module
from irlab.layers import Layer
from irlab.options import Bounds
from irlab.passes.quantize.awq import Scaled, scale_channels
from irlab.passes.quantize.gptq import Compensation, Damping, compensated_codes
from irlab.passes.quantize.selection import Role, candidates, encode_weights, excluded, require_matches
from irlab.passmgr import Context, PassRecord
from irlab.registry import importances, mixed_encodings
from irlab.sweep import LayerPass
from irlab.weights import Encode, WeightSymbol, static_shape, with_codes

Floats = npt.NDArray[np.float32]

_NEEDS: Final[dict[str, tuple[type[Analysis], ...]]] = {
    "rtn": (),
    "hqq": (),
    "gptq": (InputHessian,),
    "awq": (InputHessian, InputStatistics),
    "awq-gptq": (InputHessian, InputStatistics),
}
"""What each method must know of the inputs."""

HQQ_NORM: Final = 0.7

SMALLEST_GROUP: Final = 16
"""What `indivisible=smaller` takes at least: with an f16 scale, a bit a weight."""


@dataclass(frozen=True)
class Quantize(
    LayerPass, name="quantize", exactness="lossy", per_layer=("scheme", "group", "sym", "scale", "embeddings")
):
    """Stores the matrices of linear layers in fewer bits: integers, small floats, tables, or the types of GGML.

        @w : bf16[512, 512] = file(...)       @w : q<int4, sym, group=32, scale=f16>[512, 512] = encode(file(...), ...)
        %y = nn.linear(%x, @w)            ->  %y = nn.linear(%x, @w)

        scheme                         stored as                                     options          bits a weight
        int2 int3 int4 int5 int6 int8  q<int4, sym, group=32, scale=f16>             group sym scale  4.5
        nf4                            table<nf4, group=64, scale=f16>               group scale      4.25
        codebook2 ... codebook6        codebook<4>: k-means of each row                               4 + 256 / columns
        fp8 fp8_e5m2                   f<e4m3, group=0, scale=f32>                   group scale      8 + 32 / columns
        mxfp4 mxfp6 mxfp8              f<e2m1, group=32, scale=e8m0>                                  4.25 6.25 8.25
        nvfp4                          f<e2m1, group=16, scale=e4m3>                                  4.5
        q4_0 ... q8_0, q2_k ... q6_k   ggml<q4_k>: GGML's types, by our own search                    4.5 (q4_k)
        iq4_nl iq4_xs tq1_0 tq2_0      ggml<iq4_xs>                                                   4.25
        iq1_s ... iq3_s                ggml<iq3_s>, encoded by ggml itself                            3.44

    `method`: how codes are found. rtn: the nearest, under scales that are searched, group by group, for the least
    weighted squared error; no value is computed until a backend asks for it. hqq: the same for the sum of errors to
    the power 0.7, which leaves few large ones (Badri & Shaji 2023). Calibrated: gptq goes column by column, so that
    later columns make up for the errors of earlier ones (Frantar et al. 2022); `damping` is added to the diagonal of
    the Hessian, relative to its mean, and `act-order` takes the columns with the largest inputs first. awq multiplies
    columns that read large inputs by what is divided out before them (Lin et al. 2023); awq-gptq does both.

    `scheme`: see above (irlab/encodings/schemes.py); none leaves matrices alone, those of some layers, say. `group`:
    columns to a scale; 0: one scale to a row, -1: one to a tensor. `sym=false` adds zero points. `scale`: how scales
    are stored; i8 quantises them once more. What is left out is as in the table.
    `exclude`: names of weights to leave alone (`*` and `?` match).
    `embeddings`: the scheme for embedding tables and heads tied to them; none leaves them alone.
    The matrices of experts are encoded too, each expert by itself: by hqq with hqq, by rtn with every other method.
    What chooses experts stays as it is.
    `indivisible`: what to do with a matrix whose width is no multiple of the group: refuse, keep it as it is, or take
    the smaller group for it: half, a quarter ... down to 16 (groups of 128 in 576 columns: 64).

    `mix`: a file type of llama.cpp (q4_k_m): every matrix and table gets the type that it has there, in place of
    `scheme` and `embeddings`. `indivisible=fallback` takes a larger type of smaller blocks, as llama.cpp does. A head
    that is tied to the table is calibrated like any matrix.
    `imatrix`: a file of llama-imatrix or `--emit imatrix`, whose importances of channels weigh the errors of rtn.
    """

    method: Literal["rtn", "hqq", "gptq", "awq", "awq-gptq"] = "rtn"
    scheme: Literal[SchemeName, "none"] = "int4"
    group: Annotated[int, Bounds(-1)] | None = None
    sym: bool | None = None
    scale: Literal["f16", "bf16", "f32", "i8"] | None = None
    exclude: tuple[str, ...] = ()
    embeddings: Literal["none", SchemeName] = "none"
    mix: str = ""
    imatrix: str = ""
    indivisible: Literal["refuse", "keep", "smaller", "fallback"] = "refuse"
    damping: Damping = 0.01
    act_order: bool = field(default=True, metadata={"text": "act-order"})

    _mixed: dict[str, Encoding] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What `mix` stands for in the module."""
    _heads: set[str] = field(default_factory=set, init=False, repr=False, compare=False)
    """Tables that were rounded for the first layer to read, and are calibrated where a head reads them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.indivisible == "fallback" and not self.mix:
            raise UsageError("quantize: indivisible=fallback belongs to a mix", "mix=q4_k_m, or indivisible=keep")
        if self.imatrix and self.method != "rtn":
            raise UsageError(f"quantize: method={self.method} reads no imatrix", "method=rtn does")

    def needs(self) -> tuple[type[Analysis], ...]:
        return _NEEDS[self.method]

    def in_order(self) -> bool | None:
        # Scales of channels fold into what makes them: all matrices of a layer must still be as they were.
        return False if self.method in ("awq", "awq-gptq") else None

    def prepare(self, module: Module, ctx: Context) -> None:
        require_matches(self.exclude, module, self.name)
        self._mixed.clear()
        if self.mix:
            found = mixed_encodings(module, self.mix, bool(self.needs() or self.imatrix), self.indivisible != "refuse")
            self._mixed.update(found)
        counts: Counter[str] = Counter()
        chosen = self._chosen(module.graph, counts)
        if not chosen and not counts:
            raise InputError("quantize: no weight of the graph is a matrix of a linear layer", "run fuse before it")
        for reason, count in (+counts).items():
            ctx.record.rules[reason] = ctx.record.rules.get(reason, 0) + count
        if self.method in ("gptq", "awq-gptq"):
            _require_grids(module, chosen)
        if self.needs() and not ctx.is_plan:
            # Tables of rows are read, not multiplied: nothing is known of their inputs.
            tables = {c.symbol.name: c.is_tied for c in candidates(module.graph) if c.role is Role.EMBEDDING}
            chosen = {name: encoding for name, encoding in chosen.items() if name in tables}
            self._heads.clear()
            self._heads.update(name for name in chosen if tables[name])
        weights = importances(module, self.imatrix) if self.imatrix else {}
        encode_weights(module.graph, chosen, HQQ_NORM if self.method == "hqq" else 2.0, weights)
        ctx.note_rewrites({"encode": len(chosen)})

    def finish(self, module: Module, record: PassRecord) -> None:
        """Round to nearest what no linear layer was seen to multiply with."""
        rest = self._chosen(module.graph, Counter())
        if rest:
            encode_weights(module.graph, rest)
            record.rules["no-inputs"] = len(rest)

    def apply(self, layer: Layer, statistics: LayerStatistics) -> dict[str, WeightSymbol]:
        inside = set(statistics[InputHessian].weights) & layer.weights.keys()
        chosen = {name: e for name, e in self._chosen(layer.whole, Counter()).items() if name in inside}
        if self.method in ("awq", "awq-gptq"):
            scaled = scale_channels(layer, statistics, chosen)
        else:
            scaled = Scaled({name: as_f32(layer.weights[name].recipe.read()) for name in chosen}, {})
        for name in self._heads & inside:
            rounded = layer.weights[name].recipe
            assert isinstance(rounded, Encode)
            chosen[name], scaled.matrices[name] = rounded.encoding, as_f32(rounded.source.read())
        made = dict(scaled.others)
        for names in statistics[InputHessian].sharing():
            wanted = [name for name in names if name in chosen]
            if wanted:
                for name, codes in self._codes(wanted, scaled.matrices, chosen, statistics):
                    made[name] = WeightSymbol(name, with_codes(scaled.matrices[name].shape, chosen[name], codes))
        return made

    def _codes(
        self,
        names: list[str],
        matrices: Mapping[str, Floats],
        chosen: Mapping[str, Encoding],
        statistics: LayerStatistics,
    ) -> Iterator[tuple[str, Codes]]:
        """The codes of matrices that read the same inputs."""
        hessian = statistics[InputHessian][names[0]]
        extents = _extents({name: matrices[name] for name in names}, chosen)
        if self.method == "awq":
            importance = hessian.diagonal.astype(np.float32)
            for name in names:
                yield name, chosen[name].encode(matrices[name], importance, extents.get(name))
        else:
            compensation = Compensation.of(hessian.matrix, self.damping, self.act_order)
            for name in names:
                yield name, compensated_codes(matrices[name], compensation, chosen[name], extents.get(name))

    def _chosen(self, graph: Graph, counts: Counter[str]) -> dict[str, Encoding]:
        """The encodings of the weights to encode; `counts` why others stay as they are."""
        chosen: dict[str, Encoding] = {}
        for candidate in candidates(graph, stacks=True):
            name = candidate.symbol.name
            encoding = self._mixed.get(name) if self.mix else self.at(name)._encoding(candidate.role)
            if encoding is None:
                counts["keep-embedding" if candidate.role is Role.EMBEDDING else "keep-layer"] += 1
            elif excluded(name, self.exclude):
                counts["keep-excluded"] += 1
            elif fitting := self._fitting(name, static_shape(candidate.symbol.type), encoding):
                chosen[name] = fitting
                counts["smaller-group"] += fitting != encoding
            else:
                counts["keep-indivisible"] += 1
        return chosen

    def _encoding(self, role: Role) -> Encoding | None:
        scheme = self.embeddings if role is Role.EMBEDDING else self.scheme
        if scheme == "none":
            return None
        options: dict[str, Any] = {"group": self.group, "sym": self.sym, "scale": self.scale}
        # An option that the other of the two schemes has is meant for that one; one that neither has is refused.
        other = self.scheme if role is Role.EMBEDDING else self.embeddings
        elsewhere = SCHEMES[other].defaults if other != "none" else {}
        able = SCHEMES[scheme].defaults
        return scheme_encoding(scheme, **{k: v for k, v in options.items() if k in able or k not in elsewhere})

    def _fitting(self, name: str, shape: tuple[int, ...], encoding: Encoding) -> Encoding | None:
        """`encoding`, with a group that divides the rows; None for a weight to keep."""
        try:
            encoding.check_shape(shape)
        except InputError as error:
            if self.indivisible == "keep":
                return None
            smaller = _smaller_group(encoding, shape)
            if self.indivisible == "smaller" and smaller is not None:
                return smaller
            able = self.scheme != "none" and "group" in SCHEMES[self.scheme].defaults
            wish = f"choose a group that divides {shape[-1]}" if able else "choose a scheme of smaller blocks"
            least = " (or smaller)" if smaller is not None else ""
            hint = f"{wish}, or exclude={name}, or indivisible=keep{least}"
            raise InputError(f"quantize: weight '{name}': {error.message}", hint) from None
        return encoding


def _smaller_group(encoding: Encoding, shape: tuple[int, ...]) -> Encoding | None:
    """`encoding` with half its group, or a quarter ..., that divides the rows of a matrix; None if no such group is
    worth its scale, or the encoding has none to choose."""
    group = getattr(encoding, "group", 0)
    while isinstance(encoding, IntegerEncoding | TableEncoding) and (group := group // 2) >= SMALLEST_GROUP:
        if shape[-1] % group == 0:
            return replace(encoding, group=group)
    return None


def _extents(matrices: Mapping[str, Floats], chosen: Mapping[str, Encoding]) -> dict[str, Extent]:
    """What the scale of each matrix reaches, where it has one: one for all that read the same inputs, see `sharing`."""
    found: dict[Encoding, Extent] = {}
    for name, matrix in matrices.items():
        if chosen[name].tensor_wide:
            own = extent_of(matrix)
            known = found.get(chosen[name], own)
            found[chosen[name]] = Extent(min(own.low, known.low), max(own.high, known.high))
    return {name: found[chosen[name]] for name in matrices if chosen[name] in found}


def _require_grids(module: Module, chosen: Mapping[str, Encoding]) -> None:
    """Refuse encodings that columns cannot be rounded to one by one, before any work."""
    for name, encoding in chosen.items():
        try:
            encoding.grid(1, static_shape(module.weights[name].type)[-1])
        except InputError as error:
            raise InputError(f"quantize: weight '{name}': {error.message}", error.hint) from None
