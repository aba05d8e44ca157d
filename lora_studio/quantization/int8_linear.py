"""bitsandbytes' linear layer of 8 bits, with everything that it computes with where its weight is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bitsandbytes
from torch import Tensor


class MovableLinear8bit(bitsandbytes.nn.Linear8bitLt):  # type: ignore[misc]
    """For modules that are moved as a whole: `denoiser.to(device)` asks the layers in it to `_apply`.

    bitsandbytes multiplies with references to the weight and its scales that lie beside the weight before the
    first forward pass, and in `state` afterwards. torch gives the weight other memory where it moves it, and
    knows nothing of them: they would stay on the device that it left.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        scales = self.weight.SCB if self.state.SCB is None else self.state.SCB
        moved = super()._apply(fn, recurse)
        if scales is not None:  # None: this move is the one that quantises
            self.weight.CB, self.weight.SCB = self.weight.data, scales.to(self.weight.device)
            self.state.CB = self.state.SCB = None  # the next forward pass takes them from the weight
        return moved
