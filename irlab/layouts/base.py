"""What is a layout? Which encodings it can hold, as which tensors, and how a checkpoint says that it uses it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from ..encodings import Codes, Encoding
from ..errors import InputError
from ..types import TensorType

AnyArray = npt.NDArray[Any]
Shape: TypeAlias = "tuple[int, ...]"
Tensors: TypeAlias = "dict[str, AnyArray]"
"""The tensors of a matrix by what follows the module's path: "weight_packed" of "model.layers.0.mlp.up_proj"."""


@dataclass(frozen=True)
class Names:
    """The linear layers of a checkpoint by module path: `encoded` ones with their encoding, and the `plain` ones."""

    encoded: Mapping[str, Encoding]
    plain: Sequence[str]

    def single(self, layout: str) -> Encoding:
        """The one encoding of all. Raises InputError for several."""
        different = dict.fromkeys(self.encoded.values())
        if len(different) > 1:
            kinds = " and ".join(map(str, different))
            raise InputError(f"the {layout} layout holds one encoding, not {kinds}", "layout=compressed-tensors")
        return next(iter(different))


class Layout(ABC):
    """A way to store encoded matrices [out, in] in a Hugging Face checkpoint. Stateless; `LAYOUTS` has one of each."""

    name: ClassVar[str]

    @abstractmethod
    def refusal(self, encoding: Encoding, shape: Shape) -> str:
        """Why a matrix of `shape` in `encoding` cannot be stored so; "" where it can."""

    @abstractmethod
    def types(self, encoding: Encoding, shape: Shape) -> dict[str, TensorType]:
        """The tensors of a matrix, by suffix, in the order in which they are written."""

    @abstractmethod
    def pack(self, encoding: Encoding, shape: Shape, codes: Codes) -> Tensors:
        """The tensors that hold `codes`."""

    @abstractmethod
    def unpack(self, encoding: Encoding, shape: Shape, tensors: Tensors) -> Codes:
        """The inverse of `pack`. Raises InputError for tensors that hold no codes of `encoding`."""

    @abstractmethod
    def files(self, names: Names) -> dict[str, Any]:
        """What a loader is told: "quantization_config" goes into config.json, other keys are names of JSON files."""

    @abstractmethod
    def encoding(self, config: Mapping[str, Any], module: str, stored: Mapping[str, TensorType]) -> Encoding:
        """The encoding of `module`, by what a checkpoint says of itself and the types of the module's tensors. Raises
        InputError for what irlab has no encoding for."""


def packed_words(codes: AnyArray, bits: int) -> AnyArray:
    """u8[rows, n] below 2^bits -> i32[rows, n * bits / 32]: a stream of bits for each row, least significant first."""
    from ..encodings import bit_stream

    stream = bit_stream.pack(np.ascontiguousarray(codes), bits)
    padding = -stream.shape[-1] % 4
    if padding:
        stream = np.pad(stream, ((0, 0), (0, padding)))
    return np.ascontiguousarray(stream).view("<i4")


def unpacked_words(words: AnyArray, bits: int, columns: int) -> AnyArray:
    """The inverse of `packed_words`, for rows of `columns` numbers."""
    from ..encodings import bit_stream

    return bit_stream.unpack(np.ascontiguousarray(words).view(np.uint8), bits, columns)


def words(columns: int, bits: int) -> int:
    """How many i32 a row of `columns` numbers takes."""
    return -(-columns * bits // 32)


def field(config: Mapping[str, Any], name: str, kind: type, default: Any = None) -> Any:
    """`config[name]`, which must be a `kind`; `default` where it is missing. Raises InputError."""
    value = config.get(name, default)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"the quantisation config says {name} = {value!r}, which is no {kind.__name__}")
    return value
