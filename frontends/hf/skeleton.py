"""How a model is created without its weights: by transformers, on torch's meta device, ready to be traced."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Final

from irlab.errors import InputError
from irlab.frontends.hf.attention import DENSE, PADDED, register_attention
from irlab.frontends.hf.experts import IMPLEMENTATION, register_experts
from irlab.types import DType

if TYPE_CHECKING:
    import torch

_EXAMPLE_SHAPE: Final = (2, 8)
"""Example sizes (batch, seq); torch.export treats 0 and 1 specially."""

_REASON_LENGTH: Final = 300
"""Of what transformers says about a configuration, which may run over many lines."""


@dataclass(frozen=True)
class Skeleton:
    """A model on the meta device inside `entry`, a module that takes the graph's inputs and gives its one output."""

    entry: torch.nn.Module
    model: Any
    config: Any
    architecture: str
    args: tuple[torch.Tensor, ...]
    dynamic_shapes: dict[str, dict[int, str]]
    output: str
    root: str = "model."


def create_skeleton(path: Path, raw: dict[str, Any], default_dtype: DType, trust_remote_code: bool = False) -> Skeleton:
    """The model that the configuration `raw` of the file `path` describes, in the dtype it names, else in
    `default_dtype` (as torch_dtype="auto").

    Raises InputError where transformers does not know the architecture or cannot build it from this configuration.
    """
    import torch

    from irlab.frontends.torch.dtypes import to_torch

    config = _transformers_config(path, raw, trust_remote_code)
    dtype = getattr(config, "dtype", None) or to_torch(default_dtype)
    auto, generates = _auto_class(config, raw)
    register_attention()
    register_experts()
    implementation = DENSE if generates else PADDED
    options = {"dtype": dtype, "trust_remote_code": trust_remote_code, "experts_implementation": IMPLEMENTATION}
    try:
        with torch.device("meta"):
            try:
                model = auto.from_config(config, attn_implementation=implementation, **options)
            except (ValueError, KeyError) as error:
                if implementation not in str(error):
                    raise
                # The model computes attention itself: it is lifted as it stands, op by op.
                model = auto.from_config(config, attn_implementation="eager", **options)
    except Exception as error:  # a model's own code may raise anything on a configuration that makes no sense
        reason = shorten(str(error), _REASON_LENGTH) or type(error).__name__
        raise InputError(f"{path} describes no model that can be built: {reason}") from error
    model.eval()
    return _with_inputs(model, config, generates)


def _transformers_config(path: Path, raw: dict[str, Any], trust_remote_code: bool) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig

    model_type = raw["model_type"]
    if model_type not in CONFIG_MAPPING:
        if raw.get("auto_map") and trust_remote_code:
            return AutoConfig.from_pretrained(path.parent, trust_remote_code=True)
        code = "it comes with its own code: allow it with --trust-remote-code" if raw.get("auto_map") else ""
        raise InputError(f"{path}: transformers does not know the model_type '{model_type}'", code)
    try:
        return CONFIG_MAPPING[model_type].from_dict(dict(raw))
    except Exception as error:  # each configuration class checks in its own way
        reason = shorten(str(error), _REASON_LENGTH) or type(error).__name__
        raise InputError(f"{path}: {reason}") from error


def _auto_class(config: Any, raw: dict[str, Any]) -> tuple[Any, bool]:
    """The Auto class that builds the model, and whether it generates text."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        AutoModel,
        AutoModelForCausalLM,
    )

    named = (raw.get("architectures") or [None])[0]
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    generates = named == causal or (isinstance(named, str) and named.endswith(("ForCausalLM", "LMHeadModel")))
    generates = generates or (named is None and causal is not None)
    return (AutoModelForCausalLM, True) if generates else (AutoModel, False)


def _with_inputs(model: Any, config: Any, generates: bool) -> Skeleton:
    import torch

    class Decoder(torch.nn.Module):
        """input_ids: i64[batch, seq] -> logits[batch, seq, vocab]."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor) -> Any:
            # Without a mask, transformers would look at the positions for packed sequences.
            everything = torch.ones_like(input_ids, dtype=torch.bool)
            return self.model(input_ids=input_ids, attention_mask=everything, use_cache=False).logits

    class Encoder(torch.nn.Module):
        """input_ids, attention_mask: i64[batch, seq] -> last_hidden_state[batch, seq, hidden]."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    sizes = {0: "batch", 1: "seq"}
    ids = torch.zeros(_EXAMPLE_SHAPE, dtype=torch.long, device="meta")
    architecture = type(model).__name__
    if generates:
        return Skeleton(Decoder(), model, config, architecture, (ids,), {"input_ids": sizes}, "logits")
    shapes = {"input_ids": sizes, "attention_mask": sizes}
    return Skeleton(Encoder(), model, config, architecture, (ids, ids.clone()), shapes, "last_hidden_state")


def computed_buffers(model: Any) -> dict[str, torch.Tensor]:
    """The buffers that no checkpoint holds (rotary frequencies, position ids), with their real values on the CPU.

    They are computed by the model's own `_init_weights`, as transformers does after loading. A buffer that it does not
    set is left out.
    """
    import torch

    found: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules():
        names = [n for n in module._non_persistent_buffers_set if module._buffers.get(n) is not None]
        if not names:
            continue
        on_meta = {name: module._buffers[name] for name in names}
        try:
            for name, buffer in on_meta.items():
                module._buffers[name] = torch.full_like(buffer, _unset(buffer), device="cpu")
            with torch.device("cpu"), torch.no_grad():
                model._init_weights(module)
            for name in names:
                values = module._buffers[name]
                untouched = values.isnan() if values.is_floating_point() else values == _unset(values)
                if not bool(untouched.any()):
                    found[f"{path}.{name}" if path else name] = values
        finally:
            module._buffers.update(on_meta)
    return found


def _unset(buffer: torch.Tensor) -> float | int:
    """A number that no initialised buffer of this dtype holds."""
    import torch

    if buffer.is_floating_point():
        return float("nan")
    return torch.iinfo(buffer.dtype).min if buffer.dtype != torch.bool else 0
