"""Ways to keep a frozen denoiser's linear layers in fewer bits; adapters stay in float32 beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lora_studio.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import nn

    Quantizer = Callable[[nn.Module, Sequence[str], torch.dtype], None]
    """Replaces or rewrites the linear layers at these paths, which compute in the dtype."""

NONE = "none"
QUANTIZERS: Registry[Quantizer] = Registry(
    "quantization",
    {
        NONE: "lora_studio.quantization.quantizers:leave",
        "bnb_int8": "lora_studio.quantization.quantizers:bnb_int8",
        "bnb_nf4": "lora_studio.quantization.quantizers:bnb_nf4",
        "torchao_int8": "lora_studio.quantization.quantizers:torchao_int8",
        "torchao_float8": "lora_studio.quantization.quantizers:torchao_float8",
    },
)


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
    from torch import nn

    return layer_paths(denoiser, endings, lambda layer: type(layer) is nn.Linear)
