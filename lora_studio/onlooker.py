"""A run folder that nothing is written to: for a plan, and for the processes beside the main one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lora_studio.run import Run


class Onlooker(Run):
    """Reads what is there, says where everything would be, and leaves the disk as it is."""

    def file(self, name: str, content: bytes) -> Path:
        """Where it would be."""
        return self.folder / name

    def metric(self, values: Mapping[str, Any]) -> None:
        """Nothing."""

    def append(self, name: str, values: Mapping[str, Any]) -> None:
        """Nothing."""

    def forget_after(self, step: int, name: str = "metrics.jsonl") -> None:
        """Nothing."""

    def checkpoint(
        self, step: int, files: Mapping[str, bytes], *, keep: int, best: Collection[int] = ()
    ) -> Path:
        """Where it would be."""
        return self._checkpoint_of(step)

    def remove_left_overs(self) -> None:
        """Nothing."""
