"""Random LoRA files for the tests of the tools on finished files, and their dense changes by the formula."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

SHAPES = {  # a layer of every type that LoRA files have
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k": (24, 40),
    "lora_unet_mid_block_attentions_0_proj_in": (32, 24, 1, 1),
    "lora_unet_mid_block_resnets_0_conv1": (20, 12, 3, 3),
}


def write_random_lora(
    path: Path,
    *,
    rank: int = 4,
    alpha: float | None = 2.0,
    dtype: torch.dtype = torch.float32,
    shapes: Mapping[str, Sequence[int]] = SHAPES,
    seed: int = 0,
    metadata: dict[str, str] | None = None,
) -> Path:
    """A LoRA file in the kohya format; no alpha if it is None."""
    draw = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, (out, *rest) in shapes.items():
        down = torch.randn(rank, *rest, generator=draw) * 0.1
        up = torch.randn(out, rank, *(1 for _ in rest[1:]), generator=draw) * 0.1
        tensors |= {f"{name}.lora_down.weight": down.to(dtype), f"{name}.lora_up.weight": up.to(dtype)}
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha).to(dtype)
    save_file(tensors, path, metadata=metadata)
    return path


def dense(path: Path) -> dict[str, Tensor]:
    """Layer -> its change in float64: alpha / rank times `up` applied to every place of `down`'s kernel."""
    tensors = load_file(path)
    found = {}
    for key in tensors:
        name, found_down, _ = key.partition(".lora_down.weight")
        if not found_down:
            continue
        down, up = tensors[key].double(), tensors[f"{name}.lora_up.weight"].double()
        alpha = tensors.get(f"{name}.alpha", torch.tensor(float(len(down)))).double()
        product = torch.einsum("or,ri...->oi...", up.flatten(1), down)
        found[name] = alpha / len(down) * product
    return found


def relative(one: Tensor, other: Tensor) -> float:
    """The distance of two tensors, relative to the second's norm."""
    return ((one - other).norm() / other.norm()).item()
