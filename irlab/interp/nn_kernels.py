"""The LLM-level ops on torch's own kernels; each is tested against the decomposition that gives the op its meaning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops import nn
from .kernels import Table, Tensors

if TYPE_CHECKING:
    from collections.abc import Callable

    from .program import Run


def _linear(op: nn.Linear, run: Run, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight.to(x.dtype), bias)


def _low_rank_linear(
    op: nn.LowRankLinear, run: Run, x: Tensor, a: Tensor, b: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    thin = F.linear(x, a.to(x.dtype))
    if weight is None:
        return F.linear(thin, b.to(x.dtype), bias)
    return F.linear(x, weight.to(x.dtype), bias) + F.linear(thin, b.to(x.dtype))


class _StraightThrough(torch.autograd.Function):
    """`rounded` in place of x, whose gradient is that of `rounded` wherever `inside` (Bengio et al. 2013)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor, inside: Tensor) -> Tensor:
        ctx.save_for_backward(inside)
        return rounded

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return slopes[0] * inside, None, None


def _quantize_activation(op: nn.QuantizeActivation, run: Run, x: Tensor) -> Tensor:
    xf = x.detach().float()
    scale, zero = _scale_and_zero(op, xf)
    steps = torch.round(xf / scale) + zero
    kept = steps.clamp(op.lowest, op.highest)
    rounded = ((kept - zero) * scale).to(x.dtype)
    if not x.requires_grad:
        return rounded
    through: Tensor = _StraightThrough.apply(x, rounded, kept == steps)  # type: ignore[no-untyped-call]
    return through


def _scale_and_zero(op: nn.QuantizeActivation, x: Tensor) -> tuple[Tensor, Tensor | int]:
    if op.scale:
        return torch.tensor(op.scale, device=x.device), op.zero
    axes = (-1,) if op.per == "token" else tuple(range(x.dim()))

    def over(size: Tensor, integers: int) -> Tensor:
        return size.clamp(min=nn.LEAST_MAGNITUDE) / integers

    if not op.zero and not op.dynamic_zero:
        return over(x.abs().amax(axes, keepdim=True), op.highest), 0
    high, low = x.amax(axes, keepdim=True), x.amin(axes, keepdim=True)
    if not op.dynamic_zero:
        scale = over(high, op.highest - op.zero)
        return (torch.maximum(scale, over(-low, op.zero - op.lowest)) if op.zero > op.lowest else scale), op.zero
    low = low.clamp(max=0)
    scale = over(high.clamp(min=0) - low, op.highest - op.lowest)
    return scale, torch.round(-low / scale) + op.lowest


def _quantize_activation_float(op: nn.QuantizeActivationFloat, run: Run, x: Tensor) -> Tensor:
    xf = x.detach().float()
    if op.element == "e2m1":
        rounded, inside = _nvfp4(xf.reshape(*x.shape[:-1], -1, nn.BLOCK), op.scale)
        rounded, inside = rounded.flatten(-2), inside.flatten(-2)
    else:
        if op.scale:
            scale = torch.tensor(op.scale, device=x.device)
        else:
            axes = (-1,) if op.per == "token" else tuple(range(x.dim()))
            scale = xf.abs().amax(axes, keepdim=True).clamp(min=nn.LEAST_MAGNITUDE) / nn.E4M3_MAX
        steps = xf / scale
        rounded, inside = _to_e4m3(steps) * scale, steps.abs() <= nn.E4M3_MAX
    if not x.requires_grad:
        return rounded.to(x.dtype)
    through: Tensor = _StraightThrough.apply(x, rounded.to(x.dtype), inside)  # type: ignore[no-untyped-call]
    return through


def _to_e4m3(x: Tensor) -> Tensor:
    return x.clamp(-nn.E4M3_MAX, nn.E4M3_MAX).to(torch.float8_e4m3fn).float()


def _nvfp4(blocks: Tensor, unit: float) -> tuple[Tensor, Tensor]:
    """Blocks along the last axis under a scale of E4M3 times `unit` each, and where nothing is cut."""
    largest = blocks.abs().amax(-1, keepdim=True)
    scale = _to_e4m3(largest / torch.tensor(nn.E2M1_MAX * unit)) * unit
    steps = blocks / torch.where(scale == 0, 1, scale)
    size = steps.abs()
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return (torch.round(steps / step) * step).clamp(-nn.E2M1_MAX, nn.E2M1_MAX) * scale, size <= nn.E2M1_MAX


def _embedding(op: nn.Embedding, run: Run, ids: Tensor, weight: Tensor) -> Tensor:
    return F.embedding(ids.long(), weight)


def _scaled(n: Tensor, weight: Tensor | None, bias: Tensor | None = None) -> Tensor:
    n = n if weight is None else n * weight
    return n if bias is None else n + bias


def _normalise(x: Tensor, eps: float) -> Tensor:
    xf = x.float()
    return (xf * torch.rsqrt(xf.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def _rms_norm(op: nn.RMSNorm, run: Run, x: Tensor, weight: Tensor | None) -> Tensor:
    return _scaled(_normalise(x, op.eps), weight)


def _add_rms_norm(op: nn.AddRMSNorm, run: Run, x: Tensor, residual: Tensor, weight: Tensor) -> Tensors:
    total = x + residual
    return total, _scaled(_normalise(total, op.eps), weight)


def _layer_norm(op: nn.LayerNorm, run: Run, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    return _scaled(F.layer_norm(x.float(), x.shape[-1:], eps=op.eps).to(x.dtype), weight, bias)


def _rope(op: nn.Rope, run: Run, x: Tensor, positions: Tensor, inv_freq: Tensor) -> Tensor:
    n = inv_freq.shape[0]
    angles = positions.float()[..., None] * inv_freq
    angles = angles[:, None] if positions.dim() == 2 else angles
    cos, sin = (angles.cos() * op.scale).to(x.dtype), (angles.sin() * op.scale).to(x.dtype)
    turning, rest = x[..., : 2 * n], x[..., 2 * n :]
    if op.interleaved:
        first, second = turning[..., 0::2], turning[..., 1::2]
    else:
        first, second = turning[..., :n], turning[..., n:]
    turned = (first * cos - second * sin, second * cos + first * sin)
    out = torch.stack(turned, -1).flatten(-2) if op.interleaved else torch.cat(turned, -1)
    return torch.cat((out, rest), -1) if rest.shape[-1] else out


def _attention(
    op: nn.Attention, run: Run, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, sinks: Tensor | None
) -> Tensor:
    visible = _visible(op, q.shape[2], k.shape[2], q.device)
    if mask is not None and mask.dtype is torch.bool:
        visible = mask if visible is None else mask & visible
        mask = None
    # torch's kernel has neither softcap nor sinks, and would round a float bias to the dtype of q.
    if op.softcap or sinks is not None or mask is not None:
        return _explicit_attention(op, q, k, v, visible, mask, sinks)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=visible, scale=op.scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def _visible(op: nn.Attention, seq: int, total: int, device: torch.device) -> Tensor | None:
    """Which keys each query may see by its position, bool[seq, total], or None if all of them."""
    if (not op.causal and not op.window) or (seq == 1 and (not op.window or total <= op.window)):
        return None
    behind = torch.arange(total - seq, total, device=device)[:, None] - torch.arange(total, device=device)
    visible = behind >= 0 if op.causal else None
    if op.window:
        near = behind < op.window
        visible = near if visible is None else visible & near
    return visible


def _explicit_attention(
    op: nn.Attention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None,
    bias: Tensor | None,
    sinks: Tensor | None,
) -> Tensor:
    batch, heads, seq, width = q.shape
    kv_heads, total = k.shape[1:3]
    rows = heads // kv_heads * seq
    scores = (q.reshape(batch, kv_heads, rows, width) @ k.transpose(-1, -2)).float().view(batch, heads, seq, total)
    scores = scores * op.scale
    if op.softcap:
        scores = torch.tanh(scores / op.softcap) * op.softcap
    if visible is not None:
        scores = torch.where(visible, scores, float("-inf"))
    if bias is not None:
        scores = scores + bias.float()
    if sinks is not None:
        column = sinks.float().view(1, heads, 1, 1).expand(batch, heads, seq, 1)
        weights = torch.softmax(torch.cat((scores, column), -1), -1)[..., :total]
    else:
        weights = _softmax_of(scores)
    mixed = weights.to(v.dtype).reshape(batch, kv_heads, rows, total) @ v
    return mixed.reshape(batch, heads, seq, v.shape[3])


def _softmax_of(x: Tensor) -> Tensor:
    """The softmax over the last axis, with zeros (torch gives nan) in rows of -inf alone."""
    hidden = (x == float("-inf")).all(-1, keepdim=True)
    return torch.softmax(x.masked_fill(hidden, 0.0), -1).masked_fill(hidden, 0.0)


def _hard_shrink(op: nn.HardShrink, run: Run, x: Tensor) -> Tensor:
    return torch.where(x.abs() > op.threshold, x, 0)


def _softmax(op: nn.Softmax, run: Run, x: Tensor) -> Tensor:
    return _softmax_of(x)


def _kv_update(op: nn.KVUpdate, run: Run, cache: Tensor, new: Tensor, pos: Tensor | None) -> Tensor:
    if pos is None:
        return torch.cat((cache, new), 2)
    start, stop = int(pos), int(pos) + new.shape[2]
    if not 0 <= start <= stop <= cache.shape[2]:
        raise IndexError(f"positions {start}:{stop} are outside a cache of length {cache.shape[2]}")
    return torch.cat((cache[:, :, :start], new, cache[:, :, stop:]), 2)


def _quantize_cache(op: nn.QuantizeCache, run: Run, x: Tensor, scale: Tensor) -> Tensor:
    half = 1 << (op.bits - 1)
    steps = torch.round(x.float() / scale).clamp(-half, half - 1)
    if op.bits == 8:
        return steps.to(torch.int8)
    return (steps[..., 0::2] + 8 + 16 * (steps[..., 1::2] + 8)).to(torch.uint8)


def _dequantize_cache(op: nn.DequantizeCache, run: Run, codes: Tensor, scale: Tensor) -> Tensor:
    if op.bits == 4:
        codes = torch.stack((codes & 15, codes >> 4), -1).flatten(-2).to(torch.int8) - 8
    return (codes.float() * scale).to(run.dtypes(op.dtype))


def _gelu(op: nn.Gelu, run: Run, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=op.approximate)


def _silu(op: nn.Silu, run: Run, x: Tensor) -> Tensor:
    return F.silu(x)


_ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


def _gated_mlp(
    op: nn.GatedMLP,
    run: Run,
    x: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
) -> Tensor:
    dtype = x.dtype
    inner = _ACTIVATIONS[op.activation](F.linear(x, gate.to(dtype), gate_bias)) * F.linear(x, up.to(dtype), up_bias)
    return F.linear(inner, down.to(dtype), down_bias)


def _experts(
    op: nn.Experts, run: Run, x: Tensor, chosen: Tensor, scores: Tensor, gate: Tensor, up: Tensor, down: Tensor
) -> Tensor:
    return _through_experts(x, chosen, scores, (gate, up, down), _ACTIVATIONS[op.activation])


def _moe(op: nn.MoE, run: Run, x: Tensor, logits: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    scores, chosen = torch.topk(_softmax_of(logits.float()), op.top_k)
    if op.normalise:
        scores = scores / scores.sum(-1, keepdim=True)
    return _through_experts(x, chosen, scores, (gate, up, down), _ACTIVATIONS[op.activation])


def _through_experts(
    x: Tensor,
    chosen: Tensor,
    scores: Tensor,
    stacks: tuple[Tensor, Tensor, Tensor],
    activation: Callable[[Tensor], Tensor],
) -> Tensor:
    """Each expert runs once, on the tokens that chose it."""
    rows, k = x.reshape(-1, x.shape[-1]), chosen.shape[-1]
    chosen, scores = chosen.reshape(-1, k), scores.reshape(-1, k).float()
    total = torch.zeros((len(rows), stacks[2].shape[1]), dtype=torch.float32, device=x.device)
    for expert in sorted(set(chosen.flatten().tolist())):
        token, slot = torch.where(chosen == expert)
        gate, up, down = (stack[expert].to(x.dtype) for stack in stacks)
        inner = activation(F.linear(rows[token], gate)) * F.linear(rows[token], up)
        total = total.index_add(0, token, F.linear(inner, down).float() * scores[token, slot, None])
    return total.reshape(*x.shape[:-1], total.shape[1]).to(x.dtype)


NN_KERNELS: Final[Table] = {
    nn.Linear: _linear,
    nn.LowRankLinear: _low_rank_linear,
    nn.QuantizeActivation: _quantize_activation,
    nn.QuantizeActivationFloat: _quantize_activation_float,
    nn.Embedding: _embedding,
    nn.RMSNorm: _rms_norm,
    nn.AddRMSNorm: _add_rms_norm,
    nn.LayerNorm: _layer_norm,
    nn.Rope: _rope,
    nn.Attention: _attention,
    nn.Softmax: _softmax,
    nn.KVUpdate: _kv_update,
    nn.QuantizeCache: _quantize_cache,
    nn.DequantizeCache: _dequantize_cache,
    nn.Gelu: _gelu,
    nn.HardShrink: _hard_shrink,
    nn.Silu: _silu,
    nn.GatedMLP: _gated_mlp,
    nn.Experts: _experts,
    nn.MoE: _moe,
}
