"""What the tests of this backend share: models made once, and one thread for their tiny products."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hf_models import Checkpoint, Lifted, save_model

from irlab import Module, load


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny products are slower on several threads, and far slower on a busy machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """checkpoint("llama", tie_word_embeddings=True) is the directory of such a model, made once."""
    made: dict[str, Path] = {}

    def make(kind: str, **changes: Any) -> Path:
        key = repr((kind, sorted(changes.items())))
        if key not in made:
            made[key] = tmp_path_factory.mktemp(kind) / kind
            save_model(made[key], kind, **changes)
        return made[key]

    return make


@pytest.fixture(scope="session")
def lifted(checkpoint: Checkpoint) -> Lifted:
    """lifted("llama") is a copy of the module of such a model, lifted once."""
    made: dict[Path, Module] = {}

    def lift(kind: str, **changes: Any) -> Module:
        path = checkpoint(kind, **changes)
        if path not in made:
            made[path] = load(path)
        return made[path].clone()

    return lift
