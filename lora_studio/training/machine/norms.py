"""Norms in the precision of a pass, where autocast would have them in float32.

CUDA's autocast casts what a norm is given, of which the backward pass keeps the copy, and whatever comes
behind it is given float32: an activation keeps that, and each layer casts it back. CUDA's kernels for
bfloat16 and float16 compute in float32 and round the result (ATen/native/cuda/group_norm_kernel.cu and
layer_norm_kernel.cu), which is what the CPU's autocast does, and diffusers when it draws.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn


def keep_narrow(part: nn.Module, dtype: torch.dtype) -> None:
    """Have its frozen norms in this dtype computed in it; trained ones stay as they are."""
    for module in part.modules():
        if not isinstance(module, nn.GroupNorm | nn.LayerNorm) or "forward" in vars(module):
            continue
        if all(one.dtype == dtype and not one.requires_grad for one in module.parameters()):
            module.forward = partial(_without_autocast, module.forward, dtype)  # type: ignore[method-assign]


def _without_autocast(forward: Callable[[Tensor], Tensor], dtype: torch.dtype, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return forward(x.to(dtype))
