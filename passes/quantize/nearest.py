"""The quantize pass: weights rounded to the nearest integers, with a search of the scales."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final, Literal

from irlab.encodings import BITS, Encoding, IntegerEncoding
from irlab.errors import InputError
from irlab.ir import Module
from irlab.passes.quantize.selection import Role, candidates, encode_weights, excluded
from irlab.passmgr import Context, Pass
from irlab.types import DTYPES
from irlab.weights import static_shape

_BITS_OF: Final = {f"int{bits}": bits for bits in BITS}


@dataclass(frozen=True)
class Quantize(Pass, name="quantize", exactness="lossy", per_layer=("scheme", "group", "sym", "scale", "embeddings")):
    """Stores the matrices of linear layers as integers with a scale for each group of columns.

        @w : bf16[512, 512] = file(...)       @w : q<int4, sym, group=32, scale=f16>[512, 512] = encode(file(...), ...)
        %y = nn.linear(%x, @w)            ->  %y = nn.linear(%x, @w)

    Codes are the nearest integers under scales that are searched, group by group, for the least weighted squared error
    (irlab/encodings/search.py). No value is computed until a backend asks for it.

    `scheme`: int2, int3, int4, int5, int6, int8; none leaves matrices alone, those of some layers, say. `group`:
    columns to a scale; 0: one scale to a row, -1: one to a tensor. `sym=false` adds zero points. `scale`: how scales
    are stored. `exclude`: names of weights to leave alone (`*` and `?` match).
    `embeddings`: the scheme for embedding tables and heads tied to them; none leaves them alone.
    `indivisible`: what to do with a matrix whose width is no multiple of the group: refuse, or keep it as it is.
    """

    scheme: Literal["int2", "int3", "int4", "int5", "int6", "int8", "none"] = "int4"
    group: int = 32
    sym: bool = True
    scale: Literal["f16", "bf16", "f32"] = "f16"
    exclude: tuple[str, ...] = ()
    embeddings: Literal["none", "int2", "int3", "int4", "int5", "int6", "int8"] = "none"
    indivisible: Literal["refuse", "keep"] = "refuse"

    def run(self, module: Module, ctx: Context) -> None:
        chosen: dict[str, Encoding] = {}
        counts: Counter[str] = Counter()
        for candidate in candidates(module.graph):
            name = candidate.symbol.name
            encoding = self.at(name)._encoding(candidate.role)
            if encoding is None:
                counts["keep-embedding" if candidate.role is Role.EMBEDDING else "keep-layer"] += 1
            elif excluded(name, self.exclude):
                counts["keep-excluded"] += 1
            elif self._fits(name, static_shape(candidate.symbol.type), encoding):
                chosen[name] = encoding
            else:
                counts["keep-indivisible"] += 1
        if not chosen and not counts:
            raise InputError("quantize: no weight of the graph is a matrix of a linear layer", "run fuse before it")
        encode_weights(module.graph, chosen)
        for reason, count in counts.items():
            ctx.record.rules[reason] = ctx.record.rules.get(reason, 0) + count
        ctx.note_rewrites({"encode": len(chosen)})

    def _encoding(self, role: Role) -> IntegerEncoding | None:
        scheme = self.embeddings if role is Role.EMBEDDING else self.scheme
        if scheme == "none":
            return None
        return IntegerEncoding(_BITS_OF[scheme], self.sym, self.group, DTYPES[self.scale])

    def _fits(self, name: str, shape: tuple[int, ...], encoding: Encoding) -> bool:
        try:
            encoding.check_shape(shape)
        except InputError as error:
            if self.indivisible == "keep":
                return False
            hint = f"choose a group that divides {shape[-1]}, or exclude={name}, or indivisible=keep"
            raise InputError(f"quantize: weight '{name}': {error.message}", hint) from None
        return True
