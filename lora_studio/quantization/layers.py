"""Which layers are quantised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lora_studio.layer_paths import layer_paths


def leave(denoiser: nn.Module, paths: Sequence[str], dtype: torch.dtype) -> None:
    """No layer is touched."""


def linear_paths(denoiser: nn.Module, endings: Sequence[str]) -> list[str]:
    """Paths of the linear layers that end in one of `endings`, which hold nearly all of a denoiser's weights.

    Embeddings of time and size and the convolutions keep their precision: they are small, or no quantiser
    knows them.
    """
    return layer_paths(denoiser, endings, lambda layer: type(layer) is nn.Linear)
