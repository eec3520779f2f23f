"""The `hf` frontend: decoder LLMs (and encoders) from a Hugging Face directory or hub id, lifted without their weights.

transformers creates the model on the meta device, torch.export traces it with dynamic batch and seq,
attention and mixtures of experts are captured whole (attention.py, experts.py), and each distinct kind of layer is
traced once (stamping.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irlab.errors import InputError
from irlab.ir import Module
from irlab.passmgr import note
from irlab.target import Frontend, LoadRequest

if TYPE_CHECKING:
    import torch

    from irlab.frontends.hf.skeleton import Skeleton
    from irlab.frontends.hf.stamping import Stamping
    from irlab.frontends.hf.weights import Tensors
    from irlab.frontends.torch.export import Exported
    from irlab.layouts import QuantizedCheckpoint


class HF(Frontend, name="hf"):
    """Lifts a directory with a config.json, or a hub id such as owner/name."""

    def accepts(self, source: str) -> bool:
        from irlab.frontends.hf.hub import is_hub_id

        return (Path(source) / "config.json").is_file() or is_hub_id(source)

    def load(self, source: str, request: LoadRequest) -> Module:
        from irlab.frontends.hf.hub import download, is_hub_id

        path = download(source, request.revision) if is_hub_id(source) else Path(source)
        module = lift_directory(path, trust_remote_code=request.trust_remote_code)
        module.name = Path(source).name or path.resolve().name
        return module


@dataclass(frozen=True)
class Source:
    """What a model is lifted from.

    path:       the file that says how it is configured.
    config:     as transformers' config.json has it.
    tensors:    its weights, or None where there are none: reading one then says what is missing.
    quantized:  how matrices of the checkpoint are encoded, if they are.
    buffers:    what becomes of the buffers that the model computes, by name.
    """

    path: Path
    config: dict[str, Any]
    tensors: Tensors | None
    quantized: QuantizedCheckpoint | None = None
    buffers: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] = lambda computed: computed


def lift_directory(path: str | Path, *, trust_remote_code: bool = False, stamp: bool = True) -> Module:
    """The IR of the model in directory `path`: see `lift`."""
    from irlab.checkpoint import find_checkpoint
    from irlab.frontends.hf.config import companions, quantization, read_config

    directory = Path(path)
    file = directory / "config.json"
    if not file.is_file():
        raise InputError(f"{directory}: no config.json", "give the directory of a Hugging Face model")
    raw = read_config(directory)
    quantized = quantization(directory, raw)
    source = Source(file, raw, find_checkpoint(directory), quantized)
    module = lift(source, trust_remote_code=trust_remote_code, stamp=stamp)
    module.metadata |= companions(directory)
    module.name = directory.resolve().name
    if quantized is not None and quantized.cache:
        note(module, f"the checkpoint keeps keys and values in {quantized.cache}; here they are as they are computed")
    return module


def lift(source: Source, *, trust_remote_code: bool = False, stamp: bool = True) -> Module:
    """The IR of the model that `source` describes; no weight is read.

    A decoder maps input_ids: i64[batch, seq] to logits[batch, seq, vocab]; any other model maps input_ids and
    attention_mask to last_hidden_state. Numbers have the dtype of the configuration, else that of the checkpoint.
    Without weight files the module lifts all the same; reading a weight then says what is missing. `stamp=False` traces
    every layer. Raises InputError in one line.
    """
    from irlab.frontends.hf import attention, experts
    from irlab.frontends.hf.skeleton import computed_buffers, create_skeleton
    from irlab.frontends.hf.stamping import Stamping
    from irlab.frontends.hf.weights import stored_dtype, weight_references
    from irlab.frontends.torch.aten import LOWERINGS
    from irlab.frontends.torch.lower import Lift

    skeleton = create_skeleton(source.path, source.config, stored_dtype(source.tensors), trust_remote_code)
    model = skeleton.model
    stamping = Stamping(model if stamp else None, skeleton.config)
    tables = {**LOWERINGS, **attention.TABLE, **experts.TABLE, **stamping.table()}
    exported = _traced(skeleton, stamping, frozenset(tables))
    directory = source.path.parent
    buffers = source.buffers(computed_buffers(model))
    weights = weight_references(directory, source.tensors, buffers, model.base_model_prefix, source.quantized)
    graph = Lift(exported, tables, weights, skeleton.root).run([skeleton.output])
    if source.quantized is not None and source.quantized.rounded:
        from irlab.layouts import round_inputs

        round_inputs(graph, source.quantized.rounded)
    metadata = {"config": source.config, "architecture": skeleton.architecture}
    module = Module(graph, source.path.stem, metadata)
    module.directory = directory
    return module


def _traced(skeleton: Skeleton, stamping: Stamping, known: frozenset[str]) -> Exported:
    from irlab.frontends.torch.export import export

    while True:
        refused = stamping.refused
        try:
            with stamping.tracing():
                return export(skeleton.entry, skeleton.args, None, skeleton.dynamic_shapes, known)
        except InputError:
            if stamping.refused == refused:
                raise
