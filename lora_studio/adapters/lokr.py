"""LoKr (arXiv 2309.14859): W' = W + scale * kron(w1, w2), with w2 of low rank where that is smaller."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from lora_studio.adapters.kind import NO_INPUTS, AdapterKind, ChangeInputs, Draws, Tensors, uniform


class Lokr(AdapterKind):
    """`w1` [a, c] and `w2` [b, d, k, k] or, of rank r, `w2_a` [b, r] and `w2_b` [r, d * k * k].

    With out = a * b and in = c * d, each as near to a square as it can be divided.
    """

    degree: ClassVar[int] = 2
    is_product: ClassVar[bool] = True
    faster: ClassVar[frozenset[str]] = frozenset({"w2", "w2_b"})

    def start(self, shape: torch.Size, rank: int, draws: Draws, weight: Tensor | None) -> dict[str, Tensor]:
        """As LyCORIS: uniform, and `w2` or `w2_b` zero."""
        (a, b), (c, d) = near_square(shape[0]), near_square(shape[1])
        first = {"w1": uniform((a, c), draws("w1"))}
        if rank >= max(b, d) / 2:
            return first | {"w2": torch.zeros(b, d, *shape[2:])}
        second = torch.zeros(rank, d * math.prod(shape[2:]))
        return first | {"w2_a": uniform((b, rank), draws("w2_a")), "w2_b": second}

    def change(self, tensors: Tensors, scale: float, inputs: ChangeInputs = NO_INPUTS) -> Tensor:
        w2 = tensors["w2"].flatten(1) if "w2" in tensors else tensors["w2_a"] @ tensors["w2_b"]
        return scale * torch.kron(tensors["w1"], w2)  # w2's columns are d * k * k, so the kernel stays whole


def near_square(size: int) -> tuple[int, int]:
    """Its two divisors that are nearest to each other, the smaller one first, as LyCORIS takes them.

    >>> near_square(320), near_square(7)
    ((16, 20), (1, 7))
    """
    smaller = next(one for one in range(math.isqrt(size), 0, -1) if size % one == 0)
    return smaller, size // smaller


LOKR = Lokr()
