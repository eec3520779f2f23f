"""How numbers are stored in fewer bits: an encoding turns a matrix into arrays of codes and scales, and back, exactly.

An encoding is the element of a tensor type: `q<int4, sym, group=32, scale=f16>[4096, 4096]`. Groups run along the last
axis (the input features of a weight matrix), so rows can be encoded and decoded independently.

    base.py     what an encoding is, and its text       levels.py   encodings made of levels under scales
    grid.py     rounding column by column               integer.py  integers with scales per group
    search.py   the scales that lose least              kernels/    such searches compiled by numba
    minifloat.py  floats of 4 to 8 bits                tables.py    fixed tables
    codebook.py   learnt tables                         ggml/       the types of GGUF files
    hashed.py     tables that a hash picks from
    stored_scales.py  how scales are stored             bit_stream.py  how codes are stored
    schemes.py    the names that passes know them by
"""

from .base import Codes, Encoding, parse_encoding
from .codebook import CodebookEncoding
from .ggml import GGMLEncoding, ggml
from .grid import Extent, Grid
from .hashed import HashedEncoding
from .integer import BITS, IntegerEncoding
from .levels import LevelEncoding, extent_of
from .minifloat import FloatEncoding
from .schemes import SCHEMES, SchemeName, scheme_encoding
from .stored_scales import TENSOR
from .tables import TableEncoding

__all__ = [
    "BITS",
    "SCHEMES",
    "TENSOR",
    "CodebookEncoding",
    "Codes",
    "Encoding",
    "Extent",
    "FloatEncoding",
    "GGMLEncoding",
    "Grid",
    "HashedEncoding",
    "IntegerEncoding",
    "LevelEncoding",
    "SchemeName",
    "TableEncoding",
    "extent_of",
    "ggml",
    "parse_encoding",
    "scheme_encoding",
]
