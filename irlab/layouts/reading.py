"""Which layout has a checkpoint, and which of its weights are encoded how?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import InputError
from ..types import TensorType, tensor
from ..weights import Unpack, WeightSymbol
from .base import Layout


@dataclass(frozen=True)
class QuantizedCheckpoint:
    """A checkpoint whose matrices lie in `layout`, as `config` says."""

    layout: Layout
    config: Mapping[str, Any]

    def symbol(self, checkpoint: Checkpoint, stem: str, name: str, shape: tuple[int, ...]) -> WeightSymbol | None:
        """The weight `name` of `shape`, from the tensors of the module `stem`; None if it is not encoded. Raises
        InputError for tensors that are not what the layout has for such a matrix."""
        stored = {
            key.removeprefix(f"{stem}."): checkpoint.type(key) for key in checkpoint if key.rpartition(".")[0] == stem
        }
        if not _is_encoded(stored):
            return None
        try:
            encoding = self.layout.encoding(self.config, stem, stored)
            encoding.check_shape(shape)
            reason = self.layout.refusal(encoding, shape)
            if reason:
                raise InputError(reason)
            wanted = self.layout.types(encoding, shape)
        except (InputError, KeyError) as error:
            raise InputError(f"{checkpoint.path}: {stem}: {error}") from None
        return WeightSymbol(
            name, Unpack(tensor(encoding, shape), self.layout.name, self._files(checkpoint, stem, wanted))
        )

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
