"""How a Hugging Face hub id becomes a directory on this machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from irlab.errors import InputError

_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILE_ENDINGS: Final = (".gguf", ".onnx", ".ir", ".irlab", ".safetensors", ".bin", ".pt", ".pth", ".json", ".py")
_WANTED: Final = (
    "*.json",
    "*.safetensors",
    "*.jinja",
    "*.md",
    "tokenizer.model",
    "vocab.txt",
    "merges.txt",
    "LICENSE*",
)


def is_hub_id(source: str) -> bool:
    """Whether `source` is spelled like "owner/name", and is neither a path that exists nor the name of a file."""
    return bool(_HUB_ID.fullmatch(source)) and not source.endswith(_FILE_ENDINGS) and not Path(source).exists()


def download(source: str, revision: str | None) -> Path:
    """The directory of the model, fetched unless it is cached. Pickles are not fetched. Raises InputError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(_WANTED)))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(
            f"{source} cannot be fetched from the Hugging Face hub: {reason}",
            "check the name and the connection, or give a directory",
        ) from error
