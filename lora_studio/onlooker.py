"""The run folder as the processes beside the main one have it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lora_studio.run import Run


class Onlooker(Run):
    """Reads what is there and writes nothing: the main process does, perhaps on another machine."""

    def file(self, name: str, content: bytes) -> Path:
        """Where the main process writes it."""
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
        """Where the main process writes it."""
        return self._checkpoint_of(step)

    def remove_left_overs(self) -> None:
        """Nothing."""
