"""The quantize-activations pass: what matrices read is rounded to 8 bits or 4, and matrices are stored so too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

import numpy as np

from irlab.encodings import TENSOR, Encoding, FloatEncoding, IntegerEncoding
from irlab.errors import InputError, UsageError
from irlab.floats import invertible
from irlab.histogram import Choice, InputHistogram, Range
from irlab.ir import Graph, Module, Op, Value, Weight
from irlab.ops import nn, prim
from irlab.ops.nn import NNOp
from irlab.options import Bounds
from irlab.passes.quantize.selection import (
    Role,
    candidates,
    encode_weights,
    excluded,
    note_experts,
    require_fit,
    require_matches,
)
from irlab.passmgr import Context, Pass
from irlab.types import f32, tensor
from irlab.weight_uses import graphs

WEIGHTS: Final[dict[tuple[str, str], Encoding]] = {
    ("int8", "dynamic"): IntegerEncoding(8, True, 0, f32),
    ("int8", "static"): IntegerEncoding(8, True, 0, f32),
    ("fp8", "dynamic"): FloatEncoding("e4m3", 0, "f32"),
    ("fp8", "static"): FloatEncoding("e4m3", TENSOR, "f32"),
    ("nvfp4", "static"): FloatEncoding("e2m1", 16, "e4m3"),
}
"""What runtimes multiply with rounded activations, by scheme and mode: scales of rows where there are scales of tokens,
and one for each tensor where there is one for the activations."""

LOWEST, HIGHEST = -128, 127

_MADE_BY: Final = "quantize-activations"

_FLOATS: Final = {"fp8": nn.E4M3_MAX, "nvfp4": nn.E2M1_MAX * nn.E4M3_MAX}
"""The schemes of small floats, with the largest number under the scale 1."""

_HARDLY_NEGATIVE: Final[dict[type[Op], int]] = {nn.Gelu: -112, nn.Silu: -112, prim.Relu: LOWEST}
"""The zero point for what an activation function gives: gelu and silu are bounded below by -0.17 and -0.28."""

_ANY: Final = tensor(f32, (1, 16))


@dataclass(frozen=True)
class QuantizeActivations(
    Pass,
    name="quantize-activations",
    exactness="lossy",
    requires={"fuse": "it looks for nn.linear"},
    before={"decompose": "it looks for nn.linear"},
    per_layer=("scheme",),
):
    """Rounds what matrices read, and stores matrices in as many bits: W8A8 in integers or FP8, W4A4 in NVFP4.

        y = nn.linear(x, @w)     ->     q = nn.quantize_activation(x) {per="token"}
                                        y = nn.linear(q, @w)            @w : q<int8, sym, group=0, scale=f32>[...]

        scheme  mode     activations                               matrices
        int8    dynamic  a scale for each token                    q<int8, sym, group=0, scale=f32>
        int8    static   one scale, known beforehand               q<int8, sym, group=0, scale=f32>
        fp8     dynamic  a scale for each token                    f<e4m3, group=0, scale=f32>
        fp8     static   one scale, known beforehand               f<e4m3, group=tensor, scale=f32>
        nvfp4   static   e4m3 for 16 numbers, under one scale      f<e2m1, group=16, scale=e4m3>

    ONNX Runtime and TensorRT multiply the integers; TensorRT, and what loads the layouts of `hf`, the floats. llama.cpp
    rounds activations by itself, to 8 bits in blocks of 32, for every encoded matrix: emit GGUF without this pass. Run
    smooth-quant before int8.

    `scheme`: see above, or none for layers to leave alone. `mode`: dynamic finds scales in the activations when the
    model runs, static beforehand, on calibration data. `per`: dynamic scales for each token (the default); for all
    tokens of a tensor at once, which is faster, and much less precise where tokens differ in size; or mixed, for a
    tensor behind norms, which make tokens alike, and for tokens elsewhere. Static scales are for tensors.
    `sym`, of integers: true has 0 in the middle; false spends all integers on the range that there is, which costs
    time for tokens; without it tensors do so, and for tokens 0 is moved down behind activation functions that are
    hardly ever negative, if all targets hold that.
    `weights`: how matrices that are still floats are stored: same, as the table says; int8, with a scale for each row;
    or none: as they are, and activations are rounded for all of them. Matrices that quantize has encoded stay as they
    are. `embeddings`: int8 stores tables that are tied to an output head too; the head is then a product of integers.
    `range`: what a static scale covers: max, percentile (of magnitudes, as `percentile` says), or mse, the range of the
    least squared error of integers; mse for int8, max for floats, which are as precise wherever they lie.
    `exclude`: names of weights to leave alone (`*` and `?` match).
    """

    scheme: Literal["int8", "fp8", "nvfp4", "none"] = "int8"
    mode: Literal["dynamic", "static"] = "dynamic"
    per: Literal["token", "tensor", "mixed"] | None = None
    sym: bool | None = None
    weights: Literal["same", "int8", "none"] = "same"
    embeddings: Literal["int8", "none"] = "none"
    range: Choice | None = None
    percentile: Annotated[float, Bounds(above=50, most=100)] = 99.99
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode == "static" and self.per not in (None, "tensor"):
            raise UsageError(
                f"quantize-activations{{mode=static per={self.per}}}: the scale of a token is not known beforehand",
                "leave per out, or choose mode=dynamic",
            )
        if self.scheme == "nvfp4" and self.mode != "static":
            raise UsageError(
                "quantize-activations{scheme=nvfp4}: the scale over the scales of blocks is known beforehand",
                "choose mode=static, with --calibration TEXT",
            )
        if self.scheme in ("fp8", "nvfp4") and (self.sym is False or self.range == "mse"):
            said = "sym=false" if self.sym is False else "range=mse"
            raise UsageError(
                f"quantize-activations{{scheme={self.scheme} {said}}}: {said} is of integers", "leave it out"
            )

    def run(self, module: Module, ctx: Context) -> None:
        require_matches(self.exclude, module, self.name)
        note_experts(module, self.name)
        self._encode(module, ctx)
        rounding = Rounding(self, ctx, self._zero_points(ctx))
        if self.mode == "static" and not ctx.is_plan:
            rounding.histograms = ctx.analysis(InputHistogram)
        count = sum(rounding.apply(graph) for graph in graphs(module.graph))
        if not count:
            raise InputError(
                "quantize-activations: no linear layer has a matrix of few bits",
                "run fuse before it, or embeddings=int8",
            )
        ctx.note_rewrites({"round": count})

    def wants(self, weight: Value) -> bool:
        """Whether the inputs of this matrix are to be rounded."""
        if not isinstance(weight.op, Weight):
            return False
        symbol = weight.op.symbol
        kept = self.at(symbol.name).scheme == "none" or excluded(symbol.name, self.exclude)
        # To round for a matrix of floats would cost quality and give nothing.
        return not kept and (symbol.type.encoding is not None or self.weights == "none")

    def _encode(self, module: Module, ctx: Context) -> None:
        """Store the matrices that are still floats in 8 bits."""
        roles = {Role.MATRIX: self.weights, Role.EMBEDDING: self.embeddings}
        chosen: dict[str, Encoding] = {}
        for candidate in candidates(module.graph):
            name, role = candidate.symbol.name, roles[candidate.role]
            scheme = self.at(name).scheme
            if "none" not in (role, scheme) and not excluded(name, self.exclude):
                chosen[name] = WEIGHTS[scheme if role == "same" else role, self.mode]
                require_fit(candidate.symbol, chosen[name], self.name, f"exclude={name}")
        encode_weights(module.graph, chosen)
        ctx.note_rewrites({"encode": len(chosen)})

    def _zero_points(self, ctx: Context) -> bool:
        """Whether 0 may lie off the middle. Raises InputError where a target cannot hold what is asked for."""
        x = Graph().input("x", _ANY)
        allowed = self.sym is not True and self.scheme == "int8"
        for backend in () if ctx.is_plan else ctx.backends():
            plain, moved = (self._refused(backend.activation_refusal, zero, x) for zero in (False, True))
            if plain or (moved and self.sym is False):
                raise InputError(
                    f"quantize-activations: {backend.name} cannot hold it: {plain or moved}",
                    f"emit {backend.name} in a run without it" if plain else "leave sym out",
                )
            allowed = allowed and not moved
        return allowed

    def _refused(self, ask: Any, moved: bool, x: Value) -> str:
        static = self.mode == "static"
        attributes: dict[str, Any] = {"scale": 1.0} if static else {}
        attributes["per"] = "tensor" if static or self.per == "tensor" else "token"
        if self.scheme in _FLOATS:
            refused: str = ask(rounded_to_float(x, self.scheme, **attributes).op)
            return refused
        if moved:
            attributes |= {"dynamic_zero": True} if self.sym is False and not static else {"zero": LOWEST}
        op = nn.quantize_activation(x, **attributes).op
        refusal: str = ask(op)
        return refusal


@dataclass
class Rounding:
    """Puts the ops into graphs. `zero_points`: 0 may lie off the middle of the integers."""

    options: QuantizeActivations
    ctx: Context
    zero_points: bool
    histograms: Mapping[str, InputHistogram] = field(default_factory=dict)

    def apply(self, graph: Graph) -> int:
        """Round what the matrices of one graph read; returns the number of ops made."""
        for op in list(graph.ops()):
            if isinstance(op, NNOp) and not isinstance(op, nn.Linear) and op.matrices and self._wants_some(op):
                values = op.decompose()
                graph.replace(op, *(values if isinstance(values, tuple) else (values,)), made_by=_MADE_BY)
        made: dict[Value, Value] = {}
        for linear in graph.find(nn.Linear):
            x = linear.x
            if not self.options.wants(linear.weight) or isinstance(x.op, nn.ActivationRounding):
                continue
            if x not in made:
                made[x] = self._rounded(linear)
            graph.set_operand(linear, 0, made[x])
        return len(made)

    def _wants_some(self, op: NNOp) -> bool:
        operands = [op.operands[op.operand_names.index(name)] for name in op.matrices]
        return any(value is not None and self.options.wants(value) for value in operands)

    def _rounded(self, linear: nn.Linear) -> Value:
        options, x = self.options, linear.x
        assert isinstance(linear.weight.op, Weight)
        scheme = options.at(linear.weight.op.symbol.name).scheme
        if options.mode == "static":
            return self._static(linear, scheme)
        even = isinstance(x.op, nn.RMSNorm | nn.LayerNorm | nn.AddRMSNorm)
        per = "tensor" if options.per == "tensor" or (options.per == "mixed" and even) else "token"
        if scheme in _FLOATS:
            return rounded_to_float(x, scheme, per=per)
        if options.sym is False or (per == "tensor" and self.zero_points):
            return nn.quantize_activation(x, per=per, dynamic_zero=True)
        return nn.quantize_activation(x, per=per, zero=usual_zero(x) if self.zero_points else 0)

    def _static(self, linear: nn.Linear, scheme: str) -> Value:
        assert isinstance(linear.weight.op, Weight)
        name, x = linear.weight.op.symbol.name, linear.x
        histogram = self.histograms.get(name)
        if histogram is None:
            if not self.ctx.is_plan:
                raise InputError(
                    f"quantize-activations: calibration saw no input of '{name}'",
                    f"choose mode=dynamic, or exclude={name}",
                )
            if scheme in _FLOATS:
                return rounded_to_float(x, scheme, scale=1.0)
            return nn.quantize_activation(x, per="tensor", scale=1.0)
        integers = HIGHEST - LOWEST + 1
        if scheme in _FLOATS:
            found = histogram.range(self.options.range or "max", self.options.percentile, integers, True)
            return rounded_to_float(x, scheme, scale=max(found.high, nn.LEAST_MAGNITUDE) / _FLOATS[scheme])
        found = histogram.range(self.options.range or "mse", self.options.percentile, integers, not self.zero_points)
        self.ctx.record.layers.setdefault(name, {})["input_error"] = histogram.error(found, integers) ** 0.5
        return nn.quantize_activation(x, per="tensor", **static_scale(found, self.zero_points))


def rounded_to_float(x: Value, scheme: str, per: str = "tensor", scale: float = 0.0) -> Value:
    """x rounded as fp8 or nvfp4. A scale is stored as an f32, or as its inverse."""
    scale = float(invertible(scale)) if scale else 0.0
    if scheme == "nvfp4":
        return nn.quantize_activation_float(x, "e2m1", "block", scale)
    return nn.quantize_activation_float(x, "e4m3", "tensor" if scale else per, scale)


def static_scale(found: Range, zero_points: bool) -> dict[str, Any]:
    """Scale and zero point, as attributes, that hold a range."""
    if not zero_points:
        return {"scale": float(np.float32(max(found.high, nn.LEAST_MAGNITUDE) / HIGHEST))}
    scale = float(np.float32(max(found.high - found.low, nn.LEAST_MAGNITUDE) / (HIGHEST - LOWEST)))
    return {"scale": scale, "zero": min(HIGHEST - 1, LOWEST + round(-found.low / scale))}


def usual_zero(x: Value) -> int:
    """The zero point that suits x by what makes it: near the lowest behind a function that is hardly ever negative."""
    return _HARDLY_NEGATIVE.get(type(x.op), 0) if x.op is not None else 0
