"""All tensors of a safetensors file at once, for those that are small."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from lora_studio.export.header import read_header


def open_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """By key, and what the file says about itself. Raises StudioError if it is not there or not whole."""
    header = read_header(path)
    return {key: header.tensor(key) for key in header.entries}, header.metadata
