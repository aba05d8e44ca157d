"""Lion: the sign of a mean of gradients, with half of Adam's state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Lion(torch.optim.Optimizer):
    """arXiv 2302.06675, algorithm 2; the paper advises a third to a tenth of AdamW's learning rate."""

    def __init__(
        self, groups: Sequence[dict[str, Any]], *, weight_decay: float, betas: tuple[float, float]
    ) -> None:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas are {betas}; both must be at least 0 and less than 1")
        super().__init__(list(groups), {"lr": 1e-4, "weight_decay": weight_decay, "betas": betas})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every tensor that has a gradient."""
        for group in self.param_groups:
            parameters: list[Tensor] = [one for one in group["params"] if one.grad is not None]
            if not parameters:
                continue
            gradients: list[Tensor] = [one.grad for one in parameters if one.grad is not None]
            means = [self._mean_of(one) for one in parameters]
            first, second = group["betas"]
            signs = torch._foreach_lerp(means, gradients, 1 - first)
            torch._foreach_sign_(signs)
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, signs, alpha=-group["lr"])
            torch._foreach_lerp_(means, gradients, 1 - second)

    def _mean_of(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["mean"] = torch.zeros_like(parameter)
        mean: Tensor = state["mean"]
        return mean


def lion(
    groups: Sequence[dict[str, Any]], *, weight_decay: float, betas: tuple[float, float] = (0.9, 0.99)
) -> Lion:
    """Over copies of the groups, each with its learning rate."""
    return Lion([dict(group) for group in groups], weight_decay=weight_decay, betas=betas)
