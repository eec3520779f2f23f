"""A small convolutional network: batch norms, one convolution for each channel, a residual and a head."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Convolutional(nn.Module):
    """Images f32[batch, 3, 8, 8] to five numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.second, self.third = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.head = nn.Linear(12 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.depthwise(functional.relu(self.norm(self.first(x)))))
        y = functional.relu(self.second(functional.max_pool2d(x, 2)))
        y = functional.avg_pool2d(y + functional.relu(self.third(y)), 2)
        logits: torch.Tensor = self.head(y.flatten(1))
        return logits


def convolutional() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """The network with random weights, and an input, as the torch frontend takes them."""
    torch.manual_seed(0)
    return Convolutional().eval(), (torch.randn(2, 3, 8, 8),)
