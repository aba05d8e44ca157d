"""Which layers a network has, and which of them are quantised."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn


def has_tensors(module: nn.Module) -> bool:
    """Whether something in the module itself, and not in one within it, can be trained."""
    return any(tensor is not None for tensor in module._parameters.values())


def layer_paths(
    network: nn.Module, endings: Sequence[str], is_wanted: Callable[[nn.Module], bool]
) -> list[str]:
    """Paths of the wanted layers that end in one of `endings`, whole names only, in the network's order."""
    return [
        path
        for path, layer in network.named_modules()
        if is_wanted(layer) and any(path == ending or path.endswith(f".{ending}") for ending in endings)
    ]


def linear_paths(denoiser: nn.Module, endings: Sequence[str]) -> list[str]:
    """Paths of the linear layers that end in one of `endings`, which hold nearly all of a denoiser's weights.

    Embeddings of time and size and the convolutions keep their precision: they are small, or no quantiser
    knows them.
    """
    return layer_paths(denoiser, endings, lambda layer: type(layer) is nn.Linear)


def leave(denoiser: nn.Module, paths: Sequence[str], dtype: torch.dtype) -> None:
    """No layer is touched."""
