"""A model of one layer of every type that adapters meet."""

from __future__ import annotations

import torch
from torch import nn


class Small(nn.Module):
    """A linear layer, a 1x1 and a 3x3 convolution in a row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.narrow, self.wide = (
            nn.Linear(8, 8),
            nn.Conv2d(8, 6, 1),
            nn.Conv2d(6, 5, 3, padding=1),
        )
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, 8] -> [B, 5, 4, 4]."""
        image = self.linear(x)[:, :, None, None].expand(-1, -1, 4, 4)
        return self.wide(torch.tanh(self.narrow(image)))


INPUT = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
TARGETS = {"small": ("linear", "narrow", "wide")}
