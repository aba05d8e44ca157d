"""Any layer's change of weight as plain LoRA, which is what loads everywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.adapters.kind import Factors
from lora_studio.adapters.layer import Layer, shape_of
from lora_studio.lora_file.write import DTYPES

CUT = 5e-4  # of the change's norm: as much as float16, which files have, rounds away of each factor


def most_numbers(layer: Layer) -> int:
    """That its change can have as plain LoRA in a file."""
    shape = shape_of(layer.module.get_base_layer())
    out, inputs = shape[0], math.prod(shape[1:])
    exact = layer.factors()
    return (out + inputs) * (min(out, inputs) if exact is None else len(exact.down))


def most_bytes(adapters: AdapterSet, dtype: str) -> int:
    """That the tensors of their files can take at most."""
    numbers = sum(most_numbers(layer) for layer in adapters.layers)
    return (numbers + sum(token.rows.numel() for token in adapters.tokens)) * DTYPES[dtype].itemsize


class Plain(NamedTuple):
    """A layer's change of weight as plain LoRA, scale * up @ down."""

    down: Tensor  # [r, in] or [r, in, k, k]
    up: Tensor  # [out, r] or [out, r, 1, 1]
    scale: float
    left_out: float = 0.0  # share of the change's norm that it lacks


class PlainFactors(NamedTuple):
    """A change of weight as factors that may lack a little of it."""

    factors: Factors
    left_out: float  # share of the change's norm


def as_plain(layer: Layer) -> Plain:
    """A trained layer's, exact where that takes no more ranks than its weight has itself."""
    if layer.tensors.keys() == {"down", "up"} and not layer.constants:
        return Plain(layer.tensors["down"], layer.tensors["up"], layer.scale)
    exact = layer.factors()
    cut = PlainFactors(_balanced(exact), 0.0) if exact is not None else factorise(layer.delta().flatten(1))
    return shaped(cut, shape_of(layer.module.get_base_layer()))


def shaped(cut: PlainFactors, shape: Sequence[int]) -> Plain:
    """With the sides of a weight that is [out, in] or [out, in, k, k]."""
    (down, up), left_out = cut
    return Plain(down.view(-1, *shape[1:]), up.view(*up.shape, *(1 for _ in shape[2:])), 1.0, left_out)


def factorise(change: Tensor) -> PlainFactors:
    """[out, in] by a singular value decomposition, of as few ranks as leave out at most `CUT`.

    Both factors are of one size in every rank, so that neither leaves float16's range.
    """
    left, sizes, right = torch.linalg.svd(change, full_matrices=False)
    energy = sizes.double().square()
    tail = energy.flip(0).cumsum(0).flip(0)  # of the ranks from each one on
    rank = max(1, int((tail > CUT**2 * tail[0]).sum()))
    root = sizes[:rank].sqrt()
    left_out = (tail[rank] / tail[0]).sqrt().item() if rank < len(tail) and tail[0] > 0 else 0.0
    return PlainFactors(Factors(root[:, None] * right[:rank], left[:, :rank] * root), left_out)


def _balanced(factors: Factors) -> Factors:
    down, up = factors
    across, along = down.norm(dim=1), up.norm(dim=0)
    share = torch.where((across > 0) & (along > 0), (along / across).sqrt(), 1.0).nan_to_num(nan=1.0)
    return Factors(down * share[:, None], up / share)
