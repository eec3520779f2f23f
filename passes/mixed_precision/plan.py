"""What was chosen: as a table to read, as options of quantize, and as data for reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from irlab.layers import layer_name
from irlab.overlay import LayerPattern, LayerRow
from irlab.passes.mixed_precision.choices import Choice

if TYPE_CHECKING:
    from rich.table import Table

_BASES: Final = {
    "kl": "from gradients of the loss on calibration data",
    "output": "from relative errors of outputs on calibration data: the model predicts no tokens",
    "weight": "from the errors of weights alone: --calibration TEXTFILE would show which of them matter",
    "size": "from sizes alone: no weight is read for a plan",
}
_COLUMNS: Final = 9
"""A table is not made wider than this."""


@dataclass(frozen=True)
class PlannedWeight:
    """What a weight is to be stored as; `loss` in the unit of the plan's basis."""

    choice: Choice
    numbers: int
    bytes: int
    loss: float


@dataclass(frozen=True)
class Plan:
    """What each weight is to be stored as, by name. `files`: the bytes of what each target will write, where a size was
    asked for. `basis`: what losses are (losses.py), or "size"."""

    weights: Mapping[str, PlannedWeight]
    basis: str
    goal: str
    files: Mapping[str, int]

    @property
    def predicted_kl(self) -> float | None:
        """The KL divergence to the original to expect, in nats a token."""
        return sum(w.loss for w in self.weights.values()) if self.basis == "kl" else None

    @property
    def bits_per_weight(self) -> float:
        """Of the weights that schemes were chosen for."""
        return 8 * sum(w.bytes for w in self.weights.values()) / max(1, sum(w.numbers for w in self.weights.values()))

    def layer_rows(self) -> list[LayerRow]:
        """Options per layer for quantize: a row for each choice, naming its weights."""
        names: dict[Choice, list[str]] = {}
        for name, weight in self.weights.items():
            names.setdefault(weight.choice, []).append(name)
        return [LayerRow(LayerPattern(_alternatives(found)), _options(choice)) for choice, found in names.items()]

    def __str__(self) -> str:
        from irlab.describe import rendered

        lines = [rendered(self._table(), 120), f"chosen {_BASES[self.basis]}"]
        said = [f"{self.bits_per_weight:.3f} bits a weight"]
        if self.predicted_kl is not None:
            said.append(f"predicted KL {self.predicted_kl:.4g}")
        said += [f"{target}: {size:,} bytes" for target, size in self.files.items()]
        return "\n".join([*lines, ", ".join(said)])

    def as_dict(self) -> dict[str, Any]:
        """For `--report`."""
        weights = {
            name: {"scheme": str(w.choice), "bytes": w.bytes} | ({"kl": w.loss} if self.basis == "kl" else {})
            for name, w in self.weights.items()
        }
        return {
            "goal": self.goal,
            "basis": _BASES[self.basis],
            "bits_per_weight": self.bits_per_weight,
            "predicted_kl": self.predicted_kl,
            "files": dict(self.files),
            "weights": weights,
        }

    def _table(self) -> Table:
        """A line for each layer; a column for each of its weights, if layers are alike."""
        from rich.table import Table

        layers: dict[str, dict[str, PlannedWeight]] = {}
        for name, weight in self.weights.items():
            layer = layer_name(name)
            layers.setdefault(layer or name, {})[_short(name, layer)] = weight
        kinds = list(dict.fromkeys(kind for name, weights in layers.items() for kind in weights if kind))
        wide = 0 < len(kinds) <= _COLUMNS
        table = Table(title=f"plan for {self.goal}", title_justify="left")
        schemes = kinds if wide else ["schemes"]
        for heading in ("layer", "bits", *schemes, *(["KL"] if self.basis == "kl" else [])):
            table.add_column(heading.removesuffix("_proj"), no_wrap=heading == "layer")
        for layer, weights in layers.items():
            cells = list(_cells(weights, kinds)) if wide else [_counted(weights)]
            bits = 8 * sum(w.bytes for w in weights.values()) / max(1, sum(w.numbers for w in weights.values()))
            loss = [f"{sum(w.loss for w in weights.values()):.2g}"] if self.basis == "kl" else []
            table.add_row(layer, f"{bits:.2f}", *cells, *loss)
        return table


def _short(name: str, layer: str) -> str:
    """What a weight is called within its layer: q_proj; nothing for one outside of layers."""
    inside = name[len(layer) + 1 :].removesuffix(".weight") if layer else ""
    return inside.rpartition(".")[2]


def _cells(weights: Mapping[str, PlannedWeight], kinds: list[str]) -> Iterator[str]:
    for place, kind in enumerate(kinds):
        weight = weights.get(kind) or (weights.get("") if place == 0 else None)
        yield str(weight.choice) if weight is not None else ""


def _counted(weights: Mapping[str, PlannedWeight]) -> str:
    counts = Counter(str(weight.choice) for weight in weights.values())
    return ", ".join(f"{choice} x {count}" for choice, count in counts.most_common())


def _options(choice: Choice) -> dict[str, Any]:
    return {"scheme": choice.scheme, "embeddings": choice.scheme, **dict(choice.options)}


def _alternatives(names: list[str]) -> str:
    return names[0] if len(names) == 1 else "{" + ",".join(names) + "}"
