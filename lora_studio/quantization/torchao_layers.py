"""torchao: weights in int8 or float8, each row with a scale; the computation keeps the base's precision."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig

PEFTS_WARNING = "TorchaoLoraLinear was instantiated without"  # it cannot merge; we never have it merge


def int8(denoiser: nn.Module, paths: Sequence[str], dtype: torch.dtype) -> None:
    """8-bit integers."""
    from torchao.quantization import Int8WeightOnlyConfig

    _quantize(denoiser, paths, Int8WeightOnlyConfig())


def float8(denoiser: nn.Module, paths: Sequence[str], dtype: torch.dtype) -> None:
    """8-bit floats, e4m3."""
    from torchao.quantization import Float8WeightOnlyConfig

    _quantize(denoiser, paths, Float8WeightOnlyConfig())


def _quantize(denoiser: nn.Module, paths: Sequence[str], how: AOBaseConfig) -> None:
    from torchao.quantization import quantize_

    wanted = set(paths)
    warnings.filterwarnings("ignore", PEFTS_WARNING)
    quantize_(denoiser, how, filter_fn=lambda module, path: path in wanted)
