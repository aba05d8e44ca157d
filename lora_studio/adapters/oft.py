"""OFT (arXiv 2306.07280): W' = W @ R, with R orthogonal, in blocks, by Cayley's formula from `skew`."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lora_studio.adapters.kind import NO_INPUTS, AdapterKind, ChangeInputs, Draws, Tensors, flat_size


class Oft(AdapterKind):
    """`skew` [blocks, size * (size - 1) / 2]: what stands above each block's diagonal.

    Its rank is the size of a block of inputs that are turned together.
    """

    degree: ClassVar[int] = 1
    reads_weight: ClassVar[bool] = True

    def start(self, shape: torch.Size, rank: int, draws: Draws, weight: Tensor | None) -> dict[str, Tensor]:
        """Zero: nothing is turned."""
        inputs = flat_size(shape)
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
        turn = 2 * torch.linalg.solve(torch.eye(size, device=weight.device) - skew, skew)
        return torch.einsum("obi,bij->obj", weight.view(len(weight), blocks, size), turn).flatten(1)


def block_size(inputs: int, wanted: int) -> int:
    """The largest divisor of `inputs` up to `wanted`, but at least 2, since one input cannot be turned.

    >>> block_size(320, 16), block_size(5, 4)
    (16, 5)
    """
    fitting = [size for size in range(2, inputs + 1) if inputs % size == 0] or [1]
    return max((size for size in fitting if size <= wanted), default=fitting[0])


OFT = Oft()
