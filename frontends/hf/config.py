"""What a directory says it holds: config.json and its companions, read as untrusted JSON, and the model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from irlab.errors import InputError

if TYPE_CHECKING:
    from irlab.layouts import QuantizedCheckpoint

_MAX_BYTES: Final = 64 << 20
_MAX_LAYERS: Final = 10_000
"""A config that asks for more layers than this is a mistake or an attack: creating them would fill the memory."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in the JSON file `path`; raises InputError in one line."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{path}: {path.stat().st_size} bytes are too many for a configuration")
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: a JSON object was expected")
    return found


def read_config(directory: Path) -> dict[str, Any]:
    """config.json, checked as far as one can without knowing the architecture."""
    path = directory / "config.json"
    return checked(read_json(path), path)


def checked(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """`config`, which `path` says. Raises InputError for what no model that irlab lifts has."""
    if not isinstance(config.get("model_type"), str):
        raise InputError(f"{path}: it names no model_type", "this is not the configuration of a transformers model")
    layers = config.get("num_hidden_layers", 0)
    if not isinstance(layers, int) or not 0 <= layers <= _MAX_LAYERS:
        raise InputError(f"{path}: num_hidden_layers is {layers!r}, which is no number of layers")
    if config.get("is_encoder_decoder"):
        raise InputError(f"{path}: {config['model_type']} is an encoder-decoder model, which irlab does not lift")
    return config


def quantization(directory: Path, config: dict[str, Any]) -> QuantizedCheckpoint | None:
    """How the weights are quantised, which is taken out of `config`; None where they are not. Raises InputError for a
    method that irlab does not read."""
    from irlab.layouts import quantized_checkpoint
    from irlab.layouts.modelopt import CONFIG_FILE

    path = directory / "config.json"
    found = config.pop("quantization_config", None)
    beside = directory / CONFIG_FILE
    if not found and beside.is_file():
        # Older ModelOpt says it there alone.
        path, found = beside, read_json(beside).get("quantization")
        found = {"quant_method": "modelopt", **found} if isinstance(found, dict) else found
    if not found:
        return None
    if not isinstance(found, dict):
        raise InputError(f"{path}: quantization_config is no JSON object")
    return quantized_checkpoint(found, str(path))


def companions(directory: Path) -> dict[str, Any]:
    """What lies beside config.json and travels with the module: see `irlab.Module.metadata`."""
    found: dict[str, Any] = {"tokenizer": str(directory)}
    generation = directory / "generation_config.json"
    if generation.is_file():
        found["generation_config"] = read_json(generation)
    card = _model_card(directory / "README.md")
    for ours, theirs in (("licence", "license"), ("base_model", "base_model")):
        if card.get(theirs):
            found[ours] = card[theirs]
    return found


def _model_card(path: Path) -> dict[str, Any]:
    """The YAML front matter of a model card; {} where there is none, or none that can be read."""
    import yaml  # type: ignore[import-untyped]

    try:
        text = path.read_text("utf-8", errors="replace")[:_MAX_BYTES]
    except OSError:
        return {}
    if not text.startswith("---"):
        return {}
    try:
        found = yaml.safe_load(text[3:].partition("\n---")[0])
    except (yaml.YAMLError, RecursionError):
        return {}  # the card is for people: a slip in it must not stop the work
    return {k: v for k, v in found.items() if isinstance(v, (str, list))} if isinstance(found, dict) else {}
