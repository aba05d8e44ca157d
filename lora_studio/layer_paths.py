"""Where a network's layers are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
