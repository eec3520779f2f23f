"""The `gguf` frontend: decoders from files of llama.cpp, with the codes that they have.

The metadata become the configuration of transformers' model, which is lifted like any other (irlab.frontends.hf); only
the weights refer to the GGUF file. Codes stay codes: what has an encoding that other formats share gets that.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from irlab.ir import Module
from irlab.passmgr import note
from irlab.target import Frontend, LoadRequest

if TYPE_CHECKING:
    import torch

    from irlab.weights.gguf import GGUFFile


class GGUF(Frontend, name="gguf"):
    """Lifts a file of llama.cpp, such as model.gguf, or a directory of its shards."""

    def accepts(self, source: str) -> bool:
        from irlab.frontends.gguf.shards import first_file

        return first_file(Path(source)) is not None

    def load(self, source: str, request: LoadRequest) -> Module:
        from irlab.frontends.gguf.shards import first_file

        path = first_file(Path(source))
        assert path is not None, "accepts was asked"
        return lift_file(path)


def lift_file(path: str | Path) -> Module:
    """The IR of the model in the file `path` and its other shards; of its weights only norms are read. Raises
    InputError for a damaged file, and for an architecture or metadata that irlab does not lift."""
    from irlab.frontends.gguf.architectures import architecture, config
    from irlab.frontends.gguf.shards import open_model
    from irlab.frontends.gguf.tensors import Tensors
    from irlab.frontends.gguf.tokenizer import Unknown, tokenizer_directory
    from irlab.frontends.hf import Source, lift
    from irlab.frontends.hf.config import checked

    file = open_model(Path(path))
    row = architecture(file)
    raw = checked(config(file, row), file.path)
    tensors = Tensors(file, row, raw)
    raw["dtype"] = {"f16": "float16", "bf16": "bfloat16"}.get(tensors.dtype().name, "float32")
    factors = tensors.rope_factors()

    def turned(computed: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            name: values if factors is None or not name.endswith("inv_freq") else values / values.new_tensor(factors)
            for name, values in computed.items()
        }

    module = lift(Source(file.path, raw, tensors, buffers=turned))
    tensors.require_all_read()
    module.metadata |= _card(file)
    try:
        module.metadata["tokenizer"] = str(tokenizer_directory(file))
    except Unknown as error:
        note(module, f"{file.path}: token ids can be run, but no text: {error}")
    module.name = file.path.stem
    return module


def _card(file: GGUFFile) -> dict[str, Any]:
    """What the file says of itself that travels with the module."""
    licence = file.metadata.get("general.license")
    return {"licence": licence} if isinstance(licence, str) and licence else {}
