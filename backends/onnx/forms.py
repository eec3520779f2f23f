"""In which form does ONNX hold an encoding? As it is, as the integers that it amounts to, or decoded.

MatMulNBits and DequantizeLinear multiply integers by scales. Whatever is a multiple of integers by scales of groups can
be said so, number for number: int3 as int4, Q6_K as int8 in groups of 16, IQ4_NL as int8, MXFP4 (whose numbers are
halves of integers) as int8. Such a file is larger than the encoding, and no faster than the integers it is stored as.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Final

import numpy as np

from irlab.backends.onnx.providers import Blocks
from irlab.encodings import (
    Codes,
    Encoding,
    FloatEncoding,
    IntegerEncoding,
    LevelEncoding,
    TableEncoding,
)
from irlab.encodings.ggml.encoding import BlockEncoding
from irlab.encodings.grid import Levels
from irlab.encodings.levels import Integers, Table
from irlab.errors import LegalityError
from irlab.expansion import SHARED, expanded, is_expandable
from irlab.ir import Module, Value, Weight
from irlab.ops import nn
from irlab.precision import compute_dtype
from irlab.target import Holding
from irlab.types import DType, TensorType, f32
from irlab.weight_uses import WeightUses, graphs, replace_weights, weight_uses
from irlab.weights import Cast, Decode, Recipe, WeightSymbol, static_shape
from irlab.weights.recipe import AnyArray

TWO_BIT_BLOCKS: Final = (32, 64, 128)
"""Groups for which ONNX Runtime has fast kernels of 2 bits."""

_FACTORS: Final = {"e2m1": 2, "e2m3": 8}
"""What makes the numbers of a format integers of 8 bits."""


@dataclass(frozen=True)
class Form:
    """How an encoding is stored: as `integers`, each number `factor` times that of the encoding under scales that are
    as much smaller; without them, decoded."""

    holding: Holding
    integers: IntegerEncoding | None
    factor: int = 1
    looked_up: bool = False
    """Whether codes and tables are stored, and a Gather looks the numbers up."""
    positive: bool = False
    """Whether scales are positive, with codes turned where they were not: compilers insist on it for one a row."""

    @property
    def note(self) -> str:
        """What `--plan` says."""
        if self.looked_up:
            return "codes and a Gather of tables: small in the file, no faster than floats"
        if self.integers is None:
            return "stored decoded: no smaller than floats"
        if self.holding == "native":
            return "the same codes"
        return f"the same numbers as {self.integers}: no smaller than that"


def form(encoding: Encoding, blocks: Blocks = "nbits") -> Form:
    """How a file that stores weights as `blocks` says holds `encoding`."""
    found = _as_integers(encoding, blocks == "nbits")
    integers = found.integers
    if integers is None or blocks in ("nbits", "dequantize"):
        return Form("emulated", None) if blocks == "decoded" else found
    if not integers.symmetric and integers.bits < 8:
        # Numbers less their zero points are integers again, of one bit more.
        integers = IntegerEncoding(8, True, integers.group, integers.scale)
        found = Form("emulated", integers)
    if blocks == "decoded" or not integers.symmetric:
        return Form("emulated", None)
    if integers.group > 0:
        return found
    # Turned round, a code of -8 needs more than four bits.
    wide = integers.bits == 8
    eight = integers if wide else IntegerEncoding(8, True, integers.group, integers.scale)
    return Form(found.holding if wide else "emulated", eight, found.factor, positive=True)


def _as_integers(encoding: Encoding, fast: bool) -> Form:
    """The integers under scales that `encoding` amounts to; `fast`: with ONNX Runtime's own ops."""
    if isinstance(encoding, IntegerEncoding):
        two = fast and encoding.bits == 2 and encoding.group in TWO_BIT_BLOCKS
        if two or encoding.bits in (4, 8):
            return Form("native", encoding)
        wider = IntegerEncoding(4 if encoding.bits < 4 else 8, encoding.symmetric, encoding.group, encoding.scale)
        return Form("emulated", wider)
    if isinstance(encoding, FloatEncoding) and encoding.element in _FACTORS:
        return Form("emulated", IntegerEncoding(8, True, max(encoding.group, 0), f32), _FACTORS[encoding.element])
    if isinstance(encoding, BlockEncoding) and not encoding.kind.scales.has_offset:
        bits = _integer_bits(encoding.kind.levels)
        if bits:
            group = encoding.kind.size // encoding.kind.scales.group_count
            same = encoding.type_name in ("q4_0", "q8_0")
            return Form("native" if same else "emulated", IntegerEncoding(bits, True, group, f32))
    if isinstance(encoding, SHARED):
        return Form("emulated", None, looked_up=True)
    if isinstance(encoding, TableEncoding) and (bits := _integer_bits(encoding.levels)):
        return Form("emulated", IntegerEncoding(bits, True, max(encoding.group, 0), f32))
    return Form("emulated", None)


def _integer_bits(levels: Levels) -> int:
    """4 or 8, the bits that hold all levels as integers; 0 if none do."""
    if isinstance(levels, Integers):
        low, high = levels.lowest, levels.highest
    elif isinstance(levels, Table) and all(number == int(number) for number in levels.numbers):
        low, high = int(levels.ascending[0]), int(levels.ascending[-1])
    else:
        return 0
    return 4 if low >= -8 and high <= 7 else 8 if low >= -127 and high <= 127 else 0


def part_bytes(type: TensorType, blocks: Blocks, dtype: DType) -> list[int]:
    """The bytes of each tensor that a weight of this type is stored as, in a model that computes in `dtype`."""
    integers = form(type.encoding, blocks).integers if type.encoding is not None else None
    if integers is None:
        plain = type.with_element(dtype if type.dtype.is_float else type.dtype).size_bytes
        assert isinstance(plain, int), "sizes of weights are known"
        return [plain]
    *lead, columns = static_shape(type)
    rows, groups = math.prod(lead), integers.groups(columns)
    zeros = [] if integers.symmetric else [rows * -(-groups * integers.bits // 8)]
    return [rows * columns * integers.bits // 8, rows * groups * dtype.bits // 8, *zeros]


@dataclass(frozen=True)
class AsIntegers(Recipe, text_name=""):
    """The codes of `source` as those of the integers that it amounts to."""

    source: Recipe
    form: Form

    @property
    def type(self) -> TensorType:
        assert self.form.integers is not None
        return self.source.type.with_element(self.form.integers)

    def codes(self, start: int, stop: int) -> Codes:
        codes = self._codes(start, stop)
        return _positive(codes) if self.form.positive else codes

    def _codes(self, start: int, stop: int) -> Codes:
        codes, encoding = self.source.codes(start, stop), self.source.type.encoding
        if isinstance(encoding, IntegerEncoding):
            assert self.form.integers is not None
            return codes if encoding.symmetric == self.form.integers.symmetric else _less_zeros(codes, encoding)
        assert isinstance(encoding, LevelEncoding)
        lead = next(iter(codes.values())).shape[:-1]
        numbers, points = encoding.split({name: part.reshape(-1, part.shape[-1]) for name, part in codes.items()})
        levels = points.levels.values(numbers) * np.float32(self.form.factor)
        parts = {"codes": levels.astype(np.int8), "scales": points.scale / np.float32(self.form.factor)}
        return {name: part.reshape(*lead, part.shape[-1]) for name, part in parts.items()}

    def rows(self, start: int, stop: int) -> AnyArray:
        return self.source.rows(start, stop)


def _less_zeros(codes: Codes, encoding: IntegerEncoding) -> Codes:
    """Codes with the zero point of their group taken off."""
    numbers = codes["codes"]
    columns = numbers.shape[-1]
    zeros = np.repeat(codes["zeros"].astype(np.int8), columns // encoding.groups(columns), axis=-1)
    return {"codes": numbers.astype(np.int8) - zeros, **{k: v for k, v in codes.items() if k not in ("codes", "zeros")}}


def _positive(codes: Codes) -> Codes:
    """The same numbers under scales that are not negative."""
    groups = codes["scales"].shape[-1]
    sign = np.where(codes["scales"] < 0, -1, 1).astype(np.int8)
    turned = codes["codes"].astype(np.int8) * np.repeat(sign, codes["codes"].shape[-1] // groups, axis=-1)
    return {**codes, "codes": turned, "scales": np.abs(codes["scales"])}


def apply(module: Module, blocks: Blocks) -> None:
    """Store the encoded weights of `module` as `blocks` says; what is stored decoded is noted."""
    dtype = compute_dtype(module)
    changed: dict[str, WeightSymbol] = {}
    decoded: Counter[str] = Counter()
    for name, uses in weight_uses(module.graph).items():
        encoding = uses.symbol.type.encoding
        if encoding is None:
            continue
        held = form(encoding, blocks)
        if held.looked_up and is_expandable(uses.symbol.type):
            _look_up(module, uses.symbol, dtype)
        elif held.integers is None:
            decoded[str(encoding)] += 1
            changed[name] = WeightSymbol(name, _decoded(uses, dtype))
        elif held.integers != encoding or held.positive:
            changed[name] = WeightSymbol(name, AsIntegers(uses.symbol.recipe, held))
    replace_weights(module.graph, changed)
    notes = [f"{count} weights of {encoding} are stored decoded: no smaller" for encoding, count in decoded.items()]
    if notes:
        module.metadata["notes"] = [*module.metadata.get("notes", []), *notes]


def _look_up(module: Module, symbol: WeightSymbol, dtype: DType) -> None:
    """Let readers of a weight read what is looked up in its tables: in f32 where it is a table of rows."""
    for graph in graphs(module.graph):
        for weight in [op for op in graph.find(Weight) if op.symbol.name == symbol.name]:
            made: dict[DType, Value] = {}
            for user in list(weight.result.uses):
                kind = f32 if isinstance(user, nn.Embedding) else dtype
                value = made.setdefault(kind, expanded(symbol, kind))
                operands = [value if operand is weight.result else operand for operand in user.operands]
                graph.replace(user, *user.rebuild(operands).results)


def _decoded(uses: WeightUses, dtype: DType) -> Recipe:
    """The numbers of a weight in the dtype that its users take: f32 from tables, else what the graph computes in."""
    tables = {isinstance(op, nn.Embedding) for op, _ in uses.users}
    plain: Recipe = Decode(uses.symbol.recipe)
    if tables == {True} or dtype is f32:
        return plain
    if True in tables:
        raise LegalityError(
            f"weight '{uses.symbol.name}' is a table and a matrix: ONNX holds {uses.symbol.type.encoding} decoded only",
            "choose embeddings=int8, or precision=fp32",
        )
    return Cast(plain, dtype)
