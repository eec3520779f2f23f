"""Which encodings have the very codes of a GGML type, and how does the one become the other?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from ...types import f16
from ..base import Codes, Encoding
from ..integer import IntegerEncoding
from ..minifloat import FloatEncoding
from ..tables import TableEncoding
from .encoding import BlockEncoding


@dataclass(frozen=True)
class Equal:
    """The GGML type `type_name` holds the codes of `encoding`, block by block, with its scales in the field `scale`."""

    type_name: str
    encoding: IntegerEncoding | FloatEncoding | TableEncoding
    scale: str = "d"

    @property
    def blocks(self) -> BlockEncoding:
        """The type, as the encoding of its bytes."""
        return BlockEncoding(self.type_name)

    def repeats(self, encoding: Encoding, columns: int) -> int:
        """In how many blocks each scale of `encoding` stands, in rows of `columns` numbers; 0 where it is not held."""
        mine = self.encoding
        if type(encoding) is not type(mine) or replace(encoding, group=mine.group) != mine:
            return 0
        group = encoding.group if encoding.group > 0 else columns
        return group // mine.group if group % mine.group == 0 else 0

    def to_blocks(self, codes: Codes) -> Codes:
        """Codes under scales as blocks. A group of several blocks repeats its scale in each: numbers stay the same."""
        numbers, scales = codes["codes"], codes["scales"]
        blocks = numbers.shape[1] // self.encoding.group
        return self.blocks.assemble(numbers, {self.scale: np.repeat(scales, blocks // scales.shape[1], axis=1)})

    def from_blocks(self, blocks: Codes) -> Codes:
        """Blocks as codes under scales of groups of one block. Raises InputError for codes that `encoding` lacks."""
        numbers, points = self.blocks.split(blocks)
        found = {"codes": numbers, "scales": points.parts[self.scale]}
        return self.encoding.unpack(self.encoding.pack(found), numbers.shape[1])


EQUAL: Final = (
    Equal("q4_0", IntegerEncoding(4, True, 32, f16)),
    Equal("q5_0", IntegerEncoding(5, True, 32, f16)),
    Equal("q8_0", IntegerEncoding(8, True, 32, f16)),
    Equal("iq4_nl", TableEncoding("iq4_nl", 32, f16)),
    Equal("mxfp4", FloatEncoding("e2m1", 32, "e8m0"), "scales"),
)
"""All of blocks of 32. NVFP4 is not among them: a block has no place for the scale of the tensor."""
