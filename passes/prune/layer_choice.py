"""How much is a layer missed? By what it changes of the stream, or by the loss without it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from irlab.activations import Activations
from irlab.calibration import Batch
from irlab.extract import extract
from irlab.ir import Graph
from irlab.passes.prune.streams import Stream, drop, streams
from irlab.passmgr import Context
from irlab.quality import Tally
from irlab.walk import Walk

LOSS_TOKENS = 2048
"""The loss without a layer is measured on so many tokens of the calibration data."""


def stream_values(walk: Walk) -> Iterator[None]:
    """Run all layers, and keep what each hands on; a step for each batch and layer."""
    for layer in walk.layers:
        if layer.gives or layer.outputs:
            # Hidden states that are outputs too are the ends of streams; logits are not kept.
            ends = {n: v for n, v in layer.outputs.items() if n != "logits"}
            for batch, results in enumerate(walk.outputs(layer, layer.graph({**layer.gives, **ends}))):
                for name, tensor in results.items():
                    walk.store.put(name, batch, tensor)
                yield


def influences(walk: Walk, found: Sequence[Stream]) -> dict[int, float]:
    """Block influence of each layer, 1 - E[cos(h, h')] of the stream before and after it (Men et al. 2024, ShortGPT).

    Both are read off the graph: the last one is before the final norm, unlike the last of transformers' hidden states.
    """
    scores = {}
    for stream in found:
        before, after = names(stream)
        total, count = 0.0, 0
        for batch in range(walk.batches):
            a, b = (walk.store.get(name, batch).float() for name in (before, after))
            cosines = torch.cosine_similarity(a, b, dim=-1)
            total, count = total + float(cosines.double().sum()), count + cosines.numel()
        scores[stream.number] = 1 - total / count
    return scores


def names(stream: Stream) -> tuple[str, str]:
    """The names of the values before and after a layer in the store of a walk."""
    before = next(name for name, value in stream.layer.reads.items() if value is stream.given)
    ends = {**stream.layer.outputs, **stream.layer.gives}
    return before, next(name for name, value in ends.items() if value is stream.made)


def least_influence(graph: Graph, batches: Sequence[Batch], count: int, ctx: Context) -> list[int]:
    """The `count` layers with the least influence, by number."""
    with Activations() as store:
        walk = Walk(graph, batches, ctx.device, store)
        total = walk.batches * len(walk.layers)
        for _ in ctx.progress.track(stream_values(walk), "running layers", total):
            pass
        scores = influences(walk, streams(graph))
    return sorted(sorted(scores, key=scores.__getitem__)[:count])


def least_loss(graph: Graph, batches: Sequence[Batch], count: int, ctx: Context) -> list[int]:
    """`count` layers, one after the other: each time the one without which the loss is least. Half of the layers, those
    with the least influence, are tried."""
    graph = graph.clone()
    some = _some(batches)
    chosen: list[int] = []
    for round_ in range(count):
        found = streams(graph)
        with Activations() as store:
            walk = Walk(graph, some, ctx.device, store)
            for _ in stream_values(walk):
                pass
            scores = influences(walk, found)
            tried = sorted(found, key=lambda s: scores[s.number])[: max(1, (len(found) + 1) // 2)]
            label = f"leaving out layers, {round_ + 1} of {count}"
            losses = {s.number: _loss_without(walk, s, some) for s in ctx.progress.track(tried, label, len(tried))}
        best = min(losses, key=losses.__getitem__)
        chosen.append(best)
        drop(graph, [s for s in found if s.number == best])
    return sorted(chosen)


def _some(batches: Sequence[Batch]) -> list[Batch]:
    found, tokens = [], 0
    for batch in batches:
        if tokens < LOSS_TOKENS:
            found.append(batch)
            tokens += int(np.size(batch["input_ids"]))
    return found


def _loss_without(walk: Walk, stream: Stream, batches: Sequence[Batch]) -> float:
    """The mean loss of the next token when `stream` is skipped: what comes after it runs on what it was given."""
    later = walk.layers[stream.layer.index + 1 :]
    made_later = {name for layer in later for name in layer.gives}
    reads = {v: n for layer in later for n, v in layer.reads.items() if n not in made_later}
    piece = extract({"logits": walk.graph.outputs["logits"]}, reads)
    program = walk.program(piece)
    before, after = names(stream)
    tally = Tally()
    with torch.no_grad():
        for batch, given in enumerate(batches):
            inputs: Mapping[str, torch.Tensor] = {
                name: walk.store.get(before if name == after else name, batch).to(walk.device)
                for name in reads.values()
            }
            logits = program(inputs, walk.sizes(batch))["logits"]
            tally.add(logits, torch.as_tensor(given["input_ids"]))
    return tally.loss / max(1, tally.predicted)
