"""How numbers are stored in fewer bits: an encoding turns a matrix into arrays of codes and scales, and back, exactly.

An encoding is the element of a tensor type: `q<int4, sym, group=32, scale=f16>[4096, 4096]`. Groups run along the last
axis (the input features of a weight matrix), so rows can be encoded and decoded independently.

    base.py     what an encoding is, and its text       levels.py   encodings made of levels under scales
    grid.py     rounding column by column               integer.py  integers with scales per group
    search.py   the scales that lose least              kernels.py  such searches compiled by numba
    ggml/       the types of GGUF files
"""

from .base import Codes, Encoding, parse_encoding
from .ggml import GGMLEncoding, ggml
from .grid import Extent, Grid
from .integer import BITS, TENSOR, IntegerEncoding
from .levels import LevelEncoding, extent_of

__all__ = [
    "BITS",
    "TENSOR",
    "Codes",
    "Encoding",
    "Extent",
    "GGMLEncoding",
    "Grid",
    "IntegerEncoding",
    "LevelEncoding",
    "extent_of",
    "ggml",
    "parse_encoding",
]
