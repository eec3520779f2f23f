"""The `hf` frontend: decoder LLMs (and encoders) from a Hugging Face directory or hub id, lifted without their weights.

transformers creates the model on the meta device, torch.export traces it with dynamic batch and seq,
attention and mixtures of experts are captured whole (attention.py, experts.py), and each distinct kind of layer is
traced once (stamping.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from irlab.errors import InputError
from irlab.ir import Module
from irlab.passmgr import note
from irlab.target import Frontend, LoadRequest

if TYPE_CHECKING:
    from irlab.frontends.hf.skeleton import Skeleton
    from irlab.frontends.hf.stamping import Stamping
    from irlab.frontends.torch.export import Exported


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


def lift_directory(path: str | Path, *, trust_remote_code: bool = False, stamp: bool = True) -> Module:
    """The IR of the model in directory `path`; no weight is read.

    A decoder maps input_ids: i64[batch, seq] to logits[batch, seq, vocab]; any other model maps input_ids and
    attention_mask to last_hidden_state. Numbers have the dtype of config.json, else that of the checkpoint. Without
    weight files the module lifts all the same; reading a weight then says what is missing. `stamp=False` traces every
    layer. Raises InputError in one line.
    """
    from irlab.checkpoint import find_checkpoint
    from irlab.frontends.hf.config import metadata, quantization, read_config

    directory = Path(path)
    if not (directory / "config.json").is_file():
        raise InputError(f"{directory}: no config.json", "give the directory of a Hugging Face model")
    raw = read_config(directory)
    quantized = quantization(directory, raw)
    checkpoint = find_checkpoint(directory)

    from irlab.frontends.hf import attention, experts
    from irlab.frontends.hf.skeleton import computed_buffers, create_skeleton
    from irlab.frontends.hf.stamping import Stamping
    from irlab.frontends.hf.weights import stored_dtype, weight_references
    from irlab.frontends.torch.aten import LOWERINGS
    from irlab.frontends.torch.lower import Lift

    skeleton = create_skeleton(directory, raw, stored_dtype(checkpoint), trust_remote_code)
    model = skeleton.model
    stamping = Stamping(model if stamp else None, skeleton.config)
    tables = {**LOWERINGS, **attention.TABLE, **experts.TABLE, **stamping.table()}
    exported = _traced(skeleton, stamping, frozenset(tables))
    weights = weight_references(directory, checkpoint, computed_buffers(model), model.base_model_prefix, quantized)
    lift = Lift(exported, tables, weights, skeleton.root)
    graph = lift.run([skeleton.output])
    if quantized is not None and quantized.rounded:
        from irlab.layouts import round_inputs

        round_inputs(graph, quantized.rounded)
    module = Module(graph, directory.resolve().name, metadata(directory, raw, skeleton.architecture))
    module.directory = directory
    if quantized is not None and quantized.cache:
        note(module, f"the checkpoint keeps keys and values in {quantized.cache}; here they are as they are computed")
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
