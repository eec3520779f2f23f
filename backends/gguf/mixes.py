"""Which GGML type does each tensor of a file get?

A file type such as `q4_k_m` is a mix: llama.cpp gives tensors that matter more (attention values, down projections of
some layers, the output) more bits. These tables are what `llama_model_quantize` does, read in llama.cpp's
src/llama-quant.cpp (0.5 and 0.6) and checked against its output byte for byte; Falcon's exceptions are left out, as
this backend does not write that architecture. Where llama.cpp falls back to another type without asking, we ask.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

import gguf

from irlab.backends.gguf.ggml import GGMLType, ggml_type
from irlab.errors import InputError, UsageError


@dataclass(frozen=True)
class FileType:
    """A named mix: the type most tensors get, and the number written as `general.file_type`."""

    name: str
    base: GGMLType
    id: int


@dataclass(frozen=True)
class ModelShape:
    """What the mixes look at besides the tensors. Head counts are those of layer 0."""

    architecture: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    n_experts: int = 0

    @property
    def n_gqa(self) -> int:
        """Query heads per key/value head."""
        return self.n_heads // self.n_kv_heads if self.n_kv_heads else 0

    @property
    def is_70b(self) -> bool:
        """What llama.cpp takes for a 70B model, whose value projections are small beside the rest."""
        if self.n_layers != 80:
            return False
        return self.architecture in ("deci", "qwen2") or (self.architecture == "llama" and self.n_gqa != 1)


@dataclass(frozen=True)
class Fallback:
    """A tensor whose rows are not whole blocks of the type it should have."""

    tensor: str
    columns: int
    wanted: GGMLType
    used: GGMLType

    def __str__(self) -> str:
        return f"{self.tensor}: {self.columns} columns are not whole blocks of {self.wanted}, stored as {self.used}"


@dataclass(frozen=True)
class TypePlan:
    """The type of every tensor, and which of them are not what the file type asks for."""

    file_type: FileType
    types: dict[str, GGMLType]
    fallbacks: tuple[Fallback, ...]


def file_type(name: str) -> FileType:
    """The file type called `name`, in any case. Raises UsageError for one that does not exist."""
    key = _ALIASES.get(name.lower(), name.lower())
    if key not in _BASES:
        raise UsageError(f"unknown GGUF type '{name}'", "known: " + " ".join(_BASES))
    number = gguf.LlamaFileType["ALL_F32" if key == "f32" else f"MOSTLY_{key.upper()}"]
    return FileType(key, ggml_type(_BASES[key]), int(number))


def plan_types(
    kind: str | FileType,
    shapes: Mapping[str, tuple[int, ...]],
    model: ModelShape,
    *,
    imatrix: bool = False,
    overrides: Mapping[str, str | GGMLType] | None = None,
    allow_fallback: bool = False,
) -> TypePlan:
    """The type of each tensor in `shapes` (GGUF name to shape, outermost dimension first).

    imatrix:   whether column importances will be given (some rules look at that).
    overrides: types already decided, by tensor name, such as those of weights that a pass has encoded.

    Raises InputError where rows are not whole blocks, unless `allow_fallback`: then the plan lists what it did.
    """
    target = file_type(kind) if isinstance(kind, str) else kind
    fixed = {name: ggml_type(type_) for name, type_ in (overrides or {}).items()}
    tied = "output.weight" not in shapes
    n_values = sum(_role(name) is _Role.VALUE for name in shapes)
    seen = dict.fromkeys(_Role, 0)
    types: dict[str, GGMLType] = {}
    fallbacks: list[Fallback] = []
    for name in sorted(shapes, key=_file_order):
        shape = shapes[name]
        if name in fixed:
            wanted = fixed[name]
            if not wanted.fits(shape[-1]):
                raise InputError(f"{name}: {shape[-1]} columns are not whole blocks of {wanted}")
        elif not _is_quantized(name, shape):
            wanted = ggml_type("F32")
        elif not target.base.quantized:
            wanted = target.base
        else:
            role = _role(name)
            if role is _Role.EMBEDDING and tied:
                role = _Role.OUTPUT
            place = _Place(seen[role], n_values if role is _Role.VALUE else model.n_layers, model, imatrix)
            if role is _Role.DOWN and model.n_experts > 1:
                place = _Place(_layer(name), model.n_layers, model, imatrix)
            wanted = _choose(target, role, place)
            seen[role] += 1
        used = _fitting(wanted, shape[-1])
        if used != wanted:
            fallbacks.append(Fallback(name, shape[-1], wanted, used))
        types[name] = used
    if fallbacks and not allow_fallback:
        more = f", and {len(fallbacks) - 1} more tensors" if len(fallbacks) > 1 else ""
        raise InputError(
            f"{target.name} does not fit this model: {fallbacks[0]}{more}",
            "allow-fallback=true accepts that; q8_0, q4_0 and iq4_nl have blocks of 32",
        )
    return TypePlan(target, types, tuple(fallbacks))


class _Role(Enum):
    OUTPUT = auto()
    EMBEDDING = auto()
    QUERY = auto()
    KEY = auto()
    VALUE = auto()
    ATTENTION_OUTPUT = auto()
    DOWN = auto()
    OTHER = auto()


# The first name part found in a tensor's name decides. A fused qkv counts as values.
_ROLES = (
    ("attn_qkv.weight", _Role.VALUE),
    ("attn_kv_b.weight", _Role.VALUE),
    ("attn_v.weight", _Role.VALUE),
    ("attn_k.weight", _Role.KEY),
    ("attn_q.weight", _Role.QUERY),
    ("attn_output.weight", _Role.ATTENTION_OUTPUT),
    ("ffn_down", _Role.DOWN),
)

# Weights of two and more dimensions that stay f32: tiny, and sensitive.
_KEPT_F32 = (
    "_norm.weight", "ffn_gate_inp.weight", "position_embd.weight", "token_types.weight", "ssm_conv1d",
    "shortconv.conv.weight", "attn_rel_b.weight",
)  # fmt: skip

_ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}

_BASES = {
    "f32": "F32", "f16": "F16", "bf16": "BF16",
    "q8_0": "Q8_0", "q4_0": "Q4_0", "q4_1": "Q4_1", "q5_0": "Q5_0", "q5_1": "Q5_1",
    "q2_k": "Q2_K", "q3_k_s": "Q3_K", "q3_k_m": "Q3_K", "q3_k_l": "Q3_K", "q4_k_s": "Q4_K", "q4_k_m": "Q4_K",
    "q5_k_s": "Q5_K", "q5_k_m": "Q5_K", "q6_k": "Q6_K", "iq4_nl": "IQ4_NL", "iq4_xs": "IQ4_XS",
}  # fmt: skip

# What rows that are not whole blocks of 256 are stored as; F16 where they are not whole blocks of 32 either.
_SMALLER_BLOCKS = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}


@dataclass(frozen=True)
class _Place:
    """Where a tensor stands: the `index`-th of `count` in its role."""

    index: int
    count: int
    model: ModelShape
    imatrix: bool


_Condition = Callable[[_Place], bool]


def _always(place: _Place) -> bool:
    return True


def _first(number: int) -> _Condition:
    return lambda place: place.index < number


def _first_part(divisor: int) -> _Condition:
    return lambda place: place.index < place.count // divisor


def _ends_and_every_third(place: _Place) -> bool:
    """The first and last eighth of the layers, and every third between."""
    eighth = place.count // 8
    return place.index < eighth or place.index >= 7 * place.count // 8 or (place.index - eighth) % 3 == 2


def _few_kv_heads(place: _Place) -> bool:
    return place.model.n_gqa >= 4


def _eight_experts(place: _Place) -> bool:
    return place.model.n_experts == 8


def _first_eighth_blind(place: _Place) -> bool:
    return not place.imatrix and place.index < place.count // 8


def _first_eighth_informed(place: _Place) -> bool:
    return place.imatrix and place.index < place.count // 8


# role, file types, condition, type: the first row that holds decides; without one, the file type's base.
_RULES: tuple[tuple[_Role, str, _Condition, str], ...] = (
    (_Role.VALUE, "q2_k", _few_kv_heads, "Q4_K"),
    (_Role.VALUE, "q2_k", _always, "Q3_K"),
    (_Role.VALUE, "q3_k_m", _first(2), "Q5_K"),
    (_Role.VALUE, "q3_k_m", _always, "Q4_K"),
    (_Role.VALUE, "q3_k_l", _always, "Q5_K"),
    (_Role.VALUE, "q4_k_s", _first(4), "Q5_K"),
    (_Role.VALUE, "q4_k_m q5_k_m", _ends_and_every_third, "Q6_K"),
    (_Role.VALUE, "iq4_nl iq4_xs", _few_kv_heads, "Q5_K"),
    (_Role.DOWN, "q2_k", _always, "Q3_K"),
    (_Role.DOWN, "q3_k_m", _first_part(16), "Q5_K"),
    (_Role.DOWN, "q3_k_m", _always, "Q4_K"),
    (_Role.DOWN, "q3_k_l", _always, "Q5_K"),
    (_Role.DOWN, "q4_k_s", _first_part(8), "Q5_K"),
    (_Role.DOWN, "q4_k_m q5_k_m", _ends_and_every_third, "Q6_K"),
    (_Role.DOWN, "iq4_nl iq4_xs", _first_eighth_blind, "Q5_K"),
    (_Role.DOWN, "q4_0", _first_eighth_informed, "Q4_1"),
    (_Role.DOWN, "q5_0", _first_eighth_informed, "Q5_1"),
    (_Role.ATTENTION_OUTPUT, "q2_k q3_k_s q3_k_m q4_k_s q4_k_m iq4_nl iq4_xs", _eight_experts, "Q5_K"),
    (_Role.ATTENTION_OUTPUT, "q3_k_l", _eight_experts, "Q3_K"),
    (_Role.ATTENTION_OUTPUT, "q2_k", _always, "Q3_K"),
    (_Role.ATTENTION_OUTPUT, "q3_k_m", _always, "Q4_K"),
    (_Role.ATTENTION_OUTPUT, "q3_k_l", _always, "Q5_K"),
)


def _choose(target: FileType, role: _Role, place: _Place) -> GGMLType:
    if role is _Role.OUTPUT:
        return target.base if target.name == "q8_0" else ggml_type("Q6_K")
    # Keys and values are a small part of a model of eight experts.
    if role in (_Role.KEY, _Role.VALUE) and _eight_experts(place):
        return ggml_type("Q8_0")
    chosen = target.base
    for rule_role, names, condition, type_ in _RULES:
        if role is rule_role and target.name in names.split() and condition(place):
            chosen = ggml_type(type_)
            break
    if role is _Role.VALUE and place.model.is_70b and chosen.name in ("Q3_K", "Q4_K"):
        return ggml_type("Q5_K")
    return chosen


def _fitting(wanted: GGMLType, columns: int) -> GGMLType:
    used = wanted
    if not used.fits(columns):
        used = ggml_type(_SMALLER_BLOCKS.get(used.name, "F16"))
    return used if used.fits(columns) else ggml_type("F16")


def _is_quantized(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) > 1 and name.endswith("weight") and not any(part in name for part in _KEPT_F32)


def _role(name: str) -> _Role:
    if name == "output.weight":
        return _Role.OUTPUT
    if name == "token_embd.weight":
        return _Role.EMBEDDING
    return next((role for part, role in _ROLES if part in name), _Role.OTHER)


def _layer(name: str) -> int:
    match = re.match(r"blk\.(\d+)\.", name)
    return int(match[1]) if match else -1


def _file_order(name: str) -> tuple[int, str]:
    """llama.cpp's order of tensors, in which its rules count."""
    return _layer(name), name
