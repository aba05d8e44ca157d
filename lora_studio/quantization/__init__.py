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
        NONE: "lora_studio.quantization.layers:leave",
        "bnb_int8": "lora_studio.quantization.quantizers:bnb_int8",
        "bnb_nf4": "lora_studio.quantization.quantizers:bnb_nf4",
        "torchao_int8": "lora_studio.quantization.quantizers:torchao_int8",
        "torchao_float8": "lora_studio.quantization.quantizers:torchao_float8",
    },
)
