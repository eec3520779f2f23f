"""How far is the student from the teacher? In what it predicts, in what flows between layers, and on the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from irlab.passes.heal.stack import Stack, Tensors

_ROWS = 512
"""Distributions over the vocabulary are compared so many at a time, and computed again for their gradients."""


@dataclass(frozen=True)
class Objective:
    """What is minimised: a weighted sum.

    `logits`: KL(teacher || student) a token, of distributions softened by `temperature` (Hinton et al. 2015, arXiv
    1503.02531); the relative squared error of the outputs where a model predicts no tokens. `hidden`: the relative
    squared error of what flows out of each layer, a mean over the `pairs` of names in student and teacher (as
    TinyBERT, arXiv 1909.10351). `text`: the cross-entropy of the next token.
    """

    logits: float
    hidden: float
    text: float
    temperature: float
    pairs: Sequence[tuple[str, str]]
    outputs: tuple[str, ...]

    def __call__(self, student: Tensors, teacher: Tensors, ids: torch.Tensor | None) -> torch.Tensor:
        parts = []
        if self.logits:
            parts.append(self.logits * self.prediction(student, teacher))
        if self.hidden and self.pairs:
            errors = [relative_error(student[mine], teacher[theirs]) for mine, theirs in self.pairs]
            parts.append(self.hidden * torch.stack(errors).mean())
        if self.text and ids is not None:
            logits = student["logits"][:, :-1]
            wanted = ids[:, 1:].reshape(-1).to(logits.device).long()
            parts.append(self.text * functional.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), wanted))
        return torch.stack(parts).sum()

    def prediction(self, student: Tensors, teacher: Tensors) -> torch.Tensor:
        """The distance of the outputs alone."""
        if self.outputs == ("logits",):
            return divergence(student["logits"], teacher["logits"], self.temperature)
        return torch.stack([relative_error(student[name], teacher[name]) for name in self.outputs]).mean()


def divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """The mean of KL(teacher || student) over all positions of logits [..., vocab], times temperature squared, which
    keeps gradients of one size."""
    rows, other = student.reshape(-1, student.shape[-1]), teacher.reshape(-1, teacher.shape[-1])

    def part(q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        log_q, log_p = (torch.log_softmax(x.float() / temperature, -1) for x in (q, p))
        return (log_p.exp() * (log_p - log_q)).sum()

    sums = [
        checkpoint(part, rows[i : i + _ROWS], other[i : i + _ROWS], use_reentrant=False)
        for i in range(0, len(rows), _ROWS)
    ]
    return torch.stack(sums).sum() * (temperature**2 / len(rows))


def relative_error(mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """The squared error of `mine`, relative to the squares of `theirs`."""
    theirs = theirs.float()
    return (mine.float() - theirs).square().sum() / theirs.square().sum().clamp_min(1e-12)


def matching(student: Stack, teacher: Stack) -> list[tuple[str, str]]:
    """What flows out of layers of the same name, where student and teacher have the same values of the same shape."""
    theirs = teacher.hidden
    pairs = []
    for layer, gives in student.hidden.items():
        other = theirs.get(layer, {})
        if len(gives) == len(other):
            pairs += [
                (mine, its)
                for (mine, a), (its, b) in zip(gives.items(), other.items())
                if a.type.shape[-1:] == b.type.shape[-1:] and a.type.rank == b.type.rank
            ]
    return pairs
