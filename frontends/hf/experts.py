"""How mixtures of experts are captured whole: transformers' own extension point hands them to one custom op, so that
no loop over experts is ever traced.

What chooses the experts is traced as it stands: `fuse` finds routers that nn.moe can say.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

from irlab.ir import Value, Weight
from irlab.layouts.experts import GATE_UP
from irlab.ops import nn, prim
from irlab.weights import Concat, Slice, WeightSymbol, static_shape

if TYPE_CHECKING:
    import torch

    from irlab.frontends.torch.lower import Lowered, Lowering, Site

IMPLEMENTATION: Final = "irlab"
"""The name of our implementation of experts."""

_SCHEMA: Final = "(Tensor x, Tensor chosen, Tensor scores, Tensor gate_up, Tensor down, str activation) -> Tensor"

_ACTIVATIONS: Final = {
    "SiLU": "silu",
    "SiLUActivation": "silu",
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
    "ReLU": "relu",
}
"""What the classes of activation functions in transformers compute."""


def _experts_forward(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """The experts implementation. hidden_states: [tokens, hidden]; top_k_index, top_k_weights: [tokens, k]."""
    import torch
    from transformers.integrations.moe import _default_apply_gate, batched_mm_experts_forward

    activation = _ACTIVATIONS.get(type(getattr(module, "act_fn", None)).__name__)
    plain = (
        module.has_gate
        and module.is_concatenated
        and not (module.has_bias or module.is_transposed or module.has_post_expert_norm)
        and type(module)._apply_gate is _default_apply_gate
    )
    if not plain or activation is None:
        traced: torch.Tensor = batched_mm_experts_forward(module, hidden_states, top_k_index, top_k_weights)
        return traced
    found: torch.Tensor = torch.ops.irlab.experts(
        hidden_states, top_k_index, top_k_weights, module.gate_up_proj, module.down_proj, activation
    )
    return found


@cache
def register_experts() -> None:
    """Make the implementation known to torch and transformers; once per process."""
    import torch
    from transformers.integrations.moe import ExpertsInterface

    torch.library.define("irlab::experts", _SCHEMA)
    torch.library.register_fake("irlab::experts", lambda x, *_: torch.empty_like(x))
    ExpertsInterface.register(IMPLEMENTATION, _experts_forward)


def _lower_experts(
    site: Site, x: Value, chosen: Value, scores: Value, gate_up: Value, down: Value, activation: str
) -> Lowered:
    gate, up = (_half(gate_up, i, f"experts.{part}_proj") for i, part in enumerate(("gate", "up")))
    return nn.experts(x, chosen, scores, gate, up, down, activation)


def _half(gate_up: Value, which: int, name: str) -> Value:
    """Half of a stack of matrices, of which gate comes first and up second, as a weight of its own."""
    assert isinstance(gate_up.op, Weight)
    whole = gate_up.op.symbol
    if isinstance(whole.recipe, Concat) and whole.recipe.axis == 1 and len(whole.recipe.sources) == 2:
        recipe = whole.recipe.sources[which]
    else:
        rows = static_shape(whole.type)[1] // 2
        recipe = Slice(whole.recipe, 1, which * rows, (which + 1) * rows)
    return prim.weight(WeightSymbol(whole.name.removesuffix(GATE_UP) + name, recipe))


TABLE: dict[str, Lowering] = {"irlab.experts": _lower_experts}
