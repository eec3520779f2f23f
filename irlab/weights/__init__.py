"""Lazy weights: a weight is a name, a type and a recipe; a recipe says how rows of it are made when someone asks.

Nothing here holds a model: passes change recipes, back ends ask for a few rows at a time.

    recipe.py       what a recipe is                    leaves.py      files, numbers in memory, random numbers
    layout.py       transpose, slice, concat ...        arithmetic.py  cast, affine, low-rank update
    encoded.py      encode, decode, stored codes        safetensors.py the file format, read and written
    stream.py       many weights in order, in threads   pruned.py      zeros for what is smallest
    rotated.py      scaled and turned along an axis     factors.py     products of two thin matrices
    unpack.py       encoded weights of other tools      gguf.py        GGUF files, read
    together.py     weights of several outputs          shelf.py       tensors that several of them want
    mapped.py       bytes of files
"""

from ..floats import as_f16, as_f32
from .arithmetic import Affine, Cast, LowRankUpdate, Mean
from .encoded import Decode, Encode, Encoded, Ends, Parts, with_codes
from .factors import Factor, Product
from .gguf import FromGGUF
from .layout import Concat, Reshape, Slice, Take, Transpose, interleave_halves, take
from .leaves import Array, Cached, File, FileTensor, Literal, Pending, Random, pending
from .pruned import Prune
from .recipe import Recipe, WeightSymbol, numpy_dtype, rebuilt, static_shape
from .rotated import Project, Rotate, Scale
from .stream import Chunk, check_finite, finite_codes, finite_rows, stream
from .together import Reading, Readings, read_alone, read_together
from .unpack import Unpack

__all__ = [
    "Affine",
    "Array",
    "Cached",
    "Cast",
    "Chunk",
    "Concat",
    "Decode",
    "Encode",
    "Encoded",
    "Ends",
    "Factor",
    "File",
    "FileTensor",
    "FromGGUF",
    "Literal",
    "LowRankUpdate",
    "Mean",
    "Parts",
    "Pending",
    "Project",
    "Product",
    "Prune",
    "Random",
    "Reading",
    "Readings",
    "Recipe",
    "Reshape",
    "Rotate",
    "Scale",
    "Slice",
    "Take",
    "Transpose",
    "Unpack",
    "WeightSymbol",
    "as_f16",
    "as_f32",
    "check_finite",
    "finite_codes",
    "finite_rows",
    "interleave_halves",
    "numpy_dtype",
    "pending",
    "read_alone",
    "read_together",
    "rebuilt",
    "static_shape",
    "stream",
    "take",
    "with_codes",
]
