"""A layer's change of weight as plain LoRA, which is what loads everywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.adapters.kind import Factors
from lora_studio.adapters.layer import Layer, shape_of
from lora_studio.lora_file.factors import Decomposition, RankLimit, balanced
from lora_studio.lora_file.write import DTYPES

CUT = 5e-4  # of the change's norm: as much as float16, which files have, rounds away of each factor


class PlainLora(NamedTuple):
    """A layer's change of weight, scale * up @ down."""

    down: Tensor  # [r, in] or [r, in, k, k]
    up: Tensor  # [out, r] or [out, r, 1, 1]
    scale: float
    left_out: float = 0.0  # share of the change's norm that it lacks


def as_plain(layer: Layer) -> PlainLora:
    """A trained layer's, exact where that takes no more ranks than its weight has itself."""
    if layer.tensors.keys() == {"down", "up"} and not layer.constants:
        return PlainLora(layer.tensors["down"], layer.tensors["up"], layer.scale)
    exact, shape = layer.factors(), shape_of(layer.module.get_base_layer())
    return cut_plain(layer.delta(), shape) if exact is None else _shaped(balanced(exact), shape)


def cut_plain(change: Tensor, shape: Sequence[int]) -> PlainLora:
    """Of a change of a weight of this shape, of as few ranks as leave out at most `CUT` of it.

    By a singular value decomposition. Both factors are of one size in every rank, so that neither leaves
    float16's range.
    """
    found = Decomposition(*torch.linalg.svd(change.flatten(1), full_matrices=False))
    factors, lost = found.cut(RankLimit(energy=1 - CUT**2))
    return _shaped(factors, shape, math.sqrt(lost / found.energy) if lost else 0.0)


def _shaped(factors: Factors, shape: Sequence[int], left_out: float = 0.0) -> PlainLora:
    """With the sides of a weight that is [out, in] or [out, in, k, k]."""
    down, up = factors
    return PlainLora(down.view(-1, *shape[1:]), up.view(*up.shape, *(1 for _ in shape[2:])), 1.0, left_out)


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
