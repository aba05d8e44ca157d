"""The kohya format: `<prefix>_<path with underscores>.lora_down.weight`, `.lora_up.weight`, `.alpha`."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_studio.adapters.base import AdapterSet, Layer
from lora_studio.families.base import ModelFamily


def tensors(family: ModelFamily, adapters: AdapterSet) -> dict[str, Tensor]:
    """UI key -> float32 tensor.

    `alpha` is 0-dimensional and always written: without it readers guess a scale.
    """
    named: dict[str, Tensor] = {}
    for layer in adapters.layers:
        name = family.ui_name(layer.part, layer.path)
        named |= _layer_tensors(name, layer)
    return named


def _layer_tensors(name: str, layer: Layer) -> dict[str, Tensor]:
    rank = layer.down.shape[0]
    return {
        f"{name}.lora_down.weight": layer.down.detach().float().cpu().contiguous(),
        f"{name}.lora_up.weight": layer.up.detach().float().cpu().contiguous(),
        f"{name}.alpha": torch.tensor(layer.scale * rank),
    }
