"""Any layer's change of weight as plain LoRA, which is what loads everywhere."""

from __future__ import annotations

import math

import torch

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.adapters.kind import Factors
from lora_studio.adapters.layer import Layer, shape_of
from lora_studio.export.write import DTYPES

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


def as_factors(layer: Layer) -> Factors:
    """Its factors, or those of a singular value decomposition, of as few ranks as leave out at most `CUT`.

    Both factors are of one size in every rank, so that neither leaves float16's range.
    """
    exact = layer.factors()
    if exact is not None:
        return _balanced(exact)
    left, sizes, right = torch.linalg.svd(layer.delta().flatten(1), full_matrices=False)
    energy = sizes.double().square()
    tail = energy.flip(0).cumsum(0).flip(0)  # of the ranks from each one on
    rank = max(1, int((tail > CUT**2 * tail[0]).sum()))
    root = sizes[:rank].sqrt()
    return Factors(root[:, None] * right[:rank], left[:, :rank] * root)


def _balanced(factors: Factors) -> Factors:
    down, up = factors
    across, along = down.norm(dim=1), up.norm(dim=0)
    share = torch.where((across > 0) & (along > 0), (along / across).sqrt(), 1.0).nan_to_num(nan=1.0)
    return Factors(down * share[:, None], up / share)
