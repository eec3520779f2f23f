"""Which tokens can go?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import irlab
from irlab.axes import AxisAnalysis, Group, cut, describe_groups, resize
from irlab.axes.rules import INDEXED
from irlab.calibration import read_text
from irlab.errors import InputError
from irlab.fingerprint import fingerprint
from irlab.ir import Module
from irlab.ops import nn
from irlab.passes.prune.tokenizer import closure, read_tokenizer, renumber_config, token_ids, write_tokenizer
from irlab.passmgr import Context, Pass
from irlab.weights import WeightSymbol

_TEXT_BYTES = 1 << 30


@dataclass(frozen=True)
class PruneVocabulary(
    Pass,
    name="prune-vocab",
    exactness="lossy",
    requires={"fuse": "it looks for the embedding of input_ids"},
    saves_work=True,
):
    """Leaves out tokens: rows of the embedding and of the output head, and their entries in the tokenizer.

        nn.embedding(%input_ids, @embed[49152, 576]) ... logits[.., 49152]
        ->   nn.embedding(%input_ids, @embed[8192, 576]) ... logits[.., 8192]

    A text whose tokens all stay is cut into the same tokens as before, under new ids, and the model computes for them
    what it did. Special tokens, single characters, bytes, and the parts that merges need stay too. The tokenizer's
    files are written anew, and outputs carry them along; a sentencepiece model (tokenizer.model) is left out.

    `keep`: a text file, whose tokens stay; or ids as .json (one list) or .npy.
    """

    keep: str

    def explain(self, module: Module) -> str:
        return describe_groups(AxisAnalysis(module.graph), ["ids"])

    def run(self, module: Module, ctx: Context) -> None:
        axes = AxisAnalysis(module.graph)
        groups = _vocabularies(module, axes, self.name)
        rows = groups[0].size
        if not module.metadata.get("tokenizer"):
            raise InputError(f"{self.name}: the module has no tokenizer, which would have to follow")
        source = Path(module.metadata["tokenizer"])
        tokenizer = read_tokenizer(source, self.name)
        kept = closure(tokenizer, self._wanted(module, rows))
        if kept[-1] >= rows:
            raise InputError(f"{self.name}: token {kept[-1]} is beyond the {rows} rows of the embedding")
        new_id = {old: new for new, old in enumerate(kept)}
        if not isinstance(tokenizer["model"]["vocab"], dict):
            _require_order(token_ids(tokenizer), new_id, self.name)
        out = ctx.cache / "tokenizers" / fingerprint(str(source), tokenizer, kept)
        if not out.is_dir():
            write_tokenizer(source, out, tokenizer, new_id)

        def follow(original: Module) -> Module:
            fused = irlab.run(original, "fuse")
            _keep(fused, kept, self.name)
            fused.metadata["tokenizer"] = str(out)
            return fused

        ids = np.full(rows, -1)
        ids[kept] = np.arange(len(kept))
        ctx.renumber_tokens(module, ids, follow)
        _keep(module, kept, self.name)
        module.metadata["tokenizer"] = str(out)
        for name in ("config", "generation_config"):
            if module.metadata.get(name):
                module.metadata[name] = renumber_config(module.metadata[name], new_id, len(kept))
        ctx.note_rewrites({"prune": rows - len(kept)})

    def _wanted(self, module: Module, size: int) -> list[int]:
        file = Path(self.keep)
        if file.suffix in (".npy", ".json"):
            ids = _ids(file, self.name)
        else:
            from irlab.parity import load_tokenizer

            ids = load_tokenizer(module).encode(read_text(file, _TEXT_BYTES)).ids
        wrong = next((i for i in ids if not 0 <= i < size), None)
        if wrong is not None:
            raise InputError(f"{self.name}: {file} names the token {wrong}, the model knows 0 to {size - 1}")
        return ids


def _keep(module: Module, kept: Sequence[int], owner: str) -> None:
    """Leave out all tokens but `kept`, in place."""
    axes, weights = AxisAnalysis(module.graph), module.weights
    groups = _vocabularies(module, axes, owner)
    names = dict.fromkeys(place.weight for group in groups for place in group.places)
    indices = {group.leaf: np.array(kept, np.intp) for group in groups}
    symbols = {n: WeightSymbol(n, cut(weights[n], axes.of_weight(n), indices)) for n in names}
    resize(module.graph, axes, {leaf: len(kept) for leaf in indices}, symbols)


def _vocabularies(module: Module, axes: AxisAnalysis, owner: str) -> list[Group]:
    """The groups whose indices are token ids: that of the embedding, and that of the output head where it is another.
    Raises InputError where something else needs their size."""
    tables = [op for op in module.graph.find(nn.Embedding) if op.ids.op is None and op.ids.name == "input_ids"]
    table = axes.group_of(axes.of(tables[0].weight)[0]) if tables else None
    if table is None:
        raise InputError(f"{owner}: the graph has no embedding of input_ids")
    logits = module.graph.outputs.get("logits")
    head = axes.group_of(axes.of(logits)[-1]) if logits is not None else None
    groups = [table] if head is None or head is table else [table, head]
    for group in groups:
        for why in group.fixed:
            if why != INDEXED and "'logits'" not in why:
                raise InputError(f"{owner}: {group.name} stays at {group.size}: {why}")
        if group.size != table.size:
            raise InputError(f"{owner}: the embedding knows {table.size} tokens, the output head {group.size}")
    return groups


def _ids(file: Path, owner: str) -> list[int]:
    import json

    try:
        values = np.load(file, allow_pickle=False) if file.suffix == ".npy" else np.array(json.loads(file.read_text()))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror or error}") from None
    except ValueError:
        raise InputError(f"{owner}: {file} is not a list of token ids") from None
    if values.ndim != 1 or values.dtype.kind not in "iu" or not len(values):
        raise InputError(f"{owner}: {file} is not a list of token ids")
    return [int(i) for i in values]


def _require_order(ids: dict[str, int], new_id: dict[int, int], owner: str) -> None:
    """A list of pieces numbers them by place: tokens added beyond it must stay beyond."""
    inside = [new for old, new in new_id.items() if old < len(ids)]
    if inside != list(range(len(inside))):
        raise InputError(f"{owner}: tokens added among the pieces of this tokenizer cannot be renumbered")
