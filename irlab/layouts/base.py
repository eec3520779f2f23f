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
from ..ops import nn
from ..types import TensorType

AnyArray = npt.NDArray[Any]
Shape: TypeAlias = "tuple[int, ...]"
Tensors: TypeAlias = "dict[str, AnyArray]"
"""The tensors of a matrix by what follows the module's path: "weight_packed" of "model.layers.0.mlp.up_proj"."""


@dataclass(frozen=True)
class Activation:
    """How what a matrix reads is rounded: to `element` (int8, e4m3, e2m1), under a scale for each token, for the
    tensor, or for blocks and the tensor; `static` where that of the tensor is known beforehand."""

    element: str
    per: str
    static: bool

    def __str__(self) -> str:
        known = "known beforehand" if self.static else "found when the model runs"
        return f"activations rounded to {self.element}, per {self.per}, under scales {known}"


@dataclass(frozen=True)
class Scheme:
    """How a linear layer computes: the encoding of its matrix, and how what it reads is rounded, if it is."""

    encoding: Encoding
    activation: Activation | None = None

    def __str__(self) -> str:
        return str(self.encoding) if self.activation is None else f"{self.encoding} with {self.activation}"


def activation_of(op: nn.ActivationRounding) -> Activation | None:
    """What layouts call the rounding that `op` does; None where none has a word for it."""
    if isinstance(op, nn.QuantizeActivationFloat):
        return Activation(op.element, op.per, op.scale > 0)
    if isinstance(op, nn.QuantizeActivation) and op.bits == 8 and not op.zero and not op.dynamic_zero:
        return Activation("int8", op.per, op.scale > 0)
    return None


@dataclass(frozen=True)
class Names:
    """The linear layers of a checkpoint by module path: `encoded` ones with their scheme, and the `plain` ones."""

    encoded: Mapping[str, Scheme]
    plain: Sequence[str]

    def single(self, layout: str) -> Scheme:
        """The one scheme of all. Raises InputError for several."""
        different = dict.fromkeys(self.encoded.values())
        if len(different) > 1:
            kinds = " and ".join(map(str, different))
            raise InputError(f"the {layout} layout holds one encoding, not {kinds}", "layout=compressed-tensors")
        return next(iter(different))


class Form(ABC):
    """How the codes of a matrix [out, in] lie in tensors. Stateless; IR text knows it by `name`."""

    name: str

    def refusal(self, encoding: Encoding, shape: Shape) -> str:
        """Why a matrix of `shape` cannot lie so; "" where it can."""
        return ""

    @abstractmethod
    def types(self, encoding: Encoding, shape: Shape) -> dict[str, TensorType]:
        """The tensors of a matrix, by suffix, in the order in which they are written."""

    @abstractmethod
    def pack(self, encoding: Encoding, shape: Shape, codes: Codes) -> Tensors:
        """The tensors that hold `codes`. Raises InputError where the rows of a tensor disagree about its scale."""

    @abstractmethod
    def unpack(self, encoding: Encoding, shape: Shape, tensors: Tensors) -> Codes:
        """The inverse of `pack`. Raises InputError for tensors that hold no codes of `encoding`."""


class Layout(ABC):
    """A way to store encoded matrices in a Hugging Face checkpoint. Stateless; `LAYOUTS` has one of each."""

    name: ClassVar[str]
    forms: ClassVar[tuple[Form, ...]]
    """All that `form` may give."""

    @abstractmethod
    def form(self, scheme: Scheme) -> Form:
        """How a matrix of this scheme lies in tensors. Raises InputError where the layout cannot hold it."""

    def refusal(self, scheme: Scheme, shape: Shape) -> str:
        """Why a matrix of `shape` and `scheme` cannot be stored so; "" where it can."""
        try:
            return self.form(scheme).refusal(scheme.encoding, shape)
        except InputError as error:
            return error.message

    def activation_refusal(self, activation: Activation) -> str:
        """Why what a matrix reads cannot be rounded so, whatever the matrix; "" where it can."""
        return f"the {self.name} layout is for matrices alone, and rounds no activations"

    def scale_tensors(self, activation: Activation, scale: float) -> Tensors:
        """The tensors that hold the scale of static activations."""
        return {}

    def scale(self, activation: Activation, stored: Tensors) -> float:
        """The inverse of `scale_tensors`."""
        raise InputError(f"the {self.name} layout stores no scales of activations")

    @abstractmethod
    def files(self, names: Names) -> dict[str, Any]:
        """What a loader is told: "quantization_config" goes into config.json, other keys are names of JSON files."""

    @abstractmethod
    def scheme(self, config: Mapping[str, Any], module: str, stored: Mapping[str, TensorType]) -> Scheme:
        """The scheme of `module`, by what a checkpoint says of itself and the types of the module's tensors. Raises
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
