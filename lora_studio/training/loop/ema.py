"""The exponential mean of the adapters' tensors, which is shown, measured and exported in their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lora_studio.adapters.adapter_set import AdapterSet, check_fit, put_back


class Ema:
    """A mean of every trained tensor: of both factors of a layer, not of their product."""

    def __init__(self, adapters: AdapterSet, decay: float) -> None:
        self.decay = decay
        self._live = adapters.named_parameters()
        self._means = {key: tensor.detach().clone() for key, tensor in self._live.items()}

    @torch.no_grad()
    def update(self, updates: int, *, kept: Tensor | float = 1.0) -> None:
        """Take in the tensors as they are after so many updates; nothing if `kept` is 0 and not 1."""
        means: list[Tensor] = [*self._means.values()]
        live: list[Tensor] = [*self._live.values()]
        towards = torch._foreach_sub(live, means)
        share = torch.as_tensor(kept, dtype=torch.float32, device=means[0].device)
        torch._foreach_mul_(towards, share * (1 - decay_at(updates, self.decay)))
        torch._foreach_add_(means, towards)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it the adapters hold the mean; afterwards they are what they were, bit for bit."""
        with put_back(self._live.values()):
            with torch.no_grad():
                for key, tensor in self._live.items():
                    tensor.copy_(self._means[key])
            yield

    def state(self) -> dict[str, Tensor]:
        """Copies of the means by the adapters' canonical keys, float32 on the CPU."""
        return {key: tensor.float().cpu().clone() for key, tensor in self._means.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Put a `state()` back; raises CheckpointError when it is not of these adapters."""
        check_fit(self._means, state)
        for key, tensor in self._means.items():
            tensor.copy_(state[key])


def decay_at(updates: int, decay: float) -> float:
    """The decay of an update, counted from 1: small at first, so that the start is forgotten.

    As `num_updates` does in tf.train.ExponentialMovingAverage.
    """
    return min(decay, (1 + updates) / (10 + updates))
