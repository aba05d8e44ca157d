"""The kinds of LyCORIS (arXiv 2309.14859): LoHa, LoKr and OFT."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from lora_studio.adapters.layer import (
    NO_INPUTS,
    AdapterKind,
    ChangeInputs,
    Draws,
    Factors,
    Tensors,
    normal,
    uniform,
)


class Loha(AdapterKind):
    """arXiv 2108.06098: W' = W + scale * (w1_a @ w1_b) * (w2_a @ w2_b), entry by entry.

    `w1_a` and `w2_a` are [out, r], `w1_b` and `w2_b` [r, in * k * k]; together of rank r * r.
    """

    degree: ClassVar[int] = 4
    is_product: ClassVar[bool] = True
    faster: ClassVar[frozenset[str]] = frozenset({"w2_a"})

    def start(self, shape: torch.Size, rank: int, draws: Draws, weight: Tensor | None) -> dict[str, Tensor]:
        """As LyCORIS: normal, and `w2_a` zero."""
        across = (rank, shape[1:].numel())
        return {
            "w1_a": normal((shape[0], rank), draws("w1_a"), std=0.1),
            "w1_b": normal(across, draws("w1_b"), std=1.0),
            "w2_a": torch.zeros(shape[0], rank),
            "w2_b": normal(across, draws("w2_b"), std=1.0),
        }

    def change(self, tensors: Tensors, scale: float, inputs: ChangeInputs = NO_INPUTS) -> Tensor:
        return scale * (tensors["w1_a"] @ tensors["w1_b"]) * (tensors["w2_a"] @ tensors["w2_b"])

    def factors(self, tensors: Tensors, scale: float) -> Factors | None:
        """Every product of two ranks is a rank; None where those are more than the weight has itself."""
        up = torch.einsum("or,os->ors", tensors["w1_a"], tensors["w2_a"]).flatten(1)
        down = torch.einsum("ri,si->rsi", tensors["w1_b"], tensors["w2_b"]).flatten(0, 1)
        return Factors(down, up * scale) if len(down) <= min(len(up), down.shape[1]) else None


LOHA = Loha()


class Lokr(AdapterKind):
    """W' = W + scale * kron(w1, w2), with w2 of low rank where that is smaller.

    `w1` is [a, c] and `w2` [b, d, k, k] or, of rank r, `w2_a` [b, r] and `w2_b` [r, d * k * k], with
    out = a * b and in = c * d, each as near to a square as it can be divided.
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


class Oft(AdapterKind):
    """arXiv 2306.07280: W' = W @ R, with R orthogonal, in blocks, by Cayley's formula from `skew`.

    `skew` [blocks, size * (size - 1) / 2] is what stands above each block's diagonal; the rank is the
    size of a block of inputs that are turned together.
    """

    degree: ClassVar[int] = 1
    reads_weight: ClassVar[bool] = True

    def start(self, shape: torch.Size, rank: int, draws: Draws, weight: Tensor | None) -> dict[str, Tensor]:
        """Zero: nothing is turned."""
        inputs = shape[1:].numel()
        size = block_size(inputs, rank)
        return {"skew": torch.zeros(inputs // size, size * (size - 1) // 2)}

    def change(self, tensors: Tensors, scale: float, inputs: ChangeInputs = NO_INPUTS) -> Tensor:
        """W @ (R - 1): of R = (1 - Q)^-1 (1 + Q) that is 2 (1 - Q)^-1 Q, which loses no small turn."""
        weight = inputs.weight
        assert weight is not None
        blocks, size = len(tensors["skew"]), weight.shape[1] // len(tensors["skew"])
        row, column = torch.triu_indices(size, size, 1, device=weight.device)
        upper = weight.new_zeros(blocks, size, size).index_put(
            (torch.arange(blocks, device=weight.device)[:, None], row[None], column[None]),
            scale * tensors["skew"],
        )
        skew = upper - upper.transpose(1, 2)
        # never singular, so the host need not wait to hear that
        turn = 2 * torch.linalg.solve_ex(torch.eye(size, device=weight.device) - skew, skew).result
        return torch.einsum("obi,bij->obj", weight.view(len(weight), blocks, size), turn).flatten(1)


def block_size(inputs: int, wanted: int) -> int:
    """The largest divisor of `inputs` up to `wanted`, but at least 2, since one input cannot be turned.

    >>> block_size(320, 16), block_size(5, 4)
    (16, 5)
    """
    fitting = [size for size in range(2, inputs + 1) if inputs % size == 0] or [1]
    return max((size for size in fitting if size <= wanted), default=fitting[0])


OFT = Oft()
