"""How far an answer is off, number by number: what the objective's weights multiply."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Loss = Literal["l2", "huber", "smooth_l1"]
ElementLoss = Callable[["Tensor", "Tensor", float], "Tensor"]
"""Answer and target [B, C, H, W], and delta -> errors [B, C, H, W]."""


def l2(answer: Tensor, target: Tensor, delta: float) -> Tensor:
    """e², with e the difference; `delta` is of no use to it."""
    import torch.nn.functional as F

    return F.mse_loss(answer, target, reduction="none")


def huber(answer: Tensor, target: Tensor, delta: float) -> Tensor:
    """e² up to |e| = delta, from there on 2 delta |e| - delta²: twice Huber's of 1964, so l2 near 0."""
    import torch.nn.functional as F

    return 2 * F.huber_loss(answer, target, reduction="none", delta=delta)


def smooth_l1(answer: Tensor, target: Tensor, delta: float) -> Tensor:
    """e² / (2 delta) up to |e| = delta, from there on |e| - delta / 2: arXiv 1504.08083, eq. 3, as published.

    It is huber's divided by 2 delta: with a small delta the error counts by its size, not by its square.
    """
    import torch.nn.functional as F

    return F.smooth_l1_loss(answer, target, reduction="none", beta=delta)


LOSSES: dict[Loss, ElementLoss] = {"l2": l2, "huber": huber, "smooth_l1": smooth_l1}
