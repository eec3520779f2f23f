"""In which form does ONNX hold an encoding? As it is, as the integers that it amounts to, or decoded.

MatMulNBits and DequantizeLinear multiply integers by scales. Whatever is a multiple of integers by scales of groups can
be said so, number for number: int3 as int4, Q6_K as int8 in groups of 16, IQ4_NL as int8, MXFP4 (whose numbers are
halves of integers) as int8. Such a file is larger than the encoding, and no faster than the integers it is stored as.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

import numpy as np

from irlab.encodings import Codes, Encoding, FloatEncoding, IntegerEncoding, LevelEncoding, TableEncoding
from irlab.encodings.ggml.encoding import BlockEncoding
from irlab.encodings.grid import Levels
from irlab.encodings.levels import Integers, Table
from irlab.errors import LegalityError
from irlab.ir import Module
from irlab.ops import nn
from irlab.precision import compute_dtype
from irlab.target import Holding
from irlab.types import DType, TensorType, f32
from irlab.weight_uses import WeightUses, replace_weights, weight_uses
from irlab.weights import Cast, Decode, Recipe, WeightSymbol
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

    @property
    def note(self) -> str:
        """What `--plan` says."""
        if self.integers is None:
            return "stored decoded: no smaller than floats"
        if self.holding == "native":
            return "the same codes"
        return f"the same numbers as {self.integers}: no smaller than that"


def form(encoding: Encoding, fast: bool) -> Form:
    """How ONNX holds `encoding`; `fast`: with ONNX Runtime's own ops."""
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
        codes, encoding = self.source.codes(start, stop), self.source.type.encoding
        if isinstance(encoding, IntegerEncoding):
            return codes  # they mean the same in more bits
        assert isinstance(encoding, LevelEncoding)
        lead = next(iter(codes.values())).shape[:-1]
        numbers, points = encoding.split({name: part.reshape(-1, part.shape[-1]) for name, part in codes.items()})
        levels = points.levels.values(numbers) * np.float32(self.form.factor)
        parts = {"codes": levels.astype(np.int8), "scales": points.scale / np.float32(self.form.factor)}
        return {name: part.reshape(*lead, part.shape[-1]) for name, part in parts.items()}

    def rows(self, start: int, stop: int) -> AnyArray:
        return self.source.rows(start, stop)


def apply(module: Module, fast: bool) -> None:
    """Store the encoded weights of `module` as ONNX can; what is stored decoded is noted."""
    dtype = compute_dtype(module)
    changed: dict[str, WeightSymbol] = {}
    decoded: Counter[str] = Counter()
    for name, uses in weight_uses(module.graph).items():
        encoding = uses.symbol.type.encoding
        if encoding is None:
            continue
        held = form(encoding, fast)
        if held.integers is None:
            decoded[str(encoding)] += 1
            changed[name] = WeightSymbol(name, _decoded(uses, dtype))
        elif held.integers != encoding:
            changed[name] = WeightSymbol(name, AsIntegers(uses.symbol.recipe, held))
    replace_weights(module.graph, changed)
    notes = [f"{count} weights of {encoding} are stored decoded: no smaller" for encoding, count in decoded.items()]
    if notes:
        module.metadata["notes"] = [*module.metadata.get("notes", []), *notes]


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
