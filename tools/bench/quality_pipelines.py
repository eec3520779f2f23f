"""Whole pipelines against each other: what a pass before or after quantize buys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from quality_rows import Row
from quality_subjects import Subject

from irlab.passmgr import stored_bytes


def pipeline_rows(subject: Subject, pipelines: Sequence[str]) -> Iterator[Row]:
    """Each pipeline beside the first one, which is the peer of the others; bytes are of weights as stored."""
    first, *others = pipelines
    peer, _ = subject.run(first)
    lost, size = subject.loss(peer), stored_bytes(peer)
    for pipeline in others:
        new, seconds = subject.run(pipeline)
        name = f"{subject.name} {pipeline}"
        yield Row(name, subject.metric, subject.loss(new), first, lost, stored_bytes(new), size, seconds)
