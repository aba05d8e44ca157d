"""A LoRA that is beside a base's layers while something else learns, and nowhere else.

A base that was distilled to a few steps loses that within some hundred steps of training. With a LoRA beside
it that undoes the distillation the steps of training have nothing to undo: what is learned works without it,
as ai-toolkit has it for Z-Image-Turbo and FLUX.1 schnell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DOWN, UP = "training_adapter_down", "training_adapter_up"


class LinearFactors(NamedTuple):
    """Of a linear layer's change, the scale in `up`."""

    down: Tensor  # [rank, in]
    up: Tensor  # [out, rank]


class TrainingAdapter:
    """Its factors lie in the layers, as buffers that no state has, and go where these go."""

    def __init__(self) -> None:
        self.is_on = False

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Within it outputs are changed; backward passes, which may compute them again, belong in it, too."""
        self.is_on = True
        try:
            yield
        finally:
            self.is_on = False

    def attach(self, part: nn.Module, factors: Mapping[str, LinearFactors], dtype: torch.dtype) -> None:
        """To the layers at these paths, and whatever was put around them since."""
        for path, (down, up) in factors.items():
            module = part.get_submodule(path)
            device = next(module.parameters()).device
            module.register_buffer(DOWN, down.to(device, dtype), persistent=False)
            module.register_buffer(UP, up.to(device, dtype), persistent=False)
            module.register_forward_hook(self._add)

    def _add(self, module: Any, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not self.is_on:
            return output
        down, up = getattr(module, DOWN), getattr(module, UP)
        return output + F.linear(F.linear(given[0].to(down.dtype), down), up).to(output.dtype)
