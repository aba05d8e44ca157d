"""Which layers a network has, and ways to keep a frozen denoiser's linear ones in fewer bits.

Adapters stay in float32 beside them. By bitsandbytes: LLM.int8 (arXiv 2208.07339) and NF4 (arXiv 2305.14314).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lora_studio.registry import Registry

if TYPE_CHECKING:
    from torchao.core.config import AOBaseConfig

Quantizer = Callable[[nn.Module, Sequence[str], torch.dtype], None]
"""Replaces or rewrites the linear layers at these paths, which compute in the dtype."""
NONE = "none"
_LESS = ("bnb_int8", "bnb_nf4", "torchao_int8", "torchao_float8")  # functions of these names
_TABLE = {NONE: f"{__name__}:leave"} | {name: f"{__name__}:{name}" for name in _LESS}
QUANTIZERS: Registry[Quantizer] = Registry("quantization", _TABLE)
PEFTS_WARNING = "TorchaoLoraLinear was instantiated without"  # it cannot merge; we never have it merge


def has_tensors(module: nn.Module) -> bool:
    """Whether something in the module itself, and not in one within it, can be trained."""
    return any(tensor is not None for tensor in module._parameters.values())


def insides(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that a quantised one is made of; else itself."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from insides(getattr(tensor, name))


def layer_paths(network: nn.Module, endings: Sequence[str], wanted: Callable[[nn.Module], bool]) -> list[str]:
    """Paths of the wanted layers that end in one of `endings`, whole names only, in the network's order."""
    paths = (path for path, layer in network.named_modules() if wanted(layer))
    return [path for path in paths if any(f".{path}".endswith(f".{ending}") for ending in endings)]


def linear_paths(denoiser: nn.Module, endings: Sequence[str]) -> list[str]:
    """Paths of the linear layers that end in one of `endings`, which hold nearly all of a denoiser's weights.

    Embeddings of time and size and the convolutions keep their precision: they are small, or no quantiser
    knows them.
    """
    return layer_paths(denoiser, endings, lambda layer: type(layer) is nn.Linear)


def leave(denoiser: nn.Module, paths: Sequence[str], dtype: torch.dtype) -> None:
    """No layer is touched."""


def bnb_int8(denoiser: nn.Module, paths: Sequence[str], dtype: torch.dtype) -> None:
    """8 bits a weight, a scale a row; columns of inputs beyond 6 are multiplied in 16 bits."""
    import bitsandbytes

    from lora_studio.quantization.int8_linear import MovableLinear8bit

    for path, layer in _layers(denoiser, paths):
        shape = layer.in_features, layer.out_features, layer.bias is not None
        new = MovableLinear8bit(*shape, has_fp16_weights=False, threshold=6.0, device="meta")
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

    from lora_studio.quantization.nf4_linear import OneRowLinear4bit

    how = {"quant_type": "nf4", "compress_statistics": True}
    for path, layer in _layers(denoiser, paths):
        shape = layer.in_features, layer.out_features, layer.bias is not None
        new = OneRowLinear4bit(*shape, compute_dtype=dtype, device="meta", **how)
        new.support_avx512bf16_for_cpu = False
        weight = bitsandbytes.nn.Params4bit(layer.weight.data, requires_grad=False, module=new, **how)
        _replace(denoiser, path, new, weight)
    denoiser.is_loaded_in_4bit = True  # type: ignore[assignment] # PEFT asks the model, not its layers


def _layers(denoiser: nn.Module, paths: Sequence[str]) -> Iterator[tuple[str, nn.Linear]]:
    for path in paths:
        layer = denoiser.get_submodule(path)
        assert isinstance(layer, nn.Linear)
        yield path, layer


def _replace(denoiser: nn.Module, path: str, new: nn.Module, weight: nn.Parameter) -> None:
    """bitsandbytes quantises a weight when it is moved to a device, also from the CPU to the CPU."""
    device = weight.device
    new.weight, new.bias = weight, denoiser.get_submodule(path).bias
    denoiser.set_submodule(path, new.to(device).requires_grad_(False).eval())


def torchao_int8(denoiser: nn.Module, paths: Sequence[str], dtype: torch.dtype) -> None:
    from torchao.quantization import Int8WeightOnlyConfig

    _quantize(denoiser, paths, Int8WeightOnlyConfig())


def torchao_float8(denoiser: nn.Module, paths: Sequence[str], dtype: torch.dtype) -> None:
    """In e4m3."""
    from torchao.quantization import Float8WeightOnlyConfig

    _quantize(denoiser, paths, Float8WeightOnlyConfig())


def _quantize(denoiser: nn.Module, paths: Sequence[str], how: AOBaseConfig) -> None:
    from torchao.quantization import quantize_

    wanted = set(paths)
    warnings.filterwarnings("ignore", PEFTS_WARNING)
    quantize_(denoiser, how, filter_fn=lambda module, path: path in wanted)
