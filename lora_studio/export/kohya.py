"""The kohya format: `<prefix>_<path with underscores>.lora_down.weight`, `.lora_up.weight`, `.alpha`."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_studio.adapters.base import AdapterSet
from lora_studio.adapters.layer import Layer, shape_of
from lora_studio.export.plain import as_factors
from lora_studio.families.base import ModelFamily


def tensors(family: ModelFamily, adapters: AdapterSet) -> dict[str, Tensor]:
    """UI key -> float32 tensor, plain LoRA whatever the kind; layers that UIs look for are added, as zero.

    `alpha` is 0-dimensional and always written: without it readers guess a scale.
    """
    named: dict[str, Tensor] = {}
    for layer in adapters.layers:
        named |= _layer_tensors(family.ui_name(layer.part, layer.path), layer)
    for part, path in family.companions([(layer.part, layer.path) for layer in adapters.layers]):
        shape = shape_of(family.layer(part, path))
        down, up = torch.zeros(1, *shape[1:]), torch.zeros(shape[0], 1, *(1 for _ in shape[2:]))
        named |= _named(family.ui_name(part, path), down, up, 1.0)
    return named


def _layer_tensors(name: str, layer: Layer) -> dict[str, Tensor]:
    down: Tensor
    up: Tensor
    if layer.tensors.keys() == {"down", "up"} and not layer.constants:
        down, up, scale = layer.tensors["down"], layer.tensors["up"], layer.scale
    else:
        shape, (down, up), scale = shape_of(layer.module.get_base_layer()), as_factors(layer), 1.0
        down, up = down.view(-1, *shape[1:]), up.view(*up.shape, *(1 for _ in shape[2:]))
    return _named(name, down, up, scale * len(down))


def _named(name: str, down: Tensor, up: Tensor, alpha: float) -> dict[str, Tensor]:
    return {
        f"{name}.lora_down.weight": down.detach().float().cpu().contiguous(),
        f"{name}.lora_up.weight": up.detach().float().cpu().contiguous(),
        f"{name}.alpha": torch.tensor(alpha),
    }
