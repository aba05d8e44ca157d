"""torchao: weights in int8 or float8, each row with a scale; the computation keeps the base's precision."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import nn

PEFTS_WARNING = "TorchaoLoraLinear was instantiated without"  # it cannot merge; we never have it merge


def int8(denoiser: nn.Module, paths: Sequence[str], dtype: torch.dtype) -> None:
    """8-bit integers."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    wanted = set(paths)
    warnings.filterwarnings("ignore", PEFTS_WARNING)
    quantize_(denoiser, Int8WeightOnlyConfig(), filter_fn=lambda module, path: path in wanted)


def float8(denoiser: nn.Module, paths: Sequence[str], dtype: torch.dtype) -> None:
    """8-bit floats, e4m3."""
    from torchao.quantization import Float8WeightOnlyConfig, quantize_

    wanted = set(paths)
    warnings.filterwarnings("ignore", PEFTS_WARNING)
    quantize_(denoiser, Float8WeightOnlyConfig(), filter_fn=lambda module, path: path in wanted)
