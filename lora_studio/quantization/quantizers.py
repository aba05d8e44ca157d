"""The quantisers: bitsandbytes' LLM.int8 (arXiv 2208.07339) and NF4 (arXiv 2305.14314), and torchao's."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig


def bnb_int8(denoiser: nn.Module, paths: Sequence[str], dtype: torch.dtype) -> None:
    """8 bits a weight, a scale a row; columns of inputs beyond 6 are multiplied in 16 bits."""
    import bitsandbytes

    for path, layer in _layers(denoiser, paths):
        new = bitsandbytes.nn.Linear8bitLt(
            *(layer.in_features, layer.out_features, layer.bias is not None),
            has_fp16_weights=False,
            threshold=6.0,
            device="meta",
        )
        weight = bitsandbytes.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
        _replace(denoiser, path, new, weight)
    denoiser.is_loaded_in_8bit = True  # type: ignore[assignment] # PEFT asks the model, not its layers


def bnb_nf4(denoiser: nn.Module, paths: Sequence[str], dtype: torch.dtype) -> None:
    """4 bits a weight, a scale for 64 of them, and the scales in 8 bits.

    On processors with AVX512-BF16 bitsandbytes would repack the weights before their first use without
    gradients: with rounded scales, and not at all for layers whose width is no multiple of 32. It is kept
    from it.
    """
    import bitsandbytes

    for path, layer in _layers(denoiser, paths):
        new = bitsandbytes.nn.Linear4bit(
            *(layer.in_features, layer.out_features, layer.bias is not None),
            compute_dtype=dtype,
            quant_type="nf4",
            compress_statistics=True,
            device="meta",
        )
        new.support_avx512bf16_for_cpu = False
        weight = bitsandbytes.nn.Params4bit(
            layer.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True, module=new
        )
        _replace(denoiser, path, new, weight)
    denoiser.is_loaded_in_4bit = True  # type: ignore[assignment] # PEFT asks the model, not its layers


def _layers(denoiser: nn.Module, paths: Sequence[str]) -> Iterator[tuple[str, nn.Linear]]:
    for path in paths:
        layer = denoiser.get_submodule(path)
        assert isinstance(layer, nn.Linear)
        yield path, layer


def _replace(denoiser: nn.Module, path: str, new: nn.Module, weight: nn.Parameter) -> None:
    """bitsandbytes quantises a weight when it is moved to a device, also from the CPU to the CPU."""
    old = denoiser.get_submodule(path)
    device = weight.device
    new.weight, new.bias = weight, old.bias
    denoiser.set_submodule(path, new.to(device).requires_grad_(False).eval())


PEFTS_WARNING = "TorchaoLoraLinear was instantiated without"  # it cannot merge; we never have it merge


def torchao_int8(denoiser: nn.Module, paths: Sequence[str], dtype: torch.dtype) -> None:
    from torchao.quantization import Int8WeightOnlyConfig

    _quantize(denoiser, paths, Int8WeightOnlyConfig())


def torchao_float8(denoiser: nn.Module, paths: Sequence[str], dtype: torch.dtype) -> None:
    from torchao.quantization import Float8WeightOnlyConfig

    _quantize(denoiser, paths, Float8WeightOnlyConfig())


def _quantize(denoiser: nn.Module, paths: Sequence[str], how: AOBaseConfig) -> None:
    from torchao.quantization import quantize_

    wanted = set(paths)
    warnings.filterwarnings("ignore", PEFTS_WARNING)
    quantize_(denoiser, how, filter_fn=lambda module, path: path in wanted)


def leave(denoiser: nn.Module, paths: Sequence[str], dtype: torch.dtype) -> None:
    """No layer is touched."""
