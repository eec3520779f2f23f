"""Which layout has a checkpoint, and which of its weights are encoded how?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..checkpoint import Checkpoint
from ..errors import InputError
from ..types import TensorType, tensor
from ..weights import Unpack, WeightSymbol
from .activations import Rounded
from .base import Activation, Layout


@dataclass(frozen=True)
class QuantizedCheckpoint:
    """A checkpoint whose matrices lie in `layout`, as `config` says. `rounded`: what was found of activations, by the
    name of the weight, while its weights were asked for."""

    layout: Layout
    config: Mapping[str, Any]
    rounded: dict[str, Rounded] = field(default_factory=dict)

    @property
    def cache(self) -> str:
        """How the checkpoint wants keys and values kept, which no layer of it says; empty where it does not say."""
        found = self.config.get("kv_cache_quant_algo") or self.config.get("kv_cache_scheme")
        if isinstance(found, dict):
            return f"{found.get('num_bits', 8)}-bit {found.get('type', 'int')}"
        return str(found) if found else ""

    def symbol(self, checkpoint: Checkpoint, stem: str, name: str, shape: tuple[int, ...]) -> WeightSymbol | None:
        """The weight `name` of `shape`, from the tensors of the module `stem`; None if it is not encoded. Raises
        InputError for tensors that are not what the layout has for such a matrix."""
        stored = {
            key.removeprefix(f"{stem}."): checkpoint.type(key) for key in checkpoint if key.rpartition(".")[0] == stem
        }
        if not _is_encoded(stored):
            return None
        try:
            scheme = self.layout.scheme(self.config, stem, stored)
            scheme.encoding.check_shape(shape)
            form = self.layout.form(scheme)
            reason = form.refusal(scheme.encoding, shape)
            if reason:
                raise InputError(reason)
            wanted = form.types(scheme.encoding, shape)
            if scheme.activation is not None:
                self.rounded[name] = self._rounded(checkpoint, stem, scheme.activation)
        except InputError as error:
            raise InputError(f"{checkpoint.path}: {stem}: {error}") from None
        except KeyError as error:
            raise InputError(f"{checkpoint.path}: {stem} has no tensor called {error}") from None
        return WeightSymbol(
            name, Unpack(tensor(scheme.encoding, shape), form.name, self._files(checkpoint, stem, wanted))
        )

    def _rounded(self, checkpoint: Checkpoint, stem: str, activation: Activation) -> Rounded:
        if not activation.static:
            return Rounded(activation, 0.0)
        stored = {}
        for part in self.layout.scale_tensors(activation, 1.0):
            file = checkpoint.weight(f"{stem}.{part}")
            if not file.type.is_static or file.type.size != 1:
                raise InputError(f"{part} is {file.type}, one number was expected")
            stored[part] = file.read()
        with np.errstate(divide="ignore"):
            scale = self.layout.scale(activation, stored)
        if not 0 < scale < float("inf"):
            raise InputError(f"the scale of activations is {scale:g}")
        return Rounded(activation, scale)

    def _files(self, checkpoint: Checkpoint, stem: str, wanted: Mapping[str, TensorType]) -> tuple[Any, ...]:
        files = []
        for part, kind in wanted.items():
            file = checkpoint.weight(f"{stem}.{part}")
            if file.of is not kind:
                raise InputError(
                    f"{file.path}: tensor '{stem}.{part}' is {file.of}, {kind} was expected",
                    "the quantisation config and the weights are not of one model",
                )
            files.append(file)
        return tuple(files)


def _is_encoded(stored: Mapping[str, TensorType]) -> bool:
    return bool(stored.keys() & {"qweight", "weight_packed", "weight_scale"})


def quantized_checkpoint(config: Mapping[str, Any], source: str) -> QuantizedCheckpoint:
    """What `config`, a quantization_config, describes; `source` is where it stands. Raises InputError for a method that
    irlab does not read."""
    from . import LAYOUTS

    method = config.get("quant_method")
    if method not in LAYOUTS:
        known = ", ".join(LAYOUTS)
        raise InputError(
            f"{source}: the weights are already quantised by {method or 'an unnamed method'}",
            f"irlab reads {known}; else give the original model in bf16, f16 or f32",
        )
    return QuantizedCheckpoint(LAYOUTS[str(method)], config)
