"""All that changes while a run trains: what a checkpoint holds and a resume puts back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lora_studio.adapters.adapter_set import AdapterSet, put_back
from lora_studio.training.loop.ema import Ema


@dataclass
class Counters:
    """Counted from the first start of a run, not from the last resume."""

    step: int = 0  # the last one that is done
    updates: int = 0  # of the weights: fewer than steps if some were skipped
    skipped: int = 0
    skipped_in_a_row: int = 0  # without those that the loss's scale is to blame for
    passes: int = 1  # a micro-batch's rows are trained in so many; doubled when memory runs out

    def count(self, step: int, *, updated: bool, scaled: bool = False) -> None:
        """One more step; `scaled`: it was skipped because the loss was scaled too much."""
        self.step = step
        self.updates += updated
        self.skipped += not updated
        if not scaled:
            self.skipped_in_a_row = 0 if updated else self.skipped_in_a_row + 1


@dataclass
class State:
    """Random numbers are keyed by the step, so there is no generator among it."""

    adapters: AdapterSet
    optimizer: torch.optim.Optimizer
    ema: Ema | None = None
    scaler: torch.amp.GradScaler | None = None  # of float16's loss
    counters: Counters = field(default_factory=Counters)

    @property
    def skips_on_device(self) -> bool:
        """Whether the optimizer can leave a step out by itself, as torch's fused ones do."""
        return getattr(self.optimizer, "_step_supports_amp_scaling", False)

    def update(self, bad: Tensor) -> Tensor | None:
        """One optimizer step along the gradients that are there, none at all if `bad` [] is 1 and not 0.

        Where the optimizer cannot leave it out by itself, `bad` must be 0. The loss's scale is adapted.
        []: how many layers it made too large; None if they may have any size.
        """
        if self.skips_on_device:
            self.optimizer.found_inf = bad  # type: ignore[attr-defined]
        self.optimizer.step()
        limited = self.adapters.limit()
        self.adapters.pull_tokens(kept=1 - bad)
        if self.ema is not None:
            self.ema.update(self.counters.updates + 1, kept=1 - bad)
        self.adapt_scale()
        return limited

    def adapt_scale(self) -> None:
        """Halve the loss's scale after gradients that were not finite, or double it after many that were."""
        if self.scaler is not None:
            self.scaler.update()

    def scale(self, loss: Tensor) -> Tensor:
        """The loss, times a scale if float16's gradients would vanish without one."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def unscale(self) -> Tensor:
        """Divide the gradients by the loss's scale, which is 1 without one: [], float32, on the device."""
        if self.scaler is None:
            return torch.ones(())
        scale = self.scaler.scale(torch.ones((), device=self._device))
        self.scaler.unscale_(self.optimizer)
        return scale

    @property
    def _device(self) -> torch.device:
        return self.optimizer.param_groups[0]["params"][0].device

    def shown(self) -> AbstractContextManager[None]:
        """Within it the adapters are what previews, measurements and the exported file are made of."""
        if self.ema is not None:
            return self.ema.applied()
        return self._evaluating() if hasattr(self.optimizer, "eval") else nullcontext()

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """The optimizer's own mean; its way back through the mean would round."""
        with put_back(self.adapters.named_parameters().values()):
            self.optimizer.eval()  # type: ignore[attr-defined]
            try:
                yield
            finally:
                self.optimizer.train()  # type: ignore[attr-defined]
