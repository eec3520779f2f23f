"""The types in which GGUF files hold numbers, as encodings `ggml<...>`.

encoding.py  the family             types.py    the table of types
scales.py    how blocks are scaled  layouts.py  how their numbers lie in bytes
equal.py     encodings that have the same codes
"""

from .encoding import GGMLEncoding, ggml
from .types import BLOCK_TYPES, FLOAT_TYPES, VECTOR_TYPES

__all__ = ["BLOCK_TYPES", "FLOAT_TYPES", "VECTOR_TYPES", "GGMLEncoding", "ggml"]
