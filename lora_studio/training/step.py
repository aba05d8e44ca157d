"""What an optimizer step came to."""

from __future__ import annotations

import math
from typing import NamedTuple


class Step(NamedTuple):
    """What an optimizer step came to."""

    loss: float
    grad_norm: float
    scale: float = 1.0  # of the loss

    @property
    def finite(self) -> bool:
        """Whether it may reach the weights."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)

    @property
    def scaled_too_much(self) -> bool:
        """Whether gradients overflowed that a smaller scale would have kept finite: float16's daily business.

        A loss that is not finite itself, or a scale that is down to 1, is another matter.
        """
        return math.isfinite(self.loss) and not math.isfinite(self.grad_norm) and self.scale > 1

    def row(self, step: int, rate: float, seconds: float) -> dict[str, float | int | bool | None]:
        """A line of metrics.jsonl."""
        values: dict[str, float | int | bool | None] = {
            "step": step,
            "loss": self.loss if math.isfinite(self.loss) else None,  # JSON has no word for NaN
            "grad_norm": self.grad_norm if math.isfinite(self.grad_norm) else None,
            "learning_rate": rate,
            "seconds": round(seconds, 4),
        }
        if self.scaled_too_much:
            values["loss_scale"] = self.scale
        return values if self.finite else values | {"skipped": True}
