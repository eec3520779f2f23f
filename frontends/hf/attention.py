"""How attention is captured whole: transformers' own extension points hand it to one custom op, so no mask arithmetic
is ever traced.

transformers builds a mask by calling a mask function that is registered beside the attention function. Ours builds
none: it asks which positions are visible, and passes the answer on to the attention function in the place of the mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from irlab.ir import Value
from irlab.ops import nn

if TYPE_CHECKING:
    import torch

    from irlab.frontends.torch.lower import Lowered, Lowering, Site

DENSE: Final = "irlab"
"""The attention implementation of models whose inputs have no padding."""

PADDED: Final = "irlab_padded"
"""The attention implementation of encoders, whose attention_mask hides padding."""

_SCHEMA: Final = (
    "(Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? sinks, "
    "bool causal, float scale, int window, float softcap) -> Tensor"
)

_FAR: Final = 1 << 40
"""A position further back than any window reaches."""


@dataclass(frozen=True)
class Visibility:
    """What a mask would have said: `causal` hides later positions, `window` > 0 those `window` or more back, and
    `padding`, bool[batch, 1, 1, seq], those that are no tokens."""

    causal: bool
    window: int = 0
    padding: torch.Tensor | None = None


class _Truth(int):
    """A truth value that transformers' mask functions can combine as if it were a tensor."""

    device = None

    def to(self, *_: object, **__: object) -> _Truth:
        return self

    def __and__(self, other: int) -> _Truth:
        return _Truth(bool(self) and bool(other))

    def __or__(self, other: int) -> _Truth:
        return _Truth(bool(self) or bool(other))


@dataclass(frozen=True)
class _Position:
    """A position that transformers' mask functions can be asked about as if it were a tensor. It is no index: a
    function that looks positions up in a tensor fails, as the tensor's values are not known."""

    at: int

    def new_ones(self, *_: object, **__: object) -> _Truth:
        return _Truth(True)

    def new_zeros(self, *_: object, **__: object) -> _Truth:
        return _Truth(False)

    def __sub__(self, distance: int) -> _Position:
        return _Position(self.at - distance)

    def __le__(self, other: _Position | int) -> _Truth:
        return _Truth(self.at <= _number(other))

    def __lt__(self, other: _Position | int) -> _Truth:
        return _Truth(self.at < _number(other))

    def __ge__(self, other: _Position | int) -> _Truth:
        return _Truth(self.at >= _number(other))

    def __gt__(self, other: _Position | int) -> _Truth:
        return _Truth(self.at > _number(other))


def _number(position: _Position | int) -> int:
    return position.at if isinstance(position, _Position) else position


def visibility(mask_function: Callable[..., Any]) -> Visibility | None:
    """What the mask function of transformers (of batch, head, query and key position) shows; None for a pattern that
    is neither full nor causal nor a causal window."""

    def visible(query: int, key: int) -> bool:
        return bool(mask_function(_Position(0), _Position(0), _Position(query), _Position(key)))

    try:
        if visible(_FAR, 0):
            causal = not visible(0, 1)
            return Visibility(causal) if causal or visible(0, _FAR) else None
        window = _reach(visible, _FAR)
        # A window moves with the query; chunks do not, and neither looks ahead.
        moves = all(_reach(visible, _FAR + step) == window for step in (1, window // 2, window - 1))
        return Visibility(True, window) if moves and window and not visible(_FAR, _FAR + 1) else None
    except (AttributeError, TypeError, RuntimeError, IndexError):
        return None  # it needs the values of tensors


def _reach(visible: Callable[[int, int], bool], query: int) -> int:
    """How many positions up to `query` it sees, by bisection."""
    low, high = 0, query + 1
    while low < high:
        middle = (low + high) // 2
        if visible(query, query - middle):
            low = middle + 1
        else:
            high = middle
    return low


def _dense_mask(mask_function: Callable[..., Any], **kwargs: Any) -> Any:
    shown = visibility(mask_function)
    return shown if shown is not None else _mask_tensor(mask_function, **kwargs)


def _padded_mask(mask_function: Callable[..., Any], **kwargs: Any) -> Any:
    shown, padding = visibility(mask_function), kwargs.get("attention_mask")
    if shown is None:
        return _mask_tensor(mask_function, **kwargs)
    return Visibility(shown.causal, shown.window, None if padding is None else padding[:, None, None, :])


def _mask_tensor(mask_function: Callable[..., Any], **kwargs: Any) -> Any:
    """The mask as transformers computes it for torch's own attention, traced op by op."""
    from transformers.masking_utils import sdpa_mask

    kwargs.update(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
    return sdpa_mask(mask_function=mask_function, **kwargs)


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function. q: [batch, heads, seq, head_dim]; k and v have kv_heads; gives [batch, seq, heads, ...].

    The window is taken from the mask, which is what decides in transformers' own attention functions.
    """
    import torch

    if isinstance(attention_mask, Visibility):
        shown, mask = attention_mask, attention_mask.padding
    else:
        # As transformers: without a mask, a decoder's attention is causal.
        shown, mask = Visibility(attention_mask is None and getattr(module, "is_causal", True)), attention_mask
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    out = torch.ops.irlab.attention(
        query, key, value, mask, s_aux, shown.causal, scale, shown.window, float(softcap or 0.0)
    )
    return out.transpose(1, 2), None


@cache
def register_attention() -> None:
    """Make both attention implementations known to torch and transformers; once per process."""
    import torch
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    torch.library.define("irlab::attention", _SCHEMA)

    def shape(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: object) -> torch.Tensor:
        return q.new_empty(*q.shape[:-1], v.shape[-1])

    torch.library.register_fake("irlab::attention", shape)
    for name, mask in ((DENSE, _dense_mask), (PADDED, _padded_mask)):
        AttentionInterface.register(name, _attend)
        AttentionMaskInterface.register(name, mask)


def _lower_attention(
    site: Site,
    q: Value,
    k: Value,
    v: Value,
    mask: Value | None,
    sinks: Value | None,
    causal: bool,
    scale: float,
    window: int,
    softcap: float,
) -> Lowered:
    return nn.attention(q, k, v, mask, sinks, causal=causal, scale=scale, window=window, softcap=softcap)


TABLE: dict[str, Lowering] = {"irlab.attention": _lower_attention}
