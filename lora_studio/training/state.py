"""All that changes while a run trains: what a checkpoint holds and a resume puts back."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch

from lora_studio.adapters.base import AdapterSet
from lora_studio.training.ema import Ema


@dataclass
class Counters:
    """Counted from the first start of a run, not from the last resume."""

    step: int = 0  # the last one that is done
    updates: int = 0  # of the weights: fewer than steps if some were skipped
    skipped: int = 0
    skipped_in_a_row: int = 0

    def count(self, step: int, *, updated: bool) -> None:
        """One more step."""
        self.step = step
        self.updates += updated
        self.skipped += not updated
        self.skipped_in_a_row = 0 if updated else self.skipped_in_a_row + 1


@dataclass
class State:
    """Random numbers are keyed by the step, so there is no generator among it."""

    adapters: AdapterSet
    optimizer: torch.optim.Optimizer
    ema: Ema | None = None
    counters: Counters = field(default_factory=Counters)

    def update(self, step: int) -> None:
        """One optimizer step along the gradients that are there."""
        self.optimizer.step()
        self.counters.count(step, updated=True)
        if self.ema is not None:
            self.ema.update(self.counters.updates)

    def skip(self, step: int) -> None:
        """A step that leaves weights, optimizer and mean as they are."""
        self.counters.count(step, updated=False)

    def shown(self) -> AbstractContextManager[None]:
        """Within it the adapters are what previews, measurements and the exported file are made of."""
        return nullcontext() if self.ema is None else self.ema.applied()
