"""How many of a denoiser's blocks wait in main memory: what that frees, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lora_studio.training.machine.offload import spread_evenly

BUS_GBS = (25.0, 6.0)  # PCIe 4.0 x16 and 3.0 x8, as far as pinned memory gets
HELD = 2  # blocks of those that wait are on the device at a time


@dataclass(frozen=True)
class Offloading:
    """Blocks of a denoiser in its own order, of which some wait in main memory."""

    sizes: Sequence[int] = field(repr=False)  # bytes of each block that can wait
    blocks: int  # that do

    @property
    def waiting(self) -> list[int]:
        """Bytes of each of these."""
        return spread_evenly(self.sizes, self.blocks)

    @property
    def freed(self) -> int:
        """Bytes that the device need not hold, at least."""
        return sum(sorted(self.waiting)[:-HELD])

    def copied(self, passes: int) -> int:
        """Bytes that go to the device for so many forward and backward passes, at most."""
        return 2 * passes * sum(self.waiting)
