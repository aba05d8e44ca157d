"""LoRA (arXiv 2106.09685): W' = W + scale * up @ down, with scale = alpha / rank."""

from __future__ import annotations

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
    range_basis,
    uniform,
)


class Lora(AdapterKind):
    """`down` [r, in] or [r, in, k, k], `up` [out, r] or [out, r, 1, 1]; begins with `up` zero.

    One that was started from the weight has what it began with beside it, `down0` and `up0`.
    """

    degree: ClassVar[int] = 2
    has_ranks: ClassVar[bool] = True
    is_product: ClassVar[bool] = True
    faster: ClassVar[frozenset[str]] = frozenset({"up"})
    begins_as_lora: ClassVar[bool] = True
    starts: ClassVar[tuple[str, ...]] = ("default", "pissa")

    def start(self, shape: torch.Size, rank: int, draws: Draws, weight: Tensor | None) -> dict[str, Tensor]:
        """`down` uniform within 1/sqrt(in), as PEFT's kaiming start."""
        up = torch.zeros(shape[0], rank, *(1 for _ in shape[2:]))
        return {"down": uniform((rank, *shape[1:]), draws("down")), "up": up}

    def change(self, tensors: Tensors, scale: float, inputs: ChangeInputs = NO_INPUTS) -> Tensor:
        """scale * up @ down, less what they began with."""
        down, up = _plain(tensors)
        if inputs.kept is not None:
            down = down * inputs.kept.repeat(len(down) // len(inputs.kept))[:, None]
        return scale * (up @ down)

    def factors(self, tensors: Tensors, scale: float) -> Factors:
        down, up = _plain(tensors)
        return Factors(down, up * scale)


def _plain(tensors: Tensors) -> Factors:
    """up @ down - up0 @ down0, as (up - up0) @ down + up0 @ (down - down0), which loses no small change."""
    down, up = tensors["down"].flatten(1), tensors["up"].flatten(1)
    if "up0" not in tensors:
        return Factors(down, up)
    down0, up0 = tensors["down0"].flatten(1), tensors["up0"].flatten(1)
    return Factors(torch.cat([down, down - down0]), torch.cat([up - up0, up0], dim=1))


LORA = Lora()


class Locon(Lora):
    """Of a convolution `down` is one of k x k to r channels, and `up` one of 1 x 1."""

    convolutions: ClassVar[bool] = True


LOCON = Locon()


MORE = 8  # directions than asked for, which makes the others exact
ROUNDS = 8  # of the power iteration


def principal(weight: Tensor, rank: int, scale: float, draw: torch.Generator) -> dict[str, Tensor]:
    """`down` and `up`, whose scaled product is what `weight` is made of mostly, and the same as constants.

    By a randomised range finder, keyed: a whole SVD of every weight of a large base would take an hour.
    """
    flat = weight.flatten(1)
    width = min(rank + MORE, *flat.shape)
    basis = range_basis(flat, width, draw, passes=ROUNDS)
    left, sizes, right = torch.linalg.svd(basis.t() @ flat, full_matrices=False)
    taken = min(rank, width)
    root = (sizes[:taken] / scale).sqrt()
    down, up = torch.zeros(rank, flat.shape[1]), torch.zeros(flat.shape[0], rank)
    down[:taken], up[:, :taken] = root[:, None] * right[:taken], (basis @ left[:, :taken]) * root
    down, up = down.view(rank, *weight.shape[1:]), up.view(*up.shape, *(1 for _ in weight.shape[2:]))
    return {"down": down, "up": up, "down0": down.clone(), "up0": up.clone()}


class Dora(AdapterKind):
    """`down` and `up` as LoRA's, `magnitude` [out], which begins as the norms of the weight's rows."""

    degree: ClassVar[int] = 2
    reads_weight: ClassVar[bool] = True
    has_ranks: ClassVar[bool] = True
    faster: ClassVar[frozenset[str]] = frozenset({"up"})

    def start(self, shape: torch.Size, rank: int, draws: Draws, weight: Tensor | None) -> dict[str, Tensor]:
        """LoRA's, and the norms of the rows as `change` computes them, so that it does nothing."""
        norms = torch.zeros(shape[0]) if weight is None else weight.flatten(1).norm(dim=1)
        return LORA.start(shape, rank, draws, weight) | {"magnitude": norms}

    def change(self, tensors: Tensors, scale: float, inputs: ChangeInputs = NO_INPUTS) -> Tensor:
        """Of V's norms no gradient is taken, as section 4.3 advises; a row of zeros stays as it is."""
        weight = inputs.weight
        assert weight is not None
        update = LORA.change(tensors, scale, inputs)
        norms = (weight + update).detach().norm(dim=1)
        factor = torch.where(norms > 0, tensors["magnitude"] / norms.clamp(min=1e-30), 1.0)[:, None]
        return (factor - 1) * weight + factor * update


DORA = Dora()
